"""How a run goes, live: a table that renews itself on a terminal, plain lines elsewhere. Fed with what `dure run show --json` prints.

`dure run start --watch` and the demo look at a run through this one view.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

Shown = Mapping[str, Any]
"""One answer to `run-show`."""

POLL_S = 0.5
ROUNDS_SHOWN = 8
BAR = 12
"""Characters of the longest bar."""
NOTES_SHOWN = 4


def human_bytes(count: float) -> str:
    """1.2 MB and the like, decimal."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def human_time(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def phase_of(shown: Shown) -> str:
    """What the run does now, in the protocol's words: `execute`, `update: upload`, `waiting for approvals`."""
    if shown["state"] != "running":
        return str(shown["state"])
    if shown["run_phase"] != "exchange":
        return str(shown["waiting"] or shown["run_phase"])
    purpose, instance = shown["purpose"], shown["instance_phase"]
    if not purpose or shown["exchange_phase"] in ("execute", "step"):
        return str(shown["exchange_phase"])
    return f"{purpose}: {instance}"


def headline(shown: Shown) -> str:
    """Where the run stands, how long it took and how long it will."""
    over, rounds = shown["rounds_over"], shown["rounds"]
    if shown["state"] == "running":
        where = f"round {_round(shown)} of {rounds}"
        where += f", {shown['category']}" if shown["category"] not in ("", "train") else ""
    else:
        where = f"{over} of {rounds} rounds"
    left = shown["time_left_s"]
    ahead = f", about {human_time(left)} left" if left is not None else ""
    return f"{where}, {phase_of(shown)}; {human_time(shown['elapsed_s'])} so far{ahead}"


def _round(shown: Shown) -> int:
    """The round going on; an evaluation belongs to the round before it, if there was one."""
    after = shown["category"] not in ("", "train") and shown["run_phase"] == "exchange"
    return int(min(max(1, shown["rounds_over"] + (0 if after else 1)), shown["rounds"]))


def closed_line(line: Shown) -> str:
    """One exchange that is over."""
    what = f"exchange {line['exchange']} ({line['category']})"
    if line["status"] != "ok":
        return f"{what} failed after {line['seconds']:.1f} s: {line['reason']}"
    metrics = "".join(f", {name} {value:.4f}" for name, value in line["metrics"].items())
    return f"{what}: {line['counted']} of {line['of']} members counted{metrics}, {line['seconds']:.1f} s"


def dropout_line(dropout: Shown) -> str:
    """Who was left out, when and why."""
    return f"left out of exchange {dropout['exchange']}: {dropout['member']}, in {dropout['phase']}: {dropout['reason']}"


def totals_line(shown: Shown) -> str:
    """What all members declared together."""
    members = shown["members"].values()
    up, down, tokens = (sum(int(m[key]) for m in members) for key in ("bytes_up", "bytes_down", "tokens"))
    said = f"all members: {human_bytes(up)} sent, {human_bytes(down)} received"
    return said + (f", {tokens:,} tokens" if tokens else "")


def kept_line(shown: Shown) -> str:
    """Masked uploads on the coordinator's disk: how many, how long."""
    kept = shown["uploads"]
    if not kept["uploads"]:
        return "no masked uploads are kept"
    until = "" if kept["until"] is None else f", the last of them until {datetime.fromtimestamp(kept['until'], UTC):%Y-%m-%d %H:%M} UTC"
    pinned = f"; {kept['pinned']} stay until `dure run let-go`" if kept["pinned"] else ""
    return f"{kept['uploads']} masked uploads are kept for whoever recomputes ({human_bytes(kept['length'])}){until}{pinned}"


def dispute_line(dispute: Shown) -> str:
    """Who disputes which sum, and what was found."""
    return f"DISPUTE by {dispute['member']} of exchange {dispute['exchange']} ({dispute['purpose']}): {dispute['reason']}"


def notes_of(shown: Shown) -> list[str]:
    """What a person should know or do: disputed sums, operators who have not decided, members that refused or sat out."""
    lines = [dispute_line(d) for d in shown.get("disputes", [])]
    lines += [f"{name}: {facts['note']}" for name, facts in shown["members"].items() if facts["note"]]
    if shown["run_phase"] == "approving" and shown["waiting_for"] and shown["state"] == "running":
        lines.append(f"waiting for the operators of {', '.join(shown['waiting_for'])}: dure node allow {shown['plan_digest'][:16]}")
    return lines


