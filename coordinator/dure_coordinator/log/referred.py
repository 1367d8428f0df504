"""What members' statements refer to: each its signer's one before, a commit its instance and its usage statement, that one its environment.

Each must be an entry before, or no audit holds any more: one member could do that to all.
"""

from __future__ import annotations

from typing import Any, TypeVar

from dure.errors import Refused, Unavailable
from dure.secagg.ids import InstanceId
from dure.statements.anykind import kind_of
from dure.statements.dsse import Envelope
from dure.statements.kinds import EnvCommitment, InstanceCommit, Usage
from dure.statements.statement import Place, read_place, read_verified
from dure_coordinator.storage.store import Store

S = TypeVar("S", Usage, EnvCommitment)
AHEAD_S = 12 * 3600
"""A statement dated a day after the head it is under fails every audit; a node whose clock is minutes off does not even connect."""


async def check_references(store: Store, *envelopes: bytes) -> None:
    """That each of these statements names what its own member said before, in an entry of the log, or nothing.

    Raises:
        Refused: out of form, or it names something else.
    """
    for raw in envelopes:
        kind = kind_of(Envelope.from_bytes(raw).payload)
        if kind == Usage.kind:
            await _check_usage(store, read_verified(raw, Usage))
        elif kind == InstanceCommit.kind:
            await _check_commit(store, read_verified(raw, InstanceCommit))


async def check_chained(store: Store, now: float, *envelopes: bytes) -> None:
    """That each of these statements, which one message brings, follows its signer's one before: an entry, or another of them. Otherwise it
    would never become one, and a survivor set could name it.

    Holds when they are written only where nothing of the same member is written meanwhile (turns.py).

    Args:
        now: unix seconds, by the coordinator's clock.

    Raises:
        Refused: it names another predecessor, an older head than that one did, has a number that is taken, or a time that is yet to come.
        Unavailable: the one before is not here; it comes first.
    """
    brought: dict[tuple[str, int], Envelope] = {}
    read = [(envelope, read_place(envelope.payload)) for envelope in map(Envelope.from_bytes, envelopes)]
    for envelope, place in sorted(read, key=lambda one: one[1].seq):
        party = envelope.signatures[0][0]
        if place.time > now + AHEAD_S and await store.log_index(envelope.sha256) is None:
            hours = (place.time - now) / 3600
            raise Refused("time", f"is {hours:.0f} hours from now by the coordinator's clock; set the one that is wrong (NTP)")
        if (party, place.seq) in brought:
            raise Refused("seq", f"two statements {place.seq} of this key: two histories of one node")
        await _check_follows(store, envelope, place, brought.get((party, place.seq - 1)))
        brought[party, place.seq] = envelope


async def _check_follows(store: Store, envelope: Envelope, place: Place, before: Envelope | None) -> None:
    """`before`: the one before, where it comes with this one."""
    (party, _), raw = envelope.signatures[0], envelope.to_bytes()
    there, following = await store.statement(party, place.seq), await store.log_next_seq(party)
    if raw in there and place.seq < following:
        return
    if [one for one in there if one != raw]:
        raise Refused("seq", f"another statement {place.seq} of this key is there already: two histories of one node")
    if place.seq > following and before is None:
        raise Unavailable(f"statement {following} of this key is missing before statement {place.seq}; send it first")
    before = before or await _entry_before(store, party, place.seq)
    if place.prev != (before.sha256 if before else None):
        raise Refused("prev", f"does not name this key's statement {place.seq - 1}")
    head = read_place(before.payload).seen if before else None
    if head is not None and (place.seen is None or place.seen.size < head.size):
        raise Refused("checkpoint", f"must not be older than the head of {head.size} entries that this key's statement before names")


async def _entry_before(store: Store, party: str, seq: int) -> Envelope | None:
    """Of two statements of one number the second is kept as evidence: whoever goes on from that one has no chain in the log."""
    for raw in await store.statement(party, seq - 1) if seq else ():
        envelope = Envelope.from_bytes(raw)
        if await store.log_index(envelope.sha256) is not None:
            return envelope
    return None


async def _check_usage(store: Store, said: Usage) -> None:
    if said.environment_sha256 is not None:
        await _named(store, EnvCommitment, said.environment_sha256, "environment_sha256", said.member)


async def _check_commit(store: Store, said: InstanceCommit) -> None:
    if said.usage_sha256 is None:
        return
    found = await _named(store, Usage, said.usage_sha256, "usage_sha256", said.member)
    where = InstanceId.decode(said.instance)
    if (found.run, found.exchange) != (where.run, where.exchange):
        raise Refused("usage_sha256", "names the usage statement of another exchange")


async def _named(store: Store, kind: type[S], digest: bytes, field: str, member: str) -> S:
    """The statement of this kind and member that is the entry with this digest."""
    index = await store.log_index(digest)
    if index is None:
        raise Refused(field, f"names no entry of the log: the {_name(kind)} comes first")
    (entry,) = await store.log_entries(index, index + 1)
    if kind_of(Envelope.from_bytes(entry).payload) == _name(kind):
        found = read_verified(entry, kind)
        if found.member == member:
            return found
    raise Refused(field, f"names entry {index}, which is no {_name(kind)} of {member}")


def _name(kind: Any) -> str:
    return str(kind.kind)
