"""A coordinator or a node killed at a named point resumes the same exchange: nobody is lost, nobody is counted twice."""

from __future__ import annotations

import pytest
from e2e.stage import Stage

from dure.failpoints import Point

QUICK = {Point.COMMIT_DURABLE, Point.REVEAL_PERSISTED}
"""Two that `make test` runs, too; the others are deep."""
SIDES = [point for point in Point if point.startswith("coordinator.")], [point for point in Point if point.startswith("node.")]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    made = Stage.set_up(tmp_path_factory.mktemp("stage"))
    try:
        yield made
    finally:
        made.consortium.stop()


def marked(points):
    return [pytest.param(p, id=p.value, marks=() if p in QUICK else pytest.mark.deep) for p in points]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("point", marked(Point))
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
