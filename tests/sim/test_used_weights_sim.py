"""Weights that were summed on before, in simulated runs one after the other: what members allow, and what a malicious coordinator gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sim.exchange_world import LAYOUT, World, replace
from sim.test_exchange_sim import ready_world

from dure.model.weights import weights_id
from dure.statements.kinds import EarlierSum, NamedBase
from dure.wire.messages import ReportKind
from dure_coordinator.exchange import upload
from dure_coordinator.exchange.events import Abort
from dure_coordinator.exchange.state import InstancePhase, RunPhase


def base_of(world: World, weights: str, earlier: tuple[EarlierSum, ...] = ()) -> NamedBase:
    wid = weights_id(np.frombuffer(world.blobs[weights], "<f4"), LAYOUT)
    return NamedBase(wid, LAYOUT.tensors_sha256, LAYOUT.parameters, "a run of this test", world.run, None, earlier)


def sums_of(world: World, *worlds: World) -> tuple[EarlierSum, ...]:
    """What a coordinator lists: every certified instance of these runs."""
    found = []
    for w in (world, *worlds):
        for e in (*w.state.closed, *([w.state.exchange] if w.state.exchange else [])):
            certified = [i for i in e.instances if i.survivors_envelope]
            found += [EarlierSum(i.instance, e.category, i.purpose, i.survivors) for i in certified]
    return tuple(found)


def trained(n: int = 5, c: int = 1, *, lost: tuple[str, ...] = (), **how: Any) -> tuple[World, str]:
    """A run that was opened once on these weights, without `lost`, and is over."""
    world = ready_world(n, c, **how)
    weights = world.first_weights()
    for member in lost:
        world.kill(member)
    assert world.exchange(1, "train", weights).status == "ok"
    finish(world)
    return world, weights


def finish(world: World) -> None:
    world.apply(Abort("over"))
    world.run_until(lambda w: not w.bag)


def again(world: World, weights: str, earlier: tuple[EarlierSum, ...], *, lost: tuple[str, ...] = (), **plan: Any) -> World:
    after = world.run_after(base=base_of(world, weights, earlier), **plan)
    for member in after.members:
        if member not in lost:
            after.connect(member)
    after.run_until(lambda w: w.idle() or w.state.phase is RunPhase.ABORTED or not w.bag)
    return after


def signatures(world: World) -> list[str]:
    return [m for m, r in world.sent if r.kind is ReportKind.SIGNATURE]


def test_a_final_model_on_which_nothing_was_opened_is_free() -> None:
    world = ready_world(5)
    final = world.exchange(1, "train", world.first_weights()).blob
    finish(world)
    after = again(world, final, ())
    reply = after.exchange(1, "train", final)
    assert reply.status == "ok"
    after.check_mean(reply, 1, final)


def test_weights_summed_on_before_are_refused_where_the_plan_does_not_name_them() -> None:
    world, weights = trained()
    after = world.run_after()
    after.start()
    after.run_until(lambda w: w.idle())
    reply = after.exchange(1, "train", weights)
    assert reply.status == "failed"
    assert any("a plan that names them (`dure run start APP --from`) can ask for consent" in why for why in reply.errors.values())
    assert not [r for _, r in after.sent if r.kind is ReportKind.SHARE]


def test_with_every_operators_consent_the_same_members_are_summed_again() -> None:
    world, weights = trained()
    after = again(world, weights, sums_of(world))
    reply = after.exchange(1, "train", weights)
    assert reply.status == "ok", after.reasons[-5:]
    after.check_mean(reply, 1, weights)
    finish(after)
    third = again(after, weights, sums_of(world, after), nonce=b"3" * 16)
    assert third.exchange(1, "train", weights).status == "ok"


def test_without_consent_no_node_approves() -> None:
    world, weights = trained()
    after = world.run_after(base=base_of(world, weights, sums_of(world)))
    for node in after.nodes.values():
        node.consents = False
    after.start()
    after.run_until(lambda w: not w.bag)
    assert after.state.approvals == {}
    assert all(any("has not consented to 2 of the sums" in note for note in node.notes) for node in after.nodes.values())


def test_a_plan_that_keeps_a_sum_quiet_is_refused_by_everyone_who_was_in_it() -> None:
    world, weights = trained()
    for earlier in ((), sums_of(world)[:1]):
        after = again(world, weights, earlier)
        assert after.state.phase is RunPhase.ABORTED
        assert "base.earlier: does not list train exchange 1" in after.state.reason


def test_a_plan_that_says_another_survivor_set_than_was_opened_is_refused() -> None:
    world, weights = trained(5, lost=("m04",))
    lie = tuple(replace(f, survivors=world.members) for f in sums_of(world))
    after = again(world, weights, lie)
    assert after.state.phase is RunPhase.ABORTED
    assert "says another sum of train exchange 1" in after.state.reason


@pytest.mark.parametrize("lost_first", [(), ("m04",)])
def test_a_difference_of_one_member_is_never_opened(lost_first: tuple[str, ...]) -> None:
    """m04 is in one of the two sums only, if the coordinator has its way: nobody signs that."""
    world, weights = trained(5, lost=lost_first)
    lost_later = () if lost_first else ("m04",)
    after = again(world, weights, sums_of(world), lost=lost_later)
    reply = after.exchange(1, "train", weights)
    if lost_first:  # the coordinator leaves m04 out, so that the set is the same
        assert reply.status == "ok"
        assert reply.survivors == ("m00", "m01", "m02", "m03")
        assert "left out, so that the sum is of the same members" in reply.errors["m04"]
    else:
        assert reply is None or reply.status == "failed"
        assert "by m04 only" in " ".join([after.state.reason, *after.reasons])
        assert signatures(after) == []


def test_members_refuse_a_difference_of_one_whatever_the_coordinator_proposes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "earlier_sets", lambda *_: [])
    world, weights = trained(5)
    after = again(world, weights, sums_of(world), lost=("m04",))
    reply = after.exchange(1, "train", weights)
    assert reply is None or reply.status == "failed"
    assert signatures(after) == []
    assert all(any("by m04 only" in note for note in after.nodes[m].notes) for m in after.members[:4])


def test_a_member_that_was_not_there_before_refuses_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """m04 has no memory of the first sum: the plan's list, which the others vouch for, tells it."""
    monkeypatch.setattr(upload, "earlier_sets", lambda *_: [])
    world, weights = trained(5, lost=("m04",))
    after = again(world, weights, sums_of(world))
    reply = after.exchange(1, "train", weights)
    assert reply is None or reply.status == "failed"
    assert signatures(after) == []
    assert any("by m04 only" in note for note in after.nodes["m04"].notes)


