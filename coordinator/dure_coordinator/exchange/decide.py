"""The one entrance: a run's state and an event give the next state, the reply to whoever caused it, and a reason.

An event is first taken (judged, kept), then the run advances phase by phase until nothing more follows from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dure.wire.messages import ReportKind, ReportReply
from dure_coordinator.exchange import (
    accept,
    aggregate,
    approving,
    asking,
    dispute,
    epoch,
    execute,
    past,
    reveal,
    share,
    steering,
    survivors,
    timing,
    upload,
    void,
)
from dure_coordinator.exchange.common import OK, Taken, abort, in_flight, refuse
from dure_coordinator.exchange.duties import Duty, duties
from dure_coordinator.exchange.events import (
    Abort,
    Asked,
    Dismissed,
    Done,
    Event,
    Gone,
    GoOn,
    Halt,
    Pause,
    Reported,
    Seen,
    Stop,
    TakenUp,
    Tick,
    Uploaded,
)
from dure_coordinator.exchange.facts import RunFacts
from dure_coordinator.exchange.state import RunPhase, RunState


@dataclass(frozen=True)
class Decision:
    """What an event led to."""

    state: RunState
    reply: ReportReply
    """For Reported and Uploaded: the answer to the node. For Asked: accepted, or why the run cannot take it. For Pause, GoOn and Halt:
    accepted, or that the run is over."""
    reason: str
    """One line for log and status; "" when nothing worth telling happened."""
    changed: bool
    """False: the state is the same object, and the event need not be logged."""


_REPORTS = {
    ReportKind.APPROVAL: approving.take_approval,
    ReportKind.REFUSAL: approving.take_refusal,
    ReportKind.ADVERT: epoch.take_epoch_message,
    ReportKind.KEM: epoch.take_epoch_message,
    ReportKind.GROUP: epoch.take_epoch_message,
    ReportKind.JOINED: epoch.take_epoch_message,
    ReportKind.LOST: epoch.take_lost,
    ReportKind.READY: execute.take_ready,
    ReportKind.SIT_OUT: execute.take_sit_out,
    ReportKind.SHARE: share.take_share,
    ReportKind.SIGNATURE: survivors.take_signature,
    ReportKind.REVEAL: reveal.take_reveal,
    ReportKind.ACCEPT: accept.take_accept,
    ReportKind.VOID: void.take_void,
    ReportKind.DISPUTE: dispute.take_dispute,
}
_ADVANCES: tuple[Callable[[RunState, float], RunState], ...] = (
    approving.advance_presence,
    approving.advance_approving,
    epoch.advance_epoch,
    steering.advance_halt,
    asking.advance_idle,
    execute.advance_execute,
    share.advance_share,
    upload.advance_upload,
    survivors.advance_survivors,
    survivors.advance_cosign,
    reveal.advance_reveal,
    aggregate.advance_update,
    void.advance_void,
    accept.advance_accept,
    dispute.advance_disputes,
)


def begin(facts: RunFacts, now: float) -> RunState:
    """The state before any event; `now` is the run's creation time, kept by the engine beside the facts."""
    return RunState(facts=facts, phase=RunPhase.APPROVING, began=now, reason="waiting for approvals")


def apply(state: RunState, event: Event, now: float) -> Decision:
    """The next state. Refusals are replies, never exceptions; the same event twice gets the same reply and changes nothing.

    The engine: `d = apply(state, event, now)`; if `d.changed`, append (now, event) to the log durably; then reply, push
    `directive(d.state, m)` to every member whose directive changed, and start new `duties(d.state)`.
    """
    taken = _take(state, event, now)
    after = taken.state
    if after.phase not in (RunPhase.FINISHED, RunPhase.ABORTED):
        # Equal is enough: a phase that rebuilds the state it was given must not keep the run turning.
        while (further := _advance(after, now)) is not after and further != after:
            after = further
    after = timing.noted(after, now)
    if after is state or after == state:
        return Decision(state, taken.reply, "", False)
    return Decision(after, taken.reply, _reason(state, after), True)


def _advance(state: RunState, now: float) -> RunState:
    for advance in _ADVANCES:
        state = advance(state, now)
    return state


