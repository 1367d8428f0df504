"""Pure views of a run's state: what each node should do, what may be read and uploaded, what a person is shown."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dure.model import per_node
from dure.model.base import BaseRecord
from dure.secagg import tlv
from dure.secagg.ids import upload_id
from dure.secagg.summing import shape_of
from dure.wire.messages import Directive, DirectiveKind, SumEvidence
from dure_coordinator.exchange.asking import node_values_of
from dure_coordinator.exchange.common import all_exchanges, in_flight
from dure_coordinator.exchange.dispute import disputes_document, disputes_in_words
from dure_coordinator.exchange.owed import wakeup_of
from dure_coordinator.exchange.share import elements_of
from dure_coordinator.exchange.state import (
    EpochPhase,
    EpochState,
    ExchangePhase,
    ExchangeState,
    InstancePhase,
    InstanceState,
    RunPhase,
    RunState,
)
from dure_coordinator.exchange.void import voids_needed


@dataclass(frozen=True)
class UploadSlot:
    """An upload the coordinator takes now."""

    member: str
    instance: bytes
    upload: bytes
    """Its name (dure.secagg.ids.upload_id)."""
    length: int
    """0 for scalars: the push stream has no chunks, only the commit."""
    chunk_bytes: int


def directive(state: RunState, member: str) -> Directive:
    """What this member's node should be doing now, in full. Equal states give equal directives, so it may be compared."""
    made = _directive(state, member)
    return replace(made, documents={**made.documents, **disputes_document(state)}) if state.disputes else made


def _directive(state: RunState, member: str) -> Directive:
    make = _Maker(state, member)
    if state.phase in (RunPhase.FINISHED, RunPhase.ABORTED):
        return make(DirectiveKind.FINISHED, documents=_parting(state, member), reason=f"{state.phase}: {state.reason}")
    if member not in state.approvals:
        plan = {"plan": state.facts.plan_envelope, "app": state.facts.plan.app_blob.encode()}
        return make(DirectiveKind.APPROVE, documents=plan, deadline=state.began + state.facts.plan.deadlines.approve)
    epoch = state.epoch
    if state.phase is RunPhase.EPOCH and epoch is not None and member in epoch.members:
        return _of_epoch(make, state, epoch, member)
    exchange = in_flight(state)
    if exchange is not None and member in exchange.members and member not in _excluded(state, exchange):
        return _of_exchange(make, state, exchange, member)
    if epoch is not None and member in epoch.members and member not in epoch.joined and epoch.phase is EpochPhase.READY:
        return make(DirectiveKind.JOIN, parts=epoch.groups, members=epoch.members, epoch=epoch.number)
    return _waiting(make, state)


class _Maker:
    """Builds directives of one run."""

    def __init__(self, state: RunState, member: str) -> None:
        self._run = state.facts.run

    def __call__(
        self,
        kind: DirectiveKind,
        *,
        exchange: int = 0,
        instance: bytes = b"",
        epoch: int = 0,
        members: tuple[str, ...] = (),
        parts: Mapping[str, bytes] | None = None,
        documents: Mapping[str, bytes] | None = None,
        deadline: float = 0,
        reason: str = "",
    ) -> Directive:
        plain = "".join(c if c.isprintable() else " " for c in reason)[:1000]
        return Directive(
            self._run, kind, exchange, instance, epoch, members, dict(parts or {}), dict(documents or {}), int(deadline * 1000), plain
        )


def _waiting(make: _Maker, state: RunState) -> Directive:
    """Nothing to do; a failed exchange's voids stay attached, so that nodes know the base is free."""
    last = state.exchange
    if (
        last is not None
        and last.phase is ExchangePhase.FAILED
        and last.instance is not None
        and last.instance.phase is InstancePhase.VOIDED
    ):
        voids = {"voids": tlv.encode(*(last.instance.voids[m] for m in sorted(last.instance.voids)))}
        return make(
            DirectiveKind.WAIT, exchange=last.number, instance=last.instance.instance, documents=voids, reason=state.reason or last.reason
        )
    return make(DirectiveKind.WAIT, exchange=last.number if last else 0, reason=state.reason)


