"""The `eval` statement of an evaluate exchange: signed with the sum it puts into words, in the same transaction."""

from __future__ import annotations

from dure.errors import DureError
from dure.provenance.evaluation import CATEGORY, evaluation
from dure.secagg.ids import InstanceId, Purpose
from dure.statements.kinds import Eval, InstanceAggregate, InstanceOpen, Usage
from dure.statements.statement import read_verified
from dure_coordinator.exchange.state import RunState
from dure_coordinator.exchange.upload import read_commit
from dure_coordinator.storage.store import Store


async def eval_of(store: Store, state: RunState, said: InstanceAggregate, aggregate_sha256: bytes) -> Eval | None:
    """What is to be signed after this sum; None where it measures nothing: it is of another category, or of scales.

    Args:
        aggregate_sha256: of the statement's payload.
    """
    where, instance = InstanceId.decode(said.instance), state.exchange.instance if state.exchange else None
    if instance is None or instance.instance != said.instance or where.purpose is Purpose.SCALES:
        return None
    opened = read_verified(instance.open_envelope, InstanceOpen)
    if opened.category != CATEGORY:
        return None
    return evaluation(
        run=where.run,
        exchange=where.exchange,
        weights_id=opened.weights_id,
        aggregate_sha256=aggregate_sha256,
        members=instance.survivors,
        names=opened.metrics,
        trailer=said.trailer,
        w_max=state.facts.plan.w_max,
        data=await _data(store, {m: instance.commits[m] for m in instance.survivors}),
    )


async def _data(store: Store, commits: dict[str, bytes]) -> set[bytes]:
    """What the usage statements that these commits name say was used; each member's of its own."""
    found: set[bytes] = set()
    for member, commit in commits.items():
        digest = read_commit(commit).usage_sha256
        raw = await store.envelope(digest) if digest is not None else None
        try:
            usage = read_verified(raw, Usage) if raw is not None else None
        except DureError:
            usage = None  # it is some other statement, which the audit names
        if usage is not None and usage.member == member:
            found.update(usage.data)
    return found
