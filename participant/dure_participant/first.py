"""First weights that all members drew together: made here from the opened seeds, so that nobody has to be believed, and no byte travels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dure.blobs import BlobId, BlobStore
from dure.errors import DureError, Refused, Unavailable
from dure.model.initial import initialise
from dure.model.layout import Layout
from dure.model.rules import Rule
from dure.recompute.evidence import MAX_EVIDENCE_BYTES, MAX_SEEDS_BYTES, Trust
from dure.recompute.joint_seed import judged_draw
from dure.statements.kinds import RunPlan
from dure.wire.messages import EvidenceQuery
from dure_participant.bulk import pull_bytes
from dure_participant.transport import Line

LOOKED_AT = 16
"""The draw is the run's first exchange that was opened; failed ones before it have nothing to show."""


async def joint_seed(line: Line, trust: Trust, before: int) -> bytes:
    """The run's seed, by what was signed, committed and opened in an exchange before number `before`.

    Raises:
        Unavailable: not now.
        DureError: no exchange drew one, or what the coordinator shows of it does not hold.
    """
    for number in range(1, min(before, LOOKED_AT + 1)):
        for said in await line.evidence(EvidenceQuery(trust.run, number)):
            evidence = await pull_bytes(line.channel, BlobId.parse(said.evidence), limit=MAX_EVIDENCE_BYTES)
            seeds = await pull_bytes(line.channel, BlobId.parse(said.seeds), limit=MAX_SEEDS_BYTES)
            seed = await asyncio.to_thread(judged_draw, said.aggregate, evidence, seeds, trust)
            if seed is not None:
                return seed
    raise Refused("weights", "the plan wants them from a seed that the members draw, and no exchange of this run drew one")


async def make_first(
    line: Callable[[], Line], blobs: BlobStore, trust: Trust, plan: RunPlan, layout: Layout, offered: BlobId, now: int
) -> str:
    """Puts the first weights into `blobs`; "" where they are the ones offered in exchange `now`, else why they are not.

    Args:
        line: the connection, or `Unavailable`.
        offered: the base's flat vector, as the coordinator names it.
        now: number of the exchange that begins on it.

    Raises:
        Unavailable: not now. All else that goes wrong is the coordinator's, and comes back as words.
    """
    assert plan.initial is not None
    if layout.tensors_sha256 != plan.initial.tensors_sha256:
        return "weights: the model has other tensors than the plan's first weights"
    try:
        seed = await joint_seed(line(), trust, now)
    except Unavailable:
        raise
    except DureError as error:
        return str(error)
    rules = [Rule(rule.tensors, rule.kind, rule.value) for rule in plan.initial.rules]

    def make() -> BlobId:
        with blobs.writer() as out:
            initialise(seed, layout, rules, out.append)
            return out.commit().id

    try:
        made = await asyncio.to_thread(make)
    except Refused as error:
        return str(error)
    return "" if made == offered else "weights: the first ones offered are not those of the seed the members drew"
