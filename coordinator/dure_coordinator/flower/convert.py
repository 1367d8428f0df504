"""Flower records <-> our instruction and flat files, on the ServerApp's side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from dure.model.content import ArrayItem, ConfigItem, Instruction, InstructionRefused, Item, MetricItem
from dure.model.layout import CHUNK_ELEMENTS, Layout
from dure.model.weights import Floats, flatten, open_flat, unflatten, weights_id
from dure_coordinator.flower.backend import GridRefused


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
        known: the layout the run began with. A float array that a strategy widened since (FedAdam returns float64 for
            float32) is cast back to the dtype it has there; in a first broadcast nothing is cast.

    Raises:
        LayoutRefused, WeightsRefused: naming the array that is not float32 or not plain numbers.
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for key, array in record.items():
        if array.stype != "numpy.ndarray":
            raise GridRefused(f"array {key!r} of record {name!r} is serialised as {array.stype!r}; only numpy arrays are carried")
        value = array.numpy()
        if known is not None and key in known and value.shape == known[key].shape and value.dtype.kind == "f":
            value = value.astype(known[key].dtype, copy=False)
        tensors[key] = value
    layout = Layout.build((key, str(value.dtype), value.shape) for key, value in tensors.items())
    # A new file each time: the daemon may have linked an earlier one of this name, and a link shares its content.
    fresh = path.with_name(path.name + ".new")
    flatten(tensors, layout, fresh)
    os.replace(fresh, path)
    return ArrayItem(name, layout, weights_id(open_flat(path, layout), layout)), path


def read_arrays(path: Path, layout: Layout) -> ArrayRecord:
    """A flat file as a Flower record, in the layout's order and dtypes."""
    return record_of(open_flat(path, layout), layout)


def base_plus_mean(base: Path, mean: Path, layout: Layout) -> ArrayRecord:
    """`base + mean update`, elementwise in float32, chunk by chunk."""
    base_D, mean_D = open_flat(base, layout), open_flat(mean, layout)
    out_D = np.empty(layout.elements, dtype=np.float32)
    for at in range(0, layout.elements, CHUNK_ELEMENTS):
        part = slice(at, min(at + CHUNK_ELEMENTS, layout.elements))
        np.add(base_D[part], mean_D[part], out=out_D[part])
    return record_of(out_D, layout)


def record_of(flat_D: Floats, layout: Layout) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in unflatten(flat_D, layout).items()})


def metric_record(metrics: Mapping[str, float], weight_key: str, num_examples: float) -> MetricRecord:
    """The one reply's metrics, with the sum of weights under the key the strategy weighs by."""
    total = int(num_examples) if float(num_examples).is_integer() else num_examples
    return MetricRecord({**{name: float(value) for name, value in metrics.items()}, weight_key: total})


def _values(record: ConfigRecord | MetricRecord) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