def _take(state: RunState, event: Event, now: float) -> Taken:
    over = state.phase in (RunPhase.FINISHED, RunPhase.ABORTED)
    match event:
        case Seen():
            return approving.take_seen(state, event, now)
        case Gone():
            return approving.take_gone(state, event, now)
        case Dismissed():
            return Taken(state if over else approving.take_dismissed(state, event, now))
        case TakenUp():
            return Taken(state if over else approving.take_taken_up(state, event, now))
        case Done():
            return Taken(_done(state, event, now))
        case Asked():
            return asking.take_asked(state, event, now)
        case Tick():
            return Taken(state)
        case Abort():
            return Taken(state if over else abort(state, event.reason))
        case Stop():
            return Taken(state if over or state.stopping else replace(state, stopping=True, reason=event.reason or state.reason))
        case Pause():
            return steering.take_pause(state, event, now)
        case GoOn():
            return steering.take_go_on(state, event, now)
        case Halt():
            return steering.take_halt(state, event, now)
        case Reported():
            return _take_report(state, event, now, over)
        case Uploaded():
            if over:
                return Taken(state, refuse("run", f"is {state.phase}: {state.reason}"))
            return upload.take_commit(state, event, now)


def _take_report(state: RunState, event: Reported, now: float, over: bool) -> Taken:
    if event.report.run != state.facts.run:
        return Taken(state, refuse("run", "is another run"))
    if event.member not in state.facts.member_signing_keys:
        return Taken(state, refuse("member", f"{event.member} is not in this run's roster"))
    if over and event.report.kind is ReportKind.VOID:
        return void.take_parting(state, event.member, event.report, now)
    if over and event.report.kind is not ReportKind.DISPUTE:
        return Taken(state, refuse("run", f"is {state.phase}: {state.reason}"))
    return _REPORTS[event.report.kind](state, event.member, event.report, now)


def _done(state: RunState, event: Done, now: float) -> RunState:
    """A duty's result goes where the duty came from; one that is not owed any more changes nothing."""
    duty = next((d for d in duties(state) if d.id == event.duty), None)
    return state if duty is None else _settle(state, duty, event, now)


def _settle(state: RunState, duty: Duty, event: Done, now: float) -> RunState:
    what = duty.id.split("/")[0]
    if what == "answer":
        return past.answered(state, int(duty.id.split("/")[1]))
    if what == "sum":
        return aggregate.summed(state, event.result, now)
    if what == "step":
        return accept.stepped(state, event.result, now)
    if what == "cosign":
        return survivors.cosigned(state, event.result["proof"], now)
    envelope = event.result["envelope"]
    if what == "dropout":
        return aggregate.dropout_signed(state, duty.id.split("/")[-1], envelope)
    signed = {"open": share.opened, "survivors": survivors.certified, "aggregate": aggregate.aggregate_signed}[what]
    return signed(state, envelope, now)


def _reason(before: RunState, after: RunState) -> str:
    """One line about the most important thing that changed."""
    if len(after.disputes) > len(before.disputes) and after.phase is before.phase:
        last = dispute.disputes_in_words(after)[-1]
        return f"{last['member']} disputes the {last['purpose']} sum of exchange {last['exchange']}: {last['reason']}"
    if after.phase is not before.phase and after.phase in (RunPhase.FINISHED, RunPhase.ABORTED):
        return f"run {after.phase}: {after.reason}"
    one, other = before.exchange, after.exchange
    if other is not None and (one is None or one.number != other.number or one.phase is not other.phase):
        return f"exchange {other.number} ({other.category}): {other.phase}" + (f": {other.reason}" if other.reason else "")
    old, new = (one.instance if one else None), (other.instance if other else None)
    if new is not None and in_flight(after) and (old is None or old.instance != new.instance or old.phase is not new.phase):
        return f"{new.purpose} attempt {new.attempt}: {new.phase}" + (f": {new.reason}" if new.reason else "")
    if after.epoch and (before.epoch is None or before.epoch.number != after.epoch.number or before.epoch.phase is not after.epoch.phase):
        return f"epoch {after.epoch.number}: {after.epoch.phase} among {', '.join(after.epoch.members)}"
    return after.reason if after.reason != before.reason or after.phase is not before.phase else ""


__all__ = ["OK", "Decision", "apply", "begin"]
