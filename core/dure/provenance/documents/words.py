"""How documents say facts: one phrase for what nobody declared, numbers with units, times in UTC."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal

from dure.plain_text import plain
from dure.provenance.facts import Compute, Facts, TrainingRun
from dure.provenance.spent import Total, energy_in_words, flop_in_words

NOT_DECLARED = "not declared"


def said(value: str | None) -> str:
    """Somebody's words, or that there are none."""
    return value if value else NOT_DECLARED


def when(seconds: int) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def back(run: TrainingRun) -> str:
    """The earlier runs that a run goes back to, nearest first; "" where it began by itself."""
    return "; ".join(f"run {a.run.hex()[:12]} ({a.app_name}), which began with {a.begins}" for a in run.ancestors)


def start(run: TrainingRun) -> str:
    """What a run began with, and what that goes back to."""
    return f"{run.begins}, which goes back to {back(run)}" if run.ancestors else run.begins


def rounded(number: str, digits: int = 6) -> str:
    """A decimal in at most so many significant digits."""
    return f"{Decimal(number):.{digits}g}"


def flop(total: Total | None, compute: Compute) -> str:
    """FLOP by one method, and how many of the statements say it."""
    return flop_in_words(total, compute.statements) or NOT_DECLARED


def energy(compute: Compute) -> str:
    """By source, in kWh."""
    return energy_in_words(compute.spent.energy_millijoules, compute.statements) or NOT_DECLARED


def cell(text: str) -> str:
    """Text for one cell of a Markdown table, or within a line: a member's words must not become markup, nor turn the line around."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|&~" else c for c in plain(" ".join(text.split())))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *(list(map(cell, row)) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def title(facts: Facts) -> str:
    return facts.about.title or facts.name
