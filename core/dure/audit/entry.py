"""One entry of a log, read: its form judged, its digests taken. Whether its signer may say it, here and now, is `keys` and `history`."""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, cast

from dure.errors import Refused
from dure.statements.anykind import UnknownKind, kind_of
from dure.statements.dsse import IN_TOTO, MAX_ENVELOPE_BYTES, Envelope, pae
from dure.statements.flat import fact_of, read_flat
from dure.statements.kinds import KINDS
from dure.statements.statement import SeenHead, read_payload, read_place

_HEAD, _HEX = b'{"payload":"', re.compile(rb"[0-9a-f]{64}")
_BEFORE_KEY, _BEFORE_SIGNATURE, _END = f'","payloadType":"{IN_TOTO}","signatures":[{{"keyid":"'.encode(), b'","sig":"', b'"}]}'
_END_AT, _SIGNATURE_AT = -len(_END), -len(_END) - 88
_KEY_AT = _SIGNATURE_AT - len(_BEFORE_SIGNATURE) - 64
_PAYLOAD_ENDS = _KEY_AT - len(_BEFORE_KEY)


@dataclass(slots=True)
class Entry:
    """A statement and its place in its signer's chain."""

    kind: str
    """"" for one that this version does not know; `unknown` says which."""
    content: Any
    """The fact, or its fields' values in order; see `fact`."""
    key_id: str
    seq: int
    prev: bytes | None
    time: int
    seen: SeenHead | None
    """The head of the log that its signer names."""
    payload_sha256: bytes
    sha256: bytes
    """Of the envelope: `prev` of the signer's next statement."""
    signature: bytes
    message: bytes
    """What is signed; empty once `verified_by` says by whom."""
    verified_by: bytes = b""
    """The key under which the signature verified; the key's id is `key_id`."""
    certified_by: tuple[tuple[str, bytes], ...] = ()
    """instance-survivors: (member, node key) whose signatures in its certificate verified over exactly this set."""
    unknown: str = ""

    def packed(self) -> tuple[object, ...]:
        """All fields in order: a plain tuple goes between processes in a third of the time."""
        return (
            self.kind,
            self.content,
            self.key_id,
            self.seq,
            self.prev,
            self.time,
            self.seen,
            self.payload_sha256,
            self.sha256,
            self.signature,
            self.message,
            self.verified_by,
            self.certified_by,
            self.unknown,
        )

    @property
    def fact(self) -> Any:
        """The statement's dataclass; made anew at each look where `content` is values."""
        return fact_of(self.kind, self.content) if type(self.content) is tuple else self.content


def read_entry(raw: bytes) -> Entry:
    """The statement in an entry; no signature is verified here.

    Raises:
        Refused: out of form; names the field.
    """
    payload, key_id, signature = _opened(raw)
    digests = sha256(payload).digest(), sha256(raw).digest()
    message = pae(IN_TOTO, payload)
    heard = read_flat(payload)
    if heard is not None:
        return Entry(heard.kind, heard.values, key_id, heard.seq, heard.prev, heard.time, heard.seen, *digests, signature, message)
    try:
        kind = kind_of(payload)
    except UnknownKind as unknown:
        return Entry("", None, key_id, *read_place(payload), *digests, signature, message, unknown=str(unknown))
    fact, place = read_payload(payload, cast(type[Any], KINDS[kind]))
    return Entry(kind, fact, key_id, *place, *digests, signature, message)


def _opened(raw: bytes) -> tuple[bytes, str, bytes]:
    """(payload, key id, signature) of an envelope with the one signature that an entry has."""
    parts = raw[_PAYLOAD_ENDS:_KEY_AT], raw[_KEY_AT + 64 : _SIGNATURE_AT], raw[_END_AT:]
    if parts == (_BEFORE_KEY, _BEFORE_SIGNATURE, _END) and raw.startswith(_HEAD) and len(raw) <= MAX_ENVELOPE_BYTES:
        payload, signature = _decoded(raw[len(_HEAD) : _PAYLOAD_ENDS]), _decoded(raw[_SIGNATURE_AT:_END_AT])
        key = _key_id(raw[_KEY_AT : _KEY_AT + 64])
        if payload and len(signature) == 64 and key:
            return payload, key, signature
    envelope = Envelope.from_bytes(raw)
    if len(envelope.signatures) != 1:
        raise Refused("signatures", "an entry has exactly one")
    if envelope.payload_type != IN_TOTO:
        raise Refused("payloadType", f"must be {IN_TOTO}")
    return envelope.payload, *envelope.signatures[0]


@lru_cache(maxsize=4096)
def _key_id(text: bytes) -> str:
    """Empty where it is not 64 lower-case hex digits."""
    return text.decode() if _HEX.fullmatch(text) else ""


def _decoded(text: bytes) -> bytes:
    """What a base64 text says; empty where it is not the one text of that.

    Letters of the alphabet only, as many as so many bytes need: then but the last four can be written in another way.
    """
    try:
        said = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return b""
    last = binascii.b2a_base64(said[-(len(said) % 3 or 3) :], newline=False)
    return said if len(text) == (len(said) + 2) // 3 * 4 and text.endswith(last) else b""
