"""What one side's rounds came to, from the marks its server left and the watch over its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from measure import Watch, command_of

APP = Path(__file__).resolve().parents[1] / "noise"
ROUND_DEADLINE_S = 300.0
"""Without a new mark for so long, a run is taken to have failed."""


@dataclass(frozen=True)
class Round:
    """One round as the server app saw it."""

    number: int
    began: float
    ended: float
    client_cpu_s: float
    """CPU seconds in ClientApps, all nodes together."""
    server_cpu_s: float
    """CPU seconds of the ServerApp process outside the Grid."""

    @property
    def whole_s(self) -> float:
        return self.ended - self.began

    def exchange_s(self, cores: int) -> float:
        """The round without the apps: clients' CPU time over the cores they share, the server's in full, because nothing else runs then."""
        return self.whole_s - self.client_cpu_s / cores - self.server_cpu_s


@dataclass
class Played:
    """All rounds of one side. The first is not counted: it ships the model, starts workers and imports their libraries."""

    rounds: list[Round]
    watch: Watch
    cores: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def counted(self) -> list[Round]:
        return self.rounds[1:] or self.rounds

    @property
    def whole_s(self) -> float:
        return median(r.whole_s for r in self.counted)

    @property
    def exchange_s(self) -> float:
        return median(r.exchange_s(self.cores) for r in self.counted)

    @property
    def span(self) -> tuple[float, float]:
        return self.counted[0].began, self.counted[-1].ended

    def cpu_of(self, role: str) -> float:
        """CPU seconds of a role per counted round."""
        return self.watch.cpu_of(role, *self.span) / len(self.counted)

    def wire(self) -> tuple[float, float]:
        """(up, down) bytes per counted round over the server's port."""
        received, sent = self.watch.wire_between(*self.span)
        return received / len(self.counted), sent / len(self.counted)


@dataclass
class Processes:
    """A peer's daemons: each in a session of its own, with a log file; all of them gone after `stop`."""

    logs: Path
    environment: Mapping[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str]) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=dict(self.environment), start_new_session=True
            )

    def dead(self) -> str:
        """The name of a daemon that ended by itself, with the end of its log; "" while all run."""
        for name, process in self.running.items():
            if process.poll() is not None:
                return f"{name} ended with {process.returncode}: {self.tail(name)}"
        return ""

    def tail(self, name: str, size: int = 1500) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")[-size:]

    def tails(self) -> str:
        return "\n".join(f"-- {name}:\n{self.tail(name)}" for name in self.running)

    def stop(self, watch: Watch) -> None:
        """SIGTERM, five seconds, SIGKILL; what they had started, and `watch` saw, as well."""
        started = [(seen.pid, command_of(seen.pid)) for seen in watch.seen.values()]
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
        until = time.monotonic() + 5.0
        for process in self.running.values():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid, command in started:
            if command and command_of(pid) == command:  # not another process that got the number since
                os.kill(pid, signal.SIGKILL)


def wait_for_rounds(marks: Path, rounds: int, processes: Processes) -> None:
    """Until the server marked the last round.

    Raises:
        RuntimeError: a daemon ended, or no round did for too long; with the ends of the logs.
    """
    seen, since = -1, time.monotonic()
    while seen < rounds + 1:
        found = len(marks.read_text().splitlines()) if marks.exists() else 0
        if found > seen:
            seen, since = found, time.monotonic()
        dead = processes.dead()
        if dead or time.monotonic() - since > ROUND_DEADLINE_S:
            raise RuntimeError(dead or f"no round ended for {ROUND_DEADLINE_S:.0f} s\n{processes.tails()}")
        time.sleep(0.2)


def rounds_of(marks: Path, nodes: int) -> list[Round]:
    """The rounds a server marked (noise/server_app.py, flare_job/server.py); the mark of round 0 is where the first begins."""
    lines = [json.loads(line) for line in marks.read_text().splitlines()] if marks.exists() else []
    found = []
    for before, after in pairwise(lines):
        server = (after["cpu_s"] - before["cpu_s"]) - (after["grid_cpu_s"] - before["grid_cpu_s"])
        found.append(Round(after["round"], before["time"], after["time"], nodes * after["app_cpu_s"], server))
    return found
