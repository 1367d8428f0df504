"""DSSE envelopes: the bytes that were signed, kept verbatim.

Source: DSSE v1.0.2, "PAE" (github.com/secure-systems-lab/dsse). The payload is signed as sent and never re-serialised.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure import ed25519
from dure.errors import Refused

IN_TOTO = "application/vnd.in-toto+json"
MAX_ENVELOPE_BYTES = 32 * 1024
"""Largest log entry (ledger.md §1); larger things are blobs named by digest."""
MAX_SIGNATURES = 255


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes an Ed25519 signature covers."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def key_id(public_key: bytes) -> str:
    """A key's name in an envelope: hex SHA-256 of its 32 raw bytes."""
    return hashlib.sha256(public_key).hexdigest()


@dataclass(frozen=True)
class Envelope:
    """A payload and who signed it. Equality is equality of content; `to_bytes` is the one encoding."""

    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]
    """(key id, 64-byte Ed25519 signature)."""
    payload_type: str = IN_TOTO

    @property
    def payload_sha256(self) -> bytes:
        return hashlib.sha256(self.payload).digest()

    @property
    def sha256(self) -> bytes:
        """Digest of the envelope's bytes; `prev` of the signer's next statement."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": self.payload_type,
                "signatures": [{"keyid": k, "sig": base64.b64encode(s).decode()} for k, s in self.signatures],
            }
        )

    @staticmethod
    def from_bytes(raw: bytes, *, max_bytes: int = MAX_ENVELOPE_BYTES) -> Envelope:
        """Parse one envelope, strictly: the canonical encoding and nothing else.

        Raises:
            Refused: names the field.
        """
        if len(raw) > max_bytes:
            raise Refused("envelope", f"larger than {max_bytes} bytes")
        body = parse_canonical("envelope", raw)
        if not isinstance(body, dict) or set(body) != {"payload", "payloadType", "signatures"}:
            raise Refused("envelope", "must have payload, payloadType and signatures")
        entries = body["signatures"]
        if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_SIGNATURES:
            raise Refused("signatures", f"must be 1 to {MAX_SIGNATURES}")
        signatures = []
        for entry in entries:
            if not isinstance(entry, dict) or set(entry) != {"keyid", "sig"} or not isinstance(entry["keyid"], str):
                raise Refused("signatures", "each needs keyid and sig")
            signatures.append((entry["keyid"], _base64("sig", entry["sig"])))
        if not isinstance(body["payloadType"], str):
            raise Refused("payloadType", "must be a string")
        return Envelope(_base64("payload", body["payload"]), tuple(signatures), body["payloadType"])

    def signed_by(self, public_keys: Iterable[bytes]) -> frozenset[bytes]:
        """Which of these 32-byte Ed25519 keys signed this. A bad signature under a known key id is refused, not skipped.

        Raises:
            Refused: a signature claims one of the keys and does not verify.
        """
        known = {key_id(k): k for k in public_keys}
        message = pae(self.payload_type, self.payload)
        found = set()
        for name, signature in self.signatures:
            if (key := known.get(name)) is None:
                continue
            if not ed25519.verifies(key, signature, message):
                raise Refused("signatures", f"the signature of key {name[:16]} does not verify")
            found.add(key)
        return frozenset(found)


def seal_payload(payload: bytes, *keys: Ed25519PrivateKey, payload_type: str = IN_TOTO) -> Envelope:
    """Sign a payload with one or more keys."""
    message = pae(payload_type, payload)
    return Envelope(payload, tuple((key_id(k.public_key().public_bytes_raw()), k.sign(message)) for k in keys), payload_type)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class _Float(Exception):
    """A number that is no integer."""


def _no_float(_text: str) -> None:
    raise _Float


_DECODER = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_float)


def canonical_json(value: object) -> bytes:
    """UTF-8, sorted keys, compact; floats are refused since their text is not unique.

    Raises:
        Refused: a float is in it, or text that has no UTF-8 (a lone surrogate, which a JSON escape can write).
    """
    _no_floats(value)
    try:
        return _ENCODER.encode(value).encode()
    except UnicodeEncodeError:
        raise Refused("json", "holds text that is not Unicode") from None


def encode_parsed(value: object) -> bytes:
    """As `canonical_json`, of what `parse_canonical` gave: it holds no floats."""
    return _ENCODER.encode(value).encode()


def parse_canonical(field: str, raw: bytes) -> Any:
    """What a canonical JSON text says. No other text of it is taken: a key given twice reads differently elsewhere.

    Raises:
        Refused: names `field`; not JSON, or not the canonical text of what it says.
    """
    try:
        parsed = _DECODER.decode(raw.decode())
        canonical = encode_parsed(parsed)
    except (_Float, UnicodeEncodeError):
        canonical = b""
    except (ValueError, RecursionError):
        raise Refused(field, "is not JSON") from None
    if canonical != raw:
        raise Refused(field, "is not in the canonical encoding")
    return parsed


def check_canonical(field: str, parsed: object, raw: bytes) -> None:
    """As `parse_canonical`, for what was parsed already. Raises Refused, naming `field`."""
    try:
        canonical = canonical_json(parsed)
    except (Refused, RecursionError):
        canonical = b""
    if canonical != raw:
        raise Refused(field, "is not in the canonical encoding")


def _no_floats(value: object) -> None:
    if isinstance(value, float):
        raise Refused("json", "floats have no canonical text; write decimals as strings")
    if isinstance(value, dict):
        for item in value.values():
            _no_floats(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _no_floats(item)


def _base64(field: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise Refused(field, "must be base64 text")
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise Refused(field, "is not base64") from None
    if binascii.b2a_base64(raw, newline=False) != text.encode():
        raise Refused(field, "is not the one base64 of its bytes")
    return raw
