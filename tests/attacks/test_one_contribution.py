"""A malicious coordinator against rules 2 and 6: one contribution on one base, and nothing that was not approved or executed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from attacks.hostile import Hostile, at
from sim.exchange_world import LAYOUT, make_plan

from dure.blobs import BlobId
from dure.model.base import BaseRecord
from dure.model.content import ArrayItem, ConfigItem, Instruction
from dure.model.layout import Layout
from dure.model.weights import weights_id
from dure.secagg import thresholds
from dure.secagg.ids import InstanceId, Purpose
from dure.statements.dsse import canonical_json
from dure.statements.kinds import (
    ExchangeAccept,
    InitialRule,
    InstanceOpen,
    InstanceVoid,
    JointInitial,
    NamedBase,
    OuterStep,
    ScalesReference,
)
from dure.wire.messages import Directive, ReportKind
from dure_coordinator.exchange.state import RunPhase
from dure_participant.exchange import inputs as inp
from dure_participant.exchange.step import begin


def execute(world: Hostile, member: str, number: int, weights: str, *, record: BaseRecord | None = None, **how: Any) -> Directive:
    """An EXECUTE on these weights; by default on a base as the honest first exchange's, for the members m00…m03."""
    layout: Layout = how.pop("layout", LAYOUT)
    lr, message, members = how.pop("lr", 0.1), how.pop("message", "train"), how.pop("members", world.members[:4])
    flat = np.frombuffer(world.blobs[weights], "<f4")
    records = (ArrayItem("arrays", layout, weights_id(flat, layout)), ConfigItem("config", {"lr": lr}))
    record = record or BaseRecord(BlobId.parse(weights), None, {"name": "average", "t": "0"}, None, 0)
    documents = {
        "instruction": canonical_json(Instruction(message, "1", 3600.0, records).to_json()),
        "layout": layout.to_json(),
        "weights": weights.encode(),
        "base": record.to_json(),
        **how.pop("documents", {}),
    }
    return world.directive(member, "execute", exchange=number, instance=b"", members=members, documents=documents, **how)


def first(world: Hostile) -> str:
    """Blob of the weights the first exchange is about."""
    assert world.state.exchange is not None
    return world.state.exchange.asked.weights


def put(world: Hostile, flat: np.ndarray[Any, Any]) -> str:
    return world.put(flat.astype("<f4").tobytes())


# -- an exchange repeated without one member -------------------------------------------------------------------------


def test_an_exchange_repeated_on_the_same_base_without_one_member_is_sat_out() -> None:
    """The first sum is opened and its result withheld: without `may_send` the second, without m04, gives m04 by difference."""
    world = at("sum", "update")
    for number, lr in ((2, 0.1), (3, 0.2)):
        assert world.show("m00", execute(world, "m00", number, first(world), lr=lr)).sits_out("already", "single it out")


def test_one_changed_bit_does_not_make_the_first_base_another_one() -> None:
    """Without `first_weights` the withheld first base comes again one ulp apart, under another weights id, without one member."""
    world = at("sum", "update")
    flat = np.frombuffer(world.blobs[first(world)], "<f4").copy()
    flat[0] = np.nextafter(flat[0], np.float32(9))
    assert world.show("m00", execute(world, "m00", 2, put(world, flat))).refused("weights_id", "first weights")


def test_reordered_or_renamed_tensors_are_not_another_base() -> None:
    """Reordered: the same weights id, so the same contribution. Renamed: another id, and not this run's first weights."""
    world = at("sum", "update")
    flat = np.frombuffer(world.blobs[first(world)], "<f4")
    swapped = Layout.build([("b", "float32", (1000,)), ("w", "float32", (90, 100))])
    again = np.zeros(swapped.elements, np.float32)
    for name in ("b", "w"):
        here, there = LAYOUT[name], swapped[name]
        again[there.offset : there.offset + there.count] = flat[here.offset : here.offset + here.count]
    assert weights_id(again, swapped) == weights_id(flat, LAYOUT)
    assert world.show("m00", execute(world, "m00", 2, put(world, again), layout=swapped)).sits_out("already")
    renamed = Layout.build([("w2", "float32", (90, 100)), ("b", "float32", (1000,))])
    assert world.show("m01", execute(world, "m01", 2, first(world), layout=renamed)).refused("first weights")


