"""The sum of all survivors' uploads: one pass over the spools, chunk by chunk, memory O(threads · chunk).

Chunk k of every upload is read, its hash checked, added up; then `unmask` takes the masks off the sum, in place.
Chunks are independent, so several threads take one each and a blob writer gets them back in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dure.blobs import BlobWriter, Manifest
from dure.secagg.summing import DTYPE, Group, add_chunk
from dure_coordinator.spool import Spool, SpoolRefused

Unmask = Callable[[int, NDArray[Any]], None]


def sum_spools(spools: Sequence[Spool], group: Group | str, unmask: Unmask | None, out: BlobWriter, *, threads: int = 2) -> Manifest:
    """Adds complete uploads of one length and commits the sum as a blob; returns its manifest (`.id.root` is the root).

    Args:
        unmask: called as unmask(k, sum of chunk k) from worker threads, at most one call per chunk; changes the
            array in place, uint16 or uint64 (canonical, below p). None where nothing is masked.
        out: writer whose chunk_bytes equals the spools'; aborted on any failure, so nothing half-summed is visible.

    Raises:
        SpoolRefused: no uploads, one incomplete, or lengths that differ.
        BlobDamaged: an upload changed on the disk, naming its file.
        DiskFull: no room for the sum.
    """
    group = Group(group)
    _same_form(spools, group, out)
    size = spools[0].chunk_bytes
    # Buffers go round: fresh pages cost more than the adding. One per thread, and one the writer holds.
    free: SimpleQueue[tuple[NDArray[Any], memoryview]] = SimpleQueue()
    for _ in range(threads + 1):
        free.put((np.empty(size // DTYPE[group].itemsize, DTYPE[group]), memoryview(bytearray(size))))

    def one(k: int) -> tuple[NDArray[Any], memoryview, NDArray[Any]]:
        total, scratch = free.get()
        part = sum_chunk(spools, k, group, total, scratch)
        if unmask is not None:
            unmask(k, part)
        return total, scratch, part

    pool = ThreadPoolExecutor(threads, thread_name_prefix="sum")
    window: deque[Future[tuple[NDArray[Any], memoryview, NDArray[Any]]]] = deque()

    def take() -> None:
        total, scratch, part = window.popleft().result()
        out.append(part.data.cast("B"))
        free.put((total, scratch))

    try:
        for k in range(spools[0].chunks):
            window.append(pool.submit(one, k))
            if len(window) > threads:
                take()
        while window:
            take()
        return out.commit()
    except BaseException:
        for waiting in window:
            waiting.cancel()
        out.abort()
        raise
    finally:
        pool.shutdown(wait=True)  # nobody may still touch the spools when this returns


def sum_chunk(spools: Sequence[Spool], k: int, group: Group, total: NDArray[Any], scratch: memoryview) -> NDArray[Any]:
    """Sum of chunk k over all uploads, masks still on, in the front of `total`; `scratch` holds one chunk of bytes."""
    part = total[: spools[0].size_of(k) // DTYPE[group].itemsize]
    part[:] = 0
    for spool in spools:
        size = spool.read_chunk_into(k, scratch)
        add_chunk(group, part, scratch[:size])
    return part


def _same_form(spools: Sequence[Spool], group: Group, out: BlobWriter) -> None:
    if not spools:
        raise SpoolRefused("uploads", "there are none to add")
    first = spools[0]
    for spool in spools:
        if not spool.complete:
            raise SpoolRefused("chunk", f"{spool.path.name} has {spool.durable_chunks()} of {spool.chunks} chunks")
        if (spool.length, spool.chunk_bytes) != (first.length, first.chunk_bytes):
            raise SpoolRefused("length", f"{spool.path.name} differs from {first.path.name}")
    if first.length % DTYPE[group].itemsize or first.chunk_bytes % DTYPE[group].itemsize:
        raise SpoolRefused("length", f"is no multiple of {DTYPE[group].itemsize} bytes")
    if out.chunk_bytes != first.chunk_bytes:
        raise SpoolRefused("chunk_bytes", f"the sum's writer has {out.chunk_bytes}, the uploads {first.chunk_bytes}")
