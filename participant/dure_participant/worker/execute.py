"""One task: instruction and flat file in, ClientApp called, flat file and metrics out."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dure.errors import DureError
from dure.model.content import ArrayItem, ConfigItem, Instruction, content_id
from dure.model.layout import Layout
from dure.model.metrics import USUAL_RECORD, spread
from dure.model.weights import flatten, open_flat, unflatten
from dure_participant.worker import private
from dure_participant.worker.protocol import Task, TaskResult, Usage

USAGE_PREFIX = "dure."
USAGE_METRICS = ("dure.tokens", "dure.steps", "dure.flop")


class AppFailed(DureError):
    """The app said itself that it failed; the reason is in its words."""


class ReplyRefused(DureError):
    """The app's reply cannot be summed; the message names the first thing that is wrong."""


def execute(app: ClientApp, task: Task) -> TaskResult:
    """Run the app on one instruction.

    Raises:
        ReplyRefused, WeightsRefused, NonFinite: what the app returned cannot be summed, by name.
        Anything the app raises.
    """
    lent = private.Lent()
    try:
        return _execute(app, task, lent)
    finally:
        lent.call_in()


def _execute(app: ClientApp, task: Task, lent: private.Lent) -> TaskResult:
    instruction = Instruction.from_json(task.instruction)
    message = private.make_message(
        _content(instruction, task, lent),
        run_id=task.run_id,
        node_id=task.node_id,
        message_type=instruction.message_type,
        group_id=instruction.group_id,
        ttl_s=instruction.ttl_s,
        message_id=content_id(instruction).hex(),
    )
    context = Context(
        run_id=task.run_id,
        node_id=task.node_id,
        node_config=dict(task.node_config),
        state=_load_state(task.state_path, task.exchange),
        run_config=dict(task.run_config),
    )
    reply = app(message, context)
    if not isinstance(reply, Message):
        raise ReplyRefused(f"the app returned a {type(reply).__name__}, not a flwr.app.Message")
    if reply.has_error():
        raise AppFailed(f"the app replied with error {reply.error.code}: {reply.error.reason}")
    result = _result(reply.content, instruction, task)
    _save_state(task.state_path, task.exchange, context.state)
    return result


def _content(instruction: Instruction, task: Task, lent: private.Lent) -> RecordDict:
    content = RecordDict()
    for record in instruction.records:
        if isinstance(record, ArrayItem):
            if task.base_path is None:
                raise ReplyRefused("the instruction has arrays, but the task names no base file")
            tensors = unflatten(open_flat(task.base_path, record.layout), record.layout)
            arrays = content[record.name] = ArrayRecord()
            for (
                key,
                value,
            ) in tensors.items():  # numpy has no bfloat16: such an array holds its bit patterns as int16, and says what they are
                half = record.layout[key].dtype == "bfloat16"
                arrays[key] = lent.lend(value, "bfloat16" if half else str(value.dtype))
            continue
        values: dict[str, Any] = {key: list(value) if isinstance(value, tuple) else value for key, value in record.values.items()}
        content[record.name] = ConfigRecord(values) if isinstance(record, ConfigItem) else MetricRecord(values)
    return content


def _result(content: RecordDict, instruction: Instruction, task: Task) -> TaskResult:
    for name, record in content.items():
        if isinstance(record, ConfigRecord) and record:
            raise ReplyRefused(f"the reply has config record {name!r}; only arrays and metrics can be summed")
    flat_path = _arrays(content, instruction, task)
    record_name, values = _metric_record(content)
    weight = _weight(values, task.weight_key, instruction.category)
    used = {name: _finite(name, values.pop(name, 0)) for name in USAGE_METRICS}
    for name, value in used.items():
        if value < 0 or value != int(value):
            raise ReplyRefused(f"metric {name!r} is {value}; it counts, so it must be a whole number of at least 0")
    if reserved := [name for name in values if name.startswith(USAGE_PREFIX)]:
        raise ReplyRefused(f"metric {reserved[0]!r}: names starting with {USAGE_PREFIX!r} are reserved for {', '.join(USAGE_METRICS)}")
    return TaskResult(
        status="ok",
        flat_path=flat_path,
        metrics={name: float(_finite(name, value)) for name, value in spread(record_name, values).items()},
        num_examples=float(weight),
        usage=Usage(tokens=int(used["dure.tokens"]), steps=int(used["dure.steps"]), flop=int(used["dure.flop"])),
    )


