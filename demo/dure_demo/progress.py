"""What the demo shows while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text


def megabytes(count: int) -> str:
    """Bytes in MB with one decimal."""
    return f"{count / 1e6:.1f} MB"


@dataclass
class Progress:
    """Shows `dure run show` over and over; `update` is called about once a second."""

    console: Console
    rounds: int
    exchanges_total: int
    started: float = field(default_factory=time.monotonic)
    live: Live | None = None
    notes: list[str] = field(default_factory=list)
    _last_line: str = ""

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live = Live(Text("starting"), console=self.console, refresh_per_second=4)
            self.live.__enter__()
        return self

    def __exit__(self, *ended: object) -> None:
        if self.live:
            self.live.__exit__(None, None, None)

    def note(self, text: str) -> None:
        """Something happened that the reader should know."""
        self.notes.append(text)
        if not self.live:
            self.console.print(f"   {text}", highlight=False)

    def time_left_s(self, closed: int) -> float | None:
        """Seconds until the last exchange closes, from the pace so far; None before the first one closed."""
        if closed == 0:
            return None
        return (time.monotonic() - self.started) / closed * max(0, self.exchanges_total - closed)

    def update(self, shown: Mapping[str, Any]) -> None:
        """Show one state of the run, as `dure run show --json` prints it."""
        closed = int(shown.get("exchanges_closed", 0))
        left = self.time_left_s(closed)
        head = f"exchange {min(closed + 1, self.exchanges_total)} of {self.exchanges_total}, {shown.get('phase', '?')}"
        head += f", about {left:.0f} s left" if left is not None else ""
        members: Mapping[str, Mapping[str, Any]] = shown.get("members", {})
        if self.live:
            table = Table(title=head, title_justify="left")
            for column in ("member", "now", "exchanges counted", "up", "down"):
                table.add_column(column)
            for name, facts in members.items():
                table.add_row(
                    name,
                    str(facts.get("phase", "")),
                    str(facts.get("exchanges_counted", 0)),
                    megabytes(int(facts.get("bytes_up", 0))),
                    megabytes(int(facts.get("bytes_down", 0))),
                )
            loss = shown.get("metrics") or {}
            words = Text("mean over the cohort: " + ", ".join(f"{k} {v:.3f}" for k, v in loss.items())) if loss else Text("")
            self.live.update(Group(table, words, *[Text(note, style="yellow") for note in self.notes[-4:]]))
        else:
            metrics = "".join(f", {k} {v:.3f}" for k, v in (shown.get("metrics") or {}).items())
            line = f"{head.split(', about')[0]}{metrics}"
            if line != self._last_line:
                self._last_line = line
                self.console.print(f"   [{time.monotonic() - self.started:5.1f} s] {line}", highlight=False, markup=False)
