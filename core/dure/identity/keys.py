"""Ed25519 key files and fingerprints. Private keys are written once, 0600, and never leave the machine they were made on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.errors import BadInput, Conflict
from dure.identity.words import WORDS

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey


def write_private(path: Path, data: bytes) -> None:
    """Write a secret file that only its owner reads; never over an existing one.

    Raises:
        Conflict: something stands there; replacing keys is a decision, not an accident.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Conflict(f"{path} exists already; choose another --dir, or move it away if its keys are really to be replaced") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # half a key is none
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def new_signing_key(path: Path) -> Ed25519PrivateKey:
    """A fresh Ed25519 key, stored at `path`."""
    key = Ed25519PrivateKey.generate()
    write_private(path, private_pem(key))
    return key


def new_tls_key(path: Path) -> EllipticCurvePrivateKey:
    """A fresh P-256 key, stored at `path`. (Ed25519 certificates fail in gRPC.)"""
    key = generate_private_key(SECP256R1())
    write_private(path, private_pem(key))
    return key


def private_pem(key: PrivateKey) -> bytes:
    """PKCS 8, unencrypted: the file's mode and the disk guard it."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 key at `path`.

    Raises:
        BadInput: absent, unreadable, or open to others than its owner.
    """
    key = _load(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{path}: not an Ed25519 private key")
    return key


def load_tls_key(path: Path) -> EllipticCurvePrivateKey:
    """The P-256 key at `path`; raises as `load_signing_key`."""
    key = _load(path)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise BadInput(f"{path}: not a P-256 private key")
    return key


def read_private(path: Path) -> bytes:
    """A secret file's bytes.

    Raises:
        BadInput: absent, unreadable, or open to others than its owner.
    """
    try:
        mode = path.stat().st_mode & 0o077
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path} is not there; is --dir right?") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    if mode:
        raise BadInput(f"{path} is open to others; `chmod 600 {path}`, and consider the key known")
    return raw


def _load(path: Path) -> object:
    try:
        return serialization.load_pem_private_key(read_private(path), password=None)
    except (ValueError, TypeError):
        raise BadInput(f"{path}: not a private key in PEM form") from None


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 raw bytes of the public half."""
    return key.public_key().public_bytes_raw()


def fingerprint(data: bytes) -> bytes:
    """SHA-256: what two people compare over a second channel."""
    return hashlib.sha256(data).digest()


def words(digest: bytes, count: int = 8) -> str:
    """The first `count` bytes of a digest as words, for the telephone; the hex has the rest."""
    return " ".join(WORDS[byte] for byte in digest[:count])
