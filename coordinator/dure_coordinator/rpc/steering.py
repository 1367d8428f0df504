"""`dure run pause | resume | stop | abort`: what an administrator may say to a run, each at any time and as often as he likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dure.errors import BadInput
from dure_coordinator.engine import RunEngine
from dure_coordinator.exchange.events import Abort, GoOn, Halt, Pause
from dure_coordinator.fleet import Fleet

EVENTS: dict[str, Callable[[str], Any]] = {
    "run-pause": Pause,
    "run-resume": lambda _reason: GoOn(),
    "run-stop": Halt,
    "run-abort": Abort,
}
MEANT = {"run-stop": "finished", "run-abort": "aborted"}
"""How a run is that has ended as the command asks: saying it again is no error."""
LATER = {
    "run-pause": "it begins no exchange any more",
    "run-resume": "start a new run, `dure run start APP --from RUN` goes on from its model",
    "run-stop": "its models can still be exported",
    "run-abort": "its models can still be exported",
}


async def steer(fleet: Fleet, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Says it to the run; durable when this returns.

    Raises:
        BadInput: the run is over, and not in the way the command asks for.
    """
    engine = await fleet.find(str(arguments.get("run", "")))
    reason = str(arguments.get("reason") or "by the administrator")
    if not engine.ended:
        await engine.submit(EVENTS[command](_plain(reason)))  # should it end meanwhile, what is said below says so
    elif engine.label[0] != MEANT.get(command):
        raise BadInput(f"run {engine.run.hex()[:12]} is {engine.label[0]} already ({engine.label[1]}); {LATER[command]}")
    return said(engine)


def said(engine: RunEngine) -> dict[str, Any]:
    """Where the run stands now."""
    state = "running" if engine.label[0] == "open" else engine.label[0]
    paused, stopping = (bool(getattr(engine.state, name)) and not engine.ended for name in ("paused", "halting"))
    return {"run": engine.run.hex(), "state": state, "paused": paused, "stopping": stopping, "reason": engine.label[1]}


def _plain(reason: str) -> str:
    return "".join(c if c.isprintable() else " " for c in reason)[:300]
