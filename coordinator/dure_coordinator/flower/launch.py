"""Start, watch and restart a run's ServerApp process. Free of flwr: the daemon imports this.

The process runs the app author's code at the consortium's site: it gets no keys, no secrets of the environment, and
one socket that serves its run only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dure.output_log import OutputLog

ENV_ALLOWED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
ENV_FIXED = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONHASHSEED": "0",  # set order of strings is the same when the journal is replayed
}
FLAGS = ("-P", "-s", "-B", "-u")
"""As isolated as a worker, but that PYTHONHASHSEED counts."""
OWN_INTERPRETER = (sys.executable, *FLAGS, "-m")
EXIT_FINISHED, EXIT_FAILED, EXIT_COORDINATOR_GONE = 0, 3, 4
"""Exit codes of the process: reported Finish; reported Fail (do not restart); lost the coordinator (restart)."""


@dataclass(frozen=True)
class ProcessConfig:
    """What `python -m dure_coordinator.flower.process` reads as JSON from stdin."""

    run_dir: str
    """Folder for arrays, HOME and logs of this run; made by the daemon."""
    socket: str
    """Unix socket of the run; at most 107 characters."""
    app_dir: str
    """The unpacked app."""
    run_id: int
    """`dure.model.content.flower_run_id(run)`."""
    run_config: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    seed: int = 0
    """Seeds `random` and numpy; the same for every start of one run, or the journal diverges."""
    quorum: int = 3
    """u_min of the run: a strategy that samples fewer nodes is refused."""
    members: int = 0
    """Of the run's roster; 0: not known."""
    per_node_keys: tuple[str, ...] = ()
    linear_strategy: tuple[str, ...] = ()
    """From the plan (the app's `[tool.dure]`): strategy classes declared to be functions of the weighted mean."""
    reconnect_s: float = 600.0
    """How long the process waits for a coordinator that restarts."""
    base_flat: str = ""
    """Flat file of the weights the plan starts from, handed to the strategy instead of its own; "" for none. Read only."""
    base_layout: str = ""
    """Canonical JSON of that file's layout; the app's may have another order."""
    base_origin: str = ""
    """Where they come from, in words."""
    initial: tuple[tuple[str, str, str], ...] = ()
    """(tensors, kind, value) of the plan's rules, where the members draw the seed of the first weights together."""
    probe: bool = False
    """Run the app only up to its first broadcast, to members that are not there, and keep what it would send."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ProcessConfig:
        data: dict[str, Any] = json.loads(text)
        for name in ("per_node_keys", "linear_strategy"):
            data[name] = tuple(data.get(name, ()))
        data["initial"] = tuple((tensors, kind, value) for tensors, kind, value in data.get("initial", ()))
        return cls(**data)


@dataclass(frozen=True)
class Ended:
    """How the process ended for good. The author's code can exit with any code: what counts for the run is the Finish
    or Fail that arrived; "finished" without a Finish is a failed run."""

    exit_code: int
    restarts: int
    reason: str


def environment(config: ProcessConfig, threads: int = 1) -> dict[str, str]:
    """The scrubbed environment: an allow-list of ours plus fixed values; HOME and TMPDIR in the run's folder."""
    env = {name: os.environ[name] for name in ENV_ALLOWED if name in os.environ}
    return {
        **env,
        **ENV_FIXED,
        "HOME": config.run_dir,
        "TMPDIR": config.run_dir,
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
    }


@dataclass
class ServerAppProcess:
    """One run's ServerApp, restarted when it dies without having reported. The journal makes a restart harmless."""

    config: ProcessConfig
    log_path: Path
    launcher: Sequence[str] = OWN_INTERPRETER
    """How a module is run in the app's environment; default: the coordinator's own interpreter."""
    max_restarts: int = 5
    restart_wait_s: float = 1.0
    max_log_bytes: int = 8 << 20
    """stdout and stderr together; beyond it the log is turned over once, the older half kept as `.1`."""
    threads: int = 1
    on_restart: Callable[[int, int], Awaitable[None]] | None = None
    """Called with (exit code, restarts so far) before each restart."""
    _process: asyncio.subprocess.Process | None = None
    _stopped: bool = False

    async def run(self) -> Ended:
        """Start it and wait until it ended for good: finished, failed, stopped, or restarted too often."""
        restarts = 0
        while True:
            code = await self._once()
            if self._stopped:
                return Ended(code, restarts, "stopped")
            if code == EXIT_FINISHED:
                return Ended(code, restarts, "finished")
            if code == EXIT_FAILED:
                return Ended(code, restarts, "failed")
            if restarts >= self.max_restarts:
                return Ended(code, restarts, f"ended {restarts + 1} times, last with exit code {code}; see {self.log_path}")
            restarts += 1
            if self.on_restart is not None:
                await self.on_restart(code, restarts)
            await asyncio.sleep(self.restart_wait_s)

    async def stop(self) -> None:
        """Kill it and everything it started; `run` then returns."""
        self._stopped = True
        self._kill()
        if self._process is not None:
            await self._process.wait()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def _once(self) -> int:
        if self._stopped:
            return -signal.SIGKILL
        os.makedirs(self.config.run_dir, exist_ok=True)
        log = OutputLog(self.log_path, self.max_log_bytes)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.launcher,
                "dure_coordinator.flower.process",
                stdin=asyncio.subprocess.PIPE,
                stdout=log.writer,
                stderr=log.writer,
                cwd=self.config.run_dir,
                env=environment(self.config, self.threads),
                start_new_session=True,
            )
        finally:
            log.started()
        process = self._process
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(self.config.to_json().encode())
                await process.stdin.drain()
                process.stdin.close()
            code = await process.wait()
        finally:
            self._kill()
            await asyncio.to_thread(log.end, 5.0)
        return code

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
