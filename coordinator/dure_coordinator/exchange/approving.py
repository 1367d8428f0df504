"""Who takes part: connections come and go, plans are approved or refused. A run opens with u_min approvals."""

from __future__ import annotations

from dataclasses import replace

from dure.errors import DureError
from dure.statements.kinds import NodeDelegation, RunApproval
from dure.statements.statement import open_statement
from dure.wire.messages import Report
from dure_coordinator.exchange.common import OK, Taken, abort, in_flight, names, refusal_of, refuse, sit_out, with_exchange, with_instance
from dure_coordinator.exchange.events import Dismissed, Gone, Seen, TakenUp
from dure_coordinator.exchange.state import Patience, Presence, RunPhase, RunState


def take_seen(state: RunState, event: Seen, now: float) -> Taken:
    """A node connected. A higher generation replaces the lower one for good (rule 7)."""
    signers = state.facts.member_signing_keys.get(event.member)
    if signers is None:
        return Taken(state, refuse("member", f"{event.member} is not in this run's roster"))
    try:
        word = open_statement(event.delegation, NodeDelegation, signers).fact
    except DureError as e:
        return Taken(state, refusal_of(e))
    if (word.member, word.node_key, word.generation) != (event.member, event.node_key, event.generation):
        return Taken(state, refuse("delegation", "names another member, key or generation"))
    if not word.not_before <= now < word.not_after:
        return Taken(state, refuse("delegation", "has run out or is not yet valid; make a new one with `dure node init` in a new folder"))
    known = state.present.get(event.member)
    if known and event.generation < known.generation:
        return Taken(state, refuse("generation", f"{known.generation} was seen already; a node with an older key must not come back"))
    if known and event.generation == known.generation and event.node_key != known.node_key:
        return Taken(state, refuse("generation", "was given to another key; delegate the new key under a higher one"))
    if known and known.connected and known.node_key == event.node_key and known.delegation == event.delegation:
        return Taken(state)
    present = {**state.present, event.member: Presence(event.node_key, event.generation, event.delegation, True)}
    after = replace(state, present=present, left_out=tuple(m for m in state.left_out if m != event.member))
    if known and known.node_key != event.node_key:
        # A new key is a new node: it has no state, so it is shown the plan and approves it again.
        approvals = {m: a for m, a in state.approvals.items() if m != event.member}
        after = sit_out(replace(after, renew=True, approvals=approvals), event.member, "keys", "its node came back with a new key")
    return Taken(after)


def take_gone(state: RunState, event: Gone, now: float) -> Taken:
    known = state.present.get(event.member)
    if known is None or not known.connected:
        return Taken(state)
    until = now + state.patience.gone_grace_s
    return Taken(replace(state, present={**state.present, event.member: replace(known, connected=False, until=until)}))


def take_dismissed(state: RunState, event: Dismissed, now: float) -> RunState:
    """Lost at once, whatever the grace; out of the exchange in flight, unless its reply is committed: what it signed counts."""
    known, exchange = state.present.get(event.member), in_flight(state)
    if known is not None:
        gone = replace(known, connected=False, lost=True, until=now)
        state = replace(state, present={**state.present, event.member: gone}, renew=True)
    if exchange is None or event.member not in exchange.members:
        return state
    if exchange.instance and exchange.instance.purpose != "scales" and event.member in exchange.instance.commits:
        return state
    return sit_out(state, event.member, exchange.phase.value, event.reason)


def take_taken_up(state: RunState, event: TakenUp, now: float) -> RunState:
    """Nobody could answer while the coordinator was away: who was here is waited for, and the phase in flight has its whole time again."""
    patience = Patience(event.gone_grace_ms / 1000, event.return_grace_ms / 1000, event.join_grace_ms / 1000)
    back = {m: p if p.lost else replace(p, connected=False, until=now + patience.return_grace_s) for m, p in state.present.items()}
    state = replace(state, patience=patience, present=back)
    if state.phase is RunPhase.EPOCH and state.epoch is not None:
        return replace(state, epoch=replace(state.epoch, began=now))
    exchange = in_flight(state)
    if exchange is None:
        return state
    state = with_exchange(state, began=now)
    return with_instance(state, began=now) if exchange.instances else state


def take_approval(state: RunState, member: str, report: Report, now: float) -> Taken:
    """A run-approval, signed by the node key the member delegated."""
    if (kept := state.approvals.get(member)) is not None:
        return Taken(state, OK if kept == report.body else refuse("body", "this member has approved already"))
    seen = state.present.get(member)
    if seen is None:
        return Taken(state, refuse("member", "has not connected"))
    try:
        word = open_statement(report.body, RunApproval, [seen.node_key]).fact
    except DureError as e:
        return Taken(state, refusal_of(e))
    if word.run != state.facts.run or word.member != member:
        return Taken(state, refuse("run" if word.run != state.facts.run else "member", "is not the one asked"))
    refusals = {m: r for m, r in state.refusals.items() if m != member}
    return Taken(replace(state, approvals={**state.approvals, member: report.body}, refusals=refusals))


def take_refusal(state: RunState, member: str, report: Report, now: float) -> Taken:
    """The operator said no; may be taken back by an approval later. The first reason stays."""
    if member in state.approvals:
        return Taken(state, refuse("kind", "this member has approved already"))
    if member in state.refusals:
        return Taken(state)
    reason = report.body.decode("utf-8", "replace")[:500]
    return Taken(replace(state, refusals={**state.refusals, member: reason}))


def advance_presence(state: RunState, now: float) -> RunState:
    """Whoever has been away for the whole grace is lost, until it comes back."""
    lost = {m: replace(p, lost=True) for m, p in state.present.items() if not p.connected and not p.lost and now >= p.until}
    return replace(state, present={**state.present, **lost}) if lost else state


def advance_approving(state: RunState, now: float) -> RunState:
    """Leaves the phase once the quorum approved and is connected, or gives the run up at the plan's deadline."""
    if state.phase is not RunPhase.APPROVING:
        return state
    facts = state.facts
    if len(facts.roster) - len(state.refusals) < facts.u_min:
        refused = "; ".join(f"{m}: {r}" for m, r in sorted(state.refusals.items()))
        return abort(state, f"too many members refused the plan ({facts.u_min} are needed): {refused}")
    here = candidates(state)
    if len(here) >= facts.u_min:
        since = state.quorum_since if state.quorum_since is not None else now
        everyone = all(m in here or m in state.refusals for m in facts.roster)
        if everyone or now >= since + state.patience.join_grace_s:
            return replace(state, phase=RunPhase.IDLE, quorum_since=since, reason="")
        return state if state.quorum_since == since else replace(state, quorum_since=since)
    if now >= state.began + facts.plan.deadlines.approve:
        missing = [m for m in facts.roster if m not in state.approvals]
        return abort(state, f"{len(here)} of {facts.u_min} needed members approved and were connected in time; missing: {names(missing)}")
    return state if state.quorum_since is None else replace(state, quorum_since=None)


def candidates(state: RunState) -> tuple[str, ...]:
    """Members an epoch may be made of: approved, connected, not convicted, not left out of a try just now."""
    return tuple(
        m
        for m in state.facts.roster
        if m in state.approvals and state.present[m].connected and m not in state.convicted and m not in state.left_out
    )
