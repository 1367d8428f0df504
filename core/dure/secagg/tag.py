"""The tag: a homomorphic MAC over F_p that tells members whether the opened sum is the sum of what the survivors sent.

    tag_i = Σ_b u_b Σ_c v_c·lift(q_bc) + Σ_k w_k·trailer_k + pad_i

b counts blocks of 4096 entries of the vector (64 per ring chunk, 24 per field chunk); u_b is read from the stream
("tag/u", chunk), v from ("tag/v", 0), w from ("tag/w", 0), all keyed by HKDF(G, salt = ctx). The pads make it more than
linear: without them a zero, negated or doubled sum would verify. Source: secure-aggregation.md, section 7.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from dure.secagg import field as fp
from dure.secagg.errors import TagMismatch
from dure.secagg.ids import Purpose
from dure.secagg.kdf import hkdf
from dure.secagg.masks import FIELD_CHUNK, RING_CHUNK
from dure.secagg.shares import position
from dure.secagg.streams import Streams, element, elements

BLOCK = 4096
MAX_TRAILER = 256
TOTAL_LIMIT = 1 << 59
_LIMB = 21
"""|q| ≤ 2^15, a limb < 2^21, 2^12 terms: 2^48, exact in float64 whatever the order of summation."""
_STRIP = 16
"""Blocks per matrix product: 512 KiB of float64."""
_local = threading.local()


def _strip() -> NDArray[np.float64]:
    found: NDArray[np.float64] | None = getattr(_local, "strip", None)
    if found is None:
        found = _local.strip = np.empty((_STRIP, BLOCK), np.float64)
    return found


class TagKey:
    """The tag's key for one instance. Safe to use from several threads."""

    def __init__(self, group_key: bytes, ctx: bytes, cohort: tuple[str, ...]) -> None:
        self._group_key, self._ctx, self._cohort = group_key, ctx, cohort
        self._u = Streams([hkdf(group_key, "tag/u", salt=ctx)])
        self._v = elements(hkdf(group_key, "tag/v", salt=ctx), 0, BLOCK)
        self._w = [int(w) for w in elements(hkdf(group_key, "tag/w", salt=ctx), 0, MAX_TRAILER)]
        mask = np.uint64((1 << _LIMB) - 1)
        self._limbs = np.stack([((self._v >> np.uint64(s)) & mask).astype(np.float64) for s in (0, _LIMB, 2 * _LIMB)], axis=1)

    def ring_chunk(self, k: int, q: NDArray[np.uint16]) -> int:
        """Part of the tag for chunk k of a Z_2^16 vector, entries lifted to −2^15…2^15−1."""
        assert q.dtype == np.uint16 and q.size <= RING_CHUNK
        lifted, strip, result = q.view(np.int16), _strip(), 0
        u = self._u.at(k)[0].elements(-(-q.size // BLOCK))
        for at in range(0, q.size, _STRIP * BLOCK):
            part = lifted[at : at + _STRIP * BLOCK]
            full = part.size // BLOCK
            rows = strip[: -(-part.size // BLOCK)]
            rows[:full] = part[: full * BLOCK].reshape(full, BLOCK)
            if full < len(rows):
                rows[full, : part.size - full * BLOCK] = part[full * BLOCK :]
                rows[full, part.size - full * BLOCK :] = 0
            sums = (rows @ self._limbs).astype(np.int64).tolist()
            blocks = u[at // BLOCK : at // BLOCK + len(rows)].tolist()
            for ub, (low, middle, high) in zip(blocks, sums, strict=True):
                result += ub * (low + (middle << _LIMB) + (high << 2 * _LIMB))
        return result % fp.P

    def field_chunk(self, k: int, x: NDArray[np.uint64]) -> int:
        """Part of the tag for chunk k of an F_p vector."""
        assert x.dtype == np.uint64 and x.size <= FIELD_CHUNK
        u = self._u.at(k)[0].elements(-(-x.size // BLOCK)).tolist()
        result = 0
        for b, ub in enumerate(u):
            part = x[b * BLOCK : (b + 1) * BLOCK]
            result += ub * fp.total(fp.multiply(part, self._v[: part.size]))
        return result % fp.P

    def trailer(self, values: Sequence[int]) -> int:
        """Part of the tag for the trailer, as signed integers."""
        assert len(values) <= MAX_TRAILER
        return sum(w * v for w, v in zip(self._w, values, strict=False)) % fp.P

    def pad(self, member: str) -> int:
        """pad_i; i is the member's place in the cohort."""
        return element(hkdf(self._group_key, "tag/pad", position(self._cohort, member), salt=self._ctx))

    def verify(self, *, bulk: int, trailer: Sequence[int], tag: int, survivors: Collection[str], purpose: Purpose) -> None:
        """`TagMismatch` unless sum, trailer and tag are those of exactly these survivors.

        `bulk`: sum of the parts of the opened vector's chunks; `trailer`: opened, lifted to signed; `tag`: opened.
        """
        check_totals(trailer, len(survivors), purpose)
        expected = bulk + self.trailer(trailer) + sum(self.pad(m) for m in survivors)
        if not 0 <= tag < fp.P or (expected - tag) % fp.P:
            raise TagMismatch()


def check_totals(trailer: Sequence[int], survivors: int, purpose: Purpose) -> None:
    """The opened trailer is one that this many survivors can have sent; else `TagMismatch`.

    The range stops trailer + p, which the tag alone would accept.
    """
    least = 1 if purpose is Purpose.SCALES else 3
    if not least <= len(trailer) <= MAX_TRAILER or (purpose is Purpose.SCALES and len(trailer) != 1):
        raise TagMismatch(f"the opened trailer has {len(trailer)} entries")
    if any(not -TOTAL_LIMIT < v < TOTAL_LIMIT for v in trailer):
        raise TagMismatch("an entry of the opened trailer is out of range")
    if trailer[0] != survivors:
        raise TagMismatch(f"the opened trailer counts {trailer[0]} members, {survivors} survived")
    if purpose is not Purpose.SCALES and (not 0 < trailer[1] <= survivors << 40 or trailer[2] < 0):
        raise TagMismatch("the opened sum of weights or clip count is out of range")