def test_scales_of_a_base_are_opened_once_and_the_update_uses_no_others() -> None:
    """Without the purposes in `counting` a second scales sum on the base would be dealt, without one member."""
    world = at("upload", "update")
    world.bag = [b for b in world.bag if b[1] != "m00"]
    again = execute(world, "m00", 2, first(world), members=world.members)
    assert world.show("m00", again).state.exchange.number == 2  # type: ignore[union-attr]  # it has sent no byte of an update
    world.settle_training("m00")
    for purpose in (Purpose.SCALES, Purpose.UPDATE):
        instance = InstanceId(world.facts.consortium, world.run, 2, purpose, epoch=1).tlv()
        answer = world.show("m00", world.directive("m00", "share", exchange=2, instance=instance, members=world.members[:4]))
        assert answer.refused("already" if purpose is Purpose.SCALES else "scales_survivors")


def test_a_message_without_arrays_is_answered_once_and_within_the_plans_number() -> None:
    """Without the content id in `counting` a query repeated without one member gives its metrics by difference."""
    world = at(scalars_max=1)
    world.reach("sum", "scalars", message="query", weights="")
    asked = world.state.exchange.asked.instruction  # type: ignore[union-attr]
    again = world.directive("m00", "execute", exchange=2, instance=b"", members=world.members[:4], documents={"instruction": asked})
    assert world.show("m00", again).sits_out("already")
    other = asked.replace(b"query", b"query.again")
    more = world.directive("m01", "execute", exchange=2, instance=b"", members=world.members[:4], documents={"instruction": other})
    assert world.show("m01", more).sits_out("the plan allows 1")


# -- voids -------------------------------------------------------------------------------------------------------------


def voids(world: Hostile, instance: bytes, signers: dict[str, str]) -> bytes:
    """TLV of void statements: member -> whose node key signs in its name."""
    from dure.secagg import tlv

    return tlv.encode(*(world.signed_by(key, InstanceVoid(instance, member, "given up")) for member, key in signers.items()))


def test_fewer_than_v_voids_do_not_free_a_base() -> None:
    """V = 3 of five with c = 1 (m + c − t + 1). Without the threshold one colluder's void would free a base that is then opened."""
    world = at("upload", "scales")
    world.show("m00", world.directive("m00"))
    instance, needed = world.now_at.instance, thresholds.voids_needed(5, 1)
    others = [m for m in world.members if m != "m00"]
    few = {"voids": voids(world, instance, {m: m for m in others[: needed - 1]})}
    assert world.show("m00", execute(world, "m00", 2, first(world), documents=few)).state.exchange.number == 2  # type: ignore[union-attr]
    world.settle_training("m00")
    scales = InstanceId(world.facts.consortium, world.run, 2, Purpose.SCALES, epoch=1).tlv()
    deal = world.directive("m00", "share", exchange=2, instance=scales, members=world.members[:4])
    assert world.show("m00", deal).refused("already")
    enough = world.directive("m00", "wait", documents={"voids": voids(world, instance, {m: m for m in others[:needed]})})
    world.show("m00", enough)
    assert world.show("m00", deal).sent(ReportKind.SHARE)


