"""One crash before and one after every write of a whole run, on both sides: the same exchange goes on, whole."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from sim.exchange_world import World

SEED = 31
WHERE = ("coordinator", "node")
STRIDE = 47
"""`make test` crashes at one write in so many, `make test-deep` at every one."""


def play(crash_at: tuple[str, int, str] | None, away_s: float = 0.0) -> tuple[World, str, Any]:
    """A run of four from its first event to its first answer, with one crash: (world, first weights, reply)."""
    world = World(4, 1, seed=SEED, duplicate=0.05)
    world.crash_at, world.away_s = crash_at, away_s
    world.start()
    world.run_until(lambda w: w.idle())
    weights = world.first_weights()
    return world, weights, world.exchange(1, "train", weights)


@lru_cache(maxsize=1)
def undisturbed() -> dict[str, int]:
    """How many writes each side makes."""
    world, _, reply = play(None)
    assert reply.status == "ok"
    return dict(world.writes)


def check(who: str, number: int, when: str) -> None:
    world, weights, reply = play((who, number, when))
    at = f"{who} killed {when} write {number}"
    assert world.crash_at is None, f"{at}: it was never reached"
    assert reply is not None and reply.status == "ok", (at, world.reasons[-5:])
    assert reply.survivors == world.members and world.state.exchanges == 1, (at, reply.errors)
    assert world.state.epochs == 1, at
    assert [(i.purpose, i.attempt) for i in world.state.exchange.instances] == [("scales", 0), ("update", 0)], at
    world.check_mean(reply, 1, weights)
    world.check_secrets()
    world.check_statements()
    world.refold()


def test_a_run_makes_enough_writes_to_crash_at() -> None:
    assert undisturbed()["coordinator"] > 60 and undisturbed()["node"] > 60


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("who", WHERE)
def test_a_crash_at_some_writes_resumes_the_same_exchange(who: str, when: str) -> None:
    for number in range(0, undisturbed()[who], STRIDE):
        check(who, number, when)


@pytest.mark.deep
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("who", WHERE)
def test_a_crash_at_every_write_resumes_the_same_exchange(who: str, when: str) -> None:
    for number in range(undisturbed()[who]):
        check(who, number, when)


def check_after_hours(number: int) -> None:
    """No phase's deadline counts the time in which nobody could answer. One does all the same: an instance-open is signed with its own, so
    a member that first sees it when that is past uploads nothing, and where too few have seen it in time the instance is voided."""
    world, weights, reply = play(("coordinator", number, "after"), away_s=3 * 3600.0)
    late = {m for m, node in world.nodes.items() if any("open.upload_deadline" in note for note in node.notes)}
    if reply.status != "ok":
        assert late and world.state.exchange.instance.phase == "voided", (number, reply.reason)
        reply = world.exchange(2, "train", weights)
        late = set()
    assert reply.status == "ok", (number, world.reasons[-5:])
    assert set(world.members) - set(reply.survivors) <= late, (number, reply.errors)
    world.check_mean(reply, world.state.exchange.number, weights)
    world.check_secrets()


def test_a_coordinator_that_was_away_for_hours_gives_the_phase_in_flight_its_whole_time_again() -> None:
    for number in range(0, undisturbed()["coordinator"], STRIDE):
        check_after_hours(number)


@pytest.mark.deep
@pytest.mark.timeout(1200)
def test_a_coordinator_may_be_away_for_hours_after_any_write() -> None:
    for number in range(undisturbed()["coordinator"]):
        check_after_hours(number)
