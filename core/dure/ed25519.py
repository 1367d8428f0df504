"""Ed25519 verification of statements, survivor sets and heads: the same code when they are taken in and when an auditor looks years later.

By libsodium (PyNaCl), which takes half the time of OpenSSL's here: an audit of a log is little else than this. Of the signatures that
RFC 8032 leaves to the implementation it refuses more (points of small order, non-canonical encodings); honest signers make none.
"""

from __future__ import annotations

from nacl.bindings import crypto_sign_open
from nacl.exceptions import CryptoError

PUBLIC_BYTES, SIGNATURE_BYTES = 32, 64


def verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of this key signed exactly this message. A key or signature of another length verifies nothing."""
    if len(public) != PUBLIC_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public)
    except CryptoError:
        return False
    return True