def _parting(state: RunState, member: str) -> dict[str, bytes]:
    """How the instances ended that this member gave up at the run's end: V voids, or the certificate it may have been opened under."""
    given_up = [i for e in all_exchanges(state) for i in e.instances if member in i.voids]
    void = [i for i in given_up if len(i.voids) >= voids_needed(state, i)]
    voids = [i.voids[m] for i in void for m in sorted(i.voids)]
    certificates = [i.survivors_envelope for i in given_up if i not in void and i.survivors_envelope]
    found = {"voids": voids, "certificates": certificates}
    return {name: tlv.encode(*envelopes) for name, envelopes in found.items() if envelopes}


def _of_epoch(make: _Maker, state: RunState, epoch: EpochState, member: str) -> Directive:
    deadline = epoch.began + state.facts.plan.deadlines.epoch
    where: dict[str, Any] = {"epoch": epoch.number, "members": epoch.members, "deadline": deadline}
    if epoch.phase is EpochPhase.ADVERT:
        return make(DirectiveKind.ADVERT, **where)
    if epoch.phase is EpochPhase.KEM:
        delegations = {f"delegation/{m}": state.present[m].delegation for m in epoch.members}
        return make(DirectiveKind.KEM, parts=epoch.adverts, documents=delegations, **where)
    if epoch.phase is EpochPhase.GROUP:
        return make(DirectiveKind.GROUP, parts=epoch.kems, **where)
    return make(DirectiveKind.JOIN, parts=epoch.groups, **where)


def _excluded(state: RunState, exchange: ExchangeState) -> frozenset[str]:
    """Members that have nothing to do in this exchange any more; someone out of the current cohort, but with shares, stays in."""
    instance = exchange.instance
    if instance is not None and instance.phase is not InstancePhase.SHARE and instance.phase is not InstancePhase.FAILED:
        return frozenset(exchange.members) - frozenset(instance.cohort)
    if instance is not None:
        return frozenset(exchange.members) - (frozenset(instance.cohort) - frozenset(exchange.sat_out))
    return frozenset(exchange.sat_out)


def _of_exchange(make: _Maker, state: RunState, exchange: ExchangeState, member: str) -> Directive:
    where: dict[str, Any] = {"exchange": exchange.number, "epoch": exchange.epoch}
    if exchange.phase is ExchangePhase.EXECUTE:
        deadline = exchange.began + state.facts.plan.deadlines.execute
        documents = _execute_documents(state, exchange, member)
        return make(DirectiveKind.EXECUTE, documents=documents, members=exchange.members, deadline=deadline, **where)
    instance = exchange.instance
    if instance is None or (exchange.phase is ExchangePhase.UPDATE and instance.purpose != "update"):
        return make(DirectiveKind.WAIT, reason="waiting for the update to begin", **where)
    where["instance"] = instance.instance
    if exchange.phase is ExchangePhase.STEP:
        deadline = exchange.began + state.facts.plan.deadlines.accept
        return make(DirectiveKind.RESULT, documents=_sum_documents(instance), deadline=deadline, **where)
    return _of_instance(make, state, exchange, instance, member, where)


def _execute_documents(state: RunState, exchange: ExchangeState, member: str) -> dict[str, bytes]:
    documents = {"instruction": exchange.asked.instruction}
    if own := node_values_of(exchange.asked).get(member):
        documents["values"] = per_node.to_json(own)
    if exchange.has_arrays:
        # The base's own blob: where a dtype rounds what the ServerApp was shown, what it handed on has fewer digits.
        weights = str(BaseRecord.from_json(exchange.base_record).weights)
        documents |= {"layout": exchange.layout, "weights": weights.encode(), "base": exchange.base_record}
        documents |= {f"accept/{m}": envelope for m, envelope in state.base_accepts.items()}
    if state.closed_accepts != state.base_accepts:
        documents |= {f"closed/{m}": envelope for m, envelope in state.closed_accepts.items()}
    if voids := _voids(state, exchange):
        documents["voids"] = voids
    return documents


def _voids(state: RunState, exchange: ExchangeState) -> bytes:
    """Envelopes that show earlier instances on the same weights and category to be void."""
    earlier = [e for e in state.closed if (e.weights_id, e.category) == (exchange.weights_id, exchange.category)]
    found = [i.voids[m] for e in earlier for i in e.instances if i.phase is InstancePhase.VOIDED for m in sorted(i.voids)]
    return tlv.encode(*found) if found else b""


def _sum_documents(instance: InstanceState) -> dict[str, bytes]:
    return {"survivors": instance.survivors_envelope, "aggregate": instance.aggregate_envelope, "sum": instance.sum.encode()}


