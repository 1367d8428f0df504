"""What the agent and its worker say to each other: length-prefixed JSON, arrays as files.

Free of flwr and torch: the agent imports this. The worker runs other people's code, so everything it sends is judged
here: size, types, ranges, finite numbers.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dure.errors import DureError

MAX_TASK_BYTES = 64 << 20
MAX_RESULT_BYTES = 1 << 20
MAX_ERROR_CHARS = 2000
MAX_METRICS = 256
MAX_METRIC_NAME = 128
MOST_FLOP = 10**30
"""Above what a usage statement holds."""
PREFIX = struct.Struct("<I")

UserValue = bool | float | int | str


class WorkerMisbehaved(DureError):
    """The worker sent something that is not a result; it is killed and a fresh one started for the next task."""


@dataclass(frozen=True)
class Task:
    """One exchange for the worker to execute."""

    run_id: int
    """`context.run_id`: `dure.model.content.flower_run_id(run)`."""
    node_id: int
    """`context.node_id`: `dure.model.content.flower_node_id(member)`."""
    exchange: int
    instruction: dict[str, Any]
    """`Instruction.to_json()`, with this node's per-node values filled in."""
    out_path: Path
    """Where the reply's arrays go, as a flat vector of the instruction's layout."""
    state_path: Path
    """Prefix of the files `context.state` of this run is kept in, one per exchange (the last two), written only after
    a reply. A repeated exchange starts from the state it started from before."""
    base_path: Path | None = None
    """The base as a flat vector file; None if the instruction has no arrays."""
    node_config: Mapping[str, UserValue] = field(default_factory=dict)
    run_config: Mapping[str, UserValue] = field(default_factory=dict)
    weight_key: str = "num-examples"
    """Name of the metric that is the weight."""

    def to_json(self) -> dict[str, Any]:
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("out_path", "state_path", "base_path"):
            data[name] = None if data[name] is None else str(data[name].absolute())
        data["node_config"], data["run_config"] = dict(self.node_config), dict(self.run_config)
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        paths = {name: Path(data[name]) if data[name] is not None else None for name in ("out_path", "state_path", "base_path")}
        return cls(**{**data, **paths})


@dataclass(frozen=True)
class Usage:
    """What the task used; tokens, steps and FLOP as the app reported them, seconds as the host measured them."""

    tokens: int = 0
    steps: int = 0
    flop: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class TaskResult:
    """What came back. `error` results carry nothing but the reason."""

    status: Literal["ok", "error"]
    error: str = ""
    """One line for the operator: type and message of the exception, or what the host saw (timeout, exit, garbage)."""
    told: str = ""
    """The same for the coordinator: no word of the app's own, which may quote data, and no path of this machine."""
    flat_path: Path | None = None
    """Local *weights* (not the update), flat, in the instruction's layout; None if the reply has no arrays."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Without the weight and without `dure.*`."""
    num_examples: float = 0.0
    usage: Usage = field(default_factory=Usage)
    killed: bool = False
    """An error because a signal ended the worker: lack of memory, or a person; not what the app did."""
    late: bool = False
    """An error because the task took longer than it may."""

    def to_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "error": self.error[:MAX_ERROR_CHARS],
            "told": self.told[:MAX_ERROR_CHARS],
            "arrays": self.flat_path is not None,
            "metrics": dict(self.metrics),
            "num_examples": self.num_examples,
            "tokens": self.usage.tokens,
            "steps": self.usage.steps,
            "flop": self.usage.flop,
        }

    @classmethod
    def from_json(cls, data: object, task: Task, seconds: float) -> TaskResult:
        """Judge a result.

        Raises:
            WorkerMisbehaved: naming the field that is absent, unknown, of another type or out of range.
        """
        names = ("status", "error", "told", "arrays", "metrics", "num_examples", "tokens", "steps", "flop")
        if not isinstance(data, dict) or set(data) != set(names):
            raise WorkerMisbehaved(f"worker result has not exactly the fields {', '.join(names)}")
        for name in ("error", "told"):
            if not isinstance(data[name], str) or len(data[name]) > MAX_ERROR_CHARS:
                raise WorkerMisbehaved(f"worker result: {name} is not a short string")
        if data["status"] == "error":
            error = _one_line(data["error"]) or "unknown error"
            return cls(status="error", error=error, told=_one_line(data["told"]), usage=Usage(seconds=seconds))
        if data["status"] != "ok":
            raise WorkerMisbehaved("worker result: status is not ok or error")
        if type(data["arrays"]) is not bool:
            raise WorkerMisbehaved("worker result: arrays is not true or false")
        metrics = data["metrics"]
        if not isinstance(metrics, dict) or len(metrics) > MAX_METRICS:
            raise WorkerMisbehaved(f"worker result: metrics is not a table of at most {MAX_METRICS}")
        for name, value in metrics.items():
            if not name or len(name) > MAX_METRIC_NAME or not name.isprintable():
                raise WorkerMisbehaved(f"worker result: metric name {name[:40]!r} is empty, too long or not printable")
            _number(value, f"metric {name!r}")
        weight = _number(data["num_examples"], "num_examples")
        if weight <= 0:
            raise WorkerMisbehaved("worker result: num_examples is not above 0")
        for name in ("tokens", "steps"):
            if type(data[name]) is not int or not 0 <= data[name] < 1 << 63:
                raise WorkerMisbehaved(f"worker result: {name} is not a 63-bit count")
        if type(data["flop"]) is not int or not 0 <= data["flop"] < MOST_FLOP:
            raise WorkerMisbehaved(f"worker result: flop is not a count below {MOST_FLOP:.0e}")
        return cls(
            status="ok",
            flat_path=task.out_path if data["arrays"] else None,
            metrics={name: float(value) for name, value in metrics.items()},
            num_examples=weight,
            usage=Usage(tokens=data["tokens"], steps=data["steps"], flop=data["flop"], seconds=seconds),
        )


def encode(data: Mapping[str, Any]) -> bytes:
    """One frame: u32 length, JSON."""
    body = json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    return PREFIX.pack(len(body)) + body


def _number(value: object, what: str) -> float:
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is int and abs(value) < 1 << 63:
        return float(value)
    raise WorkerMisbehaved(f"worker result: {what} is not a finite number")


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
