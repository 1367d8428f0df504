"""Key derivation and hashing with labels: HKDF-SHA256 (RFC 5869) whose info is injective, so no two uses share a key."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dure.secagg import tlv

PROTOCOL = "SA1"


def hkdf(secret: bytes, label: str, *context: tlv.Value, salt: bytes = b"", length: int = 32) -> bytes:
    """`length` bytes from HKDF-SHA256 with info = TLV("SA1", label, context…)."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt or None, info=tlv.encode(PROTOCOL, label, *context)).derive(secret)


def digest(label: str, *parts: tlv.Value) -> bytes:
    """SHA-256 of TLV("SA1", label, parts…)."""
    return hashlib.sha256(tlv.encode(PROTOCOL, label, *parts)).digest()


def digest_all(messages: list[bytes]) -> bytes:
    """The hash of many messages: SHA-256 over the TLV of their SHA-256, in the order given (member order)."""
    return hashlib.sha256(tlv.encode(*(hashlib.sha256(m).digest() for m in messages))).digest()
