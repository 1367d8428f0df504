"""`dure run pause | resume | stop | abort`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dure.console import DEFAULT_DIR, AsJson, Dir, one_line_errors, say, show_json
from dure_coordinator.admin_client import call

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Run id; a unique beginning is enough.")]
Reason = Annotated[str, typer.Option(help="Why; every member sees it.")]
DEFAULT_REASON = "by the administrator"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (pause, resume, stop, abort):
        app.command()(command)


def _steer(directory: Path, command: str, run: str, reason: str, as_json: bool) -> None:
    found = call(directory, command, {"run": run, "reason": reason})
    if as_json:
        show_json(found)
    else:
        say(f"run {found['run'][:12]} {_words(found)}")


def _words(found: dict[str, Any]) -> str:
    if found["state"] != "running":
        return f"is {found['state']}: {found['reason']}"
    if found["stopping"]:
        return "ends after this round and keeps its model"
    return "is paused: no exchange begins; `dure run resume` lets it go on" if found["paused"] else "goes on"


@one_line_errors
def pause(run: RunId, reason: Reason = DEFAULT_REASON, directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Begin no further exchange; one in flight is finished. Lasts, also across restarts, until `resume`.

    Example: dure run pause 3f9a --reason "maintenance at krafton"
    """
    _steer(directory, "run-pause", run, reason, as_json)


@one_line_errors
def resume(run: RunId, directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Let a paused run go on.

    Example: dure run resume 3f9a
    """
    _steer(directory, "run-resume", run, "", as_json)


@one_line_errors
def stop(run: RunId, reason: Reason = DEFAULT_REASON, directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """End a run after this round; it is finished then, and `export` writes its newest model.

    Example: dure run stop 3f9a --reason "good enough"
    """
    _steer(directory, "run-stop", run, reason, as_json)


@one_line_errors
def abort(run: RunId, reason: Reason = DEFAULT_REASON, directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Give a run up now, in the middle of an exchange if need be. Its models so far can still be exported.

    Example: dure run abort 3f9a --reason "wrong data"
    """
    _steer(directory, "run-abort", run, reason, as_json)
