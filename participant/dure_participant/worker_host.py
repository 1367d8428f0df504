"""The agent's end of the worker: start it, hand it tasks, judge what comes back, kill it. Imports no flwr, no torch.

The worker runs code this site approved but did not write. It gets no keys, no secrets of the environment, an own
session (so that all of it can be killed), a scratch folder as HOME, and a log that cannot fill the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dure.environments.place import OWN_INTERPRETER
from dure.model.content import Instruction
from dure.output_log import OutputLog
from dure_participant.worker.protocol import (
    MAX_RESULT_BYTES,
    MAX_TASK_BYTES,
    PREFIX,
    Task,
    TaskResult,
    Usage,
    UserValue,
    WorkerMisbehaved,
    encode,
)

__all__ = ["Task", "TaskResult", "Usage", "UserValue", "WorkerHost", "WorkerMisbehaved", "WorkerSettings"]

ENV_FIXED = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # For what the app starts; the worker itself ignores Python's variables (-I).
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
}
LOOK_S = 2.0
"""How often the scratch folder is looked at while a task runs."""


@dataclass(frozen=True)
class WorkerSettings:
    """How this site runs workers."""

    timeout_s: float = 24 * 3600.0
    """Longest a task may take if the caller names no limit; then the worker is killed."""
    env_allowed: tuple[str, ...] = (
        "PATH",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
    )
    """Variables of the agent's environment the worker sees; nothing else is passed on."""
    env_set: Mapping[str, str] = field(default_factory=dict)
    """Variables set for the worker, e.g. a data path. Visible to the app: no secrets."""
    threads: int = 1
    """OMP_NUM_THREADS and its relatives; 0: leave it to the libraries."""
    max_log_bytes: int = 8 << 20
    """All of the worker's output kept on disk; older output goes first."""
    max_scratch_bytes: int = 0
    """Most that may lie in the scratch folder while a task runs; 0: no limit."""


class ScratchFull(WorkerMisbehaved):
    """The app keeps more in its scratch folder than the site lets it; all of it is removed, its log excepted."""

    def __init__(self, most: int) -> None:
        super().__init__(f"the app's files in its scratch folder take more than {most / 1e9:.3g} GB")