def _weight(values: dict[str, Any], key: str, category: str) -> int | float:
    """The member's weight, taken out of its metrics. Answers to queries have none of their own: each counts as one."""
    if key not in values:
        if category == "query":
            return 1
        raise ReplyRefused(f"the reply has no metric {key!r}, which is its weight in the sum")
    weight = _finite(key, values.pop(key))
    if weight <= 0:
        raise ReplyRefused(f"metric {key!r} is {weight}; a weight must be above 0")
    return weight


def _arrays(content: RecordDict, instruction: Instruction, task: Task) -> Path | None:
    names = list(content.array_records)
    if instruction.category != "train":
        for name in names:  # apps return the model they were sent; nobody asked for it, and it does not leave the site
            print(f"array record {name!r} of the {instruction.category} reply is left out: only train replies carry arrays")
        return None
    sent = instruction.arrays
    if sent is None:
        if names:
            raise ReplyRefused(f"the reply has array record {names[0]!r}, but none was sent; a sum needs a base")
        return None
    if len(names) != 1:
        raise ReplyRefused(f"a train reply carries exactly one array record, this one has {len(names)}: {', '.join(names) or 'none'}")
    tensors = {key: _tensor(key, array, sent.layout) for key, array in content.array_records[names[0]].items()}
    flatten(tensors, sent.layout, task.out_path, finite=True, over=True)
    return task.out_path


def _tensor(key: str, array: Array, layout: Layout) -> np.ndarray[Any, Any]:
    """An array of the app's, little-endian; one that was sent as bfloat16 comes as bit patterns, whatever it says of them."""
    if array.stype != "numpy.ndarray":
        raise ReplyRefused(f"array {key!r} is serialised as {array.stype!r}; only numpy arrays can be summed")
    value = private.values_of(array)
    half = key in layout and layout[key].dtype == "bfloat16"
    if array.dtype == "bfloat16" and not half:
        raise ReplyRefused(f"array {key!r} is bfloat16 and was not sent so; a reply has the dtypes it was sent")
    if half and value.dtype == np.uint16:
        return value.view(np.int16)
    return value.astype(value.dtype.newbyteorder("<"), copy=False)


def _metric_record(content: RecordDict) -> tuple[str, dict[str, Any]]:
    """(name, values) of the reply's one metric record."""
    records = list(content.metric_records.items())
    if len(records) > 1:
        raise ReplyRefused(f"a reply carries one metric record, this one has {', '.join(repr(name) for name, _ in records)}")
    return (records[0][0], dict(records[0][1])) if records else (USUAL_RECORD, {})


def _finite(name: str, value: object) -> int | float:
    if not isinstance(value, int | float):
        raise ReplyRefused(f"metric {name!r} is a {type(value).__name__}; it must be a single number")
    if not math.isfinite(value):
        raise ReplyRefused(f"metric {name!r} is {value}; training diverged?")
    return value


def _states(path: Path) -> dict[int, Path]:
    """The kept states of this run by exchange: `<state_path>.<exchange>`."""
    found = {file.name.removeprefix(path.name + "."): file for file in path.parent.glob(path.name + ".*")}
    return {int(number): file for number, file in found.items() if number.isdecimal()}


def _load_state(path: Path, exchange: int) -> RecordDict:
    """The state the last exchange before this one left: asked again, a node starts from where it started before."""
    earlier = {number: file for number, file in _states(path).items() if number < exchange}
    return private.state_from_bytes(earlier[max(earlier)].read_bytes()) if earlier else RecordDict()


def _save_state(path: Path, exchange: int, state: RecordDict) -> None:
    """All or nothing: a worker killed here leaves the states before. The one this exchange started from is kept, too."""
    earlier = sorted(number for number in _states(path) if number < exchange)
    fresh = path.with_name(path.name + ".new")
    with open(fresh, "wb") as file:
        file.write(private.state_bytes(state))
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path.with_name(f"{path.name}.{exchange}"))
    for number in earlier[:-1]:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(f"{path.name}.{number}").unlink()
