"""Share and open: the cohort deals keys and shares, the coordinator binds everything in one signed instance-open.

On the deadline the silent and the convicted are left out and the next attempt begins: nobody sent a byte yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Literal

from dure.errors import DureError, Refused
from dure.model import per_node
from dure.secagg import epoch as keys
from dure.secagg import instance as sums
from dure.secagg import messages, shares, thresholds
from dure.secagg.errors import PairMismatch
from dure.secagg.ids import InstanceId, Purpose
from dure.statements.dsse import Envelope
from dure.statements.kinds import CohortMember, InstanceOpen, ScalesReference
from dure.wire.messages import Report
from dure_coordinator.exchange.close import fail_exchange
from dure_coordinator.exchange.common import (
    NOT_DEALT,
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
    with_exchange,
    with_instance,
)
from dure_coordinator.exchange.state import ExchangeState, InstancePhase, InstanceState, RunState

CODEC = {"scales": "fp61", "update": "ring16", "scalars": "none"}
MAX_ATTEMPTS = 32


def begin_instance(
    state: RunState, purpose: Literal["scales", "update", "scalars"], cohort: tuple[str, ...], *, attempt: int, now: float
) -> RunState:
    """A fresh instance; needs u_min members or fails the exchange without anyone having sent a byte."""
    exchange = in_flight(state)
    assert exchange is not None
    facts = state.facts
    if len(cohort) < facts.u_min or attempt >= MAX_ATTEMPTS:
        return fail_exchange(state, f"{len(cohort)} members are left for {purpose} (attempt {attempt}), {facts.u_min} are needed")
    where = InstanceId(facts.consortium, facts.run, exchange.number, Purpose(purpose), 0, attempt, exchange.epoch)
    threshold = thresholds.share_threshold(len(cohort), facts.colluders)
    fresh = InstanceState(where.tlv(), purpose, attempt, exchange.epoch, cohort, threshold, InstancePhase.SHARE, now)
    return with_exchange(state, instances=(*exchange.instances, fresh))


def take_share(state: RunState, member: str, report: Report, now: float) -> Taken:
    """One member's share message for the current attempt; a second, different one is refused."""
    instance = current(state)
    if instance is None or report.instance != instance.instance:
        return Taken(state, refuse("instance", "is not being run"))
    if member not in instance.cohort:
        return Taken(state, refuse("member", "is not in the cohort"))
    if (kept := instance.shares.get(member)) is not None:
        return Taken(state, OK if kept == report.body else refuse("body", "another share message was kept; shares are dealt once"))
    if instance.phase is not InstancePhase.SHARE:
        return Taken(state, refuse("instance", f"is in its phase {instance.phase}"))
    try:
        check_share(state, instance, member, report.body)
    except DureError as e:
        return Taken(state, refusal_of(e))
    return Taken(with_instance(state, shares={**instance.shares, member: report.body}))


def check_share(state: RunState, instance: InstanceState, member: str, body: bytes) -> None:
    assert state.epoch is not None
    message = shares.read_share(body, member=member, node_keys=state.epoch.node_keys)
    if message.instance != InstanceId.decode(instance.instance) or message.cohort != instance.cohort:
        raise Refused("share.instance", "is dealt for another instance or cohort")


def advance_share(state: RunState, now: float) -> RunState:
    instance, exchange = current(state), in_flight(state)
    if instance is None or exchange is None or instance.phase is not InstancePhase.SHARE:
        return state
    missing = [m for m in instance.cohort if m not in instance.shares]
    late = now >= instance.began + state.facts.plan.deadlines.share
    out = {m for m in instance.cohort if m in exchange.sat_out or m in state.convicted}
    out |= {m for m in missing if late or is_lost(state, m)}
    if out:
        return restart_without(state, out, NOT_DEALT, now)
    if missing:
        return state
    assert state.epoch is not None
    try:
        shares.read_shares(InstanceId.decode(instance.instance), instance.cohort, instance.shares, None)
    except PairMismatch as e:  # nobody can say which of the two lies: keys are agreed anew, and if it recurs the operators decide
        return fail_exchange(replace(with_instance(state, phase=InstancePhase.FAILED, reason=str(e)), renew=True), str(e))
    statement = _open_statement(state, exchange, instance, now)
    return with_instance(state, phase=InstancePhase.OPEN, open_statement=statement)


