"""A flat vector as a .safetensors file and back, each tensor in its own dtype, bfloat16 too; memory O(chunk) or one tensor.

The package `safetensors` wants every tensor as one numpy array, and numpy has no bfloat16. Format:
https://huggingface.co/docs/safetensors, "Format": u64 length ‖ JSON header ‖ data; tensors follow each other without gaps.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dure.blobs import writing
from dure.errors import Refused
from dure.model.dtypes import DTYPES, shown
from dure.model.layout import CHUNK_ELEMENTS, MAX_TENSORS, Layout
from dure.model.mapped import chunk_starts
from dure.model.weights import Floats

_NAMES = {"bool": "BOOL", "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
_NAMES |= {f"{kind}int{bits}": f"{letter}{bits}" for kind, letter in (("", "I"), ("u", "U")) for bits in (8, 16, 32, 64)}
_DTYPES = {theirs: ours for ours, theirs in _NAMES.items()}
MAX_HEADER_BYTES = 100_000_000
"""What the format itself allows."""


class SafetensorsRefused(Refused):
    """A file is no safetensors file, or holds what cannot be a model here; `field` names header or tensor."""


class DtypeUnknown(SafetensorsRefused):
    """A tensor is of a dtype that cannot be read here: 8-bit floats, say."""


class SafetensorsFile(Mapping[str, NDArray[Any]]):
    """A file's tensors by name, mapped and not read until asked for; bfloat16 as int16 bit patterns, as `flatten_to` takes them.

    Raises (on opening):
        SafetensorsRefused: the header is not what the format says, or a tensor's bytes are not where it says.
        LayoutRefused: names the tensor whose dtype cannot be summed.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise SafetensorsRefused("header", f"its length does not fit a file of {size} bytes")
            header = file.read(length)
            entries = _entries(header, size - 8 - length)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.metadata = _metadata(header)
        """Text by name, as whoever wrote the file has it."""
        self._start = 8 + length
        self._at = {name: (dtype, shape, begin) for name, dtype, shape, begin in entries}
        self.layout = Layout.build((name, dtype, shape) for name, dtype, shape, _ in entries)

    def __getitem__(self, name: str) -> NDArray[Any]:
        dtype, shape, begin = self._at[name]
        if not prod(shape):
            return np.empty(shape, DTYPES[dtype].array)
        flat = np.frombuffer(self._map, DTYPES[dtype].array, count=prod(shape), offset=self._start + begin)
        return flat.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


def _entries(header: bytes, data_bytes: int) -> list[tuple[str, str, tuple[int, ...], int]]:
    """(name, dtype, shape, first byte) of every tensor, in the order of its bytes."""
    try:
        table = json.loads(header)
    except (ValueError, RecursionError):
        raise SafetensorsRefused("header", "is not JSON") from None
    if not isinstance(table, dict) or len(table) > MAX_TENSORS + 1:
        raise SafetensorsRefused("header", f"must be an object of at most {MAX_TENSORS} tensors")
    found = [_entry(name, said, data_bytes) for name, said in table.items() if name != "__metadata__"]
    found.sort(key=lambda e: (e[3], e[4]))
    at = 0
    # What no tensor covers would be carried along unseen by every weights id; what two cover is read twice over.
    for *_, begin, end in [*found, ("", "", (), data_bytes, data_bytes)]:
        if begin != at:
            raise SafetensorsRefused("header", f"its tensors leave a gap or overlap at byte {min(begin, at)} of the data")
        at = end
    return [e[:4] for e in found]


def _metadata(header: bytes) -> dict[str, str]:
    found = json.loads(header).get("__metadata__", {})
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _entry(name: str, said: Any, data_bytes: int) -> tuple[str, str, tuple[int, ...], int, int]:
    """(name, dtype, shape, first byte, byte after its last)"""
    what = f"tensor {name[:80]!r}"
    if not isinstance(said, dict) or not {"dtype", "shape", "data_offsets"} <= set(said):
        raise SafetensorsRefused(what, "must have dtype, shape and data_offsets")
    kind, shape, offsets = str(said["dtype"]), said["shape"], said["data_offsets"]
    if kind not in _DTYPES:
        raise DtypeUnknown(what, f"is {kind[:16]}, which cannot be summed; convert it or leave it out")
    if not isinstance(shape, list) or any(type(d) is not int or d < 0 for d in shape) or len(shape) > 64:
        raise SafetensorsRefused(what, "has a shape that is none")
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(o) is not int for o in offsets):
        raise SafetensorsRefused(what, "has data_offsets that are none")
    begin, end = offsets
    if not 0 <= begin <= end <= data_bytes or end - begin != prod(shape) * DTYPES[_DTYPES[kind]].bytes:
        raise SafetensorsRefused(what, f"its bytes {begin} to {end} do not fit its shape or the file")
    return name, _DTYPES[kind], tuple(shape), begin, end


def write_safetensors(path: Path, flat_D: Floats, layout: Layout, metadata: Mapping[str, str]) -> None:
    """The model in `path`, whole and durable or not at all. `DiskFull` if there is no room."""
    scratch = path.with_name(f".{path.name}.new")
    with writing(path), open(scratch, "wb") as file:
        file.write(_header(layout, metadata))
        for e in layout.entries:
            for at in chunk_starts(e.offset, e.offset + e.count, flat_D):
                part = flat_D[at : min(at + CHUNK_ELEMENTS, e.offset + e.count)]
                file.write(np.ascontiguousarray(shown(part, e.dtype)).data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _header(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for e in layout.entries:
        begin, end = end, end + e.count * DTYPES[e.dtype].bytes
        header[e.name] = {"dtype": _NAMES[e.dtype], "shape": list(e.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