@pytest.mark.parametrize("how", ["one member under several names", "strangers to the cohort", "another instance", "the coordinator's key"])
def test_voids_that_are_not_of_this_instances_own_cohort_do_not_count(how: str) -> None:
    """Without the checks in `_void_in` a single colluder could void every base."""
    world = at("upload", "scales", n=6)
    world.show("m00", world.directive("m00"))
    instance, others = world.now_at.instance, [m for m in world.members if m != "m00"]
    signers, about = {m: m for m in others}, instance
    if how == "one member under several names":
        signers = dict.fromkeys(others, "m01")
    elif how == "another instance":
        about = world.another(instance, attempt=7)
    elif how == "strangers to the cohort":
        signers = {f"x{i}": m for i, m in enumerate(others)}
    raw = voids(world, about, signers)
    if how == "the coordinator's key":
        from dure.secagg import tlv

        raw = tlv.encode(*(world.seal(InstanceVoid(instance, m, "")) for m in others))
    world.show("m00", world.directive("m00", "wait", documents={"voids": raw}))
    assert [s.outcome for s in world.nodes["m00"].history.sent if s.instance == instance] == ["open"]


def test_a_node_that_has_revealed_takes_no_void_of_that_instance_whatever_it_is_shown() -> None:
    """Without `not work.reveal` in take_voids liars' voids would free a base whose sum is open."""
    world = at("reveal", "update")
    envelope = world.now_at.survivors_envelope
    documents = {"survivors": envelope, "proof": world.proof(envelope)}
    assert world.show("m00", world.directive("m00", "reveal", documents=documents)).sent(ReportKind.REVEAL)
    everyone = voids(world, world.now_at.instance, {m: m for m in world.members if m != "m00"})
    world.show("m00", world.directive("m00", "wait", documents={"voids": everyone}))
    assert "void" not in {s.outcome for s in world.nodes["m00"].history.sent}


# -- scales and update -------------------------------------------------------------------------------------------------


def test_an_update_is_not_dealt_on_scales_of_which_a_member_of_the_cohort_is_no_survivor() -> None:
    """Without check_scales the cohort of the update could be hand-picked beyond those of the scales."""
    world = at("upload", "scales", n=6)
    world.bag = [b for b in world.bag if b[1] != "m05"]
    world.kill("m05")
    world.run_until(lambda w: w._there("share", "update"))
    shown = world.directive("m00")
    world.show("m00", shown)
    for action in world.show("m00", shown).actions:
        world._action("m00", action)
    wider = replace(shown, instance=world.another(shown.instance, attempt=1), members=world.members)
    assert world.show("m00", wider).refused("survivors of the scales")


# -- rule 6: what was not approved, not executed ------------------------------------------------------------------------


def test_one_member_sent_another_instruction_uploads_nothing() -> None:
    """Everyone else trained with lr = 0: without the content id in judge_open m00's update would be read off the sum."""
    world = at("execute")
    world.bag = [b for b in world.bag if b[1] != "m00"]
    honest = world.directive("m00")
    other = honest.documents["instruction"].replace(canonical_json({"f": "9a9999999999b93f"}), canonical_json({"f": "0000000000000000"}))
    assert other != honest.documents["instruction"]
    trained = world.show("m00", world.directive("m00", documents={"instruction": other}))
    assert any(isinstance(a, type(trained.actions[0])) for a in trained.actions)
    world.settle_training("m00")
    assert not world.says("m00", ReportKind.READY, world.state_of("m00").exchange.ready).accepted  # type: ignore[union-attr]
    lied = world.state_of("m00").exchange.ready.replace(  # type: ignore[union-attr]
        world.state_of("m00").exchange.content_id.hex().encode(),  # type: ignore[union-attr]
        world.state.exchange.content_id.hex().encode(),  # type: ignore[union-attr]
    )
    assert world.says("m00", ReportKind.READY, lied).accepted
    world.run_until(lambda w: w._there("share", "scales"))
    shared = world.show("m00", world.directive("m00"))
    assert world.says("m00", ReportKind.SHARE, shared.sent(ReportKind.SHARE)).accepted
    world.run_until(lambda w: w._there("upload", "scales"))
    assert world.show("m00", world.directive("m00")).refused("content_id", "executed")


