"""Step and accept: the coordinator makes the next base, every survivor verifies the sums and says so; then the exchange closes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256

from dure.errors import DureError, Refused
from dure.recompute.joint_seed import CONTENT_ID, drawn
from dure.secagg import tlv
from dure.statements.dsse import Envelope
from dure.statements.kinds import ExchangeAccept, Usage
from dure.statements.statement import open_statement
from dure.wire.messages import Report
from dure_coordinator.exchange.aggregate import decoded_metrics, num_examples
from dure_coordinator.exchange.close import close_exchange
from dure_coordinator.exchange.common import OK, Taken, abort, in_flight, is_lost, names, refusal_of, refuse, with_exchange
from dure_coordinator.exchange.duties import Reply
from dure_coordinator.exchange.past import count
from dure_coordinator.exchange.state import ExchangePhase, ExchangeState, RunState


def take_accept(state: RunState, member: str, report: Report, now: float) -> Taken:
    """A cohort member's exchange-accept: it names the same aggregates, and the same next base as the coordinator's own step."""
    exchange = in_flight(state)
    if exchange is None or report.exchange != exchange.number or exchange.instance is None:
        return Taken(state, refuse("exchange", f"{report.exchange} is not being run"))
    if member in exchange.accepts:
        return Taken(
            state,
            OK
            if (exchange.accepts[member], exchange.usages[member]) == _parts(report.body)
            else refuse("body", "another acceptance was kept"),
        )
    if exchange.phase is not ExchangePhase.STEP or member not in exchange.instance.cohort:
        return Taken(
            state, refuse("exchange", f"is in its phase {exchange.phase}" if member in exchange.instance.cohort else "not in its cohort")
        )
    assert state.epoch is not None
    try:
        envelope, usage = split_accept(report.body)
        word = open_statement(envelope, ExchangeAccept, [state.epoch.node_keys[member]]).fact
        spent = open_statement(usage, Usage, [state.epoch.node_keys[member]]).fact if usage else None
    except DureError as e:
        return Taken(state, refusal_of(e))
    if (word.run, word.exchange, word.member) != (state.facts.run, exchange.number, member):
        return Taken(state, refuse("accept", "names another run, exchange or member"))
    # It becomes an entry with this message, so nobody else looks whose it says it is.
    if spent is not None and (spent.run, spent.exchange, spent.member) != (word.run, word.exchange, member):
        return Taken(state, refuse("usage", "names another run, exchange or member"))
    if word.aggregates != aggregate_digests(exchange):
        return Taken(state, refuse("accept.aggregates", "are not those of this exchange"))
    if not set(word.recomputed) <= set(word.aggregates):
        return Taken(state, refuse("accept.recomputed", "names a sum that is not of this exchange"))
    if (word.base_id is not None) != makes_base(state, exchange):
        return Taken(state, refuse("accept.base_id", "is named exactly where members recompute the next base"))
    state = with_exchange(state, accepts={**exchange.accepts, member: envelope}, usages={**exchange.usages, member: usage})
    return Taken(_compare_bases(state))


def split_accept(body: bytes) -> tuple[bytes, bytes]:
    """TLV(exchange-accept, usage) taken apart; usage may be empty."""
    parts = tlv.decode(body, max_bytes=32_768)
    if len(parts) != 2 or not isinstance(parts[0], bytes) or not isinstance(parts[1], bytes):
        raise Refused("body", "must hold the acceptance and the usage statement")
    return parts[0], parts[1]


def _parts(body: bytes) -> tuple[bytes, bytes] | None:
    try:
        return split_accept(body)
    except DureError:
        return None


def aggregate_digests(exchange: ExchangeState) -> tuple[bytes, ...]:
    """Payload digests of the exchange's aggregates, scales first."""
    instance = exchange.instance
    assert instance is not None
    found = (exchange.scales, instance) if instance.purpose == "update" else (instance,)
    return tuple(Envelope.from_bytes(i.aggregate_envelope).payload_sha256 for i in found if i is not None)


def makes_base(state: RunState, exchange: ExchangeState) -> bool:
    """Whether this exchange ends in a next base that members recompute."""
    return state.facts.named_step and exchange.has_arrays and exchange.category == "train"


def needs_step(exchange: ExchangeState) -> bool:
    return exchange.has_arrays and exchange.category == "train"


