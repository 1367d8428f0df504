"""Our side: a coordinator and nodes as separate processes on loopback, mutual TLS, masks and tag on."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dure_demo.consortium import Consortium
from measure import Watch
from rounds.played import APP, Played, rounds_of

RUN_DEADLINE_S = 1800.0


def role_of(_pid: int, command: str, parent: str) -> str:
    """How a process of a consortium is counted."""
    if "coordinator serve" in command:
        return "coordinator"
    if "node run" in command:
        return "agent"
    if "dure_coordinator.flower.process" in command:
        return "serverapp"
    return "worker" if "dure_participant.worker" in command or parent == "worker" else ""


def play(params: int, nodes: int, rounds: int, work: Path, *, outer_step: str) -> Played:
    """Play `rounds` rounds of the noise app; `outer_step` is average (plan-named) or none (stock FedAvg makes the base).

    Raises:
        RuntimeError: the run did not finish.
    """
    members = tuple(f"member-{i + 1}" for i in range(nodes))
    consortium = Consortium(work / "consortium", members)
    consortium.found(edit_charter=lambda text: text.replace("allow_unrecomputed_bases = false", "allow_unrecomputed_bases = true"))
    marks = work / "marks.jsonl"
    marks.unlink(missing_ok=True)
    with Watch(role_of, consortium.port) as watch:
        try:
            consortium.serve()
            for member in members:
                consortium.start_node(member)
            settings = {"params": str(params), "nodes": str(nodes), "marks": str(marks.resolve())}
            run, digest = consortium.run_start(APP, rounds=rounds, settings=settings, outer_step=outer_step)
            for member in members:
                consortium.allow(member, digest)
            _wait(consortium, run)
        finally:
            consortium.stop()
    found = rounds_of(marks, nodes)
    if len(found) != rounds:
        raise RuntimeError(f"{len(found)} of {rounds} rounds were played; logs are in {consortium.root / 'logs'}")
    return Played(found, watch, os.cpu_count() or 1)


def _wait(consortium: Consortium, run: str) -> None:
    until = time.monotonic() + RUN_DEADLINE_S
    while (shown := consortium.run_show(run))["state"] == "running":
        if time.monotonic() > until:
            raise RuntimeError(f"the run did not finish in {RUN_DEADLINE_S:.0f} s")
        time.sleep(0.5)
    if shown["state"] != "finished":
        raise RuntimeError(f"the run is {shown['state']}: {shown['reason']}; logs are in {consortium.root / 'logs'}")
