"""Aggregate and accept: the downloaded sum must carry the tag of exactly the certified survivors; then the node accepts, and erases."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from dure.blobs import BlobId
from dure.errors import DureError, Refused
from dure.model.base import BaseRecord
from dure.secagg import instance as sums
from dure.secagg.encode import from_words
from dure.secagg.errors import TagMismatch
from dure.secagg.ids import Purpose
from dure.secagg.tag import TagKey
from dure.statements.kinds import ExchangeAccept, InstanceAggregate, InstanceSurvivors
from dure.statements.statement import open_statement
from dure.wire.messages import Directive
from dure_participant.exchange.dispute import doubt
from dure_participant.exchange.inputs import Verified, VerifyFacts
from dure_participant.exchange.rules import mark, payload_sha256
from dure_participant.exchange.state import ExchangeWork, InstanceWork, OpenedScales
from dure_participant.exchange.survivors import judge_survivors
from dure_participant.exchange.turn import Turn, advance_chains, document, find_instance, find_known, pack, same, secret_of, sit_out
from dure_participant.exchange.upload import shape_of, trailer_length

NO_ID = bytes(32)


def follow_result(turn: Turn, directive: Directive) -> None:
    """The last instance of the exchange is open: download, verify, accept."""
    work = find_instance(turn.state.exchange, directive.instance)
    documents = directive.documents
    blob = document(documents, "sum").decode("ascii", "replace")
    take_aggregate(turn, document(documents, "survivors"), document(documents, "aggregate"), blob, purpose=work.purpose)
    turn.change(kind="result")


def take_aggregate(turn: Turn, survivors: bytes, aggregate: bytes, blob: str, *, purpose: str) -> None:
    """Keeps survivors and aggregate of an instance of this exchange, once they fit what this node knows of it."""
    said = open_statement(aggregate, InstanceAggregate, turn.site.coordinator_keys).fact
    work = find_known(turn.state, said.instance)
    same("aggregate.instance", work.purpose, purpose, f"is not of {purpose}")
    if work.aggregate_envelope:
        same("aggregate", aggregate, work.aggregate_envelope, "is another one than this instance was opened with")
        return
    members = judge_survivors(turn, work, open_statement(survivors, InstanceSurvivors, turn.site.coordinator_keys).fact)
    same("aggregate.ctx", said.ctx, work.ctx)
    same("aggregate.survivors_sha256", said.survivors_sha256, payload_sha256(survivors))
    length, _ = shape_of(turn.exchange, work.purpose)
    same("aggregate.length", said.length, length)
    same("aggregate.trailer", len(said.trailer), trailer_length(work), "has another number of entries than the instance was opened with")
    if not length:
        same("sum", blob, "", "is named where there is none")
    else:
        same("sum", (BlobId.parse(blob).root, BlobId.parse(blob).length), (said.root, length), "is not the blob the aggregate names")
    mark(turn, work.instance, "summed" if turn.site.member in members else "out", members)
    turn.put_known(
        replace(
            work,
            survivors=members,
            survivors_envelope=survivors,
            aggregate_envelope=aggregate,
            aggregate_trailer=said.trailer,
            sum=blob,
        )
    )


def take_verified(turn: Turn, given: Verified) -> None:
    """The agent's findings about a sum: judged here. One that does not verify freezes the run for this node, and is recomputed."""
    work = find_known(turn.state, given.instance)
    if work.verified or work.doubt or not work.aggregate_envelope:
        return
    aggregate = open_statement(work.aggregate_envelope, InstanceAggregate, turn.site.coordinator_keys).fact
    try:
        _check(work, aggregate, given.facts)
    except (TagMismatch, Refused) as e:
        doubt(turn, work, str(e))
        return
    if work.purpose == "scales":
        _scales_verified(turn, work, given.facts)
    else:
        _accept(turn, work, given.facts)


def _check(work: InstanceWork, aggregate: InstanceAggregate, facts: VerifyFacts) -> None:
    same("root", (facts.root, facts.length), (aggregate.root, aggregate.length), "the downloaded sum is not the signed one")
    tag = TagKey(work.group_key, work.ctx, work.cohort)
    tag.verify(
        bulk=facts.tag, trailer=from_words(aggregate.trailer), tag=aggregate.tag, survivors=work.survivors, purpose=Purpose(work.purpose)
    )


