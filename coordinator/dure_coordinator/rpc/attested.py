"""Publishing a release or an allocation: the members' attestation becomes an entry of the log, and its proof comes back."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dure.charter.model import Charter
from dure.errors import BadInput, Unavailable
from dure.identity.keys import public_bytes
from dure.provenance.allocation import check_members, check_portions
from dure.provenance.attestation import check_published
from dure.statements import schema
from dure.statements.dsse import Envelope, key_id
from dure.statements.kinds import Allocation, AllocationPublished, CharterVersion, ReleasePublished
from dure.statements.statement import SeenHead, read_verified, seal
from dure_coordinator.storage.store import StatementRow, With

if TYPE_CHECKING:
    from dure_coordinator.app import Coordinator

COSIGNED_S = 60.0
"""How long the witnesses may take to cosign a head over the entry."""


async def publish(
    coordinator: Coordinator, kind: type[ReleasePublished] | type[AllocationPublished], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Enters what members attested; the same twice is one entry. {index, entry, proof}, the last two in base64.

    Raises:
        Refused, NotAuthorised: it is out of form, drawn from another log, of a charter version that is not in force yet, or too few members
            signed with keys that were theirs from that version on to the one in force.
        BadInput: of no run here.
        Unavailable: it is an entry, and too few witnesses are there to cosign it.
    """
    entry, what = schema.decode(kind, arguments.get("entry"), "entry"), kind.states.kind
    charters = await _in_force(coordinator)
    said = check_published(entry, charters)
    if isinstance(said, Allocation):
        check_portions(said)
        check_members(said, charters)  # an entry that level 1 finds wrong stays wrong in every audit to come
    for run in said.runs if isinstance(said, Allocation) else (said.run,):
        if await coordinator.fleet.engine(run) is None:
            raise BadInput(f"run {run.hex()[:12]} is no run of this coordinator; publish the {what} at the one that ran it")
    await coordinator.fleet.heads.own(SeenHead(said.log_size, said.log_root))
    raw = await _entered(coordinator, entry)
    try:
        async with asyncio.timeout(COSIGNED_S):
            proof = await coordinator.publisher.covering(Envelope.from_bytes(raw).sha256)
    except TimeoutError:
        missing = ", ".join(coordinator.publisher.missing()) or "none"
        raise Unavailable(f"the {what} is entered and not cosigned yet; witnesses missing: {missing}. Publish it again later") from None
    return {"index": proof.index, "entry": base64.b64encode(raw).decode(), "proof": base64.b64encode(proof.to_bytes()).decode()}


async def _in_force(coordinator: Coordinator) -> Sequence[Charter]:
    """The charter's versions that are entries."""
    entered = await coordinator.store.statements(kind=CharterVersion.kind)
    return coordinator.charters.all[: max(len(entered), 1)]


async def _entered(coordinator: Coordinator, entry: ReleasePublished | AllocationPublished) -> bytes:
    """The entry's envelope, signed once for each statement of members."""
    store, kind = coordinator.store, type(entry)
    performer: Any = coordinator.fleet.performer
    async with performer.chain_lock:
        for row in await store.statements(kind=kind.kind):
            if read_verified(row.envelope, kind).statement == entry.statement:
                return row.envelope
        check_published(entry, await _in_force(coordinator))  # a version that came meanwhile is an entry before this one
        key = coordinator.charters.signing_key
        party = key_id(public_bytes(key))
        chain = (await store.chain_of(party)).having_seen(coordinator.publisher.seen)
        envelope, after = seal(entry, key, chain, time.time())
        raw = envelope.to_bytes()
        read_verified(raw, kind)  # what nobody could read back is not kept
        await store.write(b"", With(statements=(StatementRow.of(raw),), chain=(party, after)))
    await coordinator.fleet.changes.bump()
    return raw
