"""Uploads: masked vectors are spooled; one counts once its signed commit is durable. Then the survivor set is fixed."""

from __future__ import annotations

from dataclasses import replace

from dure.errors import DureError
from dure.secagg import differences
from dure.secagg.summing import shape_of
from dure.statements.kinds import InstanceCommit
from dure.statements.statement import open_statement, read_verified
from dure_coordinator.exchange.common import (
    NOT_UPLOADED,
    OK,
    Taken,
    current,
    in_flight,
    is_lost,
    names,
    refusal_of,
    refuse,
    silence,
    sit_out,
    with_instance,
)
from dure_coordinator.exchange.events import Uploaded
from dure_coordinator.exchange.share import elements_of
from dure_coordinator.exchange.state import ExchangeState, InstancePhase, InstanceState, RunState
from dure_coordinator.exchange.void import begin_void


def take_commit(state: RunState, event: Uploaded, now: float) -> Taken:
    """A commit: every field is compared with the open before the upload counts."""
    instance, exchange = current(state), in_flight(state)
    if instance is None or exchange is None or event.instance != instance.instance:
        return Taken(state, refuse("instance", "is not being run"))
    if event.member not in instance.cohort:
        return Taken(state, refuse("member", "is not in the cohort"))
    if (kept := instance.commits.get(event.member)) is not None:
        return Taken(state, OK if kept == event.commit else refuse("commit", "another commit was kept; an upload counts once"))
    if instance.phase is not InstancePhase.UPLOAD:
        return Taken(state, refuse("instance", f"is in its phase {instance.phase}: the upload came too late and is deleted"))
    if event.member in exchange.sat_out:
        return Taken(state, refuse("member", f"is out of this exchange: {exchange.sat_out[event.member][1]}"))
    try:
        signed = open_statement(event.commit, InstanceCommit, [state.epoch.node_keys[event.member]]) if state.epoch else None
        assert signed is not None
        commit = signed.fact
    except DureError as e:
        return Taken(state, refusal_of(e))
    if field := _differs(exchange, instance, event.member, commit):
        return Taken(state, refuse(field, "is not that of this instance"))
    key = signed.key.hex()
    state = replace(state, seqs={**state.seqs, key: max(state.seqs.get(key, 0), signed.seq)})
    return Taken(with_instance(state, commits={**instance.commits, event.member: event.commit}))


def read_commit(envelope: bytes) -> InstanceCommit:
    """The commit in an envelope that `take_commit` took."""
    return read_verified(envelope, InstanceCommit)


def _differs(exchange: ExchangeState, instance: InstanceState, member: str, commit: InstanceCommit) -> str:
    length, _ = shape_of(instance.purpose, elements_of(exchange))
    if commit.instance != instance.instance:
        return "commit.instance"
    if commit.ctx != instance.ctx:
        return "commit.ctx"
    if commit.member != member:
        return "commit.member"
    if commit.length != length:
        return "commit.length"
    return "" if len(commit.trailer) == trailer_length(instance.purpose, exchange.metrics) else "commit.trailer"


def trailer_length(purpose: str, metrics: tuple[str, ...]) -> int:
    """[1] of scales; else 1, ŵ_int, clip count and the metrics."""
    return 1 if purpose == "scales" else 3 + len(metrics)


def advance_upload(state: RunState, now: float) -> RunState:
    """Fixes the survivors once all have committed, or with u_min of them at the deadline or when the rest are out."""
    instance, exchange = current(state), in_flight(state)
    if instance is None or exchange is None or instance.phase is not InstancePhase.UPLOAD:
        return state
    facts = state.facts
    late = now >= instance.began + facts.plan.deadlines.upload
    waiting = [m for m in instance.cohort if m not in instance.commits]
    coming = [m for m in waiting if m not in exchange.sat_out and not late]
    survivors = tuple(m for m in instance.cohort if m in instance.commits)
    if len(survivors) + len(coming) < facts.u_min:
        why = "in time" if late else "or still can"
        return begin_void(state, f"{len(survivors)} members uploaded {why}, {facts.u_min} are needed; missing: {names(waiting)}", now)
    held_up = [m for m in coming if not is_lost(state, m)]
    if held_up or len(survivors) < facts.u_min:
        return state
    return _fix(state, exchange, instance, survivors, now, late=late)


def _fix(
    state: RunState, exchange: ExchangeState, instance: InstanceState, committed: tuple[str, ...], now: float, *, late: bool
) -> RunState:
    """The survivors: who committed, or, where sums were opened on these weights before, a set of them that members will sign."""
    facts = state.facts
    earlier = earlier_sets(state, exchange, instance)
    survivors = differences.choose(committed, earlier, facts.colluders, facts.u_min)
    if survivors is None:
        why = differences.why_not(committed, earlier, facts.colluders)
        return begin_void(state, f"the sum of {names(committed)} may not be opened: {why}", now) if late else state
    for member in instance.cohort:
        if member in committed and member not in survivors:
            state = sit_out(state, member, "upload", "left out, so that the sum is of the same members as an earlier one on these weights")
        elif member not in committed:
            state = sit_out(state, member, "upload", silence(state, member, NOT_UPLOADED))
    return with_instance(state, phase=InstancePhase.SURVIVORS, survivors=survivors, began=now)


def earlier_sets(state: RunState, exchange: ExchangeState, instance: InstanceState) -> list[tuple[str, ...]]:
    """Survivor sets that members will compare this one with: the plan's on these weights; without arrays, this run's."""
    base = state.facts.plan.base
    if exchange.has_arrays:
        listed = base.earlier if base is not None and base.weights_id == exchange.weights_id else ()
        return [f.survivors for f in listed if (f.category, f.purpose) == (exchange.category, instance.purpose)]
    before = [i for e in state.closed if not e.has_arrays for i in e.instances]
    return [i.survivors for i in before if i.decision == "reveal"]
