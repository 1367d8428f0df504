"""A coordinator whose database is a real PostgreSQL: the same run, the same restarts."""

from __future__ import annotations

import json

import pytest
from e2e.stage import Stage
from support.postgres import Postgres, found_or_skip

from dure.failpoints import Point


@pytest.fixture(scope="module")
def server():
    made = Postgres(found_or_skip())
    yield made
    made.remove()


@pytest.fixture(scope="module")
def stage(tmp_path_factory, server):
    made = Stage.set_up(tmp_path_factory.mktemp("pg"), ("ara", "bora", "chan"))
    with (made.consortium.dir_of("coordinator") / "coordinator.toml").open("a") as settings:
        settings.write(f"database = {json.dumps(server.database())}\n")
    try:
        yield made
    finally:
        made.consortium.stop()


@pytest.mark.deep
@pytest.mark.timeout(240)
def test_a_run_on_postgresql_survives_a_crash_of_the_coordinator_and_one_of_the_database(stage, server):
    stage.arm("coordinator", Point.COMMIT_DURABLE)
    run = stage.begin(rounds=6, settings={"train-s": "0.3"})
    stage.wait_for_death("coordinator")
    stage.start("coordinator")
    stage.wait(run, lambda s: s["exchanges_closed"] >= 2)
    server.stop("immediate")
    server.start()
    shown = stage.wait(run)
    stage.check_whole(run, shown, rounds=6)
    assert not (stage.consortium.dir_of("coordinator") / "coordinator.sqlite").exists()
    head = json.loads(stage.consortium.dure("log", "show", "--json", "--dir", stage.consortium.dir_of("coordinator")))
    stage.consortium.kill("coordinator")
    stage.start("coordinator")
    assert stage.consortium.run_show(run)["exchanges_closed"] == 6
    again = json.loads(stage.consortium.dure("log", "show", "--json", "--dir", stage.consortium.dir_of("coordinator")))
    assert again["size"] >= head["size"] > 20
