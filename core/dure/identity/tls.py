"""Certificates: each member's own CA, its nodes' TLS certificates, and the coordinator's.

P-256 throughout (Ed25519 certificates fail in gRPC). A member CA is constrained to one SPIFFE host, *without* scheme: so OpenSSL and
BoringSSL read URI constraints (RFC 5280 §4.2.1.10). A node's certificate has exactly one name of any kind. Source: ledger.md §2.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dure.errors import BadInput, NotAuthorised

CA_DAYS = 3_650
NODE_DAYS = 30
"""Issued by the member CA directly for now; short-lived intermediates come later."""
COORDINATOR_DAYS = 365
RELEASE_SIGNER_DAYS = 1
"""Nothing is signed with it later."""
BACKDATE = timedelta(hours=1)
"""Clocks of different companies differ; a fresh certificate must not be \"not yet valid\" next door."""
_SPIFFE = re.compile(r"spiffe://(?P<host>[a-z0-9-]{1,32}\.[a-z0-9.-]{1,200})/node/(?P<node>[A-Za-z0-9._-]{1,64})")


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: str, issuer: x509.Name, key: EllipticCurvePublicKey, now: datetime, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(False, False, False, False, False, True, True, False, False)


def _leaf_usage() -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, False, False, False, False)


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def issue_member_ca(key: EllipticCurvePrivateKey, host: str, now: datetime) -> x509.Certificate:
    """A member's self-signed CA, good for names under `host` only."""
    return (
        _builder(f"{host} CA", _name(f"{host} CA"), key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_ca_usage(), critical=True)
        .add_extension(x509.NameConstraints([x509.UniformResourceIdentifier(host)], None), critical=True)
        .sign(key, SHA256())
    )


def issue_node_certificate(
    ca: x509.Certificate, ca_key: EllipticCurvePrivateKey, key: EllipticCurvePublicKey, host: str, node: str, now: datetime
) -> x509.Certificate:
    """A node's TLS certificate: one URI name, spiffe://<host>/node/<node>."""
    return (
        _leaf(ca, ca_key, key, f"{node}.{host}", now, NODE_DAYS, ExtendedKeyUsageOID.CLIENT_AUTH)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{host}/node/{node}")]), critical=False)
        .sign(ca_key, SHA256())
    )


def _leaf(
    ca: x509.Certificate,
    ca_key: EllipticCurvePrivateKey,
    key: EllipticCurvePublicKey,
    common: str,
    now: datetime,
    days: int,
    usage: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    return (
        _builder(common[:64], ca.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_leaf_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )


def issue_coordinator_ca(key: EllipticCurvePrivateKey, name: str, now: datetime) -> x509.Certificate:
    """The coordinator's self-signed CA; its fingerprint is in the charter."""
    return (
        _builder(f"{name} coordinator CA", _name(f"{name} coordinator CA"), key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_ca_usage(), critical=True)
        .sign(key, SHA256())
    )


def issue_new_with_old(new: x509.Certificate, old: x509.Certificate, old_key: EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """The new coordinator CA's key, certified by the CA it replaces: whoever trusts only that one still accepts what the new one issued.

    Source: RFC 4210 §4.4, "new with old". Names are the same, so it is self-issued and counts in no path length (RFC 5280 §4.2.1.9).
    """
    key = new.public_key()
    assert isinstance(key, EllipticCurvePublicKey)
    common = str(new.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    return (
        _builder(common, old.subject, key, now, max((old.not_valid_after_utc - now).days, 1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_ca_usage(), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(old_key.public_key()), critical=False)
        .sign(old_key, SHA256())
    )


def issue_coordinator_certificate(
    ca: x509.Certificate, ca_key: EllipticCurvePrivateKey, key: EllipticCurvePublicKey, hosts: list[str], now: datetime
) -> x509.Certificate:
    """The coordinator's server certificate for these host names and addresses."""
    return (
        _leaf(ca, ca_key, key, hosts[0], now, COORDINATOR_DAYS, ExtendedKeyUsageOID.SERVER_AUTH)
        .add_extension(x509.SubjectAlternativeName([_host_name(h) for h in hosts]), critical=False)
        .sign(ca_key, SHA256())
    )


def issue_release_ca(key: EllipticCurvePrivateKey, name: str, now: datetime) -> x509.Certificate:
    """The self-signed root of what signs releases, and of nothing else; the charter holds it."""
    return (
        _builder(f"{name} release CA", _name(f"{name} release CA"), key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_ca_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .sign(key, SHA256())
    )


def issue_release_signer(
    ca: x509.Certificate, ca_key: EllipticCurvePrivateKey, key: EllipticCurvePublicKey, name: str, now: datetime
) -> x509.Certificate:
    """A certificate for the one signature of one release; its key is thrown away afterwards.

    Verifiers look at the chain as of the day it begins, so it never begins before its root.
    """
    begins = max(now, ca.not_valid_before_utc + BACKDATE)
    return _leaf(ca, ca_key, key, f"release {name}", begins, RELEASE_SIGNER_DAYS, ExtendedKeyUsageOID.CODE_SIGNING).sign(ca_key, SHA256())


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def load_certificate(raw: bytes, what: str) -> x509.Certificate:
    """One PEM certificate.

    Raises:
        BadInput: names `what`.
    """
    try:
        return x509.load_pem_x509_certificate(raw)
    except ValueError:
        raise BadInput(f"{what}: not a PEM certificate") from None


def named_by(certificate: x509.Certificate) -> tuple[str, str]:
    """(host, node) of a node's certificate.

    Raises:
        NotAuthorised: it has not exactly one name, or the name is no node's SPIFFE id.
    """
    try:
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise NotAuthorised("certificate: has no readable subject alternative name") from None
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise NotAuthorised(f"certificate: must have exactly one name, a SPIFFE URI; has {len(names)}")
    found = _SPIFFE.fullmatch(names[0].value)
    if found is None:
        raise NotAuthorised("certificate: its name is not spiffe://<member>.<consortium>/node/<name>")
    return found["host"], found["node"]


def days_left(certificate: x509.Certificate, now: float) -> float:
    """Days until a certificate ends; negative once it has."""
    return (certificate.not_valid_after_utc - datetime.fromtimestamp(now, UTC)).total_seconds() / 86_400
