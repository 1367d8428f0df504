"""Whole runs simulated from a seed: the right mean or a failure that revealed nothing, whatever is lost, repeated or restarted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sim.exchange_world import World

from dure.blobs import BlobId
from dure.model.base import BaseRecord
from dure.secagg import thresholds
from dure.wire.messages import DirectiveKind, ReportKind
from dure_coordinator.exchange import view
from dure_coordinator.exchange.events import Seen
from dure_coordinator.exchange.state import RunPhase
from dure_coordinator.rpc.serverapp import no_quorum


def ready_world(n: int = 5, c: int = 1, **how: object) -> World:
    world = World(n, c, **how)  # type: ignore[arg-type]
    world.start()
    world.run_until(lambda w: w.idle())
    return world


def quick(some: int, *, of: int) -> list[object]:
    """Seeds; the first few are for `make test`, the others deep."""
    return [pytest.param(seed, marks=() if seed < some else pytest.mark.deep) for seed in range(of)]


@pytest.mark.parametrize("step_name", ["average", "nesterov", "adam", "none"])
def test_three_rounds_of_train_and_evaluate_give_the_weighted_mean(step_name: str) -> None:
    world = ready_world(4, step_name=step_name)
    world.check_refold = True
    weights, seq, number = world.first_weights(), 1, 1
    for _ in range(3):
        reply = world.exchange(seq, "train", weights)
        assert reply.status == "ok", reply.reason
        assert reply.arrays == ("mean-update" if step_name == "none" else "weights")
        world.check_mean(reply, number, weights)
        weights = world.first_weights() if step_name == "none" else reply.blob
        evaluated = world.exchange(seq + 1, "evaluate", weights)
        assert evaluated.status == "ok" and set(evaluated.metrics) == {"acc", "loss"}
        seq, number = seq + 2, number + 2
    world.check_secrets()
    world.stop()
    world.run_until(lambda w: False)
    assert world.state.phase is RunPhase.FINISHED


def test_members_and_coordinator_hold_the_same_base_after_every_exchange() -> None:
    world = ready_world(step_name="nesterov")
    weights = world.first_weights()
    for seq in (1, 2):
        weights = world.exchange(seq, "train", weights).blob
        assert {world.state_of(m).base_record for m in world.members} == {world.state.base_record}


@pytest.mark.parametrize("seed", quick(4, of=12))
def test_a_run_survives_crashes_of_every_node_and_of_the_coordinator(seed: int) -> None:
    """Nodes restart before and after each write; the coordinator is killed at random, and everybody connects anew."""
    world = World(5, 1, seed=seed)
    world.start()

    def kill(w: World) -> None:
        if w.rng.random() < 0.01:
            w.crash_coordinator()

    world.run_until(lambda w: w.idle(), crash=0.02, hook=kill)
    weights = world.first_weights()
    for seq in (1, 2):
        reply = world.exchange(seq, "train", weights, crash=0.03, hook=kill)
        assert reply is not None and reply.status == "ok", (world.reasons[-5:], world.state.reason)
        world.check_mean(reply, world.state.exchange.number, weights)  # type: ignore[union-attr]
        weights = reply.blob
    world.check_secrets()


@pytest.mark.parametrize("seed", quick(16, of=60))
def test_members_lost_at_any_step_give_the_right_mean_or_a_failure_that_revealed_nothing(seed: int) -> None:
    world = World(6, 1, seed=seed)
    world.start()
    world.run_until(lambda w: w.idle())
    weights = world.first_weights()
    victims = world.rng.sample(world.members, world.rng.randint(1, 3))
    at = {v: world.rng.randint(0, 160) for v in victims}
    steps = [0]

    def lose(w: World) -> None:
        steps[0] += 1
        for victim, when in at.items():
            if when == steps[0]:
                w.kill(victim)

    reply = world.exchange(1, "train", weights, hook=lose)
    world.check_secrets()
    assert reply is not None
    if reply.status == "ok":
        world.check_mean(reply, 1, weights)
        assert len(reply.survivors) >= world.facts.u_min
    else:
        assert len(victims) > 6 - world.facts.u_min, (reply.reason, world.reasons)
    world.refold()


@pytest.mark.parametrize("seed", quick(6, of=20))
def test_lost_members_come_back_and_the_run_goes_on(seed: int) -> None:
    """After any failure the same weights are asked for again; members that were away rejoin."""
    world = World(5, 1, seed=seed)
    world.start()
    world.run_until(lambda w: w.idle())
    weights, answered = world.first_weights(), 0
    for seq in range(1, 8):
        victims, when = world.rng.sample(world.members, world.rng.randint(0, 2)), world.rng.randint(1, 150)
        steps = [0]

        def lose(w: World, victims: list[str] = victims, when: int = when, steps: list[int] = steps) -> None:
            steps[0] += 1
            if steps[0] == when:
                for victim in victims:
                    w.kill(victim)
            if steps[0] == when + 60:
                for victim in victims:
                    w.connect(victim)

        reply = world.exchange(seq, "train", weights, hook=lose)
        world.check_secrets()
        if world.state.phase is RunPhase.ABORTED:
            return
        assert reply is not None
        if reply.status == "ok":
            world.check_mean(reply, world.state.exchange.number, weights)  # type: ignore[union-attr]
            weights, answered = reply.blob, answered + 1
        for victim in victims:
            if not world.nodes[victim].connected:
                world.connect(victim)
    assert answered >= 1, world.reasons[-10:]


def test_a_member_lost_after_its_upload_is_still_counted_in_the_sum() -> None:
    world = ready_world(6)
    weights = world.first_weights()

    def lose(w: World) -> None:
        instance = w.state.exchange.instance if w.state.exchange else None
        if instance and instance.purpose == "update" and "m03" in instance.commits and w.nodes["m03"].alive:
            w.kill("m03")

    reply = world.exchange(1, "train", weights, hook=lose)
    assert reply.status == "ok" and "m03" in reply.survivors
    world.check_mean(reply, 1, weights)


def test_a_member_silent_in_the_share_phase_is_left_out_of_the_next_attempt_and_named() -> None:
    world = ready_world(6)

    def deafen(w: World) -> None:
        exchange = w.state.exchange
        w.nodes["m02"].deaf = bool(exchange and "m02" in exchange.ready)

    world.duplicate = 0.0
    reply = world.exchange(1, "train", world.first_weights(), hook=deafen)
    assert reply.status == "ok" and "m02" not in reply.survivors
    assert reply.errors["m02"] == "dealt no shares in time"
    assert any("attempt 1" in r for r in world.reasons)


def hold_up(world: World, purpose: str) -> Callable[[World], None]:
    """Two members die in the upload of this purpose, others hear nothing until the instance is being voided."""
    held: list[str] = []
    done: list[int] = []

    def hook(w: World) -> None:
        instance = w.state.exchange.instance if w.state.exchange else None
        if instance and instance.purpose == purpose and instance.phase == "upload" and not done:
            done.append(1)
            for m in w.members[-2:]:
                w.kill(m)
            for m in w.members[1:-2]:
                w.nodes[m].deaf = True
                held.append(m)
        if instance and instance.phase == "void":
            while held:
                w.hear_again(held.pop())

    return hook


@pytest.mark.parametrize("seed", range(4))
def test_too_few_uploads_lead_to_voids_and_the_base_is_used_again(seed: int) -> None:
    world = ready_world(6, seed=seed)
    weights = world.first_weights()
    reply = world.exchange(1, "train", weights, hook=hold_up(world, "scales"))
    assert reply.status == "failed" and "uploaded" in reply.reason
    assert world.state.exchange.instance.phase == "voided"  # type: ignore[union-attr]
    for m in world.members[-2:]:
        world.connect(m)
    again = world.exchange(2, "train", weights)
    assert again.status == "ok", (again, [n.notes[-3:] for n in world.nodes.values()])
    world.check_mean(again, 2, weights)
    assert len(world.state.exchange.instances) == 2  # type: ignore[union-attr]
    world.check_secrets()


@pytest.mark.parametrize("seed", range(4))
def test_a_voided_update_leads_to_an_update_on_the_scales_opened_before_two_levels_higher(seed: int) -> None:
    world = ready_world(6, seed=seed)
    weights = world.first_weights()
    first = world.exchange(1, "train", weights, hook=hold_up(world, "update"))
    assert first.status == "failed", world.reasons
    for m in world.members[-2:]:
        world.connect(m)
    again = world.exchange(2, "train", weights)
    assert again.status == "ok", (again, [n.notes[-3:] for n in world.nodes.values()])
    assert [i.purpose for i in world.state.exchange.instances] == ["update"]  # type: ignore[union-attr]
    world.check_mean(again, 2, weights)
    third = world.exchange(3, "train", again.blob)
    assert third.status == "ok"
    world.check_secrets()


def test_a_node_that_missed_exchanges_takes_the_base_its_peers_accepted() -> None:
    world = ready_world(5)
    weights = world.first_weights()
    world.kill("m01")
    weights = world.exchange(1, "train", weights).blob
    weights = world.exchange(2, "train", weights).blob
    world.connect("m01")
    reply = world.exchange(3, "train", weights)
    assert reply.status == "ok" and "m01" in reply.survivors, world.nodes["m01"].notes
    assert any("accepted from peers" in note for note in world.nodes["m01"].notes)


def test_a_node_with_new_keys_rejoins_in_a_new_epoch_on_the_next_base() -> None:
    """What its older key sent on the base of exchange 1 is not known to it (rule 7), so that one it leaves to the others."""
    world = ready_world(5)
    weights = world.exchange(1, "train", world.first_weights()).blob
    world.kill("m04")
    world.nodes["m04"] = world._node("m04", generation=2)
    world.connect("m04")
    reply = world.exchange(2, "train", weights)
    assert reply.status == "ok" and "m04" not in reply.survivors and "younger than the run" in reply.errors["m04"]
    reply = world.exchange(3, "train", reply.blob)
    assert reply.status == "ok" and "m04" in reply.survivors, world.nodes["m04"].notes
    assert world.state.epochs >= 2
    old = world.state.present["m04"]
    assert not world.apply(Seen("m04", b"k" * 32, 1, old.delegation)).accepted


def test_a_node_that_lost_its_epoch_says_so_and_a_new_one_begins() -> None:
    from dataclasses import replace

    world = ready_world(5)
    state = world.state_of("m02")
    world.nodes["m02"].state = replace(state, epoch=None).to_bytes()
    first = world.exchange(1, "train", world.first_weights())
    assert first.status == "ok" and "m02" not in first.survivors
    second = world.exchange(2, "train", first.blob)
    assert "m02" in second.survivors and world.state.epochs == 2


def test_too_few_ready_members_fail_the_exchange_with_a_reason_per_node() -> None:
    world = ready_world(5)
    for m in ("m00", "m01"):
        world.nodes[m].local[1] = (None, 1.0, {})  # its app forgot the arrays
    reply = world.exchange(1, "train", world.first_weights())
    assert reply.status == "failed" and "reply: has no arrays" in reply.errors["m00"]


def test_a_metric_name_of_its_own_makes_a_member_sit_out_by_name() -> None:
    world = ready_world(5)
    delta = world.np.standard_normal(10_016).astype("<f4")[: world_elements()] * 0
    world.nodes["m00"].local[1] = (delta, 1.0, {"mine": 1.0})
    reply = world.exchange(1, "train", world.first_weights())
    assert reply.status == "ok" and "mine" in reply.errors["m00"]


def world_elements() -> int:
    from sim.exchange_world import LAYOUT

    return LAYOUT.elements


def test_a_metric_that_is_not_finite_and_a_weight_above_the_limit_are_named() -> None:
    import numpy as np

    world = ready_world(6)
    zero = np.zeros(world_elements(), np.float32)
    world.nodes["m00"].local[1] = (zero, 1.0, {"loss": float("nan"), "acc": 0.0})
    reply = world.exchange(1, "train", world.first_weights())
    assert reply.status == "ok" and "loss" in reply.errors["m00"]
    world.nodes["m01"].local[2] = (zero, 1e9, {"loss": 1.0, "acc": 0.0})
    reply = world.exchange(2, "train", reply.blob)
    assert reply.status == "ok" and "w_max" in reply.errors["m01"]


def test_the_second_train_exchange_on_summed_weights_is_answered_at_once_naming_the_first() -> None:
    world = ready_world(step_name="none")
    weights = world.first_weights()
    assert world.exchange(1, "train", weights).status == "ok"
    reply = world.exchange(2, "train", weights)
    assert reply.status == "failed" and "exchange 1" in reply.reason and world.state.exchanges == 1


def test_weights_other_than_the_recomputed_base_are_refused_where_the_plan_names_the_step() -> None:
    world = ready_world()
    weights = world.first_weights()
    assert world.exchange(1, "train", weights).status == "ok"
    reply = world.exchange(2, "evaluate", weights)
    assert reply.status == "failed" and "base that exchange made" in reply.reason


def test_an_evaluate_repeated_on_the_same_weights_is_refused() -> None:
    world = ready_world()
    weights = world.first_weights()
    assert world.exchange(1, "evaluate", weights).status == "ok"
    reply = world.exchange(2, "evaluate", weights)
    assert reply.status == "failed" and "exchange 1" in reply.reason


def test_the_plans_largest_number_of_exchanges_is_kept() -> None:
    world = ready_world(max_exchanges=1)
    weights = world.exchange(1, "train", world.first_weights()).blob
    reply = world.exchange(2, "train", weights)
    assert reply.status == "failed" and "all are used" in reply.reason


def test_a_refused_plan_aborts_the_run_when_the_quorum_cannot_be_reached() -> None:
    world = World(4, 1)
    for m in ("m00", "m01"):
        world.nodes[m].approves = False
    world.start()
    world.run_until(lambda w: w.state.phase is RunPhase.ABORTED)
    assert "m00: no" in world.state.reason


def test_one_member_that_refuses_is_left_out_and_the_rest_train() -> None:
    world = World(5, 1)
    world.nodes["m04"].approves = False
    world.start()
    world.run_until(lambda w: w.idle())
    reply = world.exchange(1, "train", world.first_weights())
    assert reply.status == "ok" and reply.survivors == ("m00", "m01", "m02", "m03")


def test_a_request_repeated_with_another_digest_ends_the_run() -> None:
    from dataclasses import replace

    world = ready_world()
    asked = world.ask(1, "train", world.first_weights())
    assert world.apply(asked).accepted
    assert not world.apply(replace(asked, digest=b"x" * 32)).accepted
    assert world.state.phase is RunPhase.ABORTED


def test_a_certified_instance_that_cannot_be_opened_ends_the_run_naming_who_is_missing() -> None:
    world = ready_world(4)

    def lose(w: World) -> None:
        instance = w.state.exchange.instance if w.state.exchange else None
        if instance and instance.phase == "reveal" and len(instance.reveals) == 0:
            for m in w.members[:3]:
                if w.nodes[m].alive:
                    w.kill(m)

    world.exchange(1, "train", world.first_weights(), hook=lose)
    assert world.state.phase is RunPhase.ABORTED
    assert "m00" in world.state.reason and "new run" in world.state.reason


def test_a_survivor_set_whose_head_too_few_witnesses_cosign_is_voided_and_nothing_was_revealed() -> None:
    """Two of five are away when the certificate is there: t = 4 signatures are, the witnesses' quorum is not."""
    world = ready_world(5)

    def lose(w: World) -> None:
        instance = w.state.exchange.instance if w.state.exchange else None
        if instance and instance.phase == "cosign":
            for m in w.members[:2]:
                if w.nodes[m].alive:
                    w.kill(m)

    reply = world.exchange(1, "train", world.first_weights(), hook=lose)
    assert reply is None or reply.status == "failed"
    assert "cosigned" in " ".join(world.reasons)
    world.check_secrets()
    assert not [r for _, r in world.sent if r.kind is ReportKind.REVEAL]


