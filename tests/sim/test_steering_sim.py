"""An administrator pauses, resumes, halts and aborts simulated runs, at every point of an exchange."""

from __future__ import annotations

import pytest
from sim.exchange_world import World
from sim.test_exchange_sim import ready_world

from dure_coordinator.exchange.duties import next_deadline
from dure_coordinator.exchange.events import Abort, GoOn, Halt, Pause
from dure_coordinator.exchange.history import rounds_over, time_left_s
from dure_coordinator.exchange.rounds import models
from dure_coordinator.exchange.state import RunPhase

OVER = (RunPhase.FINISHED, RunPhase.ABORTED)


def settle(world: World) -> None:
    world.run_until(lambda w: not w.bag)


def test_a_paused_run_begins_no_exchange_and_goes_on_when_resumed() -> None:
    world = ready_world(4)
    weights = world.first_weights()
    assert world.apply(Pause("lunch")).accepted
    world.ask(1, "train", weights)
    settle(world)
    assert world.state.exchanges == 0
    assert world.state.reason == "paused: lunch"
    assert next_deadline(world.state) is None, "a paused run must not keep the clock turning"
    world.refold()
    assert world.apply(GoOn()).accepted
    world.run_until(lambda w: 1 in w.answers)
    assert world.answers[1].status == "ok"


@pytest.mark.parametrize("seed", range(8))
def test_pausing_in_the_middle_of_an_exchange_lets_it_end(seed: int) -> None:
    world = ready_world(4, seed=seed)
    at, steps = world.rng.randint(1, 60), [0]

    def pause(w: World) -> None:
        steps[0] += 1
        if steps[0] == at:
            w.apply(Pause("now"))
            w.apply(Pause("again"))

    reply = world.exchange(1, "train", world.first_weights(), hook=pause)
    assert reply.status == "ok"
    assert world.state.paused == "now"
    assert time_left_s(world.state, world.now) is None, "nobody knows how long a pause lasts"
    world.ask(2, "evaluate", reply.blob)
    settle(world)
    assert world.state.exchanges == 1


def test_a_day_of_pause_makes_new_keys_due_only_when_the_run_goes_on() -> None:
    world = ready_world(4)
    world.apply(Pause("over night"))
    world.now += 2 * world.facts.epoch_max_s
    settle(world)
    assert world.state.epochs == 1
    world.apply(GoOn())
    world.run_until(lambda w: w.idle())
    assert world.state.epochs == 2


def test_a_halted_run_ends_when_the_next_round_is_asked_for() -> None:
    world = ready_world(4)
    reply = world.exchange(1, "train", world.first_weights())
    world.apply(Halt("enough"))
    evaluated = world.exchange(2, "evaluate", reply.blob)
    assert evaluated.status == "ok", "the evaluation belongs to the round that was going on"
    world.ask(3, "train", reply.blob)
    assert world.state.phase is RunPhase.FINISHED
    assert world.state.reason == "stopped after round 1: enough"
    assert models(world.state)[1].weights == reply.blob
    world.refold()


def test_a_halt_in_the_middle_of_a_train_exchange_lets_the_round_count() -> None:
    world = ready_world(4)
    world.ask(1, "train", world.first_weights())
    world.run_until(lambda w: w.state.phase is RunPhase.EXCHANGE)
    world.apply(Halt("enough"))
    world.run_until(lambda w: 1 in w.answers)
    assert world.answers[1].status == "ok"
    assert world.state.phase is RunPhase.IDLE
    world.ask(2, "train", world.answers[1].blob)
    assert (world.state.phase, rounds_over(world.state)) == (RunPhase.FINISHED, 1)


def test_where_the_serverapp_makes_the_bases_its_last_word_is_the_model_of_the_last_round() -> None:
    world = ready_world(4, step_name="none")
    first, second = world.first_weights(), world.first_weights()
    world.exchange(1, "train", first)
    assert set(models(world.state)) == {0}, "what round 1 made is known once the ServerApp sends it"
    world.apply(Halt("enough"))
    world.ask(2, "train", second)
    assert {k: m.weights for k, m in models(world.state).items()} == {0: first, 1: second}


def test_a_run_halted_before_anything_was_asked_is_finished_at_once() -> None:
    world = World(4)
    world.apply(Halt("wrong app"))
    assert (world.state.phase, world.state.reason) == (RunPhase.FINISHED, "stopped before its first round: wrong app")


def test_a_halted_run_whose_members_are_gone_waits_for_them_no_longer_than_for_anyone() -> None:
    world = ready_world(4)
    reply = world.exchange(1, "train", world.first_weights())
    for member in world.members[:2]:
        world.kill(member)
    world.ask(2, "evaluate", reply.blob)
    settle(world)
    world.apply(Halt("enough"))
    since = world.now
    world.run_until(lambda w: w.state.phase is RunPhase.FINISHED)
    assert world.state.phase is RunPhase.FINISHED
    assert world.now - since < world.state.patience.gone_grace_s + 1


def test_a_paused_run_can_be_halted_and_aborted() -> None:
    for event, phase in ((Halt("enough"), RunPhase.FINISHED), (Abort("wrong"), RunPhase.ABORTED)):
        world = ready_world(4)
        reply = world.exchange(1, "train", world.first_weights())
        world.apply(Pause("lunch"))
        world.ask(2, "train", reply.blob)
        assert world.apply(event).accepted
        assert world.state.phase is phase
        assert models(world.state)[1].weights == reply.blob


@pytest.mark.parametrize("event", [Pause("x"), GoOn(), Halt("x")])
def test_a_run_that_is_over_refuses_to_be_steered(event: object) -> None:
    world = ready_world(4)
    world.apply(Abort("wrong"))
    before = world.state
    reply = world.apply(event)  # type: ignore[arg-type]
    assert (reply.accepted, reply.field) == (False, "run")
    assert world.state is before


def test_a_failed_round_leaves_the_model_as_it_was() -> None:
    world = ready_world(4)
    first = world.exchange(1, "train", world.first_weights())
    for member in world.members[:2]:
        world.nodes[member].deaf = True
    failed = world.exchange(2, "train", first.blob)
    assert failed.status == "failed"
    assert {k: m.weights == first.blob for k, m in models(world.state).items()} == {0: False, 1: True, 2: True}
