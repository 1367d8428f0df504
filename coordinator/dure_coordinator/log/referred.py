"""Environments that members' usage statements name: each must be an entry before, or no audit would hold any more; one member could do
that to all."""

from __future__ import annotations

from dure.errors import Refused
from dure.statements.anykind import kind_of
from dure.statements.dsse import Envelope
from dure.statements.kinds import EnvCommitment, Usage
from dure.statements.statement import read_verified
from dure_coordinator.storage.store import Store


async def check_environments(store: Store, *envelopes: bytes) -> None:
    """That each usage statement among these names an env-commitment of its own member that is an entry of the log, or none.

    Raises:
        Refused: out of form, or it names another one.
    """
    for raw in envelopes:
        if kind_of(Envelope.from_bytes(raw).payload) != Usage.kind:
            continue
        said = read_verified(raw, Usage)
        if said.environment_sha256 is not None:
            await _check(store, said.member, said.environment_sha256)


async def _check(store: Store, member: str, digest: bytes) -> None:
    index = await store.log_index(digest)
    if index is None:
        raise Refused("environment_sha256", "names no entry of the log: the env-commitment comes first")
    (entry,) = await store.log_entries(index, index + 1)
    if kind_of(Envelope.from_bytes(entry).payload) != EnvCommitment.kind or read_verified(entry, EnvCommitment).member != member:
        raise Refused("environment_sha256", f"names entry {index}, which is no env-commitment of {member}")
