"""Dtypes at the two joints of the flat vector: an app's arrays in, and the arrays it is shown out.

Between the joints there is float32 only. A tensor of another dtype keeps its name in the layout and is *shown* in it: rounded to
the nearest value it has, ties to even. What is shown, and shown again, is the same; so a base may hold more digits than a half-precision
model shows, and small steps add up instead of being lost. Source: docs/spec/formats.md, "Dtypes".

Every function is elementwise and gives the same bits on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dure.errors import Refused

Floats = NDArray[np.float32]
Shown = NDArray[Any]

INTEGER_BITS = 20
"""An integer v is v·2^-20 in the flat vector: then the largest change, 2^25, stays within the reach of the scales (2^6)."""
INTEGER_LIMIT = 1 << 24
"""Largest magnitude of an integer that float32 holds exactly."""
_UNIT = np.float32(2.0**-INTEGER_BITS)


class DoesNotFit(Refused):
    """A value that float32 cannot carry; `index` is its place in the array, row-major."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(f"flat index {index}", why)
        self.index = index
        self.why = why


@dataclass(frozen=True)
class Dtype:
    """One dtype a tensor may have."""

    name: str
    array: np.dtype[Any]
    """Of the numpy array that holds it, little-endian. numpy has no bfloat16: its bit patterns, as int16."""
    integer: bool = False

    @property
    def bytes(self) -> int:
        """Of one element."""
        return self.array.itemsize


def _known() -> dict[str, Dtype]:
    floats = {"float16": "<f2", "bfloat16": "<i2", "float32": "<f4", "float64": "<f8"}
    integers = {"bool": "?", "int8": "i1", "int16": "<i2", "int32": "<i4", "int64": "<i8"}
    integers |= {"uint8": "u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8"}
    found = [Dtype(name, np.dtype(code)) for name, code in floats.items()]
    return {d.name: d for d in [*found, *(Dtype(name, np.dtype(code), integer=True) for name, code in integers.items())]}


DTYPES: Mapping[str, Dtype] = _known()


def flat_values(array_C: Shown, dtype: str) -> Floats:
    """The elements of an array of this dtype as they stand in the flat vector; float32 comes back as it is.

    Raises:
        DoesNotFit: an integer beyond ±2^24, or a finite float64 that float32 has no finite value for.
    """
    if dtype == "float32":
        return array_C.astype("<f4", copy=False)
    if dtype == "bfloat16":
        return (array_C.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if DTYPES[dtype].integer:
        _check(
            array_C, (array_C > INTEGER_LIMIT) | (array_C < -INTEGER_LIMIT), "integers are carried up to ±2^24; leave it out of the arrays"
        )
        return array_C.astype(np.float32) * _UNIT
    with np.errstate(over="ignore"):
        out_C = array_C.astype(np.float32)
    _check(array_C, np.isinf(out_C) & np.isfinite(array_C), "does not fit float32, in which it would be summed")
    return out_C


def _check(array_C: Shown, bad: NDArray[np.bool_], why: str) -> None:
    if bad.any():
        at = int(np.argmax(bad))
        raise DoesNotFit(at, f"holds {array_C[at]}; {why}")


def shown(flat_C: Floats, dtype: str) -> Shown:
    """What an app is given for these elements, as an array of `DTYPES[dtype].array`; float32 comes back as it is."""
    kind = DTYPES[dtype]
    if dtype == "float32":
        return flat_C
    if dtype == "bfloat16":
        return _bfloat16(flat_C)
    if kind.integer:
        low, high = (0, 1) if dtype == "bool" else (int(np.iinfo(kind.array).min), int(np.iinfo(kind.array).max))
        counts_C = np.rint(flat_C.astype(np.float64) * (1 << INTEGER_BITS))
        return np.clip(counts_C, max(low, -INTEGER_LIMIT), min(high, INTEGER_LIMIT)).astype(kind.array)
    with np.errstate(over="ignore"):
        return flat_C.astype(kind.array)


def _bfloat16(flat_C: Floats) -> NDArray[np.int16]:
    """Bit patterns of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits_C = np.ascontiguousarray(flat_C, dtype=np.float32).view(np.uint32)
    rounded_C = (bits_C + np.uint32(0x7FFF) + ((bits_C >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    rounded_C[np.isnan(flat_C)] = 0x7FC0
    return rounded_C.astype(np.uint16).view(np.int16)


def settled(flat_C: Floats, dtype: str) -> Floats:
    """These elements as their dtype shows them, back in float32; float32 comes back as it is."""
    return flat_C if dtype == "float32" else flat_values(shown(flat_C, dtype), dtype)


def bfloat16_of(values: Shown) -> NDArray[np.int16]:
    """Floats of any width as bfloat16 bit patterns, shape kept."""
    return _bfloat16(values.astype(np.float32).reshape(-1)).reshape(values.shape)
