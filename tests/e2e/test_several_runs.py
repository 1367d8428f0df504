"""Several runs on the same nodes: each goes on at its own pace, whatever the others' apps do."""

from __future__ import annotations

import pytest
from e2e.stage import Stage

from dure_coordinator.admin_client import call
from dure_participant.app import open_store


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    made = Stage.set_up(tmp_path_factory.mktemp("several"), ("ara", "bora", "chan"))
    made.consortium.configure("chan", {"train_at_once": "1"})
    made.everybody_up()
    try:
        yield made
    finally:
        made.consortium.stop()


def notes_of(stage, member, run):
    store = open_store(stage.consortium.dir_of(f"{member}/node"))
    try:
        return [text for _, of, text in store.notes(1000) if of is not None and of.hex() == run]
    finally:
        store.close()


@pytest.mark.deep
@pytest.mark.timeout(240)
def test_runs_whose_apps_hang_or_print_without_end_cost_a_healthy_one_nothing(stage):
    """One node has a single place to train: there the hanging app has it first, and gives it up."""
    hangs = stage.begin(rounds=50, settings={"train-s": "1000"}, deadlines={"execute": 6})
    stage.wait(hangs, lambda s: s["phase"] == "execute")
    prints = stage.begin(rounds=2, settings={"log-mb": "1000"})
    well = stage.begin(rounds=4)
    stage.check_whole(well, stage.wait(well), rounds=4)
    stage.check_whole(prints, stage.wait(prints), rounds=2)

    shown = stage.wait(hangs, lambda s: s["exchanges_closed"] >= 2)
    assert shown["state"] == "running"
    first = shown["history"][0]
    assert (first["status"], first["counted"]) == ("failed", 0)
    assert "app: not done in time" in first["reason"], first["reason"]
    assert any("gave its turn up to run" in note for note in notes_of(stage, "chan", hangs))
    assert next(n for n in notes_of(stage, "ara", prints) if "prints a lot" in n).endswith("worker.log")
    for member in stage.members:
        kept = sum(p.stat().st_size for p in stage.consortium.dir_of(f"{member}/node").glob("runs/*/scratch/worker.log*"))
        assert kept <= 3 * (8 << 20)
    call(stage.consortium.dir_of("coordinator"), "run-abort", {"run": hangs, "reason": "seen enough"}, timeout_s=30.0)
