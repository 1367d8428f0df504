"""Mapped weights and memory: pages that were read stay resident until they are let go of, and a model would add up."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from dure.model.layout import CHUNK_ELEMENTS

CHUNKS_HELD = 16
"""Chunks of a mapped vector (16 MiB) that may be resident before they are let go of."""


def chunk_starts(first: int, end: int, *vectors: NDArray[Any] | None) -> Iterator[int]:
    """First elements of the chunks from `first` to `end`; whoever goes through mapped `vectors` so holds O(chunk) of them in memory."""
    for number, at in enumerate(range(first, end, CHUNK_ELEMENTS), 1):
        yield at
        if number % CHUNKS_HELD == 0:
            let_go(*vectors)
    let_go(*vectors)


def let_go(*vectors: NDArray[Any] | None) -> None:
    """Tells the kernel that the pages of these mapped vectors are not needed now; they can be read again. Others are left alone."""
    for vector in vectors:
        owner: Any = vector
        while owner is not None and not isinstance(owner, mmap.mmap):
            owner = getattr(owner, "base", None) if not isinstance(owner, memoryview) else owner.obj
        if owner is not None:
            owner.madvise(mmap.MADV_DONTNEED)
