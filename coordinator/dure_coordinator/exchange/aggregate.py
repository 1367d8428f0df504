"""Aggregate: the sum is computed by a duty; trailer and tag are opened here; then the aggregate is signed and the next part begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from dure.blobs import BlobId
from dure.secagg import encode
from dure.secagg.encode import from_words
from dure.secagg.summing import opened_totals, shape_of
from dure.statements.dsse import Envelope
from dure.statements.kinds import InstanceAggregate, InstanceDropout
from dure_coordinator.exchange.close import fail_exchange
from dure_coordinator.exchange.common import (
    NOT_UPLOADED,
    current,
    in_flight,
    is_connected,
    is_late,
    is_lost,
    names,
    sit_out,
    with_exchange,
    with_instance,
)
from dure_coordinator.exchange.share import begin_instance, elements_of
from dure_coordinator.exchange.state import ExchangePhase, InstancePhase, InstanceState, RunState
from dure_coordinator.exchange.upload import read_commit


def summed(state: RunState, result: Mapping[str, bytes], now: float) -> RunState:
    """The Sum duty is done."""
    instance, exchange = current(state), in_flight(state)
    if instance is None or exchange is None or instance.phase is not InstancePhase.SUM:
        return state
    trailer, tag = opened_trailer(state, instance)
    assert instance.recovered is not None
    length, _ = shape_of(instance.purpose, elements_of(exchange))
    statement = InstanceAggregate(
        instance=instance.instance,
        ctx=instance.ctx,
        survivors_sha256=Envelope.from_bytes(instance.survivors_envelope).payload_sha256,
        root=result["root"],
        length=length,
        trailer=trailer,
        tag=tag,
        seeds_sha256=sha256(instance.recovered.to_bytes()).digest(),
    )
    return with_instance(
        state,
        phase=InstancePhase.AGGREGATE,
        root=result["root"],
        sum=result["sum"].decode(),
        seeds=result["seeds"].decode(),
        evidence=result["evidence"].decode(),
        uploads=committed_uploads(state, instance),
        e_b=result.get("e_b", b"").decode(),
        e_b_sha256=result.get("e_b_sha256", bytes(32)),
        trailer=trailer,
        tag=tag,
        aggregate_statement=statement,
        dropouts=dropouts_of(state, instance),
    )


def committed_uploads(state: RunState, instance: InstanceState) -> dict[str, str]:
    """Blob id text of each survivor's upload; none where an instance has no vector."""
    if instance.purpose == "scalars":
        return {}
    commits = {m: read_commit(instance.commits[m]) for m in instance.survivors}
    return {m: str(BlobId(c.root, c.length)) for m, c in commits.items()}


def opened_trailer(state: RunState, instance: InstanceState) -> tuple[tuple[int, ...], int]:
    """Σ of the survivors' masked trailers and tags with the masks taken off: (modulo 2^64, modulo p)."""
    assert instance.recovered is not None
    commits = [read_commit(instance.commits[m]) for m in instance.survivors]
    return opened_totals([c.trailer for c in commits], [c.tag for c in commits], instance.recovered.unmask)


def dropouts_of(state: RunState, instance: InstanceState) -> dict[str, tuple[str, str]]:
    """(phase, reason) of each member the exchange began with that is not in this sum."""
    exchange = state.exchange
    assert exchange is not None
    before = exchange.scales.survivors if instance.purpose == "update" and exchange.scales else exchange.members
    left = {*before, *instance.cohort} - set(instance.survivors)
    return {m: exchange.sat_out.get(m, ("upload", NOT_UPLOADED)) for m in sorted(left)}


def dropout_statement(instance: InstanceState, member: str) -> InstanceDropout:
    phase, reason = instance.dropouts[member]
    plain = "".join(c if c >= " " else " " for c in reason)
    return InstanceDropout(instance.instance, member, phase, plain[:500], is_late(reason))


def dropout_signed(state: RunState, member: str, envelope: bytes) -> RunState:
    """One instance-dropout is signed; kept for the record, nobody waits for it."""
    exchange = state.exchange
    assert exchange is not None and exchange.instances
    changed = []
    for instance in exchange.instances:
        if instance.phase is InstancePhase.OPENED and member in instance.dropouts and member not in instance.dropout_envelopes:
            instance = replace(instance, dropout_envelopes={**instance.dropout_envelopes, member: envelope})
        changed.append(instance)
    return with_exchange(state, instances=tuple(changed))


def aggregate_signed(state: RunState, envelope: bytes, now: float) -> RunState:
    """instance-aggregate is signed: scales lead to the update, everything else to step and accept."""
    instance, exchange = current(state), in_flight(state)
    if instance is None or exchange is None or instance.phase is not InstancePhase.AGGREGATE:
        return state
    state = with_instance(state, phase=InstancePhase.OPENED, aggregate_envelope=envelope, began=now)
    if instance.purpose != "scales":
        return with_exchange(state, phase=ExchangePhase.STEP, began=now)
    assert state.exchange is not None
    return with_exchange(state, phase=ExchangePhase.UPDATE, scales=state.exchange.instance, scales_exchange=exchange.number, began=now)


def advance_update(state: RunState, now: float) -> RunState:
    """Begins the update with those survivors of the scales that are still there; waits a little for u_min of them."""
    exchange = in_flight(state)
    if exchange is None or exchange.phase is not ExchangePhase.UPDATE or exchange.scales is None:
        return state
    if exchange.instance is not None and exchange.instance.purpose == "update":
        return state
    able = [m for m in exchange.scales.survivors if m not in exchange.sat_out and m not in state.convicted]
    here = [m for m in able if is_connected(state, m)]
    late = now >= exchange.began + state.facts.plan.deadlines.share
    if any(not is_connected(state, m) and not is_lost(state, m) for m in able) and not late:
        return state
    if len(here) < state.facts.u_min:
        if not late:
            return state
        return fail_exchange(
            state,
            f"{len(here)} survivors of the scales are connected, {state.facts.u_min} are needed; missing: {names(set(able) - set(here))}",
        )
    for member in exchange.scales.survivors:
        if member not in here:
            state = sit_out(state, member, "update", "lost its connection")
    return begin_instance(state, "update", tuple(here), attempt=0, now=now)


# -- what an opened trailer says ----------------------------------------------------------------------------------


def decoded_metrics(metrics: Sequence[str], trailer: Sequence[int]) -> dict[str, float]:
    """Weighted means, float64; none where nobody's weight was above zero."""
    values = from_words(trailer)
    return dict(encode.decode_trailer(values, metrics).metrics) if values[1] > 0 else {}


def num_examples(trailer: Sequence[int], w_max: int) -> float:
    """Examples behind the sum, as Flower's strategies take them."""
    return float(encode.num_examples(from_words(trailer)[1], w_max))
