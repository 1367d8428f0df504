"""How an exchange ends: closed with a reply, failed with the reasons per member, or answered without having begun."""

from __future__ import annotations

from dataclasses import replace

from dure_coordinator.exchange.common import with_exchange
from dure_coordinator.exchange.duties import Reply
from dure_coordinator.exchange.events import Asked
from dure_coordinator.exchange.state import ExchangePhase, RunPhase, RunState, Unanswered


def answer_at_once(state: RunState, asked: Asked, reason: str) -> RunState:
    """A request that never becomes an exchange: it uses no exchange number."""
    members = asked.members or state.facts.roster
    reply = Reply("failed", errors={m: reason for m in members}, reason=reason)
    return _answered(replace(state, queued=None), asked, 0, reply)


def fail_exchange(state: RunState, reason: str) -> RunState:
    """The exchange in flight is over without a sum. Nothing was revealed, or scales only, which are used again."""
    exchange = state.exchange
    assert exchange is not None
    errors = {m: exchange.sat_out[m][1] if m in exchange.sat_out else reason for m in exchange.members}
    reply = Reply("failed", errors=errors, reason=reason)
    state = with_exchange(state, phase=ExchangePhase.FAILED, reply=reply, reason=reason)
    return _answered(replace(state, phase=RunPhase.IDLE, left_out=()), exchange.asked, exchange.number, reply)


def close_exchange(state: RunState, reply: Reply) -> RunState:
    """The exchange is over and its sum stands."""
    exchange = state.exchange
    assert exchange is not None
    state = replace(state, closed_accepts=exchange.accepts)
    state = with_exchange(state, phase=ExchangePhase.CLOSED, reply=reply)
    return _answered(replace(state, phase=RunPhase.IDLE, left_out=()), exchange.asked, exchange.number, reply)


def _answered(state: RunState, asked: Asked, exchange: int, reply: Reply) -> RunState:
    return replace(
        state,
        answers={**state.answers, asked.seq: asked.digest},
        unanswered=(*state.unanswered, Unanswered(asked.seq, exchange, reply)),
    )
