"""Where each tensor of a model lies in one flat float32 vector, so that everyone cuts it alike.

Offsets count elements. Tensors of 65,536 elements or more start on a multiple of 4096, smaller ones on a multiple
of 64; what lies between is zero and belongs to no tensor. Between integers and floats there is always a multiple of 4096:
they move by amounts of their own, and would ruin each other's precision under one scale (docs/spec/formats.md, "Flat model").

D = elements of the flat vector, padding included.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from math import prod
from typing import Any

from dure.errors import Refused
from dure.model.dtypes import DTYPES

BLOCK_ELEMENTS = 4096
"""Elements that share one scale."""
CHUNK_ELEMENTS = 1 << 18
"""Elements of chunk k, the same ones in base (1 MiB), update (512 KiB) and aggregate."""
LARGE_TENSOR_ELEMENTS = 65_536
LARGE_ALIGNMENT = 4096
SMALL_ALIGNMENT = 64
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 512
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 1 << 38
"""2^38 elements are 1 TiB of float32, the largest blob."""
MAX_LAYOUT_BYTES = 16 * 1024 * 1024


class LayoutRefused(Refused):
    """A list of tensors cannot be a model here; `tensor` names the one at fault, if it is one."""

    def __init__(self, why: str, *, tensor: str | None = None) -> None:
        super().__init__("layout" if tensor is None else f"tensor {tensor!r}", why)
        self.tensor = tensor


class LayoutDiffers(Refused):
    """Two models that must have the same tensors do not; `tensor` is the first that differs."""

    def __init__(self, tensor: str, why: str) -> None:
        super().__init__(f"tensor {tensor!r}", f"{why}; every member must run the same model code")
        self.tensor = tensor


@dataclass(frozen=True)
class Entry:
    """One tensor: elements [offset, offset + count) of the flat vector, row-major."""

    name: str
    dtype: str
    """What the app has it in, one of `DTYPES`; in the flat vector it is float32."""
    shape: tuple[int, ...]
    offset: int
    count: int

    @property
    def integer(self) -> bool:
        return DTYPES[self.dtype].integer


@dataclass(frozen=True)
class Layout:
    """Tensors in the model's own order. Build it with `Layout.build`; its digest is part of what members sign."""

    entries: tuple[Entry, ...]
    elements: int

    @classmethod
    def build(cls, tensors: Iterable[tuple[str, str, Sequence[int]]]) -> Layout:
        """The layout of tensors given as (name, dtype, shape), in this order.

        Raises:
            LayoutRefused: names the tensor of a dtype that cannot be summed, twice there, or out of bounds.
        """
        entries: list[Entry] = []
        seen: set[str] = set()
        end = 0
        for name, dtype, shape in tensors:
            if len(entries) == MAX_TENSORS:
                raise LayoutRefused(f"more than {MAX_TENSORS} tensors; split the model or freeze parts of it")
            _judge(name, dtype, shape)
            if name in seen:
                raise LayoutRefused("is there twice", tensor=name)
            seen.add(name)
            count = prod(shape)
            apart = bool(entries) and entries[-1].integer != DTYPES[dtype].integer
            align = LARGE_ALIGNMENT if apart or count >= LARGE_TENSOR_ELEMENTS else SMALL_ALIGNMENT
            offset = -(-end // align) * align
            end = offset + count
            if end > MAX_ELEMENTS:
                raise LayoutRefused(f"the model would have more than {MAX_ELEMENTS} elements", tensor=name)
            entries.append(Entry(name, dtype, tuple(shape), offset, count))
        if end == 0:
            raise LayoutRefused("a model needs at least one element")
        return cls(tuple(entries), end)

    @property
    def blocks(self) -> int:
        """Blocks of 4096 elements; the last may be short."""
        return -(-self.elements // BLOCK_ELEMENTS)

    @property
    def chunks(self) -> int:
        """Chunks of 2^18 elements; the last may be short."""
        return -(-self.elements // CHUNK_ELEMENTS)

    @property
    def flat_bytes(self) -> int:
        return 4 * self.elements

    @cached_property
    def tensors_sha256(self) -> bytes:
        """SHA-256 of names, dtypes and shapes in bytewise order of name: the same for every order of the same tensors."""
        listed = sorted(([e.name, e.dtype, list(e.shape)] for e in self.entries), key=lambda t: str(t[0]).encode())
        return sha256(b"dure tensors 1\n" + json.dumps(listed, separators=(",", ":"), ensure_ascii=False).encode()).digest()

    @property
    def parameters(self) -> int:
        """Elements that belong to a tensor: what a person calls the size of the model."""
        return sum(e.count for e in self.entries)

    def chunk_range(self, k: int) -> tuple[int, int]:
        """Elements [first, last) of chunk k."""
        if not 0 <= k < self.chunks:
            raise LayoutRefused(f"chunk must lie in 0…{self.chunks - 1}, is {k}")
        return k * CHUNK_ELEMENTS, min((k + 1) * CHUNK_ELEMENTS, self.elements)

    @cached_property
    def _by_name(self) -> dict[str, Entry]:
        return {e.name: e for e in self.entries}

    @cached_property
    def _filled(self) -> list[Entry]:
        return [e for e in self.entries if e.count]

    def __getitem__(self, name: str) -> Entry:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def entry_at(self, element: int) -> Entry | None:
        """The tensor this element belongs to; None in padding."""
        i = bisect.bisect_right(self._filled, element, key=lambda e: e.offset) - 1
        found = self._filled[i] if i >= 0 else None
        return found if found and element < found.offset + found.count else None

    @cached_property
    def converted(self) -> tuple[Entry, ...]:
        """Non-empty tensors that are not float32, in order: what the app is shown differs from the flat vector."""
        return tuple(e for e in self._filled if e.dtype != "float32")

    def converted_in(self, first: int, last: int) -> tuple[Entry, ...]:
        """Those of `converted` that have elements in [first, last)."""
        if not self.converted:
            return ()
        begin = bisect.bisect_right(self.converted, first, key=lambda e: e.offset + e.count)
        end = bisect.bisect_left(self.converted, last, key=lambda e: e.offset)
        return self.converted[begin:end]

    def averaged(self, patterns: Sequence[str] = ()) -> tuple[tuple[int, int], ...]:
        """Elements [first, last) of the tensors no outer step but the average may move: integers, and those a pattern names.

        A pattern is a name, or with a star at either end the end, beginning or middle of one.
        """
        return tuple((e.offset, e.offset + e.count) for e in self._filled if e.integer or any(named(e.name, p) for p in patterns))

    def gaps(self) -> Iterable[tuple[int, int]]:
        """Padding as [first, last) ranges of elements, in order."""
        end = 0
        for e in self.entries:
            if e.offset > end:
                yield end, e.offset
            end = e.offset + e.count

    def to_json(self) -> bytes:
        """Canonical JSON: one layout has one encoding."""
        tensors = [{"count": e.count, "dtype": e.dtype, "name": e.name, "offset": e.offset, "shape": list(e.shape)} for e in self.entries]
        record = {"elements": self.elements, "tensors": tensors, "v": 1}
        return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON."""
        return sha256(self.to_json()).digest()

    @classmethod
    def from_json(cls, data: bytes) -> Layout:
        """The layout these bytes are the canonical JSON of; anything else is `LayoutRefused`."""
        return _parsed(bytes(data))

    @classmethod
    def _parse(cls, data: bytes) -> Layout:
        if len(data) > MAX_LAYOUT_BYTES:
            raise LayoutRefused(f"more than {MAX_LAYOUT_BYTES} bytes of JSON")
        try:
            record = json.loads(data)
        except (ValueError, RecursionError) as e:
            raise LayoutRefused("is not JSON") from e
        layout = cls.build(_tensors_of(record))
        # Offsets, counts, key order, duplicate keys and spelling are all judged by this one comparison.
        if layout.to_json() != data:
            raise LayoutRefused("is not the canonical JSON of a layout (offsets, counts, key order or spelling)")
        return layout

    def compare(self, other: Layout) -> None:
        """Nothing if both are the same; otherwise `LayoutDiffers` naming the first tensor that differs."""
        for mine, theirs in zip(self.entries, other.entries, strict=False):
            if mine.name != theirs.name:
                raise LayoutDiffers(mine.name, f"the other model has {theirs.name!r} in its place")
            if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
                raise LayoutDiffers(mine.name, f"is {mine.dtype}{list(mine.shape)} here and {theirs.dtype}{list(theirs.shape)} there")
        common = min(len(self.entries), len(other.entries))
        for longer, where in ((self, "here"), (other, "there")):
            if len(longer.entries) > common:
                raise LayoutDiffers(longer.entries[common].name, f"is only {where}")


@lru_cache(maxsize=8)
def _parsed(data: bytes) -> Layout:
    """The same few layouts are read at every step of an exchange."""
    return Layout._parse(data)


def named(name: str, pattern: str) -> bool:
    middle = pattern.removeprefix("*").removesuffix("*")
    if pattern.startswith("*"):
        return middle in name if pattern.endswith("*") else name.endswith(middle)
    return name.startswith(middle) if pattern.endswith("*") else name == middle


def _judge(name: str, dtype: str, shape: Sequence[int]) -> None:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise LayoutRefused("a name must be printable text", tensor=str(name)[:80])
    if len(name.encode()) > MAX_NAME_BYTES:
        raise LayoutRefused(f"a name has at most {MAX_NAME_BYTES} bytes", tensor=name[:80])
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise LayoutRefused(f"is {str(dtype)[:32]}, which cannot be summed; convert it to one of {', '.join(DTYPES)}", tensor=name)
    if len(shape) > MAX_DIMENSIONS:
        raise LayoutRefused(f"has {len(shape)} dimensions, at most {MAX_DIMENSIONS}", tensor=name)
    if any(type(d) is not int or not 0 <= d <= MAX_ELEMENTS for d in shape):
        raise LayoutRefused(f"a dimension must be an integer in 0…{MAX_ELEMENTS}", tensor=name)


def _tensors_of(record: Any) -> list[tuple[str, str, list[int]]]:
    if not isinstance(record, dict) or record.get("v") != 1 or not isinstance(record.get("tensors"), list):
        raise LayoutRefused("must be an object with v = 1 and a list of tensors")
    out = []
    for t in record["tensors"]:
        if not isinstance(t, dict) or not isinstance(t.get("shape"), list):
            raise LayoutRefused("each tensor must be an object with a shape")
        out.append((t.get("name", ""), t.get("dtype", ""), t["shape"]))
    return out
