"""A model's tensors as one flat little-endian float32 vector, and the id that says which weights they are.

Tensors of other dtypes are converted here and nowhere else (dtypes.py); a model that is all float32 passes through untouched.

D = elements of the flat vector, padding included.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from dure.blobs import writing
from dure.errors import Refused
from dure.model.dtypes import DTYPES, DoesNotFit, Shown, flat_values, settled, shown
from dure.model.layout import CHUNK_ELEMENTS, Entry, Layout, LayoutRefused
from dure.model.mapped import chunk_starts

F32 = np.dtype("<f4")
Floats = NDArray[np.float32]
_WEIGHTS_LABEL = b"dure/weights/2\0"


class WeightsRefused(Refused):
    """Weights do not fit their layout; `tensor` names where."""

    def __init__(self, tensor: str, why: str) -> None:
        super().__init__(f"tensor {tensor!r}", why)
        self.tensor = tensor


class NonFinite(Refused):
    """A tensor holds NaN or infinity; nothing computed from it may leave the site."""

    def __init__(self, tensor: str, index: int, value: float) -> None:
        super().__init__(f"tensor {tensor!r}", f"holds {value} at flat index {index}; training diverged, look at its loss")
        self.tensor = tensor
        self.index = index
        self.value = value


def open_flat(path: Path | str, layout: Layout) -> Floats:
    """The flat vector in a file, mapped read-only, float32 [D]; its length is checked, its content is not."""
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size != layout.flat_bytes:
            raise WeightsRefused("*", f"{path} has {size} bytes, the layout needs {layout.flat_bytes}")
        return np.frombuffer(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ), dtype=F32)


def flatten_to(append: Callable[[memoryview], None], tensors: Mapping[str, NDArray[Any]], layout: Layout, *, finite: bool = False) -> None:
    """Hands the flat vector to `append` (of a `BlobWriter`, say) in order, a chunk of a tensor at a time, padding included.

    Args:
        tensors: arrays of the layout's dtypes; bfloat16 as int16 bit patterns.
        finite: values must be.

    Raises:
        WeightsRefused: names the tensor that is absent, not in the layout, of another dtype or shape, or holds what float32 cannot carry.
        NonFinite: names the first value that is NaN or infinite, where they must be finite.
    """
    if missing := [e.name for e in layout.entries if e.name not in tensors]:
        raise WeightsRefused(missing[0], "is in the layout and not among the weights")
    if extra := [name for name in tensors if name not in layout]:
        raise WeightsRefused(extra[0], "is not in the layout")
    end = 0
    for e in layout.entries:
        tensor = tensors[e.name]
        if tensor.dtype != DTYPES[e.dtype].array or tensor.shape != e.shape:
            raise WeightsRefused(e.name, f"is {tensor.dtype.name}{list(tensor.shape)}, must be {e.dtype}{list(e.shape)}")
        if e.offset > end:
            append(memoryview(bytes(4 * (e.offset - end))))
        end = e.offset
        for part in _flat_parts(e, tensor):
            if finite:
                _finite_part(part, end, e.name)
            append(part.data.cast("B"))
            end += part.size


def _flat_parts(entry: Entry, tensor: NDArray[Any]) -> Iterator[Floats]:
    """A tensor's elements as they stand in the flat vector, chunk by chunk."""
    whole = np.ascontiguousarray(tensor).reshape(-1)
    for at in range(0, entry.count, CHUNK_ELEMENTS):
        try:
            yield flat_values(whole[at : at + CHUNK_ELEMENTS], entry.dtype)
        except DoesNotFit as error:
            raise WeightsRefused(entry.name, f"element {at + error.index} {error.why}") from None


def flatten(tensors: Mapping[str, NDArray[Any]], layout: Layout, path: Path | str, *, finite: bool = False, over: bool = False) -> None:
    """Writes the flat file; on any failure there is none. Raises as `flatten_to`, and `DiskFull` if there is no room.

    Args:
        over: a file that is there is written over in place. Its pages are in memory and its blocks on disk: that is faster than new ones.
    """
    path = Path(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if over else os.O_TRUNC)
    try:
        with writing(path), open(os.open(path, flags, 0o600), "r+b", buffering=1 << 16) as f:
            flatten_to(lambda part: _write_whole(f.write, part), tensors, layout, finite=finite)
            f.truncate()
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def unflatten(flat_D: Floats, layout: Layout) -> dict[str, Shown]:
    """Each tensor as the app is shown it, in the layout's order: float32 a view, others converted, bfloat16 as int16 bit patterns."""
    _same_length(flat_D, layout)
    return {e.name: shown(flat_D[e.offset : e.offset + e.count], e.dtype).reshape(e.shape) for e in layout.entries}