def _scales_verified(turn: Turn, work: InstanceWork, facts: VerifyFacts) -> None:
    """From here on an update may use these scales; if one is waiting for them, it is dealt now."""
    from dure_participant.exchange.share import deal

    sent = next((s for s in turn.history.sent if s.instance == work.instance), None)
    if sent is None:
        raise Refused("scales", "this node sent nothing in them")
    opened = OpenedScales(
        instance=work.instance,
        survivors=work.survivors,
        survivors_sha256=payload_sha256(work.survivors_envelope),
        aggregate_sha256=payload_sha256(work.aggregate_envelope),
        sum=work.sum,
        e_b=facts.e_b,
        e_b_sha256=facts.e_b_sha256,
        weights_id=sent.weights_id,
        exchange=sent.exchange,
        recomputed=work.recomputed == "agrees",
    )
    turn.put_known(replace(_erased(work), verified=True))
    turn.change_exchange(scales=opened)
    turn.change(scales=opened)
    for waiting in turn.exchange.instances:
        if waiting.purpose == "update" and not waiting.secret:
            try:
                deal(turn, waiting, opened)
            except DureError as e:
                sit_out(turn, str(e))


def _erased(work: InstanceWork) -> InstanceWork:
    """Rule 5: an instance's secrets go once its aggregate is verified."""
    return replace(work, secret=sums.verified(secret_of(work)).to_bytes() if work.secret else b"", share=b"")


def _accept(turn: Turn, work: InstanceWork, facts: VerifyFacts) -> None:
    exchange, plan = turn.exchange, turn.plan
    train = exchange.category == "train" and bool(exchange.layout)
    next_base, base_id = turn.state.base_record, None
    weights_id = turn.state.base_weights_id
    if train and plan.outer_step.named:
        next_base = _judge_next(turn, exchange, facts).to_json()
        base_id, weights_id = sha256(next_base).digest(), facts.next_weights_id
    elif train:
        assert exchange.scales is not None
        base = BaseRecord.from_json(exchange.base_record)
        next_base, weights_id = BaseRecord(base.weights, None, {}, BlobId.parse(exchange.scales.e_b), exchange.number).to_json(), NO_ID
    elif exchange.layout and not next_base:
        next_base, weights_id = exchange.base_record, exchange.weights_id
    sums_of = [(payload_sha256(work.aggregate_envelope), work.recomputed == "agrees")]
    if exchange.scales is not None:
        sums_of.insert(0, (exchange.scales.aggregate_sha256, exchange.scales.recomputed))
    digests, again = tuple(d for d, _ in sums_of), tuple(d for d, recomputed in sums_of if recomputed)
    accept = turn.seal(ExchangeAccept(turn.state.run, exchange.number, turn.site.member, digests, again, base_id))
    inside = turn.site.member in work.survivors
    turn.put_instance(replace(_erased(work), verified=True))
    turn.change_exchange(accept=pack(accept.to_bytes(), work.usage))
    number = exchange.number
    turn.change(base_record=next_base, base_weights_id=weights_id, last_closed=number, last_accepted=number)
    if train:
        turn.change(scales=None)
    names = work.metrics
    turn.change(metrics={**turn.state.metrics, exchange.category: names})
    advance_chains(turn, number)
    turn.note(f"accepted exchange {number}" + ("" if inside else "; this node is not in its sum"))


def _judge_next(turn: Turn, exchange: ExchangeWork, facts: VerifyFacts) -> BaseRecord:
    """The next base as the agent computed it, in the form every member gives it."""
    assert exchange.scales is not None
    made = BaseRecord.from_json(facts.next_base)
    taken = int(BaseRecord.from_json(exchange.base_record).step.get("t", "0"))
    same("next_base.exchange", made.exchange, exchange.number)
    same("next_base.e_b", str(made.e_b), exchange.scales.e_b)
    same("next_base.step.t", made.step.get("t"), str(taken + 1))
    return made
