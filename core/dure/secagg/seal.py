"""Sealing under single-use keys: AES-256-GCM whose key is derived for one message, so that a zero nonce is safe."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dure.secagg import tlv
from dure.secagg.kdf import PROTOCOL, digest

SEAL_BYTES = 16
"""What sealing adds to the length."""
_NONCE = bytes(12)


def seal(key: bytes, plain: bytes, *associated: tlv.Value) -> bytes:
    """`key` never seals anything else."""
    return AESGCM(key).encrypt(_NONCE, plain, tlv.encode(PROTOCOL, *associated))


def unseal(key: bytes, sealed: bytes, *associated: tlv.Value) -> bytes | None:
    """The plain text, or None if it does not open."""
    try:
        return AESGCM(key).decrypt(_NONCE, sealed, tlv.encode(PROTOCOL, *associated))
    except (InvalidTag, ValueError):
        return None


def commit_key(key: bytes) -> bytes:
    """What the author of a sealed message signs beside it: publishing a key convicts only if it is this one.

    Without it an accuser could publish any key and frame an honest author, for GCM does not commit to its key.
    """
    return digest("commit/key", key)
