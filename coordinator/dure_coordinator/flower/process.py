"""`python -m dure_coordinator.flower.process`: one run's ServerApp, started by `launch.ServerAppProcess`.

Reads a `launch.ProcessConfig` as JSON from stdin, runs the app's ServerApp on a `DureGrid`, reports Finish or Fail.
Runs the author's code: it holds no keys, and everything it says is judged at the other end of the socket.
"""

from __future__ import annotations

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import ctypes
import logging
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, RecordDict

from dure.apps import read_app
from dure.errors import DureError
from dure.model.layout import Layout
from dure.model.rules import Rule
from dure_coordinator.flower import convert, private
from dure_coordinator.flower.backend import Backend, GridRefused, QuorumMissing, RunResult, RunStopped
from dure_coordinator.flower.grid import DureGrid
from dure_coordinator.flower.grpc_backend import CoordinatorGone, GrpcBackend
from dure_coordinator.flower.launch import EXIT_COORDINATOR_GONE, EXIT_FAILED, EXIT_FINISHED, ProcessConfig
from dure_coordinator.flower.mapped import is_mapped
from dure_coordinator.flower.probe_backend import ProbeBackend, Sent

OLDER = (
    "Flower's older interface, which reads every node's own reply; "
    "write a main(grid, context) that starts a strategy of flwr.serverapp.strategy"
)
PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def die_with_parent() -> None:
    """A coordinator killed with SIGKILL cannot stop this process, and the next one starts its own: two would share one run folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit(EXIT_COORDINATOR_GONE)


def main() -> int:
    """Run the app of the config on stdin; returns the exit code."""
    die_with_parent()
    config = ProcessConfig.from_json(sys.stdin.read())
    if config.probe:
        return probe(config)
    backend = GrpcBackend(config.socket, Path(config.run_dir), reconnect_s=config.reconnect_s)
    try:
        return run(config, backend)
    except CoordinatorGone as error:
        print(f"coordinator gone: {error}", file=sys.stderr)
        return EXIT_COORDINATOR_GONE
    finally:
        backend.close()


def probe(config: ProcessConfig) -> int:
    """Write what the app would send first, or why it cannot, to the run's folder."""
    backend = ProbeBackend(max(config.members, config.quorum))
    error = ""
    try:
        serve(config, backend)
    except Sent:
        pass
    except (Exception, SystemExit) as e:  # the author's code may raise anything
        error = str(e) if isinstance(e, DureError) else f"{type(e).__name__}: {' '.join(str(e).split())}"[:500]
    backend.write(Path(config.run_dir), error)
    return EXIT_FINISHED


def run(config: ProcessConfig, backend: Backend) -> int:
    """Run the ServerApp to its end and report it.

    Raises:
        CoordinatorGone: nothing could be reported; start again later, the journal holds what was done.
    """
    try:
        result = serve(config, backend)
    except CoordinatorGone:
        raise
    except (GridRefused, QuorumMissing, RunStopped) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        backend.fail(type(error).__name__, str(error))
        return EXIT_FAILED
    except (Exception, SystemExit) as error:  # the author's code may raise anything
        traceback.print_exc()
        backend.fail("ServerAppFailed", f"{type(error).__name__}: {' '.join(str(error).split())}"[:2000])
        return EXIT_FAILED
    backend.finish(result)
    return EXIT_FINISHED


def serve(config: ProcessConfig, backend: Backend) -> RunResult:
    """Load and run the ServerApp; the same seed every time, so that a replay asks the same."""
    logging.getLogger("flwr").setLevel(logging.INFO)
    _seed(config.seed)
    private.set_task_identity(config.run_id)
    folder = Path(config.app_dir)
    app = read_app(folder)
    grid = DureGrid(
        backend,
        run_id=config.run_id,
        run_dir=Path(config.run_dir),
        quorum=config.quorum,
        per_node_keys=config.per_node_keys,
        linear_strategy=config.linear_strategy,
        weight_key=app.dure.weight_key,
        query_sums=app.dure.query_replies == "sum",
        members=config.members,
    )
    results: list[Any] = []
    undo_mean = private.pass_one_mean_through(is_mapped)
    undo_workflows = private.refuse_older_workflows(GridRefused(f"{app.serverapp} makes a LegacyContext: workflows are {OLDER}"))
    undo = private.wrap_strategy_start(grid.strategy_starts, lambda _strategy, result: results.append(result), _first(config, grid))
    try:
        server_app = private.load_server_app(app.serverapp, folder)
        if not private.has_main(server_app):
            raise GridRefused(f"{app.serverapp} has no @app.main(): server_fn and ServerAppComponents are {OLDER}")
        # Importing the app may have drawn random numbers or seeded them with the time.
        _seed(config.seed)
        context = Context(
            run_id=config.run_id,
            node_id=private.SERVER_NODE_ID,
            node_config={},
            state=RecordDict(),
            run_config=dict(config.run_config),
        )
        server_app(grid, context)
    except DureError as error:
        if not isinstance(error, GridRefused | QuorumMissing | RunStopped):
            raise GridRefused(str(error)) from error  # LayoutRefused and the like: what was sent cannot be carried
        raise
    finally:
        undo()
        undo_workflows()
        undo_mean()
    return _result(results[-1] if results else None, Path(config.run_dir), grid.layout)


def _first(config: ProcessConfig, grid: DureGrid) -> Callable[[ArrayRecord], ArrayRecord]:
    """What the strategy starts with: the app's own arrays, or those the plan names, or those that the members draw together."""
    if config.initial:
        rules = [Rule(*rule) for rule in config.initial]
        return lambda arrays: convert.initialised(arrays, grid.draw_seed(), rules, Path(config.run_dir) / "first.f32")
    if not config.base_flat:
        return lambda arrays: arrays
    layout = Layout.from_json(Path(config.base_layout).read_bytes())
    return lambda arrays: convert.replaced(arrays, Path(config.base_flat), layout, config.base_origin)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    if "torch" in sys.modules:  # the app's own dependency; a coordinator need not have it
        sys.modules["torch"].manual_seed(seed)


def _result(result: Any, run_dir: Path, layout: Layout | None) -> RunResult:
    if result is None:
        return RunResult(rounds=0, metrics={})
    metrics = {
        kind: {number: dict(record) for number, record in rounds.items()}
        for kind, rounds in (
            ("train", result.train_metrics_clientapp),
            ("evaluate", result.evaluate_metrics_clientapp),
            ("server", result.evaluate_metrics_serverapp),
        )
    }
    rounds = max((number for table in metrics.values() for number in table), default=0)
    arrays: ArrayRecord = result.arrays
    if not arrays:
        return RunResult(rounds=rounds, metrics=metrics)
    item, path = convert.write_arrays("arrays", arrays, run_dir / "final.f32", layout)
    return RunResult(rounds=rounds, metrics=metrics, layout_json=item.layout.to_json().decode(), flat_path=path)


if __name__ == "__main__":
    sys.exit(main())
