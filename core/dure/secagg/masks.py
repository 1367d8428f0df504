"""Masks as signed key streams: added by a member to its upload, removed by the coordinator from the sum.

A stream is (secret, label, sign). Its bulk key is HKDF(secret, salt = ctx, "mask/self" | "mask/pair"); trailer and tag
have keys of their own from the same secret. Bulk streams are addressed by chunk, so chunks are independent of order
and thread; buffers are recycled per thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dure.secagg import field as fp
from dure.secagg.kdf import hkdf
from dure.secagg.streams import TILE_BYTES, ChunkStream, Streams, element

RING_CHUNK = 1 << 18
"""Elements of Z_2^16 in a chunk: 512 KiB."""
FIELD_CHUNK = 4096 * 24
"""Elements of F_p in a chunk of `scales`: 4096 blocks of 24 levels, 768 KiB."""

_local = threading.local()


def _tile() -> NDArray[np.uint8]:
    """This thread's buffer for key stream: fresh pages cost more than a mask."""
    tile: NDArray[np.uint8] | None = getattr(_local, "tile", None)
    if tile is None:
        tile = _local.tile = np.empty(TILE_BYTES, np.uint8)
    return tile


@dataclass(frozen=True)
class MaskStream:
    """One signed stream under one context."""

    sign: int
    bulk: bytes = field(repr=False)
    trailer: bytes = field(repr=False)
    tag: bytes = field(repr=False)

    @classmethod
    def derive(cls, secret: bytes, ctx: bytes, label: str, sign: int) -> MaskStream:
        assert label in ("mask/self", "mask/pair") and sign in (1, -1)
        keys = (hkdf(secret, name, salt=ctx) for name in (label, "mask/trailer", "mask/tag"))
        return cls(sign, *keys)


class MaskSet:
    """Signed streams, applied together. Safe to use from several threads on different chunks."""

    def __init__(self, streams: Iterable[MaskStream]) -> None:
        self._streams = tuple(streams)
        self._bulk = Streams(s.bulk for s in self._streams)

    def __len__(self) -> int:
        return len(self._streams)

    def ring_chunk(self, k: int, q: NDArray[np.uint16]) -> None:
        """Adds every stream to chunk k of a Z_2^16 vector, in place. `q`: contiguous uint16, at most RING_CHUNK."""
        assert q.dtype == np.uint16 and q.size <= RING_CHUNK
        buffer = _tile()
        step = TILE_BYTES // 2
        ciphers = [(np.add if s.sign > 0 else np.subtract, c) for s, c in zip(self._streams, self._bulk.at(k), strict=True)]
        for at in range(0, q.size, step):
            part = q[at : at + step]
            noise = buffer[: 2 * part.size]
            for apply, cipher in ciphers:
                cipher.fill(noise)
                apply(part, noise.view(np.uint16), out=part)

    def field_chunk(self, k: int, x: NDArray[np.uint64]) -> None:
        """Adds every stream to chunk k of an F_p vector, in place. `x`: contiguous uint64 in [0, p), at most FIELD_CHUNK."""
        assert x.dtype == np.uint64 and x.size <= FIELD_CHUNK
        buffer = _tile()
        step = TILE_BYTES // 8
        ciphers = [(fp.add_into if s.sign > 0 else fp.subtract_into, c) for s, c in zip(self._streams, self._bulk.at(k), strict=True)]
        for at in range(0, x.size, step):
            part = x[at : at + step]
            noise = buffer[: 8 * part.size]
            for apply, cipher in ciphers:
                cipher.fill(noise)
                apply(part, fp.from_stream(noise.view(np.uint64)))

    def trailer(self, vector: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The trailer (Z_2^64) with every stream added."""
        out = vector.astype(np.uint64)
        for s in self._streams:
            noise = ChunkStream(s.trailer, 0).words(out.size)
            out = out + noise if s.sign > 0 else out - noise
        return out

    def tag(self, value: int) -> int:
        """The tag (F_p) with every stream added."""
        return (value + sum(s.sign * element(s.tag) for s in self._streams)) % fp.P


def pair_sign(author: str, peer: str) -> int:
    """What `author` does with PRG(R): the lower of the two adds, the higher subtracts."""
    return 1 if author.encode() < peer.encode() else -1
