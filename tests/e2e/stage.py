"""A consortium of real processes that stays up from test to test: each test kills one of them inside a run of its own.

The app (`tally/`) adds amounts known beforehand, so the model at the end says whether every member was counted once in every round.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from support.founded import Founded

from dure.errors import DureError
from dure.failpoints import VARIABLE, Point
from dure.model.content import flower_run_id
from dure.statements.dsse import Envelope
from dure_coordinator.admin_client import call
from dure_demo.consortium import Consortium
from dure_participant.app import open_store

TALLY = Path(__file__).parent / "tally"
LIMIT_S = 90.0
SETTINGS = """
gone_grace_s = 20.0      # a member that is killed and started again is waited for, however loaded this machine is
spool_sync_bytes = 524288
"""

_spec = importlib.util.spec_from_file_location("tally_task", TALLY / "tally" / "task.py")
assert _spec is not None and _spec.loader is not None
task = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(task)


@dataclass
class Stage:
    """The consortium, and what must hold after a run on it."""

    consortium: Consortium

    @classmethod
    def set_up(cls, folder: Path, members: tuple[str, ...] = ("ara", "bora", "chan", "dan")) -> Stage:
        made = Founded(folder / "c", members)
        made.found(edit_charter=lambda text: text.replace("allow_unrecomputed_bases = false", "allow_unrecomputed_bases = true"))
        (made.dir_of("coordinator") / "coordinator.toml").write_text(SETTINGS)
        return cls(made)

    @property
    def members(self) -> tuple[str, ...]:
        return self.consortium.members

    # -- processes ---------------------------------------------------------------------------------------------------

    def everybody_up(self) -> None:
        """Start whoever is not running, unarmed."""
        for role in ("coordinator", *self.members):
            running = self.consortium.processes.get(role)
            if running is None or running.poll() is not None:
                self.start(role)

    def start(self, role: str, point: str = "") -> None:
        """Start a role, armed with a fail point or not."""
        environment = {VARIABLE: point} if point else {}
        if role == "coordinator":
            self.consortium.serve(environment)
        else:
            self.consortium.start_node(role, environment)

    def arm(self, role: str, point: Point, count: int = 1) -> None:
        """Replace a role's process by one that will kill itself at this point."""
        self.everybody_up()
        self.consortium.kill(role)
        self.start(role, f"{point}:{count}")
        self.everybody_up()

    def wait_for_death(self, role: str) -> None:
        """Until the armed process has killed itself, and only so."""
        try:
            code = self.consortium.processes[role].wait(LIMIT_S)
        except Exception:
            raise AssertionError(f"{role} never came to its fail point:\n{self.consortium.log_tail(role, 20)}") from None
        assert code == -signal.SIGKILL, self.consortium.log_tail(role, 20)

    def kill_serverapp(self) -> None:
        """SIGKILL the ServerApp process of the one run that is going on: a child of the coordinator."""
        coordinator = self.consortium.processes["coordinator"].pid
        children = [int(pid) for path in Path(f"/proc/{coordinator}/task").glob("*/children") for pid in path.read_text().split()]
        apps = [pid for pid in children if b"dure_coordinator.flower.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(apps) == 1, children
        os.kill(apps[0], signal.SIGKILL)

    # -- runs --------------------------------------------------------------------------------------------------------

    def begin(
        self,
        rounds: int = 2,
        settings: Mapping[str, str] | None = None,
        outer_step: str = "average",
        deadlines: Mapping[str, int] | None = None,
    ) -> str:
        """Start a run that every member's operator allows; returns its id in hex."""
        run, plan = self.consortium.run_start(
            TALLY, rounds=rounds, settings=settings or {}, outer_step=outer_step, deadlines=deadlines or {}
        )
        for member in self.members:
            store = open_store(self.consortium.dir_of(f"{member}/node"))
            store.decide(bytes.fromhex(plan), allowed=True, reason="", how="test")
            store.close()
        return run

    def wait(self, run: str, until: Callable[[Any], bool] = lambda shown: shown["state"] == "finished") -> dict[str, Any]:
        """Poll the run until it is so; a run that aborts, or takes too long, fails with what it says."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                shown: Any = self.consortium.run_show(run)
            except DureError:  # the coordinator is down: that may be what the test wants
                shown = {"state": "unknown", "reason": "", "phase": "", "exchange": 0}
            if until(shown):
                return dict(shown)
            assert shown["state"] != "aborted", shown["reason"]
            assert time.monotonic() < deadline, json.dumps(shown, indent=1)
            time.sleep(0.1)

    def runs(self) -> list[str]:
        """Every run the coordinator knows, oldest first."""
        return [r["run"] for r in call(self.consortium.dir_of("coordinator"), "run-list", {}, timeout_s=30.0)["runs"]]

    def until(self, so: Callable[[], bool]) -> None:
        """Poll anything until it is so."""
        deadline = time.monotonic() + LIMIT_S
        while not so():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    # -- what must hold ----------------------------------------------------------------------------------------------

    def check_whole(self, run: str, shown: Mapping[str, Any], rounds: int) -> None:
        """Every round was one exchange, every member was counted in each, and the model is the plain weighted mean of what they added."""
        assert shown["exchanges_closed"] == rounds
        assert shown["dropouts"] == []
        assert {m: facts["exchanges_counted"] for m, facts in shown["members"].items()} == dict.fromkeys(self.members, rounds)
        out = self.consortium.root / f"model-{run[:12]}"
        call(self.consortium.dir_of("coordinator"), "run-export", {"run": run, "out": str(out)}, timeout_s=30.0)
        found = load_file(out / "model.safetensors")["w"]
        wanted = task.model(flower_run_id(bytes.fromhex(run)), rounds, len(self.members))
        # A member lost or counted twice in one round moves its own part by more than 0.005; quantisation by less than 0.0001.
        assert np.abs(found - wanted).max() < 1e-3

    def check_statements(self) -> None:
        """No signing key ever made two statements with one number, wherever they were kept; and none of a number is missing."""
        digests: dict[tuple[str, int], set[bytes]] = {}
        for raw in self.statements():
            envelope = Envelope.from_bytes(raw)
            seq = int(json.loads(envelope.payload)["predicate"]["seq"])
            digests.setdefault((envelope.signatures[0][0], seq), set()).add(envelope.payload_sha256)
        twice = [place for place, found in digests.items() if len(found) > 1]
        assert twice == []
        count = Counter(party for party, _ in digests)
        assert all(max(seq for p, seq in digests if p == party) == many - 1 for party, many in count.items())

    def statements(self) -> list[bytes]:
        """Every envelope the coordinator and the nodes keep."""
        databases = [self.consortium.dir_of("coordinator") / "coordinator.sqlite"]
        databases += [self.consortium.dir_of(f"{m}/node") / "node.sqlite" for m in self.members]
        found = []
        for path in databases:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
                found += [bytes(envelope) for (envelope,) in db.execute("SELECT envelope FROM statements")]
        return found
