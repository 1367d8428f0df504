"""Flower records <-> our instruction and flat files, on the ServerApp's side.

A bfloat16 array comes as its bit patterns (an `Array` whose dtype says "bfloat16", int16 inside: numpy has no such type) and goes back as
float32, which every strategy can add up; what a strategy widens is rounded to the run's dtypes when it is sent again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from dure.blobs import writing
from dure.model.content import ArrayItem, ConfigItem, Instruction, InstructionRefused, Item, MetricItem
from dure.model.dtypes import DTYPES, bfloat16_of, flat_values
from dure.model.initial import initialise
from dure.model.layout import CHUNK_ELEMENTS, Layout
from dure.model.mapped import chunk_starts
from dure.model.metrics import gather
from dure.model.rules import Rule
from dure.model.weights import Floats, check_finite, flatten, open_flat, unflatten, weights_id
from dure_coordinator.flower.backend import GridRefused
from dure_coordinator.flower.mapped import MappedArray, numbers


def instruction_of(message: Message, arrays: tuple[ArrayItem, Path] | None) -> Instruction:
    """The instruction in a Flower message; its one array record was written by `write_arrays` beforehand.

    Raises:
        GridRefused: a record that cannot be carried, by name.
    """
    records: list[Item] = []
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            assert arrays is not None
            records.append(arrays[0])
        elif isinstance(record, ConfigRecord):
            records.append(ConfigItem(name, _values(record)))
        else:
            records.append(MetricItem(name, _values(record)))
    metadata = message.metadata
    try:
        return Instruction(metadata.message_type, metadata.group_id, float(metadata.ttl), tuple(records))
    except InstructionRefused as error:
        raise GridRefused(f"the message cannot be sent: {error}") from None


def the_array_record(content: RecordDict) -> tuple[str, ArrayRecord] | None:
    """The one array record of a message; more than one is refused by name."""
    names = list(content.array_records)
    if len(names) > 1:
        raise GridRefused(
            f"array records {', '.join(map(repr, names))}: one array record per message can be summed; merge them into {names[0]!r}"
        )
    return (names[0], content.array_records[names[0]]) if names else None


def write_arrays(name: str, record: ArrayRecord, path: Path, known: Layout | None = None) -> tuple[ArrayItem, Path]:
    """Write a record's arrays as a flat file.

    Args:
        known: the layout the run began with. An array that a strategy widened since (FedAdam returns float64 for float32, an
            average float64 for int64) is rounded back to the dtype it has there; in a first broadcast nothing is converted.

    Raises:
        Refused: naming the array whose dtype cannot be summed, that is not finite or does not fit float32.
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    dtypes: dict[str, str] = {}
    for key, array in record.items():
        if array.stype != "numpy.ndarray":
            raise GridRefused(f"array {key!r} of record {name!r} is serialised as {array.stype!r}; only numpy arrays are carried")
        value = numbers(array)
        dtypes[key] = "bfloat16" if array.dtype == "bfloat16" and value.dtype.name in ("int16", "uint16") else value.dtype.name
        if known is not None and key in known and value.shape == known[key].shape:
            value, dtypes[key] = _as_known(key, value, dtypes[key], known[key].dtype)
        if dtypes[key] in DTYPES:  # the byte order is ours; another dtype is refused by the layout
            value = value.view(np.int16) if dtypes[key] == "bfloat16" else value.astype(DTYPES[dtypes[key]].array, copy=False)
        tensors[key] = value
    layout = Layout.build((key, dtypes[key], value.shape) for key, value in tensors.items())
    # A new file each time: the daemon may have linked an earlier one of this name, and a link shares its content.
    fresh = path.with_name(path.name + ".new")
    flatten(tensors, layout, fresh)
    check_finite(open_flat(fresh, layout), layout)
    os.replace(fresh, path)
    return ArrayItem(name, layout, weights_id(open_flat(path, layout), layout)), path


def _as_known(key: str, value: np.ndarray[Any, Any], dtype: str, wanted: str) -> tuple[np.ndarray[Any, Any], str]:
    """The value in the dtype the run has it in; as it is, where that is no rounding of numbers."""
    if dtype == wanted or dtype not in DTYPES:
        return value, dtype
    if dtype == "bfloat16":
        value = flat_values(value.reshape(-1), dtype).reshape(value.shape)
    if wanted == "bfloat16":
        return bfloat16_of(value), wanted
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise GridRefused(f"array {key!r} holds NaN or infinity; the strategy diverged")
    with np.errstate(over="ignore"):
        return (np.rint(value) if DTYPES[wanted].integer else value).astype(DTYPES[wanted].array), wanted


