"""One public power of two per block of 4096: each member says, hidden in a sum, which levels its block reaches.

Per block and level e a member submits 0 if max|x·ŵ| < 2^e, else a random non-zero element of F_p; a sum is zero iff
nobody reaches the level (but for chance 1/p). secure-aggregation.md, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dure.secagg.encode import BLOCK, F32, check_finite
from dure.secagg.errors import Malformed, OutOfRange
from dure.secagg.kdf import hkdf
from dure.secagg.masks import FIELD_CHUNK
from dure.secagg.streams import Streams

LEVELS: tuple[int, ...] = tuple(range(-40, 7, 2))
"""Exponents, ascending: 24."""
CHUNK_BLOCKS = FIELD_CHUNK // len(LEVELS)
"""Blocks in a chunk of `scales`: 4096, the 2^24 elements of 64 chunks of the update."""
E_CAP = 6
CAP_SLACK = 8
_REACH = np.ldexp(np.float32(1), np.array(LEVELS)).astype(np.float32)

I8 = NDArray[np.int8]


def block_largest(delta: F32) -> F32:
    """max|x| of each block of these elements, which start on a block; NaN where a block holds one."""
    if delta.dtype != np.float32:
        raise Malformed("delta", "must be float32")
    full, largest = delta.size // BLOCK, np.empty(-(-delta.size // BLOCK), np.float32)
    for b in range(0, full, 16):  # 256 KiB at a time: both passes read the cache
        rows = delta[b * BLOCK : min(b + 16, full) * BLOCK].reshape(-1, BLOCK)
        np.maximum(rows.max(axis=1), -rows.min(axis=1), out=largest[b : b + len(rows)])
    if full < largest.size:
        largest[full] = np.abs(delta[full * BLOCK :]).max()
    return largest


def weighted(largest: F32, w_hat: np.float32) -> F32:
    """max|x·ŵ| from max|x|, in the same bits: rounding a product to float32 keeps the order."""
    with np.errstate(invalid="ignore", over="ignore"):
        return largest * w_hat


def out_of_reach(maxima: F32) -> int | None:
    """The first block that reaches 2^6 or holds what is not finite; None for none."""
    bad = np.flatnonzero(~(maxima < _REACH[-1]))
    return int(bad[0]) if bad.size else None


def block_maxima(delta: F32, w_hat: np.float32, first: int = 0) -> F32:
    """max|x·ŵ| of each block of these elements, which start on a block; `first` is the index of the first in the model.

    Raises:
        NonFiniteUpdate: an element is NaN or infinite.
        OutOfRange: an element reaches 2^6; the member sits out. `element` lets the caller name the tensor.
    """
    maxima = weighted(block_largest(delta), w_hat)
    bad = out_of_reach(maxima)
    if bad is not None:
        start = bad * BLOCK
        block = delta[start : start + BLOCK]
        check_finite(block, first + start)
        at = int(np.argmax(np.abs(block)))
        raise OutOfRange("update", f"value {block[at]} (weighted) reaches 2^{LEVELS[-1]}", element=first + start + at)
    return maxima


def level_streams(rounding_key: bytes) -> Streams:
    """Where the random elements of `scales` come from."""
    return Streams([hkdf(rounding_key, "encode/scales")])


def encode_levels(maxima: F32, random: Streams, k: int) -> NDArray[np.uint64]:
    """Chunk k of `scales` from the maxima of its blocks: F_p, blocks in order, levels ascending inside a block."""
    if maxima.size > CHUNK_BLOCKS:
        raise Malformed("maxima", f"at most {CHUNK_BLOCKS} blocks in a chunk")
    entries = random.at(k)[0].nonzero_elements(maxima.size * len(LEVELS))
    reached = (maxima[:, None] >= _REACH[None, :]).reshape(-1)
    np.multiply(entries, reached, out=entries)
    return entries


def encode_scales_chunk(delta: F32, w_hat: np.float32, random: Streams, k: int) -> NDArray[np.uint64]:
    """Chunk k of `scales` from its up to 2^24 elements at once; callers short of memory use the two steps."""
    return encode_levels(block_maxima(delta, w_hat, k * CHUNK_BLOCKS * BLOCK), random, k)


def summed_exponents(levels: NDArray[np.uint64]) -> I8:
    """Per block of an opened chunk: the smallest e from which all sums are zero; 8 where even the highest is not."""
    if levels.size % len(LEVELS):
        raise Malformed("scales", "must hold whole blocks")
    silent = np.logical_and.accumulate(levels.reshape(-1, len(LEVELS))[:, ::-1] == 0, axis=1)
    return np.asarray(LEVELS[-1] + 2 - 2 * silent.sum(axis=1), np.int8)


@dataclass(frozen=True)
class Scales:
    """What a `scales` instance decided."""

    e_b: I8
    capped: int
    """Blocks in which somebody exceeds the cap and will be clipped; shown."""


def caps(base_e_b: I8 | None, blocks: int, e_cap: int = E_CAP) -> I8:
    """cap_b from the base record's e_b; without one, the plan's e_cap. The median of an even number is the lower one."""
    if base_e_b is None:
        return np.full(blocks, min(E_CAP, e_cap), np.int8)
    if base_e_b.size != blocks:
        raise Malformed("base e_b", f"has {base_e_b.size} blocks, the model {blocks}")
    if not blocks:
        return base_e_b
    wide = base_e_b.astype(np.int16)
    median = np.partition(wide, (blocks - 1) // 2)[(blocks - 1) // 2]
    return np.asarray(np.minimum(E_CAP, np.maximum(wide, median) + CAP_SLACK), np.int8)


def combine(summed: I8, base_e_b: I8 | None, e_cap: int = E_CAP) -> Scales:
    """e_b = min(summed, cap_b) over the whole model (`summed_exponents` of every chunk, concatenated)."""
    cap = caps(base_e_b, summed.size, e_cap)
    return Scales(np.minimum(summed, cap), int(np.count_nonzero(summed > cap)))


def raised(e_b: I8) -> I8:
    """The same scales for what was trained again after a voided `update` (rule 2): two higher, at most 6."""
    return np.asarray(np.minimum(e_b.astype(np.int16) + 2, E_CAP), np.int8)
