"""A strategy that chooses some of the members: within u_min it may, below it nobody is asked."""

from __future__ import annotations

import pytest
from sim.exchange_world import World


@pytest.mark.parametrize("step_name", ["average", "adam", "none"])
def test_rotating_samples_of_the_quorum_all_count_and_who_was_left_out_takes_the_base_from_the_others(step_name: str) -> None:
    world = World(5, 1, step_name=step_name)
    world.start()
    world.run_until(lambda w: w.idle())
    weights, seq = world.first_weights(), 0
    for left_out in (*world.members, None, world.members[0]):
        chosen = tuple(m for m in world.members if m != left_out)
        for kind in ("train", "evaluate"):
            seq += 1
            reply = world.exchange(seq, kind, weights, members=chosen)
            assert reply.status == "ok" and reply.survivors == chosen, (reply.reason, world.reasons[-3:])
            if kind == "train":
                world.check_mean(reply, world.state.exchange.number, weights)  # type: ignore[union-attr]
                weights = world.first_weights() if step_name == "none" else reply.blob
    world.check_secrets()
    if step_name != "none":
        assert {world.state_of(m).base_record for m in world.members[1:]} == {world.state.base_record}


def test_a_sample_below_the_quorum_is_answered_at_once_with_the_numbers() -> None:
    world = World(5, 1)
    world.start()
    world.run_until(lambda w: w.idle())
    reply = world.exchange(1, "train", world.first_weights(), members=world.members[:3])
    assert reply.status == "failed" and "3 members were chosen, 4 are needed" in reply.reason
    assert world.state.exchanges == 0


def test_a_request_that_the_journal_answered_itself_is_no_gap() -> None:
    """After two failed rounds a stock strategy evaluates a second time on its weights. The journal says so at once; at the next request
    the run was aborted, because that was not the next number."""
    world = World(3, 1)
    world.start()
    world.run_until(lambda w: w.idle())
    assert world.exchange(1, "query").status == "ok"
    assert world.exchange(4, "query", config=0.2).status == "ok"
    world.ask(3, "query", config=0.3)
    assert world.state.queued is None and 3 not in world.answers, "what was passed over is never asked later"
    assert world.exchange(5, "train", world.first_weights()).status == "ok"