def test_directives_of_a_finished_run_say_so() -> None:
    world = ready_world()
    world.stop()
    world.run_until(lambda w: False)
    assert {world.shown[m].kind for m in world.members} == {DirectiveKind.FINISHED}
    assert all(world.state_of(m).finished and world.state_of(m).epoch is None for m in world.members)


def test_the_next_base_names_the_scales_and_the_number_of_its_exchange() -> None:
    world = ready_world()
    world.exchange(1, "train", world.first_weights())
    base = BaseRecord.from_json(world.state.base_record)
    assert base.exchange == 1 and base.e_b == BlobId.parse(world.state.exchange.scales.e_b)  # type: ignore[union-attr]
    assert thresholds.u_min(5, 1) == world.facts.u_min


def test_where_members_are_there_and_keys_are_not_agreed_it_is_said_so_and_of_whom() -> None:
    """Not "5 of 3 members needed are there"."""
    world = World(5, 1, seed=1)
    world.start()
    world.run_until(lambda w: w.state.phase is RunPhase.EPOCH and 0 < len(view.waiting_for(w.state)) < 5)
    said = no_quorum(world.state, list(world.members))
    assert said == f"5 members are there, but their keys are not agreed: nothing heard from {', '.join(view.waiting_for(world.state))}"
    assert no_quorum(world.state, ["ara"]).startswith(f"1 of {world.state.facts.u_min} members needed are there; missing: ")
