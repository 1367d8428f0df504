"""Who may call the members' port: the charter as the port uses it, and what a certificate says of its holder. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from dure.errors import NotAuthorised
from dure.identity.tls import BACKDATE, named_by
from dure.statements.kinds import NodeRevocation


@dataclass(frozen=True)
class Member:
    """What the port needs of one charter member."""

    member: str
    host: str
    """SPIFFE host, unique in the charter."""
    ca_pem: bytes
    signing_key: bytes
    """32 bytes, Ed25519; delegates to node keys."""


@dataclass(frozen=True)
class Roster:
    """The charter in force, as the port uses it."""

    consortium: bytes
    version: int
    digest: bytes
    roots: tuple[bytes, ...]
    """Every version's signed file, 1 first, for a node that walks them."""
    members: Mapping[str, Member]
    digests: frozenset[bytes]
    """Of every version: a node that has another one is of another consortium."""
    revoked: tuple[NodeRevocation, ...] = ()
    """Every one in the log: the denylist."""
    former_cas: tuple[bytes, ...] = ()
    """CAs of earlier versions, PEM: whoever was removed passes TLS and is told why it passes no further."""

    def revoked_generation(self, member: str) -> int:
        """The highest one this member revoked; 0 for none."""
        return max((r.generation for r in self.revoked if r.member == member), default=0)

    def by_host(self, host: str) -> Member | None:
        return next((m for m in self.members.values() if m.host == host), None)

    def anchors(self) -> bytes:
        """TLS trust anchors, PEM: all member CAs, and former ones."""
        return b"\n".join(sorted({*(m.ca_pem for m in self.members.values()), *self.former_cas}))


@dataclass(frozen=True)
class Caller:
    """Who calls: charter member and node name from the certificate, checked against the charter."""

    member: str
    node: str


@dataclass(frozen=True)
class Papers:
    """What a certificate says under one charter, and when it says so."""

    caller: Caller
    not_before: datetime
    not_after: datetime


def judge(pem: bytes | None, roster: Roster, now: float) -> Caller:
    """Who the holder of this certificate is, by the charter.

    Raises:
        NotAuthorised: says which of the conditions does not hold.
    """
    return in_time(read_papers(pem, roster), now)


def in_time(papers: Papers, now: float) -> Caller:
    """The caller, if its certificate is valid now; else `NotAuthorised`."""
    if not papers.not_before <= datetime.fromtimestamp(now, UTC) <= papers.not_after:
        raise NotAuthorised("certificate: not valid at this time; renew it, or check this machine's clock")
    return papers.caller


def read_papers(pem: bytes | None, roster: Roster) -> Papers:
    """All of `judge` that does not change with time; the same certificate and roster give the same."""
    if not pem:
        raise NotAuthorised("no client certificate; a node calls with the TLS certificate its member issued")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise NotAuthorised("certificate: is not PEM") from None
    host, node = named_by(certificate)
    member = roster.by_host(host)
    if member is None:
        raise NotAuthorised(f"{host} is no member of charter version {roster.version}")
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(member.ca_pem))
    except (ValueError, TypeError, InvalidSignature):
        raise NotAuthorised(f"certificate: names {host} and was not issued by that member's CA") from None
    caller, issued = Caller(member.member, node), certificate.not_valid_before_utc + BACKDATE
    for word in roster.revoked:
        if (word.member, word.node) == (caller.member, caller.node) and issued.timestamp() < word.certificates_before:
            raise NotAuthorised(f"node {caller.node} was revoked by {caller.member}{': ' if word.reason else ''}{word.reason}")
    return Papers(caller, certificate.not_valid_before_utc, certificate.not_valid_after_utc)
