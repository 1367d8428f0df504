"""The weights of a release: its *.safetensors files, each tensor by its BLAKE3, so that a changed one can be named.

`tensors.json` lists them: {"tensors": [{"name", "dtype", "shape", "file", "blake3"}]}, in the order of the files' bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from dure.blobs import CHUNK_BYTES, BlobId, Manifest, chunk_leaf
from dure.errors import BadInput, DureError, Refused
from dure.model.layout import Layout
from dure.model.safetensors_file import DtypeUnknown, SafetensorsFile
from dure.model.weights import flatten_to, weights_id_of
from dure.provenance.errors import ContentDiffers, OtherDtype, OtherShape
from dure.provenance.facts import Tensors
from dure.statements.dsse import canonical_json

TENSORS = "tensors.json"
SUFFIX = ".safetensors"
PIECE_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class WeightFiles(Mapping[str, NDArray[Any]]):
    """The tensors of all files together, mapped and not read."""

    files: tuple[tuple[str, SafetensorsFile], ...]

    @staticmethod
    def open(folder: Path) -> WeightFiles:
        """The weights of a folder, or of one file.

        Raises:
            BadInput: no weights, or a tensor in two files.
            OtherDtype: names the tensor that is of a dtype that cannot be read.
            Refused: a file is not what its format says.
        """
        if folder.is_file():
            return WeightFiles(((folder.name, _opened(folder)),))
        names = sorted(p.name for p in folder.glob(f"*{SUFFIX}"))
        if not names:
            raise BadInput(f"{folder}: has no {SUFFIX} file; `dure run export RUN --out DIR` writes one")
        found = WeightFiles(tuple((name, _opened(folder / name)) for name in names))
        counted = Counter(tensor for _, file in found.files for tensor in file)
        twice = next((t for t, n in counted.items() if n > 1), None)
        if twice is not None:
            raise BadInput(f"{folder}: tensor {twice!r} is in two files")
        return found

    @property
    def layout(self) -> Layout:
        """Of all tensors, in the order of the files."""
        return Layout.build((e.name, e.dtype, e.shape) for _, file in self.files for e in file.layout.entries)

    @property
    def metadata(self) -> dict[str, str]:
        return {k: v for _, file in self.files for k, v in file.metadata.items()}

    def file_of(self, tensor: str) -> str:
        return next(name for name, file in self.files if tensor in file)

    def __getitem__(self, tensor: str) -> NDArray[Any]:
        return next(file for _, file in self.files if tensor in file)[tensor]

    def __iter__(self) -> Iterator[str]:
        return (tensor for _, file in self.files for tensor in file)

    def __len__(self) -> int:
        return sum(len(file) for _, file in self.files)


def _opened(path: Path) -> SafetensorsFile:
    try:
        return SafetensorsFile(path)
    except DtypeUnknown as error:
        raise OtherDtype(f"{path.name}: {error.field} {error.why}") from None
    except Refused as error:
        raise Refused(path.name, str(error)) from None


def tensor_digests(weights: WeightFiles) -> dict[str, bytes]:
    """BLAKE3 of each tensor's bytes, memory O(1 MiB)."""
    return {name: _blake3(weights[name]) for name in weights}


def _blake3(tensor: NDArray[Any]) -> bytes:
    flat, digest = tensor.reshape(-1), blake3()
    for at in range(0, flat.size, PIECE_ELEMENTS):
        digest.update(np.ascontiguousarray(flat[at : at + PIECE_ELEMENTS]).view(np.uint8).data)
    return digest.digest()


def describe(weights: WeightFiles, digests: Mapping[str, bytes]) -> tuple[Tensors, bytes]:
    """(facts, tensors.json)."""
    layout = weights.layout
    dtypes: Counter[str] = Counter()
    for e in layout.entries:
        dtypes[e.dtype] += e.count
    facts = Tensors(
        weights_id=weights_id_of(layout, digests),
        tensors_sha256=layout.tensors_sha256,
        parameters=layout.parameters,
        dtypes=dict(sorted(dtypes.items())),
        files=tuple(name for name, _ in weights.files),
    )
    rows = [
        {"name": e.name, "dtype": e.dtype, "shape": list(e.shape), "file": weights.file_of(e.name), "blake3": digests[e.name].hex()}
        for e in layout.entries
    ]
    return facts, canonical_json({"tensors": rows})


def compare(listed: bytes, folder: Path) -> None:
    """That the weights in a folder are those `tensors.json` lists; nothing if they are.

    Raises:
        OtherShape, OtherDtype, ContentDiffers: names file and tensor.
        Refused: the list or a file is out of form.
    """
    try:
        rows = json.loads(listed)["tensors"]
        wanted = {str(r["name"]): (str(r["dtype"]), tuple(r["shape"]), str(r["file"]), bytes.fromhex(r["blake3"])) for r in rows}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused(TENSORS, "is not a list of tensors") from None
    weights = WeightFiles.open(folder)
    there = {e.name: e for e in weights.layout.entries}
    for name in [*wanted, *there]:
        if name not in there or name not in wanted:
            where = "listed and not in the weights" if name in wanted else "in the weights and not listed"
            raise OtherShape(f"tensor {name!r} is {where}: another architecture")
    for name, (dtype, shape, file, _) in wanted.items():
        if there[name].dtype != dtype:
            raise OtherDtype(f"{file}: tensor {name!r} is {there[name].dtype}, the release has it in {dtype}")
        if there[name].shape != shape:
            raise OtherShape(f"{file}: tensor {name!r} is {list(there[name].shape)}, the release has it as {list(shape)}")
    for name, (_, _, file, digest) in wanted.items():
        if _blake3(weights[name]) != digest:
            raise ContentDiffers(f"{file}: tensor {name!r} holds other values than were signed")


def what_changed(listed: bytes, folder: Path) -> DureError | None:
    """Why weights differ, as exactly as can be said; None if the tensors are all the same and only the file around them is another."""
    try:
        compare(listed, folder)
    except DureError as error:
        return error
    return None


class _FlatId:
    """The blob id of bytes that pass by in order."""

    def __init__(self) -> None:
        self._leaves: list[bytes] = []
        self._rest = bytearray()
        self._length = 0

    def append(self, part: memoryview) -> None:
        for at in range(0, len(part), CHUNK_BYTES):
            self._rest += part[at : at + CHUNK_BYTES]
            while len(self._rest) >= CHUNK_BYTES:
                self._leaf(bytes(self._rest[:CHUNK_BYTES]))
                del self._rest[:CHUNK_BYTES]

    def _leaf(self, chunk: bytes) -> None:
        self._leaves.append(chunk_leaf(chunk))
        self._length += len(chunk)

    def id(self) -> BlobId:
        if self._rest:
            self._leaf(bytes(self._rest))
            self._rest.clear()
        return Manifest(tuple(self._leaves), self._length).id


def flat_id(weights: WeightFiles, order: Sequence[str]) -> BlobId:
    """Blob id of the flat vector of these tensors: what a base record names. Exact only where all are float32."""
    entries = weights.layout
    layout = Layout.build((name, entries[name].dtype, entries[name].shape) for name in order)
    made = _FlatId()
    flatten_to(made.append, weights, layout)
    return made.id()