def replaced(own: ArrayRecord, base: Path, layout: Layout, origin: str) -> ArrayRecord:
    """The base's values under the names and in the order of the app's own initial arrays.

    Raises:
        GridRefused: naming the first tensor of the app that the base does not have so, or of the base that the app does not have.
    """
    wanted = {name: (dtype_of(array), tuple(array.shape)) for name, array in own.items()}
    for name, (dtype, shape) in wanted.items():
        if name not in layout:
            raise GridRefused(f"--from {origin}: it has no tensor {name!r}, and the app's model has ({dtype}{list(shape)})")
        there = layout[name]
        if (dtype, shape) != (there.dtype, there.shape):
            what = f"{there.dtype}{list(there.shape)} there and {dtype}{list(shape)} in the app's model"
            raise GridRefused(f"--from {origin}: tensor {name!r} is {what}")
    if extra := next((e.name for e in layout.entries if e.name not in wanted), None):
        raise GridRefused(f"--from {origin}: it has tensor {extra!r}, and the app's model does not")
    tensors = unflatten(open_flat(base, layout), layout)
    return ArrayRecord({name: _array(tensors[name], dtype) for name, (dtype, _) in wanted.items()})


def initialised(own: ArrayRecord, seed: bytes, rules: Sequence[Rule], path: Path) -> ArrayRecord:
    """First weights from a seed under the names and in the order of the app's own initial arrays; `path` holds them until the end.

    Raises:
        Refused: naming a tensor the rules leave out.
    """
    layout = Layout.build((name, dtype_of(array), array.shape) for name, array in own.items())
    with path.open("wb") as file:
        initialise(seed, layout, rules, file.write)
    return replaced(own, path, layout, "the joint seed")


def dtype_of(array: Array) -> str:
    """The dtype an array stands for: bfloat16 comes as its bit patterns."""
    return "bfloat16" if array.dtype == "bfloat16" else str(np.dtype(array.dtype).name)


def _array(value: np.ndarray[Any, Any], dtype: str) -> Array:
    plain = Array(np.ascontiguousarray(value))
    return Array(dtype="bfloat16", shape=plain.shape, stype=plain.stype, data=plain.data) if dtype == "bfloat16" else plain


def read_arrays(path: Path, layout: Layout) -> ArrayRecord:
    """A flat file as a Flower record, in the layout's order and dtypes (bfloat16 as float32). float32 stays in the file."""
    return record_of(open_flat(path, layout), layout)


def base_plus_mean(base: Path, mean: Path, layout: Layout, path: Path) -> ArrayRecord:
    """`base + mean update`, elementwise in float32, chunk by chunk, into a file at `path`; the record is over that file."""
    base_D, mean_D = open_flat(base, layout), open_flat(mean, layout)
    fresh = path.with_name(path.name + ".new")
    with writing(fresh), fresh.open("wb") as file:
        for at in chunk_starts(0, layout.elements, base_D, mean_D):
            part = slice(at, min(at + CHUNK_ELEMENTS, layout.elements))
            file.write((base_D[part] + mean_D[part]).data)
    os.replace(fresh, path)
    return read_arrays(path, layout)


def again(name: str, given: Path, layout: Layout, path: Path, *, finite: bool) -> tuple[ArrayItem, Path]:
    """What `write_arrays` gives for a record that `read_arrays` or `base_plus_mean` made of the file `given`, and that came back as it was.

    Raises:
        Refused: naming the tensor that is not finite.
    """
    if not finite:
        check_finite(open_flat(given, layout), layout)
    path.unlink(missing_ok=True)
    os.link(given, path)
    return ArrayItem(name, layout, weights_id(open_flat(path, layout), layout)), path


def record_of(flat_D: Floats, layout: Layout) -> ArrayRecord:
    tensors = unflatten(flat_D, layout)
    for entry in layout.entries:
        if entry.dtype == "bfloat16":
            tensors[entry.name] = flat_D[entry.offset : entry.offset + entry.count].reshape(entry.shape)
    record = ArrayRecord()
    for entry in layout.entries:  # one by one: a dictionary of arrays would be copied
        record[entry.name] = _shown(tensors[entry.name], entry.dtype)
    return record


def _shown(value: np.ndarray[Any, Any], dtype: str) -> Array:
    return MappedArray(value) if dtype == "float32" else Array(value)


def metric_record(metrics: Mapping[str, float], weight_key: str, num_examples: float, *, sums: bool = False) -> tuple[str, MetricRecord]:
    """The one reply's metrics under their record's name, with the sum of weights under the key the strategy weighs by.

    Args:
        sums: the app adds replies up instead of averaging them, so the one reply holds the sums.
    """
    total = int(num_examples) if float(num_examples).is_integer() else num_examples
    record, values = gather({name: _times(value, num_examples) for name, value in metrics.items()} if sums else metrics)
    return record, MetricRecord({**values, weight_key: total})


def _times(mean: float, count: float) -> float:
    """mean · count; a whole number where nothing but the rounding of the two keeps it from being one."""
    product = mean * count
    return float(round(product)) if abs(product - round(product)) <= abs(product) * 2.0**-50 else product


def _values(record: ConfigRecord | MetricRecord) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
