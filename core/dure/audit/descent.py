"""A run's first weights followed into the run they came from: which of that run's recomputed bases has these very weights.

A plan that starts from weights says whose they are, and its members approved that; nothing of it is believed here. The earlier run is
recomputed from its own seed and sums first; where none of its bases has these weights, the plan lies, and is named. A file is known by
its weights alone, so that a released model is found whatever it was called. Source: ledger.md, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dure.audit.lineage import DRAWN, SENT, Lineage, LineageBroken
from dure.audit.parts import RunRecord
from dure.audit.report import FIRST, PROVED, SIGNED, UNCHECKED, Row
from dure.provenance.ancestry import Ancestry

RECOMPUTED = "recomputed"
SIGNED_ONLY = "signed, not recomputed"
NOT_HERE = "checked against the plan, not recomputed"
OUTSIDE = "outside model, by digest"
MOST_RUNS = 4
"""Runs that one cell of the table names."""


@dataclass(frozen=True)
class Descent:
    """Where first weights come from that were there before the run."""

    how: str
    """recomputed | signed, not recomputed | checked against the plan, not recomputed | outside model, by digest"""
    run: bytes = b""
    """The earlier run; nothing for an outside model."""
    exchange: int = 0
    """Of that run, where recomputed: after it these weights were its base; 0: its first."""

    def words(self) -> str:
        """For a person."""
        who = f"run {self.run.hex()[:12]}"
        if self.how == RECOMPUTED:
            return f"from {who}, {f'exchange {self.exchange}' if self.exchange else 'its first weights'}, {self.how}"
        if self.how == SIGNED_ONLY:
            return f"from {who}, whose ServerApp makes the bases: {self.how}"
        if self.how == NOT_HERE:
            return f"said to be from {who}, which is not recomputed here: {self.how}"
        return self.how

    def in_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {"run": self.run.hex() or None, "exchange": self.exchange if self.how == RECOMPUTED else None, "how": self.how}


def descent(record: RunRecord, ancestry: Ancestry, recomputed: Mapping[bytes, Lineage]) -> Descent | None:
    """Where the run's first weights come from; None where it does not begin with weights that were there before.

    Args:
        recomputed: by run, in the order of the log, every earlier run that was, and holds.

    Raises:
        LineageBroken: the plan names a run that the log does not have before it, or one that never had these weights.
    """
    base = record.plan.base
    if base is None:
        return None
    if stranger := ancestry.stranger(record.run):
        raise LineageBroken(
            "first weights", f"its plan says that it began with a model of run {stranger.hex()[:12]}, which the log does not have before it"
        )
    parent = ancestry.parent(record.run)
    if base.run is None:
        parent = _holder(base.weights_id, record, ancestry, recomputed) or parent
    if not parent:
        return Descent(OUTSIDE)
    one = recomputed.get(parent)
    if one is None:
        return Descent(NOT_HERE, parent)
    if not one.recomputable:
        return Descent(SIGNED_ONLY, parent)
    if base.weights_id in one.models:
        return Descent(RECOMPUTED, parent, one.models[base.weights_id])
    if base.run is None:
        return Descent(OUTSIDE)  # the release or the opening named them, as their signers' word; no base has them
    raise LineageBroken(
        "first weights",
        f"its plan says that it began with a model of run {parent.hex()[:12]}, and none of the {len(one.models)} bases of that run, "
        "recomputed, has these weights",
    )


def _holder(weights_id: bytes, record: RunRecord, ancestry: Ancestry, recomputed: Mapping[bytes, Lineage]) -> bytes:
    """The first earlier run that made a base with these weights; one that itself began with them as somebody else's did not make them."""
    for run, one in recomputed.items():
        base = ancestry.plans[run].base
        own = one.models.get(weights_id, 0) > 0 or base is None or base.weights_id != weights_id
        if own and weights_id in one.models and ancestry.earlier(run, record.run):
            return run
    return b""


def standing(run: bytes, lineages: Mapping[bytes, Lineage], descents: Mapping[bytes, Descent]) -> str:
    """How far it is shown where a run's weights begin, back to the oldest run: proved | signed | not checked."""
    how = PROVED if lineages[run].recomputable else SIGNED  # what its ServerApp sent first is in no file here
    while found := descents.get(run):
        if found.how in (NOT_HERE, OUTSIDE):
            return UNCHECKED
        how = SIGNED if found.how == SIGNED_ONLY else how
        run = found.run
    begins = lineages[run].begins if run in lineages else SENT
    return how if begins == DRAWN and lineages[run].seed else SIGNED


def row(lineages: Mapping[bytes, Lineage], descents: Mapping[bytes, Descent]) -> Row | None:
    """The line of the report about where weights begin; None where no run was looked at."""
    if not lineages:
        return None
    order = (UNCHECKED, SIGNED, PROVED)
    how = min((standing(run, lineages, descents) for run in lineages), key=order.index)
    words = [f"run {run.hex()[:12]}: {descents[run].words() if run in descents else one.origin}" for run, one in lineages.items()]
    more = f"; and {len(words) - MOST_RUNS} more runs" if len(words) > MOST_RUNS else ""
    return Row(FIRST, how, "; ".join(words[:MOST_RUNS]) + more)
