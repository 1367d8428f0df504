"""Open and upload: every field of the instance-open is compared with what this node knows; then, and only then, bytes leave.

Rule 1: what will be uploaded is fixed and stored first, so that a resumed upload is of the identical bytes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256

from dure.errors import Refused
from dure.model import per_node
from dure.model.content import Instruction
from dure.model.layout import Layout
from dure.secagg import instance as sums
from dure.secagg import messages, shares, summing, thresholds, tlv
from dure.secagg.errors import Convicted, PairMismatch
from dure.statements.kinds import CohortMember, InstanceCommit, InstanceOpen, ScalesReference, Usage
from dure.statements.statement import open_statement
from dure.wire.messages import Directive
from dure_participant.exchange.inputs import UploadReady
from dure_participant.exchange.rules import may_send, record_of
from dure_participant.exchange.state import ExchangeWork, InstanceWork
from dure_participant.exchange.turn import Turn, document, find_instance, instance_id, joined_epoch, lose, same, secret_of, sit_out

CODEC = {"scales": "fp61", "update": "ring16", "scalars": "none"}
NO_ID = bytes(32)
E_BUMP = 2


def elements_of(exchange: ExchangeWork, purpose: str) -> int:
    return Layout.from_json(exchange.layout).elements if exchange.layout and purpose != "scalars" else 0


def shape_of(exchange: ExchangeWork, purpose: str) -> tuple[int, int]:
    """(bytes, chunk bytes) of this node's upload, and of the sum."""
    return summing.shape_of(purpose, elements_of(exchange, purpose))


def trailer_length(work: InstanceWork) -> int:
    """[1] of scales; else 1, ŵ_int, clip count and the metrics frozen at open."""
    return 1 if work.purpose == "scales" else 3 + len(work.metrics)


def e_bump(exchange: ExchangeWork) -> int:
    """What is added to every e_b: scales of an earlier exchange count higher, since what is summed was trained again."""
    return E_BUMP if exchange.scales is not None and exchange.scales.exchange != exchange.number else 0


def follow_open(turn: Turn, directive: Directive) -> None:
    """Judges the open and all share messages once; the same open again changes nothing, another one is refused."""
    exchange = turn.state.exchange
    work = find_instance(exchange, directive.instance)
    assert exchange is not None
    envelope = document(directive.documents, "open")
    if exchange.sat_out:
        turn.change(kind="execute")
        return
    if work.open_envelope:
        same("open", envelope, work.open_envelope, "is another one than this instance was opened with (rule 1)")
        turn.change(kind="open")
        return
    opened = open_statement(envelope, InstanceOpen, turn.site.coordinator_keys)
    judge_open(turn, exchange, work, directive, opened.fact)
    may_send(turn, exchange, work.purpose, work.instance)
    try:
        secret = sums.receive_shares(secret_of(work), directive.parts, work.node_keys)
    except PairMismatch as e:
        sit_out(turn, str(e))
        lose(turn, exchange.epoch, str(e))
        return
    except Convicted as e:
        sit_out(turn, e.reason, convicts=e.member, evidence=e.evidence)
        turn.change(kind="execute")
        return
    ctx = sums.context(instance_id(work.instance), opened.envelope.payload_sha256)
    rounding_key = turn.rng(32)
    secret = sums.start_upload(secret, ctx=ctx, upload_digest=upload_digest(exchange, rounding_key))
    metrics = () if work.purpose == "scales" else opened.fact.metrics
    work = replace(work, secret=secret.to_bytes(), open_envelope=envelope, ctx=ctx, rounding_key=rounding_key, metrics=metrics)
    turn.put_instance(work)
    turn.change(kind="open")
    turn.record(record_of(turn, exchange, work))


def upload_digest(exchange: ExchangeWork, rounding_key: bytes) -> bytes:
    """Of all that decides the uploaded bytes."""
    trained = exchange.trained
    assert trained is not None
    scales = exchange.scales.e_b_sha256 if exchange.scales else b""
    values = (trained.update_root, rounding_key, trained.weight_int, trained.metrics, trained.metric_values, scales, e_bump(exchange))
    return sha256(tlv.encode(*values)).digest()


