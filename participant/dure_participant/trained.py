"""What the worker brought, looked at before anybody says "ready": the agent's own checks, outside user code."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from dure.blobs import CHUNK_BYTES, Manifest, chunk_leaf
from dure.errors import DureError
from dure.model.layout import BLOCK_ELEMENTS
from dure.secagg.encode import weight_of
from dure.secagg.errors import OutOfRange
from dure.secagg.scales import LEVELS, block_largest, out_of_reach, weighted
from dure_participant.difference import F32, Difference, Pinned

REACH = np.float32(2.0 ** LEVELS[-1])
"""|x·ŵ| a member may bring stays below; who reaches it sits out (secure-aggregation.md §6)."""


class NotToBeSent(DureError):
    """This update cannot be summed. The message names what and the value, for the node's operator; `what` is all that others are told."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what = what


def look_at(update: Difference, *, weight: float, w_max: int, base: Manifest | None = None) -> Pinned:
    """One pass over local weights and base, in a thread, memory O(chunk): what is sent later is this very update.

    Args:
        base: of the base's blob: each of its chunks must still have its leaf.

    Raises:
        NotToBeSent: a value is not finite or too large, something stands in the padding, or the weight is above the plan's.
        BlobDamaged: the disk has another base than the one that was fetched or made.
        Refused: the file is short or gone.
    """
    if base is not None and base.chunks > 1 and base.chunk_bytes != CHUNK_BYTES:
        raise NotToBeSent("base", f"is cut into {base.chunk_bytes} bytes, must be {CHUNK_BYTES}")
    try:
        w_hat = weight_of(weight, w_max).w_hat
    except OutOfRange as error:
        raise NotToBeSent(error.what, error.why) from None
    gaps = deque(update.layout.gaps())

    def local(k: int) -> F32:
        if base is not None:
            update.check_base(k, base.leaves)
        local_C = update.local(k)
        _check_padding(gaps, update.layout.chunk_range(k)[0], local_C)
        return local_C

    def judge(k: int, update_C: F32, largest: F32) -> None:
        if (bad := out_of_reach(weighted(largest, w_hat))) is not None:
            raise _named(update, k, bad, update_C, w_hat)

    return _pin(update, local, judge)


def look_again(update: Difference) -> Pinned:
    """The same of an update that was judged before a restart; whether it is still the promised one, its root says. Raises `Refused`."""
    return _pin(update, update.local, lambda _k, _update_C, _largest: None)


def _pin(update: Difference, local: Callable[[int], F32], judge: Callable[[int, F32, F32], None]) -> Pinned:
    leaves, largest = [], np.empty(update.layout.blocks, np.float32)
    for k in range(update.chunks):
        update_C = update.less_base(k, local(k))
        first = update.layout.chunk_range(k)[0] // BLOCK_ELEMENTS
        found = block_largest(update_C)
        judge(k, update_C, found)
        leaves.append(chunk_leaf(update_C.view(np.uint8).data))
        largest[first : first + found.size] = found
    return Pinned(tuple(leaves), largest)


def _check_padding(gaps: deque[tuple[int, int]], first: int, local_C: F32) -> None:
    """Padding in this chunk is +0.0: a place to hide a difference. `gaps` loses what is checked; none crosses a chunk's border."""
    while gaps and gaps[0][0] < first + local_C.size:
        start, end = gaps.popleft()
        if local_C[start - first : end - first].view(np.uint32).any():
            raise NotToBeSent("padding", f"elements {start}…{end - 1} belong to no tensor and must be zero")


def _named(update: Difference, k: int, block: int, update_C: F32, w_hat: np.float32) -> NotToBeSent:
    """The first value of this block of chunk k that cannot be sent."""
    at = block * BLOCK_ELEMENTS
    with np.errstate(all="ignore"):
        bad = np.flatnonzero(~(np.abs(update_C[at : at + BLOCK_ELEMENTS] * w_hat) < REACH))
    at += int(bad[0])
    index, moved = update.layout.chunk_range(k)[0] + at, float(update_C[at])
    value = float(update.local(k)[at])  # the buffer that held the update
    entry = update.layout.entry_at(index)
    name = f"tensor {entry.name}" if entry is not None else "padding"
    if not np.isfinite(value):
        return NotToBeSent(name, f"holds {value}; training diverged at this node, look at its loss")
    return NotToBeSent(name, f"moved by {moved:.3g}, too far to be summed (weighted, {REACH:g} or more); lower the learning rate")
