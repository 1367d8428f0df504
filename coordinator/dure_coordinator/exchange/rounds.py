"""Rounds of a run and the model after each: pure views of the exchanges so far.

Round k is the k-th train exchange that is over, as the app's own `server-round` counts; one that failed leaves the model as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dure.model.base import BaseRecord
from dure_coordinator.exchange.common import all_exchanges, is_over
from dure_coordinator.exchange.state import RunState


@dataclass(frozen=True)
class Model:
    """Weights a run had at some point."""

    weights: str
    """Blob id text of the flat vector."""
    layout: bytes
    """Canonical JSON."""
    exchange: int
    """The exchange after which they were known; 0 for the first base."""
    record: bytes = b""
    """Base record of these weights, whose digest members accepted; b"" where they did not compute it."""


def models(state: RunState) -> dict[int, Model]:
    """The model after each round; 0 is the first base. Where the ServerApp makes the bases, a round's model is known once it sends it."""
    found: dict[int, Model] = {}
    done = 0
    for e in all_exchanges(state):
        if e.has_arrays and not (state.facts.named_step and found):
            found.setdefault(done, Model(e.asked.weights, e.layout, e.number if done else 0))
        if e.category == "train" and is_over(e):
            done += 1
            if e.has_arrays and state.facts.named_step:
                made = e.reply.blob if e.reply is not None and e.reply.status == "ok" else ""
                found[done] = Model(made, e.layout, e.number) if made else found[done - 1]
    records = _records(state) if state.facts.named_step else {}
    found = {number: replace(model, record=records.get(model.weights, b"")) for number, model in found.items()}
    return _with_unasked(state, found, done)


def _records(state: RunState) -> dict[str, bytes]:
    """Blob id text of the weights -> base record, of every base so far."""
    raw = [e.base_record for e in all_exchanges(state)] + [state.base_record]
    return {str(BaseRecord.from_json(record).weights): record for record in raw if record}


def _with_unasked(state: RunState, found: dict[int, Model], done: int) -> dict[int, Model]:
    """A halted ServerApp's last word is the model of the round before it, where it makes the bases."""
    from dure_coordinator.exchange.asking import instruction_of

    asked = state.unasked
    arrays = instruction_of(asked).arrays if asked is not None and asked.weights else None
    if asked is not None and arrays is not None:
        found.setdefault(done, Model(asked.weights, arrays.layout.to_json(), state.exchanges))
    return found
