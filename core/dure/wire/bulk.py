"""Frames of the bulk streams: a fixed header and a payload in one bytes object, judged here before anyone uses them.

`/dure.v1.Bulk/Pull`: one `pull` frame up; down come `manifest` frames (if asked for), `chunk` frames in order, `done`;
or, at any point, `refuse`. `/dure.v1.Bulk/Push`: up `resume`, down `resume` with the next chunk wanted; up `chunk` frames
in order, then `commit`; down `done` or, at any point, `refuse`. docs/spec/formats.md, "Bulk frames".

gRPC gets identity (de)serialisers: with protobuf's the same stream moves half as many bytes (architecture.md).
Every refusal is a `WireRefused` that names the field.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from dure.blobs import LEAF_BYTES, MAX_BLOB_BYTES, MAX_CHUNK_BYTES, MAX_CHUNKS, MAX_MANIFEST_BYTES, BlobId
from dure.wire.control import WireRefused

SERVICE = "dure.v1.Bulk"
PULL_METHOD = f"/{SERVICE}/Pull"
PUSH_METHOD = f"/{SERVICE}/Push"

VERSION = 1
ID_BYTES = 32
HEADER = struct.Struct("<BBH32sQI")
"""version, kind, zero, id, chunk, payload length: 48 bytes, so that the payload stays aligned for numpy."""
MANIFEST_PART_BYTES = 1 << 20
MAX_MANIFEST_PARTS = -(-MAX_MANIFEST_BYTES // MANIFEST_PART_BYTES)
MAX_COMMIT_BYTES = 256 * 1024
MAX_REFUSAL_BYTES = 2048
MAX_PAYLOAD_BYTES = MAX_CHUNK_BYTES + LEAF_BYTES
MAX_FRAME_BYTES = HEADER.size + MAX_PAYLOAD_BYTES
"""Fits gRPC's default message limit of 4 MiB."""

_PULL = struct.Struct("<QQB")
_REFUSAL_HEAD = struct.Struct("<BB")


class FrameKind(IntEnum):
    PULL = 1  # id: blob root; chunk: first wanted; payload: `PullRequest`
    MANIFEST = 2  # id: blob root; chunk: number of this part; payload: that MiB of the encoded manifest
    CHUNK = 3  # Pull: payload is the chunk. Push: its leaf (32 bytes), then the chunk
    RESUME = 4  # id: upload; chunk: up 0, down the next chunk wanted; no payload
    COMMIT = 5  # id: upload; chunk: number of chunks; payload: the signed commit, opaque here
    DONE = 6  # Pull: no payload. Push: the answer to the commit, opaque here
    REFUSE = 7  # payload: `Refusal`


_MAX_PAYLOAD = {
    FrameKind.PULL: _PULL.size,
    FrameKind.MANIFEST: MANIFEST_PART_BYTES,
    FrameKind.CHUNK: MAX_PAYLOAD_BYTES,
    FrameKind.RESUME: 0,
    FrameKind.COMMIT: MAX_COMMIT_BYTES,
    FrameKind.DONE: MAX_COMMIT_BYTES,
    FrameKind.REFUSE: MAX_REFUSAL_BYTES,
}


@dataclass(frozen=True)
class Frame:
    """One frame, judged on its own; what its place in a stream demands is `expect`'s."""

    kind: FrameKind
    id: bytes
    chunk: int
    payload: memoryview
    """A view of the received bytes; they live as long as it does."""


def encode_frame(kind: FrameKind, id: bytes, chunk: int = 0, *payload: bytes | bytearray | memoryview) -> bytes:
    """One frame; the payload may come in parts and is copied once."""
    length = sum(len(p) for p in payload)
    assert len(id) == ID_BYTES and length <= _MAX_PAYLOAD[kind], (kind, length)
    return b"".join((HEADER.pack(VERSION, kind, 0, id, chunk, length), *payload))


def decode_frame(data: bytes) -> Frame:
    """The frame in these bytes; `WireRefused` naming the field that is out of range."""
    if len(data) > MAX_FRAME_BYTES:
        raise WireRefused("frame", f"at most {MAX_FRAME_BYTES} bytes, has {len(data)}")
    if len(data) < HEADER.size:
        raise WireRefused("frame", f"at least {HEADER.size} bytes, has {len(data)}")
    version, kind_number, zero, id, chunk, length = HEADER.unpack_from(data)
    if version != VERSION:
        side = "the other side" if version < VERSION else "this side"
        raise WireRefused("version", f"is {version}, this side speaks {VERSION}; {side} must be upgraded")
    try:
        kind = FrameKind(kind_number)
    except ValueError:
        raise WireRefused("kind", f"{kind_number} is none of {[k.name.lower() for k in FrameKind]}") from None
    if zero:
        raise WireRefused("reserved", "must be zero")
    if chunk > MAX_CHUNKS:
        raise WireRefused("chunk", f"at most {MAX_CHUNKS}, is {chunk}")
    if length > _MAX_PAYLOAD[kind]:
        raise WireRefused("payload length", f"at most {_MAX_PAYLOAD[kind]} in {kind.name.lower()}, is {length}")
    if length != len(data) - HEADER.size:
        raise WireRefused("payload length", f"says {length}, {len(data) - HEADER.size} bytes came")
    return Frame(kind, id, chunk, memoryview(data)[HEADER.size :])


