"""Signed notes: a text and who signed it, one line each. Source: c2sp.org/signed-note."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure import ed25519
from dure.errors import Refused
from dure.times import LATEST_S

ED25519 = 0x01
"""Signature type of a log's own key."""
COSIGNATURE_V1 = 0x04
"""Signature type of a witness: a time and an Ed25519 signature (c2sp.org/tlog-cosignature)."""
MAX_NOTE_BYTES = 1 << 20
MAX_SIGNATURES = 300
"""At least 16 must be accepted; a consortium has up to 255 witnesses, the log and a few strangers."""
_LINE = re.compile(r"— ([^\s+]{1,255}) ([A-Za-z0-9+/]+={0,2})")


class NoteRefused(Refused):
    """A note is out of form, or a signature of a known key does not verify."""


@dataclass(frozen=True)
class NoteKey:
    """A name and a key that may sign notes; equality is equality of all three."""

    name: str
    kind: int
    public: bytes
    """32 bytes, Ed25519."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^\s+]{1,255}", self.name) or self.kind not in (ED25519, COSIGNATURE_V1) or len(self.public) != 32:
            raise NoteRefused("key", "must be a name without spaces and plus, a known type and 32 bytes")

    @property
    def id(self) -> bytes:
        """Four bytes that, with the name, say which key signed."""
        return sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    def vkey(self) -> str:
        """The key as text, as Go's x/mod/sumdb/note reads it."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([self.kind]) + self.public).decode()}"

    @staticmethod
    def parse(vkey: str) -> NoteKey:
        """Raises NoteRefused: not a vkey, of an unknown type, or its id is not its key's."""
        parts = vkey.split("+", 2)
        if len(parts) != 3:
            raise NoteRefused("vkey", "must be name+id+key")
        raw = decode_base64(parts[2], "vkey")
        if len(raw) != 33:
            raise NoteRefused("vkey", "must hold a type and 32 bytes")
        key = NoteKey(parts[0], raw[0], raw[1:])
        if key.id.hex() != parts[1]:
            raise NoteRefused("vkey", "has an id that is not its key's")
        return key

    def verify(self, text: bytes, signature: bytes) -> int:
        """Checks a signature over a note's text; returns the time it names, 0 where the type has none.

        Raises:
            NoteRefused: it does not verify.
        """
        time, message = 0, text
        if self.kind == COSIGNATURE_V1:
            time, signature = int.from_bytes(signature[:8], "big"), signature[8:]
            message = cosigned(text, time)
        if time > LATEST_S or not ed25519.verifies(self.public, signature, message):
            raise NoteRefused("signature", f"of {self.name} does not verify")
        return time


def cosigned(text: bytes, time: int) -> bytes:
    """The bytes a witness signs (tlog-cosignature, "Ed25519 signed message")."""
    return b"cosignature/v1\ntime %d\n" % time + text


@dataclass(frozen=True)
class SignatureLine:
    name: str
    key_id: bytes
    signature: bytes

    def line(self) -> str:
        return f"— {self.name} {base64.b64encode(self.key_id + self.signature).decode()}\n"

    @staticmethod
    def parse(line: str) -> SignatureLine:
        """Raises NoteRefused: not a signature line."""
        found = _LINE.fullmatch(line)
        raw = decode_base64(found[2], "signature") if found else b""
        if found is None or len(raw) < 5:
            raise NoteRefused("signature", "is not a signature line")
        return SignatureLine(found[1], raw[:4], raw[4:])


@dataclass(frozen=True)
class Note:
    """A text, ending in a newline, and its signature lines; nothing is verified by parsing."""

    text: bytes
    signatures: tuple[SignatureLine, ...]

    def to_bytes(self) -> bytes:
        return self.text + b"\n" + "".join(s.line() for s in self.signatures).encode()

    @staticmethod
    def from_bytes(raw: bytes) -> Note:
        """Raises NoteRefused: out of form (naming what), too large, or without a signature line."""
        if len(raw) > MAX_NOTE_BYTES:
            raise NoteRefused("note", f"is larger than {MAX_NOTE_BYTES} bytes")
        try:
            whole = raw.decode()
        except UnicodeDecodeError:
            raise NoteRefused("note", "is not UTF-8") from None
        if any(c < " " and c != "\n" for c in whole):
            raise NoteRefused("note", "has control characters")
        text, gap, tail = whole.rpartition("\n\n")
        lines = tail.split("\n")
        if not gap or lines.pop() != "" or not lines:
            raise NoteRefused("note", "has no signature lines after a blank line")
        if len(lines) > MAX_SIGNATURES:
            raise NoteRefused("note", f"has over {MAX_SIGNATURES} signatures")
        return Note((text + "\n").encode(), tuple(SignatureLine.parse(line) for line in lines))

    def verify(self, keys: Iterable[NoteKey]) -> dict[NoteKey, int]:
        """Which of the keys signed, and when (0 where the type has no time). Unknown keys are ignored.

        Raises:
            NoteRefused: a line of a known key does not verify: the whole note is refused. (A key may cosign again later: the earliest
                of its valid times counts.)
        """
        known = {(key.name, key.id): key for key in keys}
        found: dict[NoteKey, int] = {}
        for line in self.signatures:
            key = known.get((line.name, line.key_id))
            if key is not None:
                time = key.verify(self.text, line.signature)
                found[key] = min(time, found.get(key, time))
        return found

    def with_signatures(self, lines: Iterable[SignatureLine]) -> Note:
        """The note with further lines; one that is there already is not added again."""
        return Note(self.text, (*self.signatures, *(s for s in dict.fromkeys(lines) if s not in self.signatures)))


def sign(text: bytes, name: str, key: Ed25519PrivateKey) -> SignatureLine:
    """A log's signature (type 0x01)."""
    public = key.public_key().public_bytes_raw()
    return SignatureLine(name, NoteKey(name, ED25519, public).id, key.sign(text))


def cosign(text: bytes, name: str, key: Ed25519PrivateKey, time: int) -> SignatureLine:
    """A witness's cosignature (type 0x04) at unix seconds `time`."""
    public = key.public_key().public_bytes_raw()
    signature = time.to_bytes(8, "big") + key.sign(cosigned(text, time))
    return SignatureLine(name, NoteKey(name, COSIGNATURE_V1, public).id, signature)


def decode_base64(text: str, field: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteRefused(field, "is not base64") from None
    if base64.b64encode(raw).decode() != text:
        raise NoteRefused(field, "is not the one base64 of its bytes")
    return raw