def test_members_refuse_a_third_survivor_set_and_sign_one_of_the_two_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world, weights = trained(8)
    second = again(world, weights, sums_of(world), lost=("m05", "m06", "m07"))
    assert second.exchange(1, "train", weights).survivors == second.members[:5], "three members lie between the two sums"
    finish(second)
    for node in ("m05", "m06", "m07"):
        second.nodes[node].history = world.nodes[node].history
    earlier = sums_of(world, second)
    third = again(second, weights, earlier, lost=("m00", "m01", "m02"), nonce=b"3" * 16)
    monkeypatch.setattr(upload, "earlier_sets", lambda *_: [])
    reply = third.exchange(1, "train", weights)
    assert reply is None or reply.status == "failed"
    assert signatures(third) == []
    assert any("a third could isolate" in note for node in third.nodes.values() for note in node.notes)
    monkeypatch.undo()
    fourth = again(second, weights, earlier, nonce=b"4" * 16)
    reply = fourth.exchange(1, "train", weights)
    assert reply.status == "ok" and reply.survivors == world.members


def test_a_plan_that_lists_three_sets_is_refused() -> None:
    world, weights = trained(8)
    facts = sums_of(world)
    update = next(f for f in facts if f.purpose == "update")
    strange = tuple(replace(update, instance=replace_run(update.instance, n), survivors=world.members[n : n + 5]) for n in (0, 3))
    after = again(world, weights, (*facts, *strange))
    assert after.state.phase is RunPhase.ABORTED
    assert "3 different survivor sets of train update" in after.state.reason


