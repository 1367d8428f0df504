"""A consortium of real processes on loopback trains `apps/digits` through masked sums."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dure_demo.consortium import Consortium

APP = Path(__file__).resolve().parents[2] / "apps" / "digits"
LIMIT_S = 180.0


def wait_for(consortium: Consortium, run: str, until) -> dict:
    """Poll until `until(shown)`; a run that aborts, or takes too long, fails with its reason."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        shown = consortium.run_show(run)
        if until(shown):
            return shown
        assert shown["state"] != "aborted", shown["reason"]
        assert time.monotonic() < deadline, (shown["phase"], shown["waiting_for"])
        time.sleep(0.3)


@pytest.fixture
def consortium(tmp_path):
    made = Consortium(tmp_path / "c", ("ara", "bora", "chan", "dan", "eun"))
    made.found()
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.timeout(300)
def test_a_run_survives_sigkill_of_a_node_and_of_the_coordinator(consortium):
    """The node is left out of the exchanges it misses and counted again later; the coordinator goes on where it was."""
    consortium.serve()
    for member in consortium.members:
        consortium.start_node(member)
    run, plan = consortium.run_start(APP, rounds=4, settings={}, outer_step="average")
    for member in consortium.members:
        consortium.allow(member, plan)
    wait_for(consortium, run, lambda s: s["exchanges_closed"] >= 1)
    consortium.kill("chan")
    missed = consortium.run_show(run)["exchanges_closed"] + 2  # at least one exchange begins and ends without it
    wait_for(consortium, run, lambda s: s["exchanges_closed"] >= missed)
    consortium.start_node("chan")
    consortium.kill("coordinator")
    consortium.serve()
    shown = wait_for(consortium, run, lambda s: s["state"] == "finished")
    counted = {m: facts["exchanges_counted"] for m, facts in shown["members"].items()}
    assert counted["ara"] == counted["bora"] == shown["exchanges_closed"] == 8
    assert counted["chan"] < 8
    assert shown["metrics"]["accuracy"] > 0.4, "ten classes; a model that learnt nothing has 0.1"
    out = consortium.root / "model"
    consortium.export(run, out)
    tensors = load_file(out / "model.safetensors")
    assert tensors
    assert all(np.isfinite(t).all() for t in tensors.values())