def members_table(shown: Shown) -> Table:
    """Per member: what its node does now, what was counted, what it declared."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    waited = set(shown["waiting_for"])
    for column in ("member", "now", "exchanges counted", "tokens", "seconds", "sent", "received"):
        table.add_column(column, justify="left" if column in ("member", "now") else "right", no_wrap=True)
    for name, facts in shown["members"].items():
        table.add_row(
            name,
            _doing(facts, busy=name in waited, running=shown["state"] == "running"),
            str(facts["exchanges_counted"]),
            f"{facts['tokens']:,}",
            f"{facts['seconds']:.1f}",
            human_bytes(facts["bytes_up"]),
            human_bytes(facts["bytes_down"]),
        )
    return table


def _doing(facts: Shown, *, busy: bool, running: bool) -> Text:
    """The phase of one node; a tick where it has answered and waits for the others."""
    if not running:
        return Text("", style="dim")
    if not facts["connected"]:
        return Text("away", style="red")
    if facts["doing"] == "wait" or not busy:
        return Text(f"{facts['doing']} ✓" if facts["doing"] != "wait" else "waits", style="green")
    return Text(facts["doing"], style="bold")


def rounds_table(shown: Shown) -> Table | Text:
    """The last exchanges with a bar for their loss, as it falls."""
    lines = [line for line in shown["history"] if line["status"] != "ok" or line["metrics"]][-ROUNDS_SHOWN:]
    if not lines:
        return Text("")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("exchange", "", "counted", "seconds"):
        table.add_column(column, justify="right" if column in ("exchange", "seconds") else "left", no_wrap=True)
    table.add_column("mean over the cohort")
    for line in lines:
        largest = max((_barred(other) for other in shown["history"] if other["category"] == line["category"]), default=0.0)
        counted = f"{line['counted']} of {line['of']}"
        table.add_row(str(line["exchange"]), line["category"], counted, f"{line['seconds']:.1f}", _metrics(line, largest))
    return table


def _barred(line: Shown) -> float:
    """The metric a bar is drawn for: the loss, else the first."""
    metrics = line["metrics"]
    return abs(metrics.get("loss", next(iter(metrics.values()), 0.0)))


def _metrics(line: Shown, largest: float) -> Text:
    if line["status"] != "ok":
        return Text(f"failed: {line['reason']}", style="red")
    words = ", ".join(f"{name} {value:.4f}" for name, value in line["metrics"].items())
    return Text.assemble(("█" * round(BAR * _barred(line) / (largest or 1.0)), "cyan"), f"  {words}")


def phases_table(phases: Shown) -> Table | Text:
    """Seconds per phase: the newest exchange, beside the median of the last few of its kind."""
    if not phases:
        return Text("no exchange is over yet")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"seconds of exchange {phases['exchange']} ({phases['category']})", no_wrap=True)
    for column in ("newest", f"median of {phases['of']}", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    total = sum(s["newest"] for s in phases["seconds"].values())
    for name, s in phases["seconds"].items():
        table.add_row(name, f"{s['newest']:.3f}", f"{s['median']:.3f}", f"{s['newest'] / total:.0%}" if total else "")
    table.add_row("all", f"{total:.3f}", f"{sum(s['median'] for s in phases['seconds'].values()):.3f}", "")
    return table


def render(shown: Shown, notes: list[str] | None = None) -> Group:
    """The whole picture, for a terminal."""
    head = Text(f"run {shown['run'][:12]} {shown['name']}: {headline(shown)}", style="bold")
    bases = Text(f"bases: {shown['lineage']}", style="dim")
    asked = [Text(line, style="yellow") for line in notes_of(shown)]
    dropped = [Text(dropout_line(d), style="yellow") for d in shown["dropouts"][-NOTES_SHOWN:]]
    said = [Text(note, style="yellow") for note in (notes or [])[-NOTES_SHOWN:]]
    kept = [Text(kept_line(shown), style="dim")] if "uploads" in shown else []
    wrong = shown["reason"] if shown["state"] == "aborted" else shown["trouble"]
    reason = [Text(wrong, style="red")] if wrong else []
    totals = Text(totals_line(shown), style="dim")
    return Group(head, members_table(shown), rounds_table(shown), totals, bases, *kept, *asked, *dropped, *said, *reason)


class Watch:
    """Shows one run over and over. Enter it, `update` it with every answer, `note` what the reader should know besides."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._notes: list[str] = []
        self._shown: Shown | None = None
        self._said = 0
        self._last = ""
        self._started = time.monotonic()

    def __enter__(self) -> Watch:
        if self._console.is_terminal:
            self._live = Live(Text("waiting for the coordinator"), console=self._console, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(self, *_ended: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def note(self, text: str) -> None:
        """Something happened that the reader should know; it stays in view."""
        self._notes.append(text)
        if self._live is None:
            self._line(text)
        elif self._shown is not None:
            self._live.update(render(self._shown, self._notes))

    def update(self, shown: Shown) -> None:
        """One answer of `run-show`."""
        self._shown = shown
        if self._live is not None:
            self._live.update(render(shown, self._notes))
            return
        for line in shown["history"][self._said :]:
            self._line(closed_line(line))
        self._said = len(shown["history"])
        here = _coarse(shown) + (f"; {shown['trouble']}" if shown["trouble"] else "")
        if here and here != self._last:
            self._last = here
            left = shown["time_left_s"]
            self._line(here + (f", about {human_time(left)} left" if left is not None else ""))

    def _line(self, text: str) -> None:
        spent = f"[{time.monotonic() - self._started:6.1f} s]"
        self._console.print(f"   {spent} {text}", highlight=False, markup=False, soft_wrap=True)


def _coarse(shown: Shown) -> str:
    """What a log needs: the round, and whether nodes train or the sum is made; not each of its phases."""
    if shown["state"] != "running":
        return f"{shown['state']}: {shown['reason']}" if shown["reason"] else str(shown["state"])
    where = f"round {_round(shown)} of {shown['rounds']}"
    if shown["run_phase"] != "exchange":
        return f"{where}: {shown['run_phase']}" if shown["run_phase"] in ("approving", "epoch") else ""
    doing = {"execute": "nodes execute", "step": "verified and accepted"}.get(shown["exchange_phase"], "masked sum")
    return f"{where}, {shown['category']}: {doing}"


def follow(ask: Callable[[], Shown], console: Console, *, poll_s: float = POLL_S) -> Shown:
    """Show a run until it is over; returns its last state."""
    with Watch(console) as watch:
        while True:
            shown = ask()
            watch.update(shown)
            if shown["state"] != "running":
                return shown
            time.sleep(poll_s)
