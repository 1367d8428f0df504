"""The protocol's small change: TLV("SA1", label, fields…) signed by a node's Ed25519 key.

On the wire a message is TLV(payload, signature). Its hash is that of the payload. A payload starts with a TLV head,
a DSSE pre-authentication encoding with `DSSEv1`: neither can be passed off as the other under one key.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure import ed25519
from dure.secagg import tlv
from dure.secagg.errors import BadSignature, Malformed
from dure.secagg.kdf import PROTOCOL, digest_all
from dure.secagg.parse import Fields, fields

MAX_MESSAGE_BYTES = 1 << 18
"""The largest, a group or share message of 100 members, has some 30 kB."""


def signed(node_key: Ed25519PrivateKey, label: str, *parts: tlv.Value) -> bytes:
    payload = tlv.encode(PROTOCOL, label, *parts)
    return tlv.encode(payload, node_key.sign(payload))


def _parts(data: bytes, label: str) -> tuple[bytes, bytes]:
    outer = fields(data, label, max_bytes=MAX_MESSAGE_BYTES)
    payload, signature = outer.blob("payload"), outer.blob("signature", 64)
    outer.end()
    return payload, signature


def unverified(data: bytes, label: str) -> Fields:
    """The fields after label, the signature not looked at; for messages that were verified before."""
    payload, _ = _parts(data, label)
    part = fields(payload, label, max_bytes=MAX_MESSAGE_BYTES)
    if part.text("version") != PROTOCOL or part.text("label") != label:
        raise Malformed(label, f"is not a {PROTOCOL} message of that kind")
    return part


def verified(data: bytes, label: str, member: str, node_keys: Mapping[str, bytes]) -> Fields:
    """The fields after label of a message signed by this member's node."""
    part = unverified(data, label)
    payload, signature = _parts(data, label)
    check_signature(payload, signature, label, member, node_keys)
    return part


def check_signature(payload: bytes, signature: bytes, what: str, member: str, node_keys: Mapping[str, bytes]) -> None:
    """`BadSignature` unless the node of `member` signed exactly these bytes."""
    if not ed25519.verifies(node_keys.get(member, b""), signature, payload):
        raise BadSignature(member, what)


def message_hash(data: bytes, label: str) -> bytes:
    """SHA-256 of the payload."""
    return sha256(_parts(data, label)[0]).digest()


def hash_all(messages: Mapping[str, bytes], label: str) -> bytes:
    """H(all messages of a kind), in member order."""
    return digest_all([_parts(messages[m], label)[0] for m in sorted(messages, key=str.encode)])
