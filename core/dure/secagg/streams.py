"""Key streams addressed by (key, chunk): AES-256-CTR, first counter block = u64 LE chunk index ‖ u64 0.

Chunks, threads and resumed uploads are therefore independent of each other. Zeros are encrypted into a recycled
buffer; `update_into` releases the interpreter lock.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from dure.secagg import field

TILE_BYTES = 1 << 18
"""Bytes per call: the key stream and what it is added to stay in the cache together."""
_ZEROS = memoryview(bytes(TILE_BYTES))


class ChunkStream:
    """The stream of one (key, chunk), read from its beginning. Not shared between threads."""

    def __init__(self, key: bytes, chunk: int) -> None:
        self._cipher: CipherContext = Cipher(algorithms.AES(key), modes.CTR(struct.pack("<QQ", chunk, 0))).encryptor()

    def restart(self, chunk: int) -> None:
        """From now on the stream of another chunk under the same key, from its beginning."""
        self._cipher.reset_nonce(struct.pack("<QQ", chunk, 0))

    def fill(self, out: NDArray[np.uint8]) -> None:
        """The next `out.size` bytes of the stream into `out` (contiguous)."""
        for at in range(0, out.size, TILE_BYTES):
            tile = out[at : at + TILE_BYTES]
            self._cipher.update_into(_ZEROS[: tile.size], tile.data)

    def words(self, count: int) -> field.U64:
        """The next `count` u64, little-endian."""
        out = np.empty(count, "<u8")
        self.fill(out.view(np.uint8))
        return np.asarray(out, np.uint64)

    def elements(self, count: int) -> field.U64:
        """The next `count` elements of F_p: low 61 bits of 8 bytes, p becomes 0."""
        words = self.words(count)
        return field.from_stream(words)

    def nonzero_elements(self, count: int) -> field.U64:
        """`count` uniform non-zero elements: zeros are redrawn, in order, from what follows in the stream."""
        out = self.elements(count)
        while (zeros := np.flatnonzero(out == 0)).size:
            out[zeros] = self.elements(zeros.size)
        return out


class Streams:
    """The streams of some keys, for many chunks and threads. A new cipher costs as much as 100 KiB of stream: each thread keeps its own."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys = tuple(keys)
        self._local = threading.local()

    def at(self, chunk: int) -> list[ChunkStream]:
        """This chunk's stream of every key, from its beginning; this thread's until its next call."""
        found: list[ChunkStream] | None = getattr(self._local, "streams", None)
        if found is None:
            found = self._local.streams = [ChunkStream(key, chunk) for key in self._keys]
            return found
        for stream in found:
            stream.restart(chunk)
        return found


def elements(key: bytes, chunk: int, count: int) -> field.U64:
    return ChunkStream(key, chunk).elements(count)


def element(key: bytes) -> int:
    """The first element of chunk 0."""
    return int(elements(key, 0, 1)[0])
