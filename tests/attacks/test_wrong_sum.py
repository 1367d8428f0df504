"""Real processes: a coordinator that serves a wrong sum is found, named down to the chunk, and stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dure.statements.kinds import Dispute
from dure.statements.statement import read_verified
from dure_coordinator.admin_client import call
from dure_demo.consortium import Consortium, node_environment
from dure_participant.exchange.state import NodeRunState
from dure_participant.store import NodeStore

APP = Path(__file__).resolve().parents[2] / "apps" / "digits"
LIAR = Path(__file__).with_name("lying_coordinator.py")
LIMIT_S = 150.0


class Lying(Consortium):
    """Its coordinator lies."""

    def serve(self) -> None:
        hub = self.dir_of("coordinator")
        with (self.root / "logs" / "coordinator.log").open("ab") as log:
            command = [sys.executable, str(LIAR), str(hub)]
            self.processes["coordinator"] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=node_environment(), start_new_session=True
            )
        wait_for(lambda: answers(hub), "the coordinator serves")


def answers(hub: Path) -> bool:
    try:
        call(hub, "status", {}, timeout_s=5.0)
    except Exception:
        return False
    return True


def wait_for(done, what: str):
    deadline = time.monotonic() + LIMIT_S
    while True:
        if found := done():
            return found
        assert time.monotonic() < deadline, f"in {LIMIT_S} s: {what}"
        time.sleep(0.3)


@pytest.mark.timeout(300)
def test_a_coordinator_that_serves_a_wrong_sum_is_found_and_named_by_its_members(tmp_path):
    consortium = Lying(tmp_path / "c", ("ara", "bora", "chan"))
    consortium.found()
    try:
        consortium.serve()
        for member in consortium.members:
            consortium.start_node(member)
        run, plan = consortium.run_start(APP, rounds=2, settings={}, outer_step="average")
        for member in consortium.members:
            consortium.allow(member, plan)
        shown = wait_for(lambda: (s := consortium.run_show(run))["state"] == "aborted" and s, "the run is frozen")
        assert "frozen" in shown["reason"]
        frozen = wait_for(lambda: disputing(consortium, run), "a node has signed a dispute")
        for member, state in frozen.items():
            assert "the coordinator's sum is wrong at chunk 0" in state.frozen, member
            word = read_verified(state.own_disputes[0].envelope, Dispute)
            assert (word.finding, word.chunk, word.member) == ("sum", 0, member)
        shown = wait_for(lambda: (s := consortium.run_show(run))["disputes"] and s, "the coordinator shows the dispute")
        assert shown["disputes"][0]["chunk"] == 0
        pinned = wait_for(lambda: consortium.run_show(run)["uploads"]["pinned"], "the evidence is kept")
        assert pinned == 3, "the update of each member"
        gone = json.loads(consortium.dure("run", "let-go", run, "--json", "--dir", consortium.dir_of("coordinator")))
        assert (gone["let_go"], gone["uploads"]["pinned"]) == (3, 0)
        assert gone["uploads"]["uploads"] == 6, "the challenge window is open: scales and updates stay until it closes"
        assert shown["exchanges_closed"] == 1 and not any(m["exchanges_counted"] for m in shown["members"].values())
    finally:
        consortium.stop()


def disputing(consortium: Consortium, run: str) -> dict[str, NodeRunState] | None:
    found = {}
    for member in consortium.members:
        store = NodeStore(consortium.dir_of(f"{member}/node") / "node.sqlite")
        state = NodeRunState.from_bytes(store.states()[bytes.fromhex(run)])
        store.close()
        if state.own_disputes:
            found[member] = state
    return found or None