def _of_instance(
    make: _Maker, state: RunState, exchange: ExchangeState, instance: InstanceState, member: str, where: dict[str, Any]
) -> Directive:
    # While the coordinator signs or sums there is nothing new to ask: a directive that stays the same costs the nodes nothing.
    limits, began = state.facts.plan.deadlines, instance.began
    if instance.phase in (InstancePhase.SHARE, InstancePhase.OPEN):
        documents = {}
        if instance.purpose == "update" and exchange.scales is not None:
            documents = {f"scales_{name}": value for name, value in _sum_documents(exchange.scales).items()}
        return make(DirectiveKind.SHARE, members=instance.cohort, documents=documents, deadline=began + limits.share, **where)
    if instance.phase is InstancePhase.UPLOAD:
        documents = {"open": instance.open_envelope}
        return make(DirectiveKind.OPEN, parts=instance.shares, documents=documents, deadline=began + limits.upload, **where)
    if instance.phase in (InstancePhase.SURVIVORS, InstancePhase.CERTIFY) and member in instance.survivors:
        commits = {m: instance.commits[m] for m in instance.survivors}
        return make(DirectiveKind.SURVIVORS, parts=commits, deadline=began + limits.survivors, **where)
    if instance.phase in (InstancePhase.REVEAL, InstancePhase.SUM, InstancePhase.AGGREGATE):
        documents = {"survivors": instance.survivors_envelope, "proof": instance.survivors_proof}
        return make(DirectiveKind.REVEAL, members=instance.unopened, documents=documents, deadline=began + limits.reveal, **where)
    if instance.phase is InstancePhase.VOID:
        return make(DirectiveKind.VOID, deadline=began + limits.accept, reason=instance.reason, **where)
    return make(DirectiveKind.WAIT, reason=f"{instance.purpose}: {instance.phase}", **where)


def upload_slots(state: RunState) -> tuple[UploadSlot, ...]:
    """Uploads that may be sent now. One whose commit is accepted stays in the list, so that a repeated commit is answered."""
    exchange = in_flight(state)
    instance = exchange.instance if exchange else None
    if exchange is None or instance is None or instance.phase is not InstancePhase.UPLOAD:
        return ()
    length, chunk_bytes = shape_of(instance.purpose, elements_of(exchange))
    return tuple(UploadSlot(m, instance.instance, upload_id(instance.instance, m), length, chunk_bytes) for m in instance.cohort)


def may_read(state: RunState, member: str, blob: str) -> bool:
    """Whether this member may pull the blob of that id text now: the app; base weights and scales of the exchange in flight and the last
    one; what was opened in any exchange it was in, with seeds and evidence."""
    return member in state.facts.roster and bool(blob) and any(blob in some for some in _readable(state, member))


def _readable(state: RunState, member: str) -> Iterator[Collection[str]]:
    """What is asked for most comes first: a run may have thousands of exchanges behind it."""
    for exchange in ([state.exchange] if state.exchange else []) + list(state.closed[-1:]):
        if member in exchange.members:
            yield (exchange.asked.weights,)
            if exchange.scales is not None:
                yield (exchange.scales.sum, exchange.scales.e_b)
            yield _record_blobs(exchange.base_record)
    if member in state.approvals:
        yield _record_blobs(state.base_record)
    yield (state.facts.plan.app_blob,)
    for _, instance in _opened(state, member):
        yield (instance.sum, instance.seeds, instance.evidence)


def _opened(state: RunState, member: str) -> Iterator[tuple[ExchangeState, InstanceState]]:
    """Every instance whose sum was signed, in an exchange this member was in; the newest first."""
    for exchange in reversed(all_exchanges(state)):
        if member in exchange.members:
            yield from ((exchange, i) for i in exchange.instances if i.phase is InstancePhase.OPENED)


@dataclass(frozen=True)
class KeptUpload:
    """A survivor's upload that may be asked for again."""

    upload: bytes
    length: int
    chunk_bytes: int


def readable_upload(state: RunState, member: str, blob: str) -> KeptUpload | None:
    """The survivor's upload of that blob id text, if this member was in its exchange and the sum is signed; nobody else's, no other's."""
    for exchange, instance in _opened(state, member):
        for survivor, text in instance.uploads.items():
            if text == blob:
                return KeptUpload(upload_id(instance.instance, survivor), *shape_of(instance.purpose, elements_of(exchange)))
    return None