def test_another_instruction_or_base_for_an_exchange_already_taken_is_refused() -> None:
    """Without `_same_again` a node could be made to train twice and contribute the second result."""
    world = at("execute")
    world.bag = [b for b in world.bag if b[1] != "m00"]
    honest = world.directive("m00")
    world.show("m00", honest)
    other = execute(world, "m00", 1, first(world), lr=0.0, members=world.members)
    assert world.show("m00", other).refused("instruction", "rule 6")
    assert world.show("m00", world.directive("m00", documents={"base": other.documents["base"] + b" "})).refused("base", "rule 6")


OPEN_CHANGES: dict[str, Callable[[InstanceOpen], dict[str, Any]]] = {
    "charter_version": lambda o: {"charter_version": 2},
    "charter_sha256": lambda o: {"charter_sha256": b"x" * 32},
    "run": lambda o: {"run": b"x" * 32},
    "category": lambda o: {"category": "evaluate"},
    "message_type": lambda o: {"message_type": "train.other"},
    "weights_id": lambda o: {"weights_id": b"x" * 32},
    "base_id": lambda o: {"base_id": b"x" * 32},
    "content_id": lambda o: {"content_id": b"x" * 32},
    "layout_sha256": lambda o: {"layout_sha256": b"x" * 32},
    "elements": lambda o: {"elements": o.elements - 64},
    "codec": lambda o: {"codec": "none"},
    "cohort": lambda o: {"cohort": o.cohort[:4]},
    "advert_sha256": lambda o: {"cohort": (replace(o.cohort[0], advert_sha256=b"x" * 32), *o.cohort[1:])},
    "u_min": lambda o: {"u_min": 3},
    "threshold": lambda o: {"threshold": o.threshold - 1},
    "shares_sha256": lambda o: {"shares_sha256": b"x" * 32},
    "metrics": lambda o: {"metrics": ("acc",)},
    "scales": lambda o: {"scales": ScalesReference(o.instance, b"x" * 32, b"x" * 32, b"x" * 32)},
    "upload_deadline": lambda o: {"upload_deadline": 1},
    "instance": lambda o: {"instance": b"\x00"},
}


@pytest.mark.parametrize("field", OPEN_CHANGES)
@pytest.mark.parametrize("purpose", ["scales", "update"])
def test_an_instance_open_that_says_anything_else_than_was_approved_and_executed_is_refused(field: str, purpose: str) -> None:
    """Each field is compared in judge_open; without its line the open is taken and bytes leave on terms nobody agreed to."""
    world = at("upload", purpose)
    evil = world.seal(replace(world.now_at.open_statement, **OPEN_CHANGES[field](world.now_at.open_statement)))
    assert world.show("m00", world.directive("m00", documents={"open": evil})).refused("" if field == "instance" else field)
    assert world.show("m00", world.directive("m00")).uploads


def test_an_instance_open_of_another_signer_is_refused() -> None:
    """Without the coordinator's key in follow_open anyone on the path could open instances."""
    world = at("upload", "scales")
    evil = world.signed_by("m01", world.now_at.open_statement)
    assert world.show("m00", world.directive("m00", documents={"open": evil})).refused("signatures")


def test_share_messages_of_another_set_than_the_open_binds_are_refused() -> None:
    """Without shares_sha256 members could hold shares of different deals and none would know."""
    world = at("upload", "scales")
    other = copy_of(world)
    assert world.show("m00", world.directive("m00", parts={**world.now_at.shares, "m01": other})).note.startswith("refused: ")


def copy_of(world: Hostile) -> bytes:
    """m01's share message of an instance one attempt later, rightly signed."""
    asked = world.directive("m01", "share", instance=world.another(world.now_at.instance, attempt=1), members=world.members[:4])
    return world.show("m01", asked).sent(ReportKind.SHARE)


# -- bases -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _one_exchange() -> tuple[Hostile, str]:
    world = at()
    return world, world.exchange(1, "train", world.first_weights()).blob


