"""A run's state as bytes, taken between exchanges, so that a load folds only the events after it. The log stays the only truth.

`head` is everything but the exchanges that are over, `past` one of those each: written once, never again, so that a snapshot of a long run
is as small as one of a short run. JSON; what JSON has no word for is an object with one tag:

    {"b": base64}  bytes    {"s": n}  the n-th shared byte string    {"m": [[key, value], …]}  mapping    {"e": [class, value]}  enum
    {"c": [class, field, …]}  dataclass, fields in their order       a list  tuple

`SHAPE` names the classes, their fields and this form: a snapshot of another shape is not read, and the log is folded from its start.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from hashlib import sha256
from typing import Any

from dure.errors import Refused
from dure_coordinator.exchange.common import in_flight
from dure_coordinator.exchange.duties import Reply
from dure_coordinator.exchange.events import Asked
from dure_coordinator.exchange.facts import RunFacts
from dure_coordinator.exchange.state import (
    Counted,
    Disputed,
    EpochPhase,
    EpochState,
    ExchangePhase,
    ExchangeState,
    InstancePhase,
    InstanceState,
    Patience,
    Presence,
    RunPhase,
    RunState,
)

_CLASSES: dict[str, Any] = {
    kind.__name__: kind for kind in (Asked, Counted, Disputed, EpochState, ExchangeState, InstanceState, Patience, Presence, Reply)
}
_ENUMS: dict[str, type[StrEnum]] = {kind.__name__: kind for kind in (EpochPhase, ExchangePhase, InstancePhase, RunPhase)}
_APART = ("facts", "closed")
"""Fields of the run's state that are not in the head: the engine has the facts, and `past` holds the rest."""
_HEAD = tuple(f.name for f in fields(RunState) if f.name not in _APART)
FORMAT = 1


def _shape() -> str:
    classes = [(kind.__name__, [(f.name, str(f.type)) for f in fields(kind)]) for kind in (*_CLASSES.values(), RunState)]
    enums = [(name, [str(value) for value in kind]) for name, kind in _ENUMS.items()]
    return sha256(json.dumps([FORMAT, classes, enums]).encode()).hexdigest()


SHAPE = _shape()


@dataclass(frozen=True)
class Snapshot:
    """A state as the store keeps it."""

    head: bytes
    past: tuple[bytes, ...]
    """Exchanges that are over, oldest first, from the one the caller asked for."""


def settled(state: RunState) -> bool:
    """Whether nothing is under way: what is then left is small, and needs no message of anyone."""
    return in_flight(state) is None and not state.unanswered


def freeze(state: RunState, known: int) -> Snapshot:
    """A settled state; `known` is how many exchanges that are over the store has already."""
    assert settled(state)
    shared = _shared(state)
    number = {raw: n for n, raw in enumerate(shared)}
    head = [_encode(getattr(state, name), number) for name in _HEAD]
    past = tuple(_dump(_encode_past(e, number)) for e in state.closed[known:])
    return Snapshot(_dump({"shared": [base64.b64encode(raw).decode() for raw in shared], "state": head}), past)


def thaw(facts: RunFacts, head: bytes, past: Sequence[bytes]) -> RunState:
    """The state that was frozen.

    Raises:
        Refused: the bytes are not of this form; the log still has everything.
    """
    try:
        body = json.loads(head)
        shared = tuple(base64.b64decode(text, validate=True) for text in body["shared"])
        values = [_decode(value, shared) for value in body["state"]]
        closed = tuple(_decode_past(json.loads(one), shared) for one in past)
        state = RunState(facts=facts, closed=closed, **dict(zip(_HEAD, values, strict=True)))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as e:
        raise Refused("snapshot", f"cannot be read: {type(e).__name__}: {e}") from None
    if not settled(state):
        raise Refused("snapshot", "is of a run in mid-exchange")
    return state


def _shared(state: RunState) -> tuple[bytes, ...]:
    """Layouts: the same in every exchange, and long. In the order in which exchanges brought them, so that numbers never change."""
    exchanges = (*state.closed, *((state.exchange,) if state.exchange is not None else ()))
    return tuple(dict.fromkeys(e.layout for e in exchanges if e.layout))


def _encode_past(exchange: ExchangeState, shared: Mapping[bytes, int]) -> Any:
    """[place of its scales among its own instances or null, the exchange without them]"""
    own = next((k for k, i in enumerate(exchange.instances) if i == exchange.scales), None)
    return [own, _encode(exchange if own is None else replace(exchange, scales=None), shared)]


def _decode_past(value: Any, shared: Sequence[bytes]) -> ExchangeState:
    own, exchange = value[0], _decode(value[1], shared)
    if not isinstance(exchange, ExchangeState):
        raise TypeError("not an exchange")
    return exchange if own is None else replace(exchange, scales=exchange.instances[own])


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _encode(value: Any, shared: Mapping[bytes, int]) -> Any:
    if isinstance(value, StrEnum):
        return {"e": [type(value).__name__, value.value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"s": shared[value]} if value in shared else {"b": base64.b64encode(value).decode()}
    if isinstance(value, tuple):
        return [_encode(v, shared) for v in value]
    if isinstance(value, Mapping):
        return {"m": [[k, _encode(v, shared)] for k, v in value.items()]}
    name = type(value).__name__
    assert is_dataclass(value) and name in _CLASSES, f"{name} has no place in a settled state"
    return {"c": [name, *(_encode(getattr(value, f.name), shared) for f in fields(value))]}


def _decode(value: Any, shared: Sequence[bytes]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v, shared) for v in value)
    if not isinstance(value, dict):
        return value
    ((tag, inside),) = value.items()
    if tag == "b":
        return base64.b64decode(inside, validate=True)
    if tag == "s":
        return shared[inside]
    if tag == "m":
        return {k: _decode(v, shared) for k, v in inside}
    if tag == "e":
        return _ENUMS[inside[0]](inside[1])
    if tag == "c":
        kind, names = _CLASSES[inside[0]], [f.name for f in fields(_CLASSES[inside[0]])]
        return kind(**dict(zip(names, (_decode(v, shared) for v in inside[1:]), strict=True)))
    raise ValueError(f"unknown tag {tag!r}")
