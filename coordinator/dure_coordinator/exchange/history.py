"""What a run has behind it and how long it has still to go: pure views for people, from the exchanges that are over."""

from __future__ import annotations

from typing import Any

from dure_coordinator.exchange.common import all_exchanges, is_over
from dure_coordinator.exchange.state import ExchangeState, RunPhase, RunState

PACE_ROUNDS = 5
"""Rounds whose pace the time left is estimated from."""


def over(state: RunState) -> list[ExchangeState]:
    """Exchanges that closed or failed, in order."""
    return [e for e in all_exchanges(state) if is_over(e)]


def history(state: RunState) -> list[dict[str, Any]]:
    """One line per exchange that is over: what came of it, who was counted, its opened metrics, how long it took."""
    return [_line(exchange) for exchange in over(state)]


def _line(exchange: ExchangeState) -> dict[str, Any]:
    reply = exchange.reply
    return {
        "exchange": exchange.number,
        "category": exchange.category,
        "status": reply.status if reply else "failed",
        "counted": len(reply.survivors) if reply else 0,
        "of": len(exchange.members),
        "metrics": dict(reply.metrics) if reply else {},
        "seconds": round(exchange.ended - exchange.started, 2),
        "reason": exchange.reason,
    }


def finish_words(state: RunState, rounds: int) -> str:
    """How a ServerApp came to its end, by itself; what failed on the way is not hidden behind the word finished."""
    done = over(state)
    failed = [e for e in done if e.reply is None or e.reply.status != "ok"]
    words = f"the ServerApp finished after {rounds} rounds"
    if failed:
        words += f"; {len(failed)} of {len(done)} exchanges failed, the last one: {failed[-1].reason}"
    return words[:500]


def rounds_over(state: RunState) -> int:
    """Train exchanges that are over; a round that failed is over, too."""
    return sum(e.category == "train" for e in over(state))


def time_left_s(state: RunState, now: float) -> float | None:
    """Seconds until the plan's last round ends, from the pace of the last few; None before the first ended, in a pause, after the run."""
    rounds = [e for e in over(state) if e.category == "train"][-PACE_ROUNDS:]
    if not rounds or state.paused or state.phase in (RunPhase.FINISHED, RunPhase.ABORTED):
        return None
    ended = over(state)[-1].ended
    pace = (ended - rounds[0].started) / len(rounds)
    return max(0.0, pace * (state.facts.plan.rounds - rounds_over(state)) - (now - ended))
