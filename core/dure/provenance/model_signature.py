"""`model.sig`: an OpenSSF Model Signing v1.0 bundle over every file of a folder, made and checked with `cryptography` alone.

The stock command accepts it offline:
`model_signing verify certificate DIR --signature DIR/model.sig --certificate_chain DIR/release-root.pem`.

Source: OpenSSF Model Signing specification 1.0 (predicate https://model_signing/signature/v1.0, `files` serialisation), Sigstore bundle
v0.3, DSSE v1.0.2. ECDSA P-256 with SHA-256.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from dure.errors import BadInput, Refused
from dure.provenance.errors import ExtraFiles, MissingFiles, NotSigned
from dure.statements.dsse import IN_TOTO, canonical_json, pae

SIGNATURE = "model.sig"
EVIDENCE = "evidence"
UNSIGNED = (EVIDENCE, SIGNATURE)
"""What comes after the signature: members' signatures and proofs, which are checked by themselves."""
PREDICATE = "https://model_signing/signature/v1.0"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT = "https://in-toto.io/Statement/v1"
MAX_BUNDLE_BYTES = 1 << 26
Progress = Callable[[str], None]
"""Called with a file's name before it is read."""


@dataclass(frozen=True)
class SignedFiles:
    """What a verified `model.sig` covers."""

    name: str
    files: Mapping[str, bytes]
    """Name relative to the folder, POSIX -> SHA-256."""
    payload_sha256: bytes
    """Of the signed payload: names every file and its content."""
    signer_sha256: bytes
    """Of the certificate that signed, DER."""


def file_names(folder: Path) -> list[str]:
    """Every file that a signature of this folder must cover, in bytewise order.

    Raises:
        BadInput: there is something that is no plain file or folder, or whose name is no text.
    """
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BadInput(f"{path}: is no plain file; a release has nothing else")
        if name.encode(errors="replace") != os.fsencode(name):
            raise BadInput(f"{path}: a file's name must be UTF-8; rename it, or do not use this copy")
        if path.is_file() and name.split("/")[0] not in UNSIGNED:
            found.append(name)
    return sorted(found, key=str.encode)


def digests_of(folder: Path, names: list[str], progress: Progress = lambda _name: None) -> dict[str, bytes]:
    """SHA-256 of each of these files, read once, memory O(chunk)."""
    found = {}
    for name in names:
        progress(name)
        with open(folder / name, "rb") as file:
            found[name] = file_digest(file, "sha256").digest()
    return found


def signed_payload(name: str, files: Mapping[str, bytes]) -> bytes:
    """The in-toto statement that is signed: one bytes for one folder."""
    resources = [{"algorithm": "sha256", "digest": files[f].hex(), "name": f} for f in sorted(files, key=str.encode)]
    whole = sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources)).hexdigest()
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(UNSIGNED)}
    return canonical_json(
        {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": whole}}],
            "predicateType": PREDICATE,
            "predicate": {"resources": resources, "serialization": serialization},
        }
    )


def sign_files(name: str, files: Mapping[str, bytes], key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> bytes:
    """The bundle over these files.

    Args:
        certificate: of `key`, issued by the root that verifiers have.
    """
    payload = signed_payload(name, files)
    signature = key.sign(pae(IN_TOTO, payload), ec.ECDSA(hashes.SHA256()))
    return _bundle(certificate, payload, signature)


def _bundle(certificate: x509.Certificate, payload: bytes, signature: bytes) -> bytes:
    der = certificate.public_bytes(Encoding.DER)
    return canonical_json(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"x509CertificateChain": {"certificates": [{"rawBytes": _text(der)}]}, "tlogEntries": []},
            "dsseEnvelope": {"payload": _text(payload), "payloadType": IN_TOTO, "signatures": [{"sig": _text(signature), "keyid": ""}]},
        }
    )


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def open_signature(raw: bytes, root: x509.Certificate) -> SignedFiles:
    """What a bundle covers, its signature and certificate checked.

    Raises:
        Refused: it is no bundle as `sign_files` makes them.
        NotSigned: by a certificate that `root` did not issue for signing, or the signature does not verify.
    """
    certificate, payload, signature = _parts(raw)
    key = _signer_key(certificate, root)
    try:
        key.verify(signature, pae(IN_TOTO, payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise NotSigned(f"{SIGNATURE}: its signature does not verify; it was changed after it was signed") from None
    name, files = _manifest(payload)
    der = certificate.public_bytes(Encoding.DER)
    return SignedFiles(name, files, sha256(payload).digest(), sha256(der).digest())


def _parts(raw: bytes) -> tuple[x509.Certificate, bytes, bytes]:
    if len(raw) > MAX_BUNDLE_BYTES:
        raise Refused(SIGNATURE, f"larger than {MAX_BUNDLE_BYTES} bytes")
    try:
        body = json.loads(raw)
        chain, envelope = body["verificationMaterial"]["x509CertificateChain"]["certificates"], body["dsseEnvelope"]
        der, payload, signature = (_raw(t) for t in (chain[0]["rawBytes"], envelope["payload"], envelope["signatures"][0]["sig"]))
        certificate = x509.load_der_x509_certificate(der)
        if _bundle(certificate, payload, signature) != raw:  # nothing in it that no check covers
            raise ValueError
        return certificate, payload, signature
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise Refused(SIGNATURE, "is not a model signature with one certificate and one signature") from None


def _raw(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)


def _signer_key(certificate: x509.Certificate, root: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The key in a certificate, if the release CA issued it for this and nothing else."""
    try:
        certificate.verify_directly_issued_by(root)
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise NotSigned(f"{SIGNATURE}: is not by a certificate of the release CA that the charter names") from None
    begins, ends = root.not_valid_before_utc, root.not_valid_after_utc
    key = certificate.public_key()
    if basic.ca or list(usage) != [ExtendedKeyUsageOID.CODE_SIGNING] or not begins <= certificate.not_valid_before_utc <= ends:
        raise NotSigned(f"{SIGNATURE}: its certificate may not sign releases")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise NotSigned(f"{SIGNATURE}: its certificate is not of a P-256 key")
    return key


def _manifest(payload: bytes) -> tuple[str, dict[str, bytes]]:
    try:
        body = json.loads(payload)
        name = str(body["subject"][0]["name"])
        files = {str(r["name"]): bytes.fromhex(r["digest"]) for r in body["predicate"]["resources"]}
        rebuilt = signed_payload(name, files)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, Refused):
        raise Refused(SIGNATURE, "does not list files as the `files` serialisation does") from None
    if rebuilt != payload:  # ignored paths, hash, order, duplicates: one comparison judges them all
        raise Refused(SIGNATURE, "lists files in another form than releases have: other ignored paths, another hash or order")
    return name, files


def check_names(signed: SignedFiles, folder: Path) -> None:
    """That the folder has the signed files and no other; nothing is read.

    Raises:
        MissingFiles, ExtraFiles: name them.
    """
    there = set(file_names(folder))
    if missing := sorted(signed.files.keys() - there):
        raise MissingFiles(f"{folder}: {_few(missing)} signed and not there; ask for the release again")
    if extra := sorted(there - signed.files.keys()):
        raise ExtraFiles(f"{folder}: {_few(extra)} there and not signed; remove it, or do not use this copy")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more are" if len(names) > 3 else " is" if len(names) == 1 else " are"
    return ", ".join(names[:3]) + more
