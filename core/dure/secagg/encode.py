"""Floats to ring elements and back; weights and trailer. Bit for bit the same everywhere (secure-aggregation.md, section 6).

    q = (rint(clip(x·ŵ/s_b, −L, L)·2^16) + r16) >> 16,    L = ⌊(2^15 − 1)/|cohort|⌋,    s_b = 2^(e_b − (L.bit_length() − 1))

x·ŵ is one float32 product; the power of two after it is exact. The sum of a cohort's members never wraps.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dure.secagg.errors import Malformed, NonFiniteUpdate, OutOfRange
from dure.secagg.kdf import hkdf
from dure.secagg.masks import RING_CHUNK
from dure.secagg.streams import Streams

F32 = NDArray[np.float32]

BLOCK = 4096
"""Elements under one scale."""
TILE = 1 << 16
"""Elements worked on at once: 256 KiB of float32."""
WEIGHT_BITS = 40
METRIC_BITS = 30
TRAILER_LIMIT = 1 << 59
DEFAULT_W_MAX = 65_536
_local = threading.local()


def bound(cohort_size: int) -> int:
    """L: a member's entries lie in −L…L."""
    if cohort_size < 1:
        raise Malformed("cohort", "is empty")
    return ((1 << 15) - 1) // cohort_size


def scale_exponents(e_b: NDArray[np.int8], cohort_size: int) -> NDArray[np.int32]:
    """log2 s_b per block."""
    return e_b.astype(np.int32) - np.int32(bound(cohort_size).bit_length() - 1)


@dataclass(frozen=True)
class Weight:
    """ŵ of one member: exact, and as the float32 that multiplies its update."""

    w_int: int
    """ŵ·2^40."""

    @property
    def w_hat(self) -> np.float32:
        return np.float32(math.ldexp(self.w_int, -WEIGHT_BITS))


def weight_of(w: int | float, w_max: int = DEFAULT_W_MAX) -> Weight:
    """ŵ = w/w_max to 40 bits, half to even. `OutOfRange` names the setting to change; the member sits out."""
    if not math.isfinite(w) or w < 0:
        raise OutOfRange("num-examples", f"must be finite and not negative, is {w}")
    if w > w_max:
        raise OutOfRange("num-examples", f"{w} exceeds w_max = {w_max} of the plan ([tool.dure] w_max)")
    w_int = round(Fraction(w) * (1 << WEIGHT_BITS) / w_max)
    if w > 0 and w_int < 1 << 16:
        raise OutOfRange("num-examples", f"{w} is too small beside w_max = {w_max} of the plan ([tool.dure] w_max)")
    return Weight(w_int)


def num_examples(sum_w_int: int, w_max: int = DEFAULT_W_MAX) -> int:
    """Examples behind a sum."""
    return round(Fraction(sum_w_int * w_max, 1 << WEIGHT_BITS))


def _buffers() -> tuple[F32, NDArray[np.int32], NDArray[np.uint16]]:
    found: tuple[F32, NDArray[np.int32], NDArray[np.uint16]] | None = getattr(_local, "buffers", None)
    if found is None:
        found = _local.buffers = (np.empty(TILE, np.float32), np.empty(TILE, np.int32), np.empty(TILE, np.uint16))
    return found


def rounding_streams(rounding_key: bytes) -> Streams:
    """Where the random bits of an update's chunks come from."""
    return Streams([hkdf(rounding_key, "encode/round")])


def _scaled(x: F32, factors: F32, out: F32) -> None:
    """out = x · factor of its block, one rounding each."""
    if (factors == factors[0]).all():  # neighbours mostly share one scale, and one factor is twice as fast as many
        np.multiply(x, factors[0], out=out)
        return
    full = x.size // BLOCK
    np.multiply(x[: full * BLOCK].reshape(full, BLOCK), factors[:full, None], out=out[: full * BLOCK].reshape(full, BLOCK))
    if full * BLOCK < x.size:
        np.multiply(x[full * BLOCK :], factors[full], out=out[full * BLOCK :])