def replace_run(instance: bytes, n: int) -> bytes:
    from dure.secagg.ids import InstanceId

    return replace(InstanceId.decode(instance), run=bytes([n]) * 32).tlv()


@pytest.mark.parametrize("seed", range(6))
def test_a_run_aborted_in_mid_upload_frees_its_base_by_voids(seed: int) -> None:
    """Nobody revealed: V members say they never will, so the weights are as if nothing had been sent."""
    world = ready_world(5, seed=seed)
    weights = world.first_weights()
    world.ask(1, "train", weights)

    def uploading(w: World) -> bool:
        instance = w.state.exchange.instance if w.state.exchange else None
        return instance is not None and instance.phase is InstancePhase.UPLOAD and len(instance.commits) >= 2

    world.run_until(uploading)
    finish(world)
    assert {s.outcome for n in world.nodes.values() for s in n.history.sent} == {"void"}
    assert sum(len(n.history.sent) for n in world.nodes.values()) >= 2
    world.refold()
    after = world.run_after()
    after.start()
    after.run_until(lambda w: w.idle())
    assert after.exchange(1, "train", weights).status == "ok"
    world.check_secrets()


def test_a_run_aborted_between_certificate_and_reveal_leaves_a_sum_that_members_know_of() -> None:
    """Three have revealed: too few voids can come; whoever had not is told whom the sum would be of."""
    world = ready_world(5)
    weights = world.first_weights()
    world.ask(1, "train", weights)

    def revealed(w: World) -> bool:
        instance = w.state.exchange.instance if w.state.exchange else None
        return instance is not None and instance.phase is InstancePhase.REVEAL and len(instance.reveals) == 2

    world.run_until(revealed)
    world.nodes["m04"].deaf = True
    finish(world)
    world.hear_again("m04")
    world.run_until(lambda w: not w.bag)
    for node in world.nodes.values():
        assert [(s.purpose, s.outcome != "void", s.survivors) for s in node.history.sent] == [("scales", True, world.members)]
    assert again(world, weights, ()).state.phase is RunPhase.ABORTED
    after = again(world, weights, sums_of(world))
    assert after.exchange(1, "train", weights).status == "ok"


def test_all_messages_without_arrays_of_a_run_count_as_one_base() -> None:
    """One member is away for the first: the second is summed without it, too, although it is there."""
    world = ready_world(5)
    world.kill("m04")
    assert len(world.exchange(1, "query", config=0.1).survivors) == 4
    world.connect("m04")
    world.run_until(lambda w: w.idle())
    reply = world.exchange(2, "query", config=0.2)
    assert reply.status == "ok", (reply.reason, world.reasons[-5:])
    assert reply.survivors == ("m00", "m01", "m02", "m03")


def test_a_message_without_arrays_may_be_sent_again_in_another_run() -> None:
    world = ready_world(5)
    assert world.exchange(1, "query", config=0.1).status == "ok"
    finish(world)
    after = world.run_after()
    after.start()
    after.run_until(lambda w: w.idle())
    assert after.exchange(1, "query", config=0.1).status == "ok"


def test_a_serverapp_that_starts_from_other_weights_than_the_plan_names_ends_the_run() -> None:
    world = ready_world(4)
    after = again(world, world.first_weights(), ())
    after.exchange(1, "train", world.first_weights())
    assert after.state.phase is RunPhase.ABORTED
    assert "the plan starts from a run of this test" in after.state.reason


def test_nodes_refuse_a_first_base_that_the_plan_does_not_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from dure_coordinator.exchange import asking

    monkeypatch.setattr(asking, "_other_base", lambda *_: "")
    for step_name in ("average", "none"):
        world = ready_world(4, step_name=step_name)
        after = again(world, world.first_weights(), ())
        reply = after.exchange(1, "train", world.first_weights())
        assert reply is None or reply.status == "failed"
        assert all(any("are not the weights this plan starts from" in note for note in n.notes) for n in after.nodes.values())
