"""What one side's rounds came to, from the marks its server left and the watch over its processes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from measure import Watch


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


def rounds_of(marks: Path, nodes: int) -> list[Round]:
    """The rounds a Flower ServerApp marked (noise/server_app.py); the mark of round 0 is where the first begins."""
    lines = [json.loads(line) for line in marks.read_text().splitlines()] if marks.exists() else []
    found = []
    for before, after in pairwise(lines):
        server = (after["cpu_s"] - before["cpu_s"]) - (after["grid_cpu_s"] - before["grid_cpu_s"])
        found.append(Round(after["round"], before["time"], after["time"], nodes * after["app_cpu_s"], server))
    return found