def encode_update_chunk(
    delta: F32,
    w_hat: np.float32,
    e_b: NDArray[np.int8],
    cohort_size: int,
    random: Streams,
    k: int,
    out: NDArray[np.uint16] | None = None,
) -> tuple[NDArray[np.uint16], int]:
    """Chunk k of the update as ring elements, and how many of them were clipped.

    Args:
        delta: float32, the chunk's elements (RING_CHUNK, or fewer at the end of the model).
        e_b: int8, one per block of this chunk.
        random: `rounding_streams` of the instance.
        out: uint16, as long as delta; recycled by the caller.

    Raises:
        NonFiniteUpdate: names the element of the flat model.
    """
    blocks = -(-delta.size // BLOCK)
    if delta.dtype != np.float32 or delta.size > RING_CHUNK or e_b.size != blocks:
        raise Malformed("delta", "one chunk of float32, with one e_b per block")
    q = np.empty(delta.size, np.uint16) if out is None else out[: delta.size]
    limit = np.float32(bound(cohort_size) << 16)
    # x·(ŵ·2^16/s) has the bits of (x·ŵ)·2^16/s: the factor is exact, and where x·ŵ alone would be subnormal, both are below 2^-50.
    factors = w_hat * np.ldexp(np.float32(1), 16 - scale_exponents(e_b, cohort_size)).astype(np.float32)
    (noise,) = random.at(k)
    floats, integers, bits = _buffers()
    clipped = 0
    for at in range(0, delta.size, TILE):
        x = delta[at : at + TILE]
        t, i, r = floats[: x.size], integers[: x.size], bits[: x.size]
        noise.fill(r.view(np.uint8))
        with np.errstate(over="ignore", invalid="ignore"):
            _scaled(x, factors[at // BLOCK : (at + TILE) // BLOCK], t)
            if not (t.max() <= limit and t.min() >= -limit):  # NaN comes this way too
                check_finite(x, first=k * RING_CHUNK + at)
                clipped += int(np.count_nonzero(np.abs(t) > limit))
                np.clip(t, -limit, limit, out=t)
        np.rint(t, out=t)
        np.copyto(i, t, casting="unsafe")
        np.add(i, r, out=i)
        np.right_shift(i, 16, out=i)
        np.copyto(q[at : at + TILE], i, casting="unsafe")
    return q, clipped


def check_finite(x: F32, first: int = 0) -> None:
    """`NonFiniteUpdate` naming the first element (counted from `first`) that is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(x))
    if bad.size:
        raise NonFiniteUpdate(first + int(bad[0]))


def decode_mean_chunk(sum_u16: NDArray[np.uint16], e_b: NDArray[np.int8], cohort_size: int, sum_w_int: int, out: F32 | None = None) -> F32:
    """Mean update of one chunk: f32(Σq)·f32(s_b) / f32(Σŵ_int·2^-40), left to right, each operation rounded to float32."""
    if sum_w_int <= 0 or e_b.size != -(-sum_u16.size // BLOCK):
        raise Malformed("sum", "needs a positive weight and one e_b per block")
    mean = np.empty(sum_u16.size, np.float32) if out is None else out[: sum_u16.size]
    np.copyto(mean, sum_u16.view(np.int16))
    _scaled(mean, np.ldexp(np.float32(1), scale_exponents(e_b, cohort_size)).astype(np.float32), mean)
    np.divide(mean, np.float32(math.ldexp(sum_w_int, -WEIGHT_BITS)), out=mean)
    return mean


def trailer_values(weight: Weight, clipped: int, metrics: Mapping[str, float], cohort_size: int) -> tuple[int, ...]:
    """(1, ŵ_int, clip count, round(ŵ·metric·2^30) by sorted name), signed; `OutOfRange` names what does not fit.

    ŵ enters the metrics exactly (ŵ_int), so equal metrics have exactly that mean.
    """
    values = [1, weight.w_int, clipped]
    for name in sorted(metrics):
        metric = metrics[name]
        if not math.isfinite(metric):
            raise OutOfRange(f"metric {name}", f"is {metric}")
        values.append(round(Fraction(metric) * weight.w_int / (1 << (WEIGHT_BITS - METRIC_BITS))))
    names = ["members", "weight", "clip count", *(f"metric {name}" for name in sorted(metrics))]
    for name, value in zip(names, values, strict=True):
        if abs(value) * cohort_size >= TRAILER_LIMIT:
            raise OutOfRange(name, "is too large to be summed")
    return tuple(values)


def check_metrics(weight: Weight, metrics: Mapping[str, float], cohort_size: int) -> None:
    """Before the first byte: `OutOfRange` for a metric that will not fit the trailer."""
    trailer_values(weight, 0, metrics, cohort_size)


def to_words(values: Sequence[int]) -> NDArray[np.uint64]:
    """Signed integers as elements of Z_2^64."""
    return np.array([v % (1 << 64) for v in values], np.uint64)


def from_words(words: Iterable[int]) -> tuple[int, ...]:
    """Elements of Z_2^64 as signed integers: what an opened trailer says."""
    return tuple(int(v) - 2**64 if v >= 2**63 else int(v) for v in words)


@dataclass(frozen=True)
class Totals:
    """An opened trailer of `update` or `scalars`."""

    members: int
    sum_w_int: int
    clipped: int
    metrics: Mapping[str, float]


def decode_trailer(values: Sequence[int], metric_names: Sequence[str]) -> Totals:
    """Totals and weighted mean metrics (float64) of a trailer whose tag was verified; names as frozen at open."""
    names = sorted(metric_names)
    if len(values) != 3 + len(names) or values[1] <= 0:
        raise Malformed("trailer", "does not fit the metric names, or has no weight")
    weight = math.ldexp(values[1], -WEIGHT_BITS)
    means = {name: math.ldexp(float(v), -METRIC_BITS) / weight for name, v in zip(names, values[3:], strict=True)}
    return Totals(values[0], values[1], values[2], means)