def stepped(state: RunState, result: Mapping[str, bytes], now: float) -> RunState:
    """The Step duty is done."""
    exchange = in_flight(state)
    if exchange is None or exchange.phase is not ExchangePhase.STEP or exchange.step_result:
        return state
    return _compare_bases(with_exchange(state, step_result=dict(result)))


def _compare_bases(state: RunState) -> RunState:
    """Everyone's next base must be the same bits; otherwise the run freezes with the evidence kept."""
    exchange = state.exchange
    assert exchange is not None
    if not makes_base(state, exchange):
        return state
    said = {m: _base_id(e) for m, e in exchange.accepts.items()}
    if exchange.step_result:
        own = sha256(exchange.step_result["base_record"]).digest()
        if others := [m for m, base in said.items() if base != own]:
            return abort(
                state, f"exchange {exchange.number}: {names(others)} computed another next base than the coordinator; the run is frozen"
            )
    return state


def _base_id(envelope: bytes) -> bytes | None:
    import json

    word = json.loads(Envelope.from_bytes(envelope).payload)["predicate"]["base_id"]
    return bytes.fromhex(word) if word else None


def advance_accept(state: RunState, now: float) -> RunState:
    """Closes when every survivor accepted, or with u_min acceptances at the deadline or when the rest are gone."""
    exchange = in_flight(state)
    if exchange is None or exchange.phase is not ExchangePhase.STEP or exchange.instance is None:
        return state
    if needs_step(exchange) and not exchange.step_result:
        return state
    survivors = exchange.instance.survivors
    waiting = [m for m in survivors if m not in exchange.accepts]
    late = now >= exchange.began + state.facts.plan.deadlines.accept
    out = [m for m in waiting if m in exchange.sat_out]
    if len(survivors) - len(out) < state.facts.u_min:
        said = "; ".join(f"{m}: {exchange.sat_out[m][1]}" for m in out)
        return abort(state, f"exchange {exchange.number} cannot be accepted by {state.facts.u_min} members, the run is frozen: {said}")
    waiting = [m for m in waiting if m not in out]
    enough = sum(m in exchange.accepts for m in survivors) >= state.facts.u_min
    if not enough and not waiting and not late:
        return state
    if (waiting or not enough) and not (enough and (late or all(is_lost(state, m) for m in waiting))):
        if not late:
            return state
        have = sum(m in exchange.accepts for m in survivors)
        return abort(state, f"{have} of {state.facts.u_min} needed members accepted exchange {exchange.number}; missing: {names(waiting)}")
    return _close(state, exchange)


def _close(state: RunState, exchange: ExchangeState) -> RunState:
    instance = exchange.instance
    assert instance is not None
    if makes_base(state, exchange):
        record = exchange.step_result["base_record"]
        state = replace(state, base_record=record, base_weights_id=exchange.step_result["weights_id"], base_accepts=exchange.accepts)
    elif needs_step(exchange):
        state = replace(state, base_record=_shipped(exchange), base_weights_id=bytes(32))
    elif exchange.has_arrays and not state.base_record:
        state = replace(state, base_record=exchange.base_record, base_weights_id=exchange.weights_id)
    drew = exchange.content_id == CONTENT_ID
    if not drew:  # nobody trained anything
        state = replace(state, counted=count(state.counted, instance.survivors, exchange.usages))
    metrics = decoded_metrics(exchange.metrics, instance.trailer)
    kind = "none" if not needs_step(exchange) else "weights" if makes_base(state, exchange) else "mean-update"
    reply = Reply(
        status="ok",
        arrays=kind,  # type: ignore[arg-type]  # one of the three words
        blob=exchange.step_result["reply"].decode() if kind != "none" else "",
        metrics=metrics,
        num_examples=num_examples(instance.trailer, state.facts.plan.w_max),
        survivors=instance.survivors,
        errors={
            m: exchange.sat_out[m][1] if m in exchange.sat_out else "not in the sum"
            for m in exchange.members
            if m not in instance.survivors
        },
        seed=drawn(instance.recovered) if drew and instance.recovered is not None else b"",
    )
    return close_exchange(state, reply)


def _shipped(exchange: ExchangeState) -> bytes:
    """Where the ServerApp makes the next weights: the record the next exchange takes scales and number from."""
    from dure.blobs import BlobId
    from dure.model.base import BaseRecord

    base = BaseRecord.from_json(exchange.base_record)
    assert exchange.scales is not None
    return BaseRecord(base.weights, None, {}, BlobId.parse(exchange.scales.e_b), exchange.number).to_json()