class WorkerHost:
    """One warm worker for one app. Tasks run one after the other; a worker that dies is replaced by the next task.

    Args:
        app_dir: the unpacked, approved app.
        scratch_dir: HOME, TMPDIR and working folder of the worker; its log is `worker.log` there.
        launcher: how a module is run in the app's environment (environment.py); default: the agent's own interpreter.
    """

    def __init__(
        self,
        app_dir: Path,
        scratch_dir: Path,
        *,
        launcher: Sequence[str] = OWN_INTERPRETER,
        settings: WorkerSettings | None = None,
    ) -> None:
        self._app_dir, self._scratch_dir, self._launcher = app_dir.resolve(), scratch_dir.resolve(), tuple(launcher)
        self._settings = settings or WorkerSettings()
        self._process: asyncio.subprocess.Process | None = None
        self._log: OutputLog | None = None
        self._printed = 0
        self._turn = asyncio.Lock()
        self._number = 0
        self.restarts = 0
        """Workers started after the first one."""

    @property
    def log_path(self) -> Path:
        return self._scratch_dir / "worker.log"

    @property
    def printed_bytes(self) -> int:
        """What all workers of this host have printed; most of it is gone where it exceeds the log."""
        return self._printed + (0 if self._log is None else self._log.bytes)

    @property
    def pid(self) -> int | None:
        """Process (and session) id of the live worker, or None."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the worker ahead of the first task, so that the app is loaded by then; otherwise `run` does."""
        async with self._turn:
            await self._ready()

    async def run(self, task: Task, *, timeout_s: float | None = None, over: Path | None = None) -> TaskResult:
        """Execute one task. Never raises for what the worker does: that is an `error` result.

        A worker that exits, sends garbage or takes too long is killed; the next task gets a fresh one. Cancelling this
        call kills it, too.

        Args:
            over: a file nobody needs, if there is one: it becomes the task's output and is written over.
        """
        async with self._turn:
            _make_way(task.out_path, over)
            started = time.monotonic()
            limit_s = self._settings.timeout_s if timeout_s is None else timeout_s
            try:
                async with asyncio.timeout(limit_s):
                    process = await self._ready()
                    self._number += 1
                    await self._send(process, {"number": self._number, "task": task.to_json()})
                    answer = await self._answer(process)
                result = self._judge(answer, task, time.monotonic() - started)
            except TimeoutError:
                result = replace(await self._lost(f"the task took longer than {limit_s:.3g} s", started), late=True)
            except (asyncio.IncompleteReadError, BrokenPipeError, ConnectionResetError):
                result = await self._lost(None, started)
            except ScratchFull as error:
                result = await self._lost(str(error), started)
                await asyncio.to_thread(clear, self._scratch_dir, (self.log_path.name, self.log_path.name + ".1"))
            except WorkerMisbehaved as error:
                result = await self._lost(str(error), started)
            except BaseException:
                await self.kill()
                raise
            if result.status == "error":
                task.out_path.unlink(missing_ok=True)
            return result

    async def kill(self) -> None:
        """Kill the worker and everything in its session, and wait until it is gone. Safe at any time."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if self._log is not None:
            output, self._log = self._log, None
            await asyncio.to_thread(output.end, 2.0)
            self._printed += output.bytes

    def environment(self) -> dict[str, str]:
        """What the worker sees; nothing of the agent's environment but the allowed names."""
        settings = self._settings
        env = {name: os.environ[name] for name in settings.env_allowed if name in os.environ}
        threads: dict[str, str] = {}
        if settings.threads:
            names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            threads = {name: str(settings.threads) for name in names}
        home = {"HOME": str(self._scratch_dir), "TMPDIR": str(self._scratch_dir / "tmp")}
        return {**env, **threads, **settings.env_set, **ENV_FIXED, **home}

    # -- inside --------------------------------------------------------------------------------------------------

    async def _ready(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        if self._process is not None:
            await self.kill()
        (self._scratch_dir / "tmp").mkdir(parents=True, exist_ok=True)
        self._log = OutputLog(self.log_path, self._settings.max_log_bytes)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._launcher,
                "dure_participant.worker",
                str(self._app_dir),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=self._log.writer,
                cwd=self._scratch_dir,
                env=self.environment(),
                start_new_session=True,
            )
        finally:
            self._log.started()
        self.restarts += 1 if self._number else 0
        return self._process

    async def _send(self, process: asyncio.subprocess.Process, frame: Mapping[str, object]) -> None:
        assert process.stdin is not None
        data = encode(frame)
        assert len(data) <= MAX_TASK_BYTES, "an instruction is capped far below this"
        process.stdin.write(data)
        await process.stdin.drain()

    async def _answer(self, process: asyncio.subprocess.Process) -> object:
        """The worker's answer; `ScratchFull` if its files outgrow what they may take first."""
        if not self._settings.max_scratch_bytes:
            return await self._receive(process)
        receiving = asyncio.create_task(self._receive(process))
        watching = asyncio.create_task(self._watch_scratch(self._settings.max_scratch_bytes))
        try:
            await asyncio.wait({receiving, watching}, return_when=asyncio.FIRST_COMPLETED)
            return receiving.result() if receiving.done() else watching.result()
        finally:
            for task in (receiving, watching):
                task.cancel()
            await asyncio.gather(receiving, watching, return_exceptions=True)

    async def _watch_scratch(self, most: int) -> None:
        while True:
            began = time.monotonic()
            if await asyncio.to_thread(exceeds, self._scratch_dir, most):
                raise ScratchFull(most)
            await asyncio.sleep(max(LOOK_S, 20 * (time.monotonic() - began)))  # a folder of a million files is looked at seldom

    async def _receive(self, process: asyncio.subprocess.Process) -> object:
        assert process.stdout is not None
        (length,) = PREFIX.unpack(await process.stdout.readexactly(PREFIX.size))
        if length > MAX_RESULT_BYTES:
            raise WorkerMisbehaved(f"worker result of {length} bytes; at most {MAX_RESULT_BYTES}")
        try:
            return json.loads(await process.stdout.readexactly(length))
        except (ValueError, RecursionError):
            raise WorkerMisbehaved("worker result is not JSON") from None

    def _judge(self, answer: object, task: Task, seconds: float) -> TaskResult:
        if not isinstance(answer, dict) or set(answer) != {"number", "result"} or answer["number"] != self._number:
            raise WorkerMisbehaved("worker answered another task than the one it has")
        result = TaskResult.from_json(answer["result"], task, seconds)
        if result.flat_path is not None:
            sent = Instruction.from_json(task.instruction).arrays
            _check_flat(result.flat_path, None if sent is None else sent.layout.flat_bytes)
        return result

    async def _lost(self, why: str | None, started: float) -> TaskResult:
        process, code = self._process, None
        if why is None and process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 2)
            code = process.returncode
            why = _exit_reason(code)
        await self.kill()
        return TaskResult(
            status="error",
            error=f"{why or 'the worker is gone'}; see {self.log_path}",
            told=why or "the worker is gone",
            usage=Usage(seconds=time.monotonic() - started),
            killed=code is not None and code < 0,
        )


def exceeds(folder: Path, most: int) -> bool:
    """Whether the files below a folder take more than so many bytes on the disk. Files that come and go meanwhile are no error."""
    total = 0
    for base, _folders, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(base, name)).st_blocks * 512
            if total > most:
                return True
    return False


def clear(folder: Path, keep: tuple[str, ...]) -> None:
    """Removes everything in a folder but these names."""
    for path in folder.iterdir():
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _make_way(out: Path, over: Path | None) -> None:
    out.unlink(missing_ok=True)
    if over is not None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(over, out)


def _check_flat(path: Path, flat_bytes: int | None) -> None:
    try:
        found = os.lstat(path)
    except OSError:
        raise WorkerMisbehaved("worker says it wrote arrays, but there is no file") from None
    if flat_bytes is None or not stat.S_ISREG(found.st_mode) or found.st_size != flat_bytes:
        raise WorkerMisbehaved(f"worker wrote {found.st_size} bytes of arrays, not a plain file of {flat_bytes}")


def _exit_reason(code: int | None) -> str:
    if code is None:
        return "the worker closed its pipes"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"the worker was killed by {signal.Signals(-code).name}"
    return f"the worker exited with code {code}"