def expect(frame: Frame, *kinds: FrameKind, id: bytes, chunk: int | None = None) -> Frame:
    """The same frame, if it may stand here; `WireRefused` for another kind, stream or place in the order."""
    if frame.kind not in kinds:
        raise WireRefused("kind", f"is {frame.kind.name.lower()}, expected {' or '.join(k.name.lower() for k in kinds)}")
    if frame.id != id:
        raise WireRefused("id", f"is {frame.id.hex()[:16]}…, this stream is {id.hex()[:16]}…")
    if chunk is not None and frame.chunk != chunk:
        raise WireRefused("chunk", f"is {frame.chunk}, expected {chunk}: chunks come in order, each once")
    return frame


@dataclass(frozen=True)
class PullRequest:
    """Which chunks of which blob: `count` of them from `first`; 0 means to the end."""

    blob: BlobId
    first: int = 0
    count: int = 0
    manifest: bool = False
    """Send the manifest first."""

    def encode(self) -> bytes:
        payload = _PULL.pack(self.blob.length, self.count, self.manifest)
        return encode_frame(FrameKind.PULL, self.blob.root, self.first, payload)

    @classmethod
    def decode(cls, data: bytes) -> PullRequest:
        frame = decode_frame(data)
        expect(frame, FrameKind.PULL, id=frame.id)
        if len(frame.payload) != _PULL.size:
            raise WireRefused("payload length", f"must be {_PULL.size} in pull, is {len(frame.payload)}")
        length, count, flags = _PULL.unpack(frame.payload)
        if length > MAX_BLOB_BYTES:
            raise WireRefused("length", f"at most {MAX_BLOB_BYTES}, is {length}")
        if count > MAX_CHUNKS:
            raise WireRefused("count", f"at most {MAX_CHUNKS}, is {count}")
        if flags > 1:
            raise WireRefused("flags", f"must be 0 or 1, is {flags}")
        return cls(BlobId(frame.id, length), frame.chunk, count, bool(flags))


@dataclass(frozen=True)
class Refusal:
    """Why a stream ended early. `again`: the same request may succeed later (busy, no space)."""

    field: str
    why: str
    again: bool = False

    def encode(self, id: bytes) -> bytes:
        field = _printable(self.field).encode()[:100]
        why = _printable(self.why).encode()[: MAX_REFUSAL_BYTES - 110]
        # Cutting may halve a character; the reader must still get UTF-8.
        field, why = field.decode(errors="ignore").encode(), why.decode(errors="ignore").encode()
        return encode_frame(FrameKind.REFUSE, id, 0, _REFUSAL_HEAD.pack(self.again, len(field)), field, why)

    @classmethod
    def decode(cls, frame: Frame) -> Refusal:
        payload = bytes(frame.payload)
        if len(payload) < _REFUSAL_HEAD.size:
            raise WireRefused("refusal", "is cut short")
        again, n = _REFUSAL_HEAD.unpack_from(payload)
        if again > 1 or n > len(payload) - _REFUSAL_HEAD.size:
            raise WireRefused("refusal", "flag or length out of range")
        at = _REFUSAL_HEAD.size
        try:
            field, why = payload[at : at + n].decode(), payload[at + n :].decode()
        except UnicodeDecodeError:
            raise WireRefused("refusal", "is not UTF-8") from None
        if not (field.isprintable() and why.isprintable()):
            raise WireRefused("refusal", "must be printable")
        return cls(field, why, bool(again))


def split_manifest(root: bytes, encoded: bytes) -> list[bytes]:
    """The `manifest` frames of an encoded manifest, in order; the last is the only one below 1 MiB."""
    parts = range(0, len(encoded) + 1, MANIFEST_PART_BYTES)  # one that fills its last part is followed by an empty one
    return [encode_frame(FrameKind.MANIFEST, root, i, encoded[at:][:MANIFEST_PART_BYTES]) for i, at in enumerate(parts)]


def push_chunk(upload: bytes, k: int, leaf: bytes, chunk: bytes | bytearray | memoryview) -> bytes:
    """The frame that carries chunk k of an upload."""
    return encode_frame(FrameKind.CHUNK, upload, k, leaf, memoryview(chunk).cast("B"))


def split_push_chunk(frame: Frame) -> tuple[bytes, memoryview]:
    """(leaf, chunk) of an upload's chunk frame; whether they agree is for whoever stores it."""
    if len(frame.payload) <= LEAF_BYTES:
        raise WireRefused("payload length", f"must hold a leaf and a chunk, is {len(frame.payload)}")
    return bytes(frame.payload[:LEAF_BYTES]), frame.payload[LEAF_BYTES:]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
