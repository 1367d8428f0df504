"""A coordinator or a node killed at a named point resumes the same exchange: nobody is lost, nobody is counted twice."""

from __future__ import annotations

import re

import pytest
from e2e.stage import Stage

from dure.failpoints import Point

QUICK = {Point.COMMIT_DURABLE, Point.REVEAL_PERSISTED}
"""Two that `make test` runs, too; the others are deep."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    made = Stage.set_up(tmp_path_factory.mktemp("stage"))
    try:
        yield made
    finally:
        made.consortium.stop()


def in_training(shown):
    return shown["phase"] == "execute"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("point", [pytest.param(p, id=p.value, marks=() if p in QUICK else pytest.mark.deep) for p in Point])
def test_a_run_goes_on_where_it_was_when_a_process_is_killed_at(stage, point):
    role = "coordinator" if point.startswith("coordinator.") else "chan"
    stage.arm(role, point)
    run = stage.begin(rounds=2)
    stage.wait_for_death(role)
    stage.start(role)
    shown = stage.wait(run)
    stage.check_whole(run, shown, rounds=2)
    assert shown["epoch"] == 1
    stage.check_statements()


@pytest.mark.deep
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("point", "count"), [(Point.REVEAL_DURABLE, 6), (Point.COMMIT_DURABLE, 7), (Point.SUM_WRITTEN, 3), (Point.STEP_STORED, 2)]
)
def test_a_run_goes_on_when_the_coordinator_is_killed_later_in_it(stage, point, count):
    """In the update of the first exchange, or in the second exchange."""
    stage.arm("coordinator", point, count)
    run = stage.begin(rounds=2)
    stage.wait_for_death("coordinator")
    stage.start("coordinator")
    stage.check_whole(run, stage.wait(run), rounds=2)
    stage.check_statements()


@pytest.mark.deep
@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", ["chan", "coordinator"])
def test_a_process_killed_while_members_train_resumes_the_same_exchange(stage, role):
    """The killed member trains again, from the state it started from the first time: its trainings are counted once."""
    stage.everybody_up()
    run = stage.begin(rounds=2, settings={"train-s": "2.0"})
    stage.wait(run, in_training)
    stage.consortium.kill(role)
    stage.start(role)
    stage.check_whole(run, stage.wait(run), rounds=2)
    stage.check_statements()


@pytest.mark.deep
@pytest.mark.timeout(240)
def test_a_worker_killed_in_every_round_is_asked_again_in_the_same_exchange(stage):
    stage.everybody_up()
    run = stage.begin(rounds=2, settings={"worker-dies": "2/1 2/2"})
    stage.check_whole(run, stage.wait(run), rounds=2)


@pytest.mark.deep
@pytest.mark.timeout(240)
def test_everybody_killed_at_once_resumes_the_same_exchange(stage):
    """A power cut at all sites."""
    stage.arm("coordinator", Point.REVEAL_DURABLE, 2)
    run = stage.begin(rounds=2)
    stage.wait_for_death("coordinator")
    for member in stage.members:
        stage.consortium.kill(member)
    stage.everybody_up()
    stage.check_whole(run, stage.wait(run), rounds=2)
    stage.check_statements()


# -- the ServerApp -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_a_serverapp_killed_in_mid_run_is_started_again_and_resumes_from_the_journal(stage):
    """Unmodified FedAvg, computing every next base itself."""
    stage.everybody_up()
    run = stage.begin(rounds=3, settings={"train-s": "0.5"}, outer_step="none")
    for exchange in (1, 3):
        stage.wait(run, lambda shown, exchange=exchange: shown["exchange"] == exchange and in_training(shown))
        stage.kill_serverapp()
    stage.check_whole(run, stage.wait(run), rounds=3)


@pytest.mark.deep
@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["serverapp", "coordinator"])
def test_a_serverapp_that_asks_something_else_when_it_is_started_again_is_stopped_with_both_digests(stage, victim):
    stage.everybody_up()
    run = stage.begin(rounds=3, settings={"train-s": "0.5", "drift": "true"})
    stage.wait(run, lambda shown: shown["exchange"] == 2 and in_training(shown))
    if victim == "serverapp":
        stage.kill_serverapp()
    else:
        stage.consortium.kill("coordinator")
        stage.start("coordinator")
    shown = stage.wait(run, lambda shown: shown["state"] == "aborted")
    assert len(set(re.findall(r"[0-9a-f]{64}", shown["reason"]))) == 2, shown["reason"]
    assert "exchange 1" in shown["reason"]
    assert shown["exchange"] == 2, "nothing was asked of the members that the first ServerApp had not asked"