def shown_part(flat_D: Floats, layout: Layout, where: slice) -> Floats:
    """Elements `where` of the flat vector as the app is shown them, in float32: a view, unless a dtype rounds some of them.

    An update is local weights minus *this*: the digits that the app never saw stay in the base.
    """
    part = flat_D[where]
    if not (touched := layout.converted_in(where.start, where.stop)):
        return part
    part = part.copy()
    for e in touched:
        at = slice(max(e.offset - where.start, 0), min(e.offset + e.count, where.stop) - where.start)
        part[at] = settled(part[at], e.dtype)
    return part


class WeightsHasher:
    """The weights id of a flat vector that passes by in order, in parts of any size; nothing of it is kept.

    SHA-256 over (name, dtype, shape, BLAKE3 of the bytes) of all tensors in bytewise order of name. The bytes are those of the tensor
    as it is shown. Padding and the order of tensors are not in it: the same weights have one id in every run. Encoding:
    docs/spec/formats.md, "Weights id".
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._digests: dict[str, bytes] = {}
        self._open = (e for e in layout.entries)
        self._entry = next(self._open, None)
        self._hash = blake3()
        self._at = 0

    def update(self, part: Floats) -> None:
        """The next elements, float32."""
        first, last = self._at, self._at + part.size
        self._at = last
        while (e := self._entry) is not None and e.offset < last:
            inside = part[max(e.offset - first, 0) : e.offset + e.count - first]
            self._hash.update(np.ascontiguousarray(shown(inside, e.dtype)).view(np.uint8).data)
            if e.offset + e.count > last:
                return
            self._next(e)

    def digest(self) -> bytes:
        """32 bytes, once the whole vector has passed."""
        while (e := self._entry) is not None and e.offset + e.count <= self._at:  # empty tensors at the end
            self._next(e)
        if self._at != self._layout.elements:
            raise LayoutRefused(f"needs float32[{self._layout.elements}], got {self._at} elements")
        return weights_id_of(self._layout, self._digests)

    def _next(self, done: Entry) -> None:
        self._digests[done.name] = self._hash.digest()
        self._hash, self._entry = blake3(), next(self._open, None)


def weights_id_of(layout: Layout, blake3_of: Mapping[str, bytes]) -> bytes:
    """The weights id where each tensor's bytes, as it is shown, have this BLAKE3."""
    h = sha256(_WEIGHTS_LABEL + struct.pack("<I", len(layout.entries)))
    for e in sorted(layout.entries, key=lambda e: e.name.encode()):
        name, dtype = e.name.encode(), e.dtype.encode()
        h.update(struct.pack("<I", len(name)) + name + struct.pack("<I", len(dtype)) + dtype)
        h.update(struct.pack(f"<I{len(e.shape)}QQ", len(e.shape), *e.shape, DTYPES[e.dtype].bytes * e.count))
        h.update(blake3_of[e.name])
    return h.digest()


def weights_id(flat_D: Floats, layout: Layout) -> bytes:
    """What `WeightsHasher` gives for a vector that is there whole, mapped perhaps."""
    _same_length(flat_D, layout)
    hasher = WeightsHasher(layout)
    for at in chunk_starts(0, layout.elements, flat_D):
        hasher.update(flat_D[at : at + CHUNK_ELEMENTS])
    return hasher.digest()


def check_finite(flat_D: Floats, layout: Layout) -> None:
    """Nothing if every element is finite; otherwise `NonFinite` naming the first tensor that is not."""
    _same_length(flat_D, layout)
    for at in chunk_starts(0, layout.elements, flat_D):
        part = flat_D[at : at + CHUNK_ELEMENTS]
        if not (good := np.isfinite(part)).all():
            entry = layout.entry_at(at + int(np.argmin(good)))
            _finite_part(part, at, entry.name if entry else "(padding)")


def _finite_part(part_C: Floats, first: int, tensor: str) -> None:
    """`NonFinite` naming the first value of these elements, which begin at `first`, that is not finite."""
    if not (good := np.isfinite(part_C)).all():
        at = int(np.argmin(good))
        raise NonFinite(tensor, first + at, float(part_C[at]))


def check_padding(flat_D: Floats, layout: Layout) -> None:
    """Nothing if all padding is +0.0; else `WeightsRefused`: padding would be a place to hide a difference."""
    _same_length(flat_D, layout)
    for first, last in layout.gaps():
        if flat_D[first:last].tobytes().strip(b"\0"):
            raise WeightsRefused("(padding)", f"elements {first}…{last - 1} belong to no tensor and must be zero")


def _same_length(flat_D: Floats, layout: Layout) -> None:
    if flat_D.dtype != np.float32 or flat_D.shape != (layout.elements,):
        raise LayoutRefused(f"needs float32[{layout.elements}], got {flat_D.dtype}{list(flat_D.shape)}")


def _write_whole(write: Callable[[memoryview], int], part: memoryview) -> None:
    while part:
        part = part[write(part) :]