def after_one_exchange() -> tuple[Hostile, str]:
    """A world with one accepted train exchange, and the weights blob it made."""
    return copy.deepcopy(_one_exchange())


def test_weights_other_than_the_recomputed_base_are_refused() -> None:
    """Without judge_base a base crafted so that an update tells its data would be trained on."""
    world, weights = after_one_exchange()
    record = BaseRecord.from_json(world.state.base_record)
    crafted = put(world, np.zeros(LAYOUT.elements))
    for evil in (
        replace(record, weights=BlobId.parse(crafted)),
        replace(record, exchange=0),
        replace(record, e_b=None),
        replace(record, step={**record.step, "t": "7"}),
    ):
        blob = str(evil.weights)
        assert world.show("m00", execute(world, "m00", 2, blob, record=evil)).refused("base")
    other_names = Layout.build([("w2", "float32", (90, 100)), ("b", "float32", (1000,))])
    assert world.show("m00", execute(world, "m00", 2, weights, record=record, layout=other_names)).refused("weights_id")
    assert world.show("m00", execute(world, "m00", 2, weights, record=record)).state.exchange.number == 2  # type: ignore[union-attr]


def test_a_base_gone_past_is_not_gone_back_to_whoever_accepted_it() -> None:
    """The acceptances are true, and replayed: without the comparison with its own base a node would contribute on an old one."""
    world, weights = after_one_exchange()
    record = BaseRecord.from_json(world.state.base_record)
    accepted = {f"accept/{m}": envelope for m, envelope in world.state.base_accepts.items()}
    world.exchange(2, "train", weights)
    assert world.state_of("m00").last_accepted == 2
    assert world.show("m00", execute(world, "m00", 3, weights, record=record, documents=accepted)).refused("base", "computed in exchange 2")


def test_a_base_is_not_taken_from_fewer_than_u_min_acceptances_nor_from_forged_ones() -> None:
    """Without the count in _accepted_by_others a coordinator and one colluder could hand a base to a node that was away."""
    world, _ = after_one_exchange()
    crafted = BaseRecord(BlobId.parse(put(world, np.zeros(LAYOUT.elements))), None, {"name": "average", "t": "2"}, None, 2)

    def accepts(signers: dict[str, str]) -> dict[str, bytes]:
        word = ExchangeAccept(world.run, 2, "", (b"a" * 32, b"b" * 32), (), crafted.id)
        return {f"accept/{m}": world.signed_by(key, replace(word, member=m)) for m, key in signers.items()}

    for signers in ({m: m for m in world.members[1:4]}, dict.fromkeys(world.members, "m01")):
        evil = execute(world, "m00", 3, str(crafted.weights), record=crafted, documents=accepts(signers))
        assert world.show("m00", evil).refused("base", "4 are needed")


def test_exchange_numbers_far_ahead_or_behind_are_not_taken() -> None:
    """Without the window a coordinator could burn all numbers, and the keys with them, at once."""
    world, weights = after_one_exchange()
    record = BaseRecord.from_json(world.state.base_record)
    for number, why in (
        (1, "another one for this exchange"),
        (0, "over"),
        (18, "too far ahead"),
        (world.plan.max_exchanges + 1, "too far ahead"),
    ):
        assert world.show("m00", execute(world, "m00", number, weights, record=record)).refused(why)
    assert world.show("m00", execute(world, "m00", 17, weights, record=record)).state.exchange.number == 17  # type: ignore[union-attr]


def test_a_node_away_for_more_than_the_window_comes_back_with_u_min_acceptances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed by others' acceptances (§2): the window must not lock out who was away."""
    monkeypatch.setattr("dure_participant.exchange.execute.WINDOW", 2)
    world = at()
    world.kill("m04")
    weights = world.exchange(1, "train", world.first_weights()).blob
    for seq in range(2, 5):
        assert world.exchange(seq, "query", config=float(seq)).status == "ok"
    world.connect("m04")
    reply = world.exchange(5, "train", weights)
    assert "m04" in reply.survivors, world.nodes["m04"].notes[-3:]


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_a_plan_changed_after_the_approval_is_refused() -> None:
    """Without the comparison in follow_approve the approval would stand for another plan."""
    world = at()
    longer = world.seal(replace(world.plan, rounds=999))
    shown = world.directive("m00", "approve", documents={"plan": longer, "app": world.plan.app_blob.encode()})
    assert world.show("m00", shown).refused("plan")