def judge_open(turn: Turn, exchange: ExchangeWork, work: InstanceWork, directive: Directive, said: InstanceOpen) -> None:
    """Rule 6: every field against the pinned charter, the approved plan and what this node executed; nothing is taken on trust."""
    site, trained, epoch = turn.site, exchange.trained, joined_epoch(turn.state, exchange.epoch)
    assert trained is not None
    if epoch is None:
        raise Refused("open.instance", "belongs to an epoch this node has no keys of")
    instruction = Instruction.from_json(json.loads(exchange.instruction))
    same("open.instance", said.instance, work.instance)
    same("open.charter_version", said.charter_version, site.charter_version)
    same("open.charter_sha256", said.charter_sha256, site.charter_sha256)
    same("open.run", said.run, turn.state.run)
    same("open.category", said.category, exchange.category)
    same("open.message_type", said.message_type, instruction.message_type)
    same("open.weights_id", said.weights_id, exchange.weights_id)
    same("open.base_id", said.base_id, sha256(exchange.base_record).digest() if exchange.base_record else NO_ID)
    same("open.content_id", said.content_id, exchange.content_id, "is not of the instruction this node executed")
    same("open.layout_sha256", said.layout_sha256, sha256(exchange.layout).digest() if exchange.layout else NO_ID)
    same("open.elements", said.elements, elements_of(exchange, work.purpose))
    same("open.codec", said.codec, CODEC[work.purpose])
    same("open.cohort", tuple(m.member for m in said.cohort), work.cohort)
    for member in said.cohort:
        _judge_member(turn, work, epoch.advert_sha256, member)
        per_node.check_stated(instruction, member.values, turn.plan.per_node_config)
    own = next(m.values for m in said.cohort if m.member == site.member)
    same("open.cohort.values", own, per_node.stated(per_node.from_json(exchange.values)), "are not the values this node executed")
    same("open.u_min", said.u_min, turn.u_min)
    same("open.threshold", said.threshold, thresholds.share_threshold(len(work.cohort), site.colluders))
    same("open.shares_sha256", said.shares_sha256, messages.hash_all(directive.parts, shares.SHARE))
    same("open.metrics", said.metrics, () if work.purpose == "scales" else trained.metrics, "are not the ones this node brings")
    same("open.scales", said.scales, _scales_reference(exchange, work))
    if said.upload_deadline < turn.now:
        raise Refused("open.upload_deadline", "is past")


def _judge_member(turn: Turn, work: InstanceWork, adverts: object, member: CohortMember) -> None:
    assert isinstance(adverts, dict)
    same(f"open.cohort.{member.member}.advert_sha256", member.advert_sha256, adverts.get(member.member))
    if member.seq < turn.state.seqs.get(work.node_keys[member.member].hex(), 0):
        raise Refused(f"open.cohort.{member.member}.seq", "went back: that node was restored and needs a new key (rule 7)")


def _scales_reference(exchange: ExchangeWork, work: InstanceWork) -> ScalesReference | None:
    if work.purpose != "update":
        return None
    if exchange.scales is None:
        raise Refused("open.scales", "this node has verified none")
    s = exchange.scales
    return ScalesReference(s.instance, s.survivors_sha256, s.aggregate_sha256, s.e_b_sha256)


def take_upload_ready(turn: Turn, given: UploadReady) -> None:
    """All chunks are on their way: the commit is signed, once; in the exchange's last instance with the usage statement, before which comes
    what the app worked in, unless this node said that before."""
    exchange = turn.state.exchange
    work = find_instance(exchange, given.instance)
    assert exchange is not None and exchange.trained is not None
    if work.commit or exchange.sat_out:
        return
    same("length", given.length, shape_of(exchange, work.purpose)[0])
    usage, usage_sha256 = b"", None
    if work.purpose != "scales":
        environment = exchange.trained.environment
        envelope = turn.seal(_usage(turn, exchange, given, None if environment is None else turn.committed(environment)))
        usage, usage_sha256 = envelope.to_bytes(), envelope.sha256
    commit = turn.seal(
        InstanceCommit(work.instance, work.ctx, turn.site.member, given.root, given.length, given.trailer, given.tag, usage_sha256)
    )
    secret = sums.committed(secret_of(work), commit.payload_sha256)
    turn.put_instance(replace(work, secret=secret.to_bytes(), commit=commit.to_bytes(), usage=usage))


def _usage(turn: Turn, exchange: ExchangeWork, given: UploadReady, environment: bytes | None) -> Usage:
    """Self-declared. Sent: every upload of this exchange, this one included. Received: what came since the statement before."""
    trained = exchange.trained
    assert trained is not None
    up = given.length + sum(shape_of(exchange, work.purpose)[0] for work in exchange.instances if work.commit)
    spent = (trained.tokens, trained.steps, trained.milliseconds)
    usage = Usage(turn.state.run, exchange.number, turn.site.member, *spent, up, given.bytes_down, trained.device, given.data)
    return replace(
        usage,
        environment_sha256=environment,
        formula_flop=trained.formula_flop,
        measured_flop=trained.measured_flop,
        hardware_flop=trained.hardware_flop,
        energy=trained.energy,
    )