def opened_sums(state: RunState, member: str, number: int) -> tuple[SumEvidence, ...]:
    """What is needed to add up the sums that an exchange stands on, scales first; () if this member was not in it, or none is signed."""
    exchange = next((e for e in all_exchanges(state) if e.number == number), None)
    if exchange is None or member not in exchange.members:
        return ()
    used = [exchange.scales] if exchange.scales is not None else []
    used += [i for i in exchange.instances if i.phase is InstancePhase.OPENED and i.instance not in {u.instance for u in used}]
    return tuple(SumEvidence(i.aggregate_envelope, i.evidence, i.seeds) for i in used)


def _record_blobs(record: bytes) -> set[str]:
    if not record:
        return set()
    base = BaseRecord.from_json(record)
    return {str(blob) for blob in (base.weights, base.outer_state, base.e_b) if blob is not None}


def summary(state: RunState) -> dict[str, Any]:
    """For `dure run show` and watch: plain JSON values; times in unix seconds."""
    exchange = in_flight(state)
    instance = exchange.instance if exchange else None
    return {
        "phase": str(state.phase),
        "reason": state.reason,
        "exchange": state.exchange.number if state.exchange else 0,
        "category": exchange.category if exchange else "",
        "exchange_phase": str(state.exchange.phase) if state.exchange else "",
        "purpose": instance.purpose if instance else "",
        "instance_phase": str(instance.phase) if instance else "",
        "attempt": instance.attempt if instance else 0,
        "epoch": state.epochs,
        "quorum": state.facts.u_min,
        "paused": state.paused,
        "stopping": state.halting,
        "exchanges_left": state.facts.plan.max_exchanges - state.exchanges,
        "members": {m: _member_summary(state, exchange, m) for m in state.facts.roster},
        "waiting_for": waiting_for(state),
        "deadline": wakeup_of(state),
        "disputes": disputes_in_words(state),
    }


def _member_summary(state: RunState, exchange: ExchangeState | None, member: str) -> dict[str, Any]:
    seen = state.present.get(member)
    note = state.refusals.get(member, "") or state.convicted.get(member, "")
    if exchange is not None and member in exchange.sat_out:
        note = ": ".join(exchange.sat_out[member])
    return {
        "connected": bool(seen and seen.connected),
        "approved": member in state.approvals,
        "in_epoch": state.epoch is not None and member in state.epoch.joined,
        "doing": str(directive(state, member).kind),
        "note": note,
    }


def waiting_for(state: RunState) -> list[str]:
    """Members whose answer the current phase waits for."""
    exchange = in_flight(state)
    if state.phase is RunPhase.APPROVING:
        return [m for m in state.facts.roster if m not in state.approvals and m not in state.refusals]
    if state.phase is RunPhase.EPOCH and state.epoch is not None:
        epoch = state.epoch
        spoken: Any = {EpochPhase.ADVERT: epoch.adverts, EpochPhase.KEM: epoch.kems, EpochPhase.GROUP: epoch.groups}.get(
            epoch.phase, epoch.joined
        )
        return [m for m in epoch.members if m not in spoken]
    if exchange is None:
        return []
    if exchange.phase is ExchangePhase.EXECUTE:
        return [m for m in exchange.members if m not in exchange.ready and m not in exchange.sat_out]
    instance = exchange.instance
    if exchange.phase is ExchangePhase.STEP and instance is not None:
        return [m for m in instance.survivors if m not in exchange.accepts]
    if instance is None:
        return []
    have: dict[InstancePhase, tuple[tuple[str, ...], Any]] = {
        InstancePhase.SHARE: (instance.cohort, instance.shares),
        InstancePhase.UPLOAD: (instance.cohort, instance.commits),
        InstancePhase.SURVIVORS: (instance.survivors, instance.signatures),
        InstancePhase.REVEAL: (instance.cohort, instance.reveals),
        InstancePhase.VOID: (instance.cohort, instance.voids),
    }
    asked, answered = have.get(instance.phase, ((), ()))
    return [m for m in asked if m not in answered]


__all__ = [
    "KeptUpload",
    "UploadSlot",
    "directive",
    "may_read",
    "opened_sums",
    "readable_upload",
    "summary",
    "upload_slots",
    "waiting_for",
]
