"""Which duties a state owes, and when the clock matters to it next."""

from __future__ import annotations

from dure.blobs import BlobId
from dure.model.base import BaseRecord
from dure.recompute.evidence import Evidence
from dure.secagg.encode import from_words
from dure.secagg.ids import InstanceId
from dure.secagg.summing import shape_of
from dure_coordinator.exchange.accept import needs_step
from dure_coordinator.exchange.aggregate import dropout_statement
from dure_coordinator.exchange.common import gone_wakeups, in_flight
from dure_coordinator.exchange.duties import Answer, Cosign, Duty, Sign, Step, Sum
from dure_coordinator.exchange.share import elements_of
from dure_coordinator.exchange.state import EpochPhase, ExchangePhase, ExchangeState, InstancePhase, InstanceState, RunPhase, RunState
from dure_coordinator.exchange.upload import read_commit

E_BUMP = 2
"""Scales of an earlier exchange count so much higher: what is summed was trained again (secure-aggregation.md §5, rule 2)."""


def duties_of(state: RunState) -> tuple[Duty, ...]:
    owed: list[Duty] = [Answer(f"answer/{u.seq}", u.seq, u.exchange, u.reply) for u in state.unanswered]
    exchange = in_flight(state)
    if exchange is None:
        return tuple(owed)
    if exchange.instance is not None:
        owed += _of_instance(state, exchange, exchange.instance)
    if exchange.phase is ExchangePhase.STEP and needs_step(exchange) and not exchange.step_result:
        owed.append(step_of(state, exchange))
    return tuple(owed) + _dropouts(exchange)


def _of_instance(state: RunState, exchange: ExchangeState, instance: InstanceState) -> list[Duty]:
    key = key_of(instance)
    if instance.phase is InstancePhase.OPEN:
        return [Sign(f"open/{key}", instance.open_statement)]
    if instance.phase is InstancePhase.CERTIFY:
        return [Sign(f"survivors/{key}", instance.survivors_statement)]
    if instance.phase is InstancePhase.COSIGN:
        return [Cosign(f"cosign/{key}", instance.survivors_envelope)]
    if instance.phase is InstancePhase.SUM:
        return [_sum(state, exchange, instance)]
    if instance.phase is InstancePhase.AGGREGATE:
        return [Sign(f"aggregate/{key}", instance.aggregate_statement)]
    return []


def key_of(instance: InstanceState) -> str:
    """The instance in a duty's id."""
    where = InstanceId.decode(instance.instance)
    return f"{where.exchange}/{where.purpose}/{where.attempt}"


def _dropouts(exchange: ExchangeState) -> tuple[Duty, ...]:
    return tuple(
        Sign(f"dropout/{key_of(i)}/{m}", dropout_statement(i, m))
        for i in exchange.instances
        if i.phase is InstancePhase.OPENED
        for m in sorted(i.dropouts)
        if m not in i.dropout_envelopes
    )


def _sum(state: RunState, exchange: ExchangeState, instance: InstanceState) -> Sum:
    assert instance.recovered is not None
    elements = elements_of(exchange) if instance.purpose != "scalars" else 0
    length, chunk_bytes = shape_of(instance.purpose, elements)
    base = BaseRecord.from_json(exchange.base_record) if exchange.base_record else None
    return Sum(
        id=f"sum/{key_of(instance)}",
        instance=instance.instance,
        purpose=instance.purpose,
        cohort=instance.cohort,
        survivors=instance.survivors,
        roots={m: read_commit(instance.commits[m]).root for m in instance.survivors},
        elements=elements,
        length=length,
        chunk_bytes=chunk_bytes,
        ctx=instance.ctx,
        recovered=instance.recovered,
        seeds=instance.recovered.to_bytes(),
        evidence=evidence_of(state, instance).to_bytes(),
        base_e_b=_text(base.e_b) if base and instance.purpose == "scales" else "",
        e_cap=state.facts.plan.e_cap,
    )


