"""Small things every phase uses: refusing by field, replacing parts of the state, who is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dure.errors import DureError, Refused
from dure.wire.messages import OUT_OF_TIME, ReportReply
from dure_coordinator.exchange.state import ExchangePhase, ExchangeState, InstanceState, RunPhase, RunState

OK = ReportReply(True)


@dataclass(frozen=True)
class Taken:
    """A report was judged: the state after it and the answer."""

    state: RunState
    reply: ReportReply = OK


def refuse(field: str, why: str) -> ReportReply:
    return ReportReply(False, field, why)


def refusal_of(error: DureError) -> ReportReply:
    """The answer to a report whose body is out of form; names the field where the error does."""
    field = getattr(error, "field", None) or getattr(error, "what", None) or "body"
    return ReportReply(False, str(field), str(error))


def is_connected(state: RunState, member: str) -> bool:
    seen = state.present.get(member)
    return seen is not None and seen.connected


def is_lost(state: RunState, member: str) -> bool:
    """Gone for longer than a phase waits for it when everyone else is done."""
    seen = state.present.get(member)
    return seen is None or seen.lost


NOT_READY = "was not ready at the deadline"
NOT_DEALT = "dealt no shares in time"
NOT_UPLOADED = "did not finish its upload in time"
LATE = frozenset({NOT_READY, NOT_DEALT, NOT_UPLOADED})
"""Reasons that mean: it was there, and missed a deadline."""


def is_late(reason: str) -> bool:
    """Whether it was there and missed a deadline, by our clock or by its own word."""
    return reason in LATE or reason.endswith(OUT_OF_TIME)


def silence(state: RunState, member: str, what: str) -> str:
    """Why nothing came from this member: its node is gone, or it is there and `what`."""
    return "lost its connection" if is_lost(state, member) else what


def away(state: RunState, members: tuple[str, ...]) -> list[str]:
    """Those of them that are not connected and are still waited for."""
    return [m for m in members if (seen := state.present.get(m)) is not None and not seen.connected and not seen.lost]


def gone_wakeups(state: RunState, members: tuple[str, ...]) -> list[float]:
    """When each of these members that is away stops being waited for."""
    return [state.present[m].until for m in away(state, members)]


def all_exchanges(state: RunState) -> tuple[ExchangeState, ...]:
    """Oldest first, the one in flight or last among them."""
    return state.closed if state.exchange is None else (*state.closed, state.exchange)


def with_exchange(state: RunState, **changes: Any) -> RunState:
    assert state.exchange is not None
    return replace(state, exchange=replace(state.exchange, **changes))


def with_instance(state: RunState, **changes: Any) -> RunState:
    """The state with its exchange's current instance changed."""
    assert state.exchange is not None and state.exchange.instances
    *earlier, current = state.exchange.instances
    return with_exchange(state, instances=(*earlier, replace(current, **changes)))


def with_known(state: RunState, changed: InstanceState) -> RunState:
    """The state with this instance in place of the one of its id, in whatever exchange."""

    def put(exchange: ExchangeState) -> ExchangeState:
        if all(i.instance != changed.instance for i in exchange.instances):
            return exchange
        return replace(exchange, instances=tuple(changed if i.instance == changed.instance else i for i in exchange.instances))

    return replace(state, closed=tuple(put(e) for e in state.closed), exchange=put(state.exchange) if state.exchange else None)


def in_flight(state: RunState) -> ExchangeState | None:
    """The exchange being run, if one is."""
    return state.exchange if state.phase is RunPhase.EXCHANGE else None


def current(state: RunState) -> InstanceState | None:
    exchange = in_flight(state)
    return exchange.instance if exchange else None


def sit_out(state: RunState, member: str, phase: str, reason: str) -> RunState:
    """Notes that a member is out of the exchange in flight; the first reason stays."""
    exchange = in_flight(state)
    if exchange is None or member in exchange.sat_out:
        return state
    return with_exchange(state, sat_out={**exchange.sat_out, member: (phase, reason[:500])})


def abort(state: RunState, reason: str) -> RunState:
    """The run ends for good; a request in flight is answered with the reason."""
    from dure_coordinator.exchange.close import fail_exchange

    if in_flight(state) is not None:
        state = fail_exchange(state, reason)
    return replace(state, phase=RunPhase.ABORTED, reason=reason, queued=None)


def is_over(exchange: ExchangeState) -> bool:
    return exchange.phase in (ExchangePhase.CLOSED, ExchangePhase.FAILED)


def names(members: Any) -> str:
    return ", ".join(sorted(members)) or "nobody"


def json_body(body: bytes, allowed: Mapping[str, type], required: tuple[str, ...]) -> dict[str, Any]:
    """A report body that is a flat JSON object of known fields.

    Raises:
        Refused: naming the field that is absent, unknown or of another type.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("body", "is not JSON") from None
    if not isinstance(data, dict):
        raise Refused("body", "must be an object")
    for name in required:
        if name not in data:
            raise Refused(name, "is absent")
    for name, value in data.items():
        if name not in allowed:
            raise Refused(str(name)[:64], "is unknown")
        if type(value) is not allowed[name]:
            raise Refused(name, f"must be {allowed[name].__name__}")
    return data


def hex_field(data: Mapping[str, Any], name: str, length: int) -> bytes:
    try:
        raw = bytes.fromhex(data[name])
    except ValueError:
        raise Refused(name, "is not hex") from None
    if len(raw) != length:
        raise Refused(name, f"must have {length} bytes, has {len(raw)}")
    return raw
