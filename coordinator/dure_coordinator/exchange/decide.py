"""The one entrance: a run's state and an event give the next state, the reply to whoever caused it, and a reason."""

from __future__ import annotations

from dataclasses import dataclass

from dure.wire.messages import ReportReply
from dure_coordinator.exchange.events import Event
from dure_coordinator.exchange.facts import RunFacts
from dure_coordinator.exchange.state import RunPhase, RunState

OK = ReportReply(True)


@dataclass(frozen=True)
class Decision:
    """What an event led to."""

    state: RunState
    reply: ReportReply
    """For Reported and Uploaded: the answer to the node. For Asked: accepted, or why the run cannot take it."""
    reason: str
    """One line for log and status; "" when nothing worth telling happened."""
    changed: bool
    """False: the state is the same object, and the event need not be logged."""


def begin(facts: RunFacts, now: float) -> RunState:
    """The state before any event; `now` is the run's creation time, kept by the engine beside the facts."""
    return RunState(facts=facts, phase=RunPhase.APPROVING, began=now)


def apply(state: RunState, event: Event, now: float) -> Decision:
    """The next state. Refusals are replies, never exceptions; the same event twice gets the same reply and changes nothing.

    The engine: `d = apply(state, event, now)`; if `d.changed`, append (now, event) to the log durably; then reply, push
    `directive(d.state, m)` to every member whose directive changed, and start new `duties(d.state)`.
    """
    raise NotImplementedError