def evidence_of(state: RunState, instance: InstanceState) -> Evidence:
    """The signed messages of an instance that is being opened."""
    epoch = state.epoch
    assert epoch is not None
    cohort = {m: epoch.delegations[m] for m in instance.cohort}, {m: epoch.adverts[m] for m in instance.cohort}
    commits = {m: instance.commits[m] for m in instance.survivors}
    return Evidence(instance.open_envelope, instance.survivors_envelope, *cohort, instance.shares, commits)


def _text(blob: BlobId | None) -> str:
    return "" if blob is None else str(blob)


def e_bump(exchange: ExchangeState) -> int:
    return E_BUMP if exchange.scales is not None and exchange.scales_exchange != exchange.number else 0


def step_of(state: RunState, exchange: ExchangeState) -> Step:
    """From the opened sum of an exchange to the next base, or to the mean; of one that is over, too."""
    instance = exchange.instance
    assert instance is not None and exchange.scales is not None
    return Step(
        id=f"step/{exchange.number}",
        exchange=exchange.number,
        base_record=exchange.base_record,
        layout=exchange.layout,
        sum=instance.sum,
        e_b=exchange.scales.e_b,
        e_bump=e_bump(exchange),
        cohort_size=len(instance.cohort),
        weight_sum=from_words(instance.trailer)[1],
        outer_step=state.facts.plan.outer_step.config,
        averaged=state.facts.plan.outer_step.averaged,
    )


def wakeup_of(state: RunState) -> float | None:
    """The earliest time at which something follows from time alone."""
    times = _times(state)
    return min(times) if times else None


def _times(state: RunState) -> list[float]:
    facts, limits = state.facts, state.facts.plan.deadlines
    if state.phase is RunPhase.APPROVING:
        first = [] if state.quorum_since is None else [state.quorum_since + state.patience.join_grace_s]
        return [*first, state.began + limits.approve]
    if state.phase is RunPhase.EPOCH and state.epoch is not None:
        return [state.epoch.began + limits.epoch, *gone_wakeups(state, state.epoch.members)]
    if state.phase is RunPhase.IDLE and state.epoch is not None and state.epoch.phase is EpochPhase.READY:
        if state.renew or state.halting:
            return gone_wakeups(state, tuple(state.approvals))
        return [] if state.paused else [state.epoch.started + facts.epoch_max_s]
    exchange = in_flight(state)
    if exchange is None:
        return []
    if exchange.phase is ExchangePhase.EXECUTE:
        waiting = tuple(m for m in exchange.members if m not in exchange.sat_out)
        return [exchange.began + limits.execute, *gone_wakeups(state, waiting)]
    if exchange.phase is ExchangePhase.STEP:
        if needs_step(exchange) and not exchange.step_result:
            return []
        return [exchange.began + limits.accept, *gone_wakeups(state, exchange.members)]
    instance = exchange.instance
    if exchange.phase is ExchangePhase.UPDATE and (instance is None or instance.purpose != "update"):
        return [exchange.began + limits.share, *gone_wakeups(state, exchange.members)]
    return _instance_times(state, instance) if instance else []


def _instance_times(state: RunState, instance: InstanceState) -> list[float]:
    limits = state.facts.plan.deadlines
    lasts = {
        InstancePhase.SHARE: limits.share,
        InstancePhase.UPLOAD: limits.upload,
        InstancePhase.SURVIVORS: limits.survivors,
        InstancePhase.COSIGN: limits.survivors,
        InstancePhase.REVEAL: limits.reveal,
        InstancePhase.VOID: limits.accept,
    }
    if instance.phase not in lasts:
        return []
    ends = [instance.began + lasts[instance.phase]]
    if instance.phase in (InstancePhase.SHARE, InstancePhase.UPLOAD):
        ends += gone_wakeups(state, instance.cohort)
    return ends
