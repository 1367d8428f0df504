"""A flat vector as a .safetensors file, each tensor in its own dtype, bfloat16 too; memory O(chunk).

The package `safetensors` wants every tensor as one numpy array, and numpy has no bfloat16. Format:
https://huggingface.co/docs/safetensors, "Format": u64 length ‖ JSON header ‖ data; tensors follow each other without gaps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dure.blobs import writing
from dure.model.dtypes import DTYPES, shown
from dure.model.layout import CHUNK_ELEMENTS, Layout
from dure.model.weights import Floats

_NAMES = {"bool": "BOOL", "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
_NAMES |= {f"{kind}int{bits}": f"{letter}{bits}" for kind, letter in (("", "I"), ("u", "U")) for bits in (8, 16, 32, 64)}


def write_safetensors(path: Path, flat_D: Floats, layout: Layout, metadata: Mapping[str, str]) -> None:
    """The model in `path`, whole and durable or not at all. `DiskFull` if there is no room."""
    scratch = path.with_name(f".{path.name}.new")
    with writing(path), open(scratch, "wb") as file:
        file.write(_header(layout, metadata))
        for e in layout.entries:
            for at in range(e.offset, e.offset + e.count, CHUNK_ELEMENTS):
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
