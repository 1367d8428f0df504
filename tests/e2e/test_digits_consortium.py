"""A consortium of real processes on loopback trains `apps/digits` through masked sums."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.founded import Founded

from dure_demo.consortium import Consortium
from dure_participant.store import NodeStore

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
    made = Founded(tmp_path / "c", ("ara", "bora", "chan", "dan", "eun"))
    made.found()
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_a_run_survives_sigkill_of_a_node_and_of_the_coordinator(consortium):
    """The node is left out of the exchanges it misses and counted again later; the coordinator goes on where it was.

    Afterwards a member adds up again what it accepted before and after; another site did so before it accepted anything.
    """
    consortium.configure("bora", {"recompute": "always"})
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
    assert recomputed(consortium, "ara", run, "--exchange", "1") == [("scales", "agrees"), ("update", "agrees")]
    assert recomputed(consortium, "ara", run) == [("scalars", "agrees")]
    gave = json.loads(consortium.dure("node", "gave", "--json", "--dir", consortium.dir_of("ara/node")))
    assert {e["exchange"] for e in gave["exchanges"] if e.get("recomputed") == "recomputed: agrees"} == {1, 8}
    assert sums_recomputed_first(consortium, "bora", run) == 4 * (2 + 1)
    assert sums_recomputed_first(consortium, "ara", run) == 0
    assert consortium.run_show(run)["uploads"]["uploads"] >= 2 * 4 * 4, "scales and updates stay for the challenge window"


def recomputed(consortium: Consortium, member: str, run: str, *options: str) -> list[tuple[str, str]]:
    """What `dure node recompute` says of each sum."""
    node = consortium.dir_of(f"{member}/node")
    said = json.loads(consortium.dure("node", "recompute", run[:12], *options, "--json", "--dir", node, timeout_s=60.0))
    return [(s["purpose"], s["finding"]) for s in said["sums"]]


def sums_recomputed_first(consortium: Consortium, member: str, run: str) -> int:
    """How many sums a member's acceptances say it added up again before."""
    store = NodeStore(consortium.dir_of(f"{member}/node") / "node.sqlite")
    try:
        return sum(len(accepted.recomputed) for accepted in store.accepted(bytes.fromhex(run)).values())
    finally:
        store.close()