PLAN_CHANGES: dict[str, dict[str, Any]] = {
    "consortium": {"consortium": b"x" * 16},
    "charter_version": {"charter_version": 2},
    "charter_sha256": {"charter_sha256": b"x" * 32},
    "colluders": {"colluders": 2, "u_min": 4},
    "u_min": {"u_min": 3},
    "roster": {"roster": ("m00", "m01", "m02", "m03", "stranger")},
    "does not name this member": {"roster": ("m01", "m02", "m03", "m04")},
    "w_max": {"w_max": 2**39},
    "outer_step": {"outer_step": OuterStep("none", {})},
    "initial": {
        "initial": JointInitial("dure-initial-1", bytes(32), 1, (InitialRule("*", "constant", "0"),)),
        "base": NamedBase(bytes(32), bytes(32), 1, "file model.safetensors", None, bytes(32), ()),
    },
}


@pytest.mark.parametrize("field", PLAN_CHANGES)
def test_a_plan_the_pinned_charter_does_not_allow_is_refused_without_asking_anyone(field: str) -> None:
    """Each is a line of judge_plan; without it an operator's yes would do what the charter forbids."""
    world = Hostile(up=False)
    world.nodes["m00"].site = replace(world.nodes["m00"].site, w_max=2**20)
    envelope = world.seal(make_plan(world.members, 1, "average", **PLAN_CHANGES[field]))
    from dure.statements.dsse import Envelope

    run = Envelope.from_bytes(envelope).payload_sha256
    world.nodes["m00"].state = begin(run).to_bytes()
    shown = world.directive("m00", "approve", run=run, documents={"plan": envelope, "app": world.plan.app_blob.encode()})
    answer = world.show("m00", shown)
    assert field in answer.sent(ReportKind.REFUSAL).decode(), answer.note
    allowed = world.feed("m00", inp.Allowed(run))
    assert not allowed.sent(ReportKind.APPROVAL)


def test_a_plan_of_another_signer_or_under_another_runs_name_is_not_even_shown() -> None:
    """Without the key and the digest in follow_approve a stranger's plan would stand before the operator."""
    world = Hostile(up=False)
    app = world.plan.app_blob.encode()
    by_member = world.signed_by("m01", world.plan)
    renamed = world.seal(replace(world.plan, name="other"))
    for envelope, why in ((by_member, "signatures"), (renamed, "run")):
        assert world.show("m00", world.directive("m00", "approve", documents={"plan": envelope, "app": app})).refused(why)


def test_nothing_is_done_for_a_plan_that_was_not_approved() -> None:
    """Without the decision in `_follow` keys would be agreed for any plan."""
    world = Hostile(up=False)
    plan = {"plan": world.facts.plan_envelope, "app": world.plan.app_blob.encode()}
    world.show("m00", world.directive("m00", "approve", documents=plan))
    assert world.show("m00", world.directive("m00", "advert", epoch=1, members=world.members)).refused("rule 6")


def test_a_frozen_run_is_not_trained_on_any_further() -> None:
    """After a sum that did not verify: without the line in `_may_take_part` the next exchange would be executed and dealt."""
    world, weights = after_one_exchange()
    world.nodes["m00"].state = replace(world.state_of("m00"), frozen="the update sum of exchange 1 does not verify").to_bytes()
    record = BaseRecord.from_json(world.state.base_record)
    assert world.show("m00", execute(world, "m00", 2, weights, record=record)).sits_out("frozen")
    assert world.state.phase is RunPhase.IDLE
