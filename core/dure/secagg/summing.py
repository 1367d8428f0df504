"""Adding masked vectors chunk by chunk: what the coordinator does once, and everyone who doubts it again.

Chunks are independent of each other, so any order and any number of threads give the same sum.
Source: secure-aggregation.md, sections 4 and 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dure.secagg import field as fp
from dure.secagg.ids import Purpose
from dure.secagg.masks import FIELD_CHUNK, RING_CHUNK, MaskSet
from dure.secagg.scales import LEVELS
from dure.secagg.tag import BLOCK


class Group(StrEnum):
    """What upload elements are added in."""

    RING16 = "ring16"  # Z_2^16, two bytes: `update`
    FIELD61 = "field61"  # F_p, p = 2^61 - 1, eight bytes: `scales`


DTYPE: Mapping[Group, np.dtype[Any]] = {Group.RING16: np.dtype("<u2"), Group.FIELD61: np.dtype("<u8")}
GROUP_OF: Mapping[Purpose, Group] = {Purpose.UPDATE: Group.RING16, Purpose.SCALES: Group.FIELD61, Purpose.SCALARS: Group.RING16}
"""`scalars` has no chunks; its group is never used."""


def shape_of(purpose: str, elements: int) -> tuple[int, int]:
    """(bytes, chunk bytes) of one upload, and of the sum, over a flat model of so many elements; no bytes in `scalars`."""
    if purpose == Purpose.SCALES:
        return -(-elements // BLOCK) * len(LEVELS) * 8, FIELD_CHUNK * 8
    return (2 * elements if purpose == Purpose.UPDATE else 0), RING_CHUNK * 2


def add_chunk(group: Group, total: NDArray[Any], data: bytes | bytearray | memoryview) -> None:
    """Adds one upload's chunk, as many bytes as `total` has, in place. In F_p every word is read modulo p."""
    one = np.frombuffer(data, DTYPE[group])
    if group is Group.RING16:
        np.add(total, one, out=total)  # wraps modulo 2^16
    else:
        fp.add_words_into(total, one)


def unmask_chunk(group: Group, unmask: MaskSet, k: int, total: NDArray[Any]) -> None:
    """Takes the masks off the sum of chunk k, in place."""
    (unmask.ring_chunk if group is Group.RING16 else unmask.field_chunk)(k, total)


def opened_totals(trailers: Sequence[Sequence[int]], tags: Sequence[int], unmask: MaskSet) -> tuple[tuple[int, ...], int]:
    """Sum of the survivors' masked trailers (modulo 2^64) and tags (modulo p) with the masks taken off."""
    total = np.zeros(len(trailers[0]), np.uint64)
    for trailer in trailers:
        total = total + np.array(trailer, np.uint64)
    return tuple(int(v) for v in unmask.trailer(total)), unmask.tag(sum(tags) % fp.P)