def restart_without(state: RunState, out: set[str], reason: str, now: float) -> RunState:
    """The next attempt of the current instance, among the rest; no byte of this one was sent."""
    instance = current(state)
    assert instance is not None
    state = with_instance(state, phase=InstancePhase.FAILED, shares={}, reason=f"{names(out)}: {reason}")
    for member in out:
        state = sit_out(state, member, "share", state.convicted.get(member, silence(state, member, reason)))
    rest = tuple(m for m in instance.cohort if m not in out)
    return begin_instance(state, instance.purpose, rest, attempt=instance.attempt + 1, now=now)


def _open_statement(state: RunState, exchange: ExchangeState, instance: InstanceState, now: float) -> InstanceOpen:
    from hashlib import sha256

    from dure_coordinator.exchange.asking import instruction_of, node_values_of
    from dure_coordinator.exchange.execute import layout_digest

    facts, epoch = state.facts, state.epoch
    assert epoch is not None
    instruction, values = instruction_of(exchange.asked), node_values_of(exchange.asked)
    return InstanceOpen(
        instance=instance.instance,
        charter_version=facts.charter_version,
        charter_sha256=facts.charter_sha256,
        run=facts.run,
        category=exchange.category,
        message_type=instruction.message_type,
        weights_id=exchange.weights_id,
        base_id=sha256(exchange.base_record).digest() if exchange.base_record else bytes(32),
        content_id=exchange.content_id,
        layout_sha256=layout_digest(exchange),
        elements=elements_of(exchange) if instance.purpose != "scalars" else 0,
        codec=CODEC[instance.purpose],
        cohort=tuple(
            CohortMember(
                m,
                messages.message_hash(epoch.adverts[m], keys.ADVERT),
                state.seqs.get(epoch.node_keys[m].hex(), 0),
                per_node.stated(values.get(m, {})),
            )
            for m in instance.cohort
        ),
        metrics=() if instance.purpose == "scales" else exchange.metrics,
        shares_sha256=messages.hash_all(instance.shares, shares.SHARE),
        scales=_scales_reference(exchange) if instance.purpose == "update" else None,
        u_min=facts.u_min,
        threshold=instance.threshold,
        upload_deadline=ceil(now) + facts.plan.deadlines.upload,
    )


def _scales_reference(exchange: ExchangeState) -> ScalesReference:
    scales = exchange.scales
    assert scales is not None
    return ScalesReference(
        instance=scales.instance,
        survivors_sha256=Envelope.from_bytes(scales.survivors_envelope).payload_sha256,
        aggregate_sha256=Envelope.from_bytes(scales.aggregate_envelope).payload_sha256,
        e_b_sha256=scales.e_b_sha256,
    )


def elements_of(exchange: ExchangeState) -> int:
    """D of the flat vector, 0 without arrays."""
    from dure.model.layout import Layout

    return Layout.from_json(exchange.layout).elements if exchange.layout else 0


def opened(state: RunState, envelope: bytes, now: float) -> RunState:
    """The coordinator's own signature is there: everyone may check and upload."""
    instance = current(state)
    if instance is None or instance.phase is not InstancePhase.OPEN:
        return state
    ctx = sums.context(InstanceId.decode(instance.instance), Envelope.from_bytes(envelope).payload_sha256)
    return with_instance(state, phase=InstancePhase.UPLOAD, open_envelope=envelope, ctx=ctx, began=now)


def judge_accusation(state: RunState, said: Mapping[str, str]) -> RunState:
    """A sit-out or refusal may carry evidence that a peer's share does not open; judged against that peer's signed message."""
    instance, accused = current(state), said.get("convicts", "")
    if instance is None or accused not in instance.shares or accused in state.convicted or state.epoch is None:
        return state
    try:
        guilty = sums.judge_share(bytes.fromhex(said.get("evidence", "")), share=instance.shares[accused], node_keys=state.epoch.node_keys)
    except (DureError, ValueError):
        return state
    return replace(state, convicted={**state.convicted, guilty: said["reason"][:500]}) if guilty else state
