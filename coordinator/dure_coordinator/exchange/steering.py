"""An administrator steers: after a pause no exchange begins, going on lifts it, a halt ends the run after its round and keeps the model.

A round is a train exchange and what the ServerApp asks until the next one; so a halted run ends when the ServerApp asks to train again.
What it asked with is the newest model where the plan leaves the step to the ServerApp: it is kept.
"""

from __future__ import annotations

from dataclasses import replace

from dure.errors import DureError
from dure_coordinator.exchange.approving import candidates
from dure_coordinator.exchange.common import Taken, away, in_flight, refuse
from dure_coordinator.exchange.events import Asked, GoOn, Halt, Pause
from dure_coordinator.exchange.history import rounds_over
from dure_coordinator.exchange.state import RunPhase, RunState


def take_pause(state: RunState, event: Pause, now: float) -> Taken:
    """No exchange begins until `GoOn`; one in flight goes on to its end. The first reason stays."""
    return _over(state) or Taken(state if state.paused else replace(state, paused=event.reason))


def take_go_on(state: RunState, event: GoOn, now: float) -> Taken:
    return _over(state) or Taken(replace(state, paused="", reason="") if state.paused else state)


def take_halt(state: RunState, event: Halt, now: float) -> Taken:
    """No further round begins; the rest of this one is still done."""
    return _over(state) or Taken(state if state.halting else replace(state, halting=event.reason))


def _over(state: RunState) -> Taken | None:
    if state.phase in (RunPhase.FINISHED, RunPhase.ABORTED):
        return Taken(state, refuse("run", f"is {state.phase}: {state.reason}"))
    return None


def is_next_round(asked: Asked) -> bool:
    """Whether this request begins a round."""
    from dure_coordinator.exchange.asking import instruction_of

    try:
        return instruction_of(asked).category == "train"
    except DureError:  # it will be answered with the reason
        return False


def advance_halt(state: RunState, now: float) -> RunState:
    """Finishes a halted run as soon as nothing of the round is left to do, or nothing more of it can be done now."""
    if not state.halting or in_flight(state) is not None or state.phase in (RunPhase.FINISHED, RunPhase.ABORTED):
        return state
    queued = state.queued
    if queued is None:
        return _finish(state) if not state.answers else state  # else the ServerApp is about to say what comes next
    could = len(candidates(state)) + len(away(state, tuple(state.approvals)))  # they may come back for what is left
    if is_next_round(queued) or state.paused or could < state.facts.u_min:
        return _finish(replace(state, unasked=queued, queued=None))
    return state


def halted_by(state: RunState, asked: Asked) -> RunState:
    """The run after a halted ServerApp asked for the next round."""
    return _finish(replace(state, unasked=asked))


def _finish(state: RunState) -> RunState:
    done = rounds_over(state)
    after = f"after round {done}" if done else "before its first round"
    return replace(state, phase=RunPhase.FINISHED, reason=f"stopped {after}: {state.halting}", paused="")
