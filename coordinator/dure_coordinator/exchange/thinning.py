"""Which weights a run needs no more on the coordinator's disk, and the steps that make some of them again. Pure.

Sums, scales, seeds and evidence stay for the run's life and after it: whoever recomputes the lineage starts from the first weights and
needs all of them. Bases between, and their momenta, follow from those bit for bit. Source: architecture.md, "What is kept, and how long".
"""

from __future__ import annotations

from collections.abc import Callable

from dure.errors import Refused
from dure.model.base import BaseRecord
from dure_coordinator.exchange.common import all_exchanges
from dure_coordinator.exchange.duties import Step
from dure_coordinator.exchange.owed import step_of
from dure_coordinator.exchange.state import ExchangeState, RunState

WEIGHTS = ("model", "mean", "base", "outer-state")
"""Purposes of the blobs that may be let go of."""


def thinned(state: RunState, keep: int) -> tuple[str, ...]:
    """Blob id texts of bases, momenta and means older than the last `keep` rounds; nothing that a newer one, or the first, names.

    Args:
        keep: bases that stay, besides the first weights and the current base; 0: all of them.
    """
    done = [e for e in all_exchanges(state) if e.has_arrays]
    rounds = [e for e in done if e.category == "train"]
    if not keep or len(rounds) <= keep:
        return ()
    since = rounds[-keep].number
    old = set().union(*(_weights(e) for e in done if e.number < since))
    stay = _first(done[0]).union(*(_weights(e) for e in done if e.number >= since)) | _of_record(state.base_record)
    stay |= {asked.weights for asked in (state.queued, state.unasked) if asked is not None}
    return tuple(sorted(old - stay))


def _first(exchange: ExchangeState) -> set[str]:
    """What the run began with."""
    return {exchange.asked.weights} | _of_record(exchange.base_record)


def _weights(exchange: ExchangeState) -> set[str]:
    """What an exchange began with and what it came to."""
    made = exchange.reply.blob if exchange.reply is not None else ""
    return (_first(exchange) | {made}) - {""}


def _of_record(record: bytes) -> set[str]:
    if not record:
        return set()
    base = BaseRecord.from_json(record)
    return {str(blob) for blob in (base.weights, base.outer_state) if blob is not None}


def steps_to(state: RunState, weights: str, here: Callable[[str], bool]) -> tuple[Step, ...]:
    """The steps whose last one makes these weights, or this mean, again, in order, from the newest base that is there.

    Args:
        here: whether a blob of that id text is on the disk.

    Raises:
        Refused: they follow from nothing that is kept, as a base that a ServerApp made.
    """
    steps: list[Step] = []
    made = next((e for e in all_exchanges(state) if e.reply is not None and e.reply.blob == weights), None)
    while made is not None:
        steps.append(step_of(state, made))
        needed = _of_record(made.base_record) if state.facts.named_step else set()
        if all(here(blob) for blob in needed):
            return tuple(reversed(steps))
        number = BaseRecord.from_json(made.base_record).exchange
        made = next((e for e in all_exchanges(state) if e.number == number), None)
    raise Refused("weights", "are let go of: a run's last bases are kept (keep_bases in coordinator.toml), and these follow from no sum")
