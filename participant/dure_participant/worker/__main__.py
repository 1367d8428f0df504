"""`python -m dure_participant.worker APP_DIR`: started by `worker_host.WorkerHost`, tasks on stdin, results on stdout.

The first thing it does is to take the two pipes away from everyone else: stdin becomes empty and stdout the log, so a
`print()` in user code cannot end up between two frames.
"""

# ruff: noqa: E402  (the pipes are taken and telemetry is off before anything else is imported)

from __future__ import annotations

import os
import sys


def _take_pipes() -> tuple[int, int]:
    """Private, non-inheritable copies of stdin and stdout; then fd 0 is /dev/null and fd 1 the log (stderr)."""
    tasks, results = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return tasks, results


if __name__ == "__main__":
    _TASKS, _RESULTS = _take_pipes()

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before flwr is imported
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import json
import queue
import signal
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from flwr.clientapp import ClientApp

from dure.apps import read_app
from dure.blobs import NO_ROOM, DiskFull
from dure.errors import DureError
from dure_participant.worker import private
from dure_participant.worker.execute import AppFailed, execute
from dure_participant.worker.protocol import MAX_ERROR_CHARS, PREFIX, Task, TaskResult, encode


def serve(app_dir: Path, tasks: BinaryIO, results: BinaryIO) -> None:
    """Load the app, then answer tasks until the agent goes away (then this process and its children die)."""
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_frames, args=(tasks, waiting), daemon=True).start()
    app: ClientApp | BaseException = _load(app_dir)
    while True:
        frame = waiting.get()
        result = _answer(app, Task.from_json(frame["task"]))
        results.write(encode({"number": frame["number"], "result": result.to_json()}))
        results.flush()


def _answer(app: ClientApp | BaseException, task: Task) -> TaskResult:
    if isinstance(app, BaseException):
        return _error(app)
    try:
        return execute(app, task)
    except BaseException as error:  # SystemExit and KeyboardInterrupt in user code are errors of the task, too
        traceback.print_exc()
        return _error(error)


def _load(app_dir: Path) -> ClientApp | BaseException:
    private.quicken_arrays()
    try:
        return private.load_client_app(read_app(app_dir).clientapp, app_dir)
    except BaseException as error:
        traceback.print_exc()
        return error


def _error(error: BaseException) -> TaskResult:
    cause = error.__cause__ if type(error).__name__ == "LoadClientAppError" and error.__cause__ else error
    said = " ".join(str(cause).split())
    ours = isinstance(cause, DureError)  # ours say enough by themselves, and quote nothing of the app's
    text = said if ours else f"{type(cause).__name__}: {said}"
    told = said if ours and not isinstance(cause, AppFailed) else f"{type(cause).__name__}; this node's operator sees the rest"
    if isinstance(cause, DiskFull):
        told = NO_ROOM
    plain_text, plain_told = (t.encode(errors="replace").decode()[:MAX_ERROR_CHARS] for t in (text, told))
    return TaskResult(status="error", error=plain_text, told=plain_told)


def _read_frames(tasks: BinaryIO, waiting: queue.SimpleQueue[dict[str, Any]]) -> None:
    while True:
        prefix = tasks.read(PREFIX.size)
        if len(prefix) < PREFIX.size:
            if os.getpgrp() == os.getpid():
                os.killpg(0, signal.SIGKILL)  # the agent is gone: nobody wants the result
            os._exit(0)
        waiting.put(json.loads(tasks.read(PREFIX.unpack(prefix)[0])))


if __name__ == "__main__":
    with os.fdopen(_TASKS, "rb") as tasks, os.fdopen(_RESULTS, "wb") as results:
        serve(Path(sys.argv[1]), tasks, results)
