"""All of flwr that is not public and that the coordinator's side needs (flwr 1.41; tests/contract/test_flwr_surface.py).

When flwr moves one of these, the contract test fails by name and this file is where to mend it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, RecordDict
from flwr.server import LegacyContext
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy, fedavg
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

NUMPY = "numpy.ndarray"
"""Serialisation type of an `Array` that was made of a numpy array."""
SERVER_NODE_ID = 1
"""The ServerApp's own node id, as in Flower; members' ids are 63-bit digests."""


def set_task_identity(run_id: int) -> None:
    """Without it stock FedAvg raises "TaskIdentity.run_id is not set". Process-global: one run per process."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SERVER_NODE_ID


def empty_run(run_id: int) -> Run:
    return Run.create_empty(run_id)


def load_server_app(reference: str, folder: Path) -> ServerApp:
    """The ServerApp at `module:attribute` in an unpacked app."""
    app = load_app(reference, ImportError, folder)
    if not isinstance(app, ServerApp):
        raise ImportError(f"{reference} is a {type(app).__name__}, not a flwr.serverapp.ServerApp")
    return app


def has_main(app: ServerApp) -> bool:
    """Whether it has an `@app.main()`; if not, it is written for Flower's older interface, which asks every node by itself."""
    return app._main is not None


def refuse_older_workflows(error: Exception) -> Callable[[], None]:
    """Raise `error` where an app makes a `LegacyContext`: Flower's workflows (SecAgg+ among them) sample through a client manager that
    waits for members for a day, silently. Returns a function that undoes it."""
    original = LegacyContext.__init__

    def refused(self: LegacyContext, *_args: Any, **_kwargs: Any) -> None:
        raise error

    LegacyContext.__init__ = refused  # type: ignore[method-assign]

    def undo() -> None:
        LegacyContext.__init__ = original  # type: ignore[method-assign]

    return undo


def set_message_id(message: Any, message_id: str) -> None:
    """`Metadata.message_id` has no setter; flwr itself writes `__dict__`, too."""
    message.metadata.__dict__["_message_id"] = message_id


def pass_one_mean_through(unchanged: Callable[[ArrayRecord], bool]) -> Callable[[], None]:
    """FedAvg's weighted mean of one record is that record: where `unchanged` says so, it is handed on instead of multiplied by 1.0 into
    three copies. Returns a function that undoes it."""
    original = fedavg.aggregate_arrayrecords

    @functools.wraps(original)
    def mean(records: list[RecordDict], weighting_metric_name: str) -> ArrayRecord:
        if len(records) == 1 and len(arrays := list(records[0].array_records.values())) == 1 and unchanged(arrays[0]):
            weight = next(iter(records[0].metric_records.values()))[weighting_metric_name]
            if isinstance(weight, int | float) and weight > 0 and weight / weight == 1.0:
                return arrays[0]
        return original(records, weighting_metric_name)

    fedavg.aggregate_arrayrecords = mean

    def undo() -> None:
        fedavg.aggregate_arrayrecords = original

    return undo


def wrap_strategy_start(
    before: Callable[[Strategy, Grid], None],
    after: Callable[[Strategy, Any], None],
    first: Callable[[ArrayRecord], ArrayRecord] = lambda arrays: arrays,
) -> Callable[[], None]:
    """Call `before(strategy, grid)` when any strategy starts, and `after(strategy, result)` when it is done.

    `first` turns the app's initial arrays into those the strategy gets: all its state (FedAdam's, too) then comes from them.

    Patches the one method every stock strategy inherits; a class with a `start` of its own is caught at the Grid,
    which sends nothing for a strategy that was never let through.

    Returns:
        a function that undoes it.
    """
    original = Strategy.start
    shape = inspect.signature(original)

    @functools.wraps(original)
    def start(self: Strategy, grid: Grid, *args: Any, **kwargs: Any) -> Any:
        before(self, grid)
        bound = shape.bind(self, grid, *args, **kwargs)
        bound.arguments["initial_arrays"] = first(bound.arguments["initial_arrays"])
        result = original(*bound.args, **bound.kwargs)
        after(self, result)
        return result

    Strategy.start = start  # type: ignore[method-assign]

    def undo() -> None:
        Strategy.start = original  # type: ignore[method-assign]

    return undo
