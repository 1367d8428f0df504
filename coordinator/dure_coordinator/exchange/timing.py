"""Where an exchange's time went: when it entered each phase, kept in its state, and what that comes to for people. Pure.

A phase is named as a person sees it: `execute`, `scales: upload`, `update: cosign`, `step`. What a phase costs is the time until the next
one began: nodes, coordinator and the way between them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

from dure_coordinator.exchange.common import all_exchanges, is_over
from dure_coordinator.exchange.state import ExchangePhase, ExchangeState, RunState

BETWEEN = "server app"
"""From the end of the exchange before it to its begin: the answer is given, the strategy makes the next request."""
SHOWN = 5
"""Exchanges whose median is shown beside the newest one."""


def noted(state: RunState, now: float) -> RunState:
    """The state with the phase that its exchange is in now, and since when, if it has just come to it."""
    exchange = state.exchange
    if exchange is None:
        return state
    name = phase_name(exchange)
    changes: dict[str, Any] = {}
    if not exchange.phases or exchange.phases[-1][0] != name:
        changes["phases"] = (*exchange.phases, (name, now))
    if is_over(exchange) and not exchange.ended:
        changes["ended"] = now
    return replace(state, exchange=replace(exchange, **changes)) if changes else state


def phase_name(exchange: ExchangeState) -> str:
    """What is being done for it, in one or two words."""
    instance = exchange.instance
    if instance is None or exchange.phase in (ExchangePhase.EXECUTE, ExchangePhase.STEP) or is_over(exchange):
        return str(exchange.phase)
    return f"{instance.purpose}: {instance.phase}"


def seconds_of(exchange: ExchangeState) -> dict[str, float]:
    """Seconds per phase of an exchange that is over, in the order in which it came to them; those of further attempts are added."""
    found: dict[str, float] = {}
    for (name, began), (_, ended) in pairwise(exchange.phases):
        found[name] = found.get(name, 0.0) + ended - began
    return found


def phase_table(state: RunState) -> dict[str, Any]:
    """The newest exchange that is over, and the median of the last few of its category.

    {"exchange": number, "of": exchanges in the median, "seconds": {phase: {"newest": s, "median": s}}}; {} before the first.
    """
    done = [e for e in all_exchanges(state) if is_over(e)]
    if not done:
        return {}
    lines = {e.number: line for e, line in zip(done, _lines(done), strict=True) if e.category == done[-1].category}
    newest, last = lines[done[-1].number], list(lines.values())[-SHOWN:]
    seconds = {name: {"newest": _ms(s), "median": _ms(median(line.get(name, 0.0) for line in last))} for name, s in newest.items()}
    return {"exchange": done[-1].number, "category": done[-1].category, "of": len(last), "seconds": seconds}


def _lines(done: Sequence[ExchangeState]) -> list[dict[str, float]]:
    """Per exchange its phases, after the time since the one before it ended."""
    starts = [0.0, *(e.ended for e in done)]
    return [{**({BETWEEN: e.started - ended} if ended else {}), **seconds_of(e)} for e, ended in zip(done, starts, strict=False)]


def _ms(seconds: float) -> float:
    return round(seconds, 3)
