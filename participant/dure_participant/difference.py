"""The update, local weights − base as shown, chunk by chunk; and what pins it before any of it is promised.

The base is this node's own and mapped. The file a worker wrote is read, never mapped: other people's code may cut it short at any moment,
and a mapped page that is gone ends the process. A chunk is judged, hashed and encoded in the one buffer it was read into.

C = elements of one chunk.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dure.blobs import BlobDamaged, chunk_leaf, read_all_at
from dure.errors import Refused
from dure.model.layout import CHUNK_ELEMENTS, Layout
from dure.model.mapped import CHUNKS_HELD, let_go
from dure.model.weights import open_flat, shown_part
from dure.tlog.merkle import merkle_root

F32 = NDArray[np.float32]
GONE = "the trained weights on disk have changed since they were promised; nothing more is sent"


@dataclass(frozen=True)
class Pinned:
    """What was found out about an update when it was looked at: enough to know every chunk of it again."""

    leaves: tuple[bytes, ...]
    """BLAKE3 of each chunk of the update, float32 little-endian."""
    largest: F32
    """max|x| of each block of 4096."""

    @cached_property
    def root(self) -> bytes:
        """Merkle root over the leaves: the digest that is persisted before anything is promised."""
        return merkle_root(self.leaves)


class Difference:
    """The update of one training. Safe from several threads; `close` when nothing of it is read any more.

    Raises:
        WeightsRefused: the base has another length than the layout.
        Refused: there is no file of local weights.
    """

    def __init__(self, base: Path, local: Path, layout: Layout) -> None:
        self._fd = -1
        self.layout = layout
        self._base_path, self._before = base, open_flat(base, layout)
        self._buffers = threading.local()
        try:
            # Not blocking: where other people's code put a pipe, opening it would hold this thread for ever.
            self._fd = os.open(local, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            raise Refused("update", GONE) from None
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            self.close()
            raise Refused("update", GONE)

    @property
    def chunks(self) -> int:
        return self.layout.chunks

    def local(self, k: int) -> F32:
        """Chunk k of the local weights, in this thread's buffer: good until its next call here."""
        buffer: F32 | None = getattr(self._buffers, "chunk", None)
        if buffer is None:
            buffer = self._buffers.chunk = np.empty(CHUNK_ELEMENTS, np.float32)
        first, last = self.layout.chunk_range(k)
        part = buffer[: last - first]
        if read_all_at(self._fd, part.view(np.uint8).data, 4 * first) != 4 * part.size:
            raise Refused("update", GONE)
        return part

    def less_base(self, k: int, local_C: F32) -> F32:
        """Turns chunk k of the local weights into the update's, in place."""
        first, last = self.layout.chunk_range(k)
        with np.errstate(all="ignore"):
            np.subtract(local_C, shown_part(self._before, self.layout, slice(first, last)), out=local_C)
        if k % CHUNKS_HELD == CHUNKS_HELD - 1:
            let_go(self._before)
        return local_C

    def promised(self, k: int, pinned: Pinned) -> F32:
        """Chunk k of the update, the very bytes that were looked at; in this thread's buffer.

        Raises:
            Refused: base or local weights are other ones now.
        """
        update_C = self.less_base(k, self.local(k))
        if chunk_leaf(update_C.view(np.uint8).data) != pinned.leaves[k]:
            raise Refused("update", GONE)
        return update_C

    def check_base(self, k: int, leaves: Sequence[bytes]) -> None:
        """`BlobDamaged` unless chunk k of the base has its leaf."""
        first, last = self.layout.chunk_range(k)
        if chunk_leaf(self._before[first:last].view(np.uint8).data) != leaves[k]:
            raise BlobDamaged(self._base_path, f"chunk {k} does not have its hash")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()
