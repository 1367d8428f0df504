"""Taking members' statements into the log: each node's in the order of its numbers, before anything that refers to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dure.errors import NotAuthorised, Refused
from dure.secagg.ids import InstanceId
from dure.statements.anykind import kind_of, open_any
from dure.statements.dsse import Envelope, key_id
from dure.statements.kinds import DataCommitment, InstanceCommit, NodeDelegation, NodeRevocation
from dure.statements.statement import Signed
from dure_coordinator.callers import Caller
from dure_coordinator.fleet import Fleet
from dure_coordinator.log.opened import Openings
from dure_coordinator.log.referred import check_chained, check_references
from dure_coordinator.storage.store import StatementRow, With

MOST_PER_EXCHANGE = 16
"""Statements of one node for one exchange: a few instances, their attempts and voids, usage and acceptance. More is refused."""
MOST_BESIDES = 4096
"""Statements of one node that belong to no exchange."""
MEMBERS_OWN = (NodeDelegation, NodeRevocation, DataCommitment)
"""Signed by the member's signing key, not by its node."""


@dataclass
class Intake:
    """One coordinator's."""

    fleet: Fleet
    openings: Openings = field(init=False)

    def __post_init__(self) -> None:
        self.openings = Openings(self.fleet.store)

    async def append(self, caller: Caller, raw: bytes) -> str:
        """Makes a statement of this caller an entry; "" once it is one, durably, or why it is not. The same bytes get the same answer.

        Raises:
            Refused: out of form, or not signed by this node or its member.
            NotAuthorised: Hello is missing.
        """
        if kind_of(Envelope.from_bytes(raw).payload) == NodeRevocation.kind:
            return await self.enter(caller.member, raw)
        async with self.fleet.gate.passing():
            session = self.fleet.session(caller)
            member_key = self.fleet.roster().members[caller.member].signing_key
            signed = open_any(raw, [session.node_key, member_key])
            self._check_author(caller.member, signed, member_key)
            return await self.fleet.turns.alone(caller.member, lambda: self._append(signed, raw))

    async def enter(self, member: str, raw: bytes) -> str:
        """Makes what a member signed with its own key an entry, whoever brings it: delegations, revocations, data commitments. As `append`.

        A revocation counts from its entry on: nothing that the revoked node signed becomes an entry after it.
        """
        async with self.fleet.gate.closed():
            found = self.fleet.roster().members.get(member)
            if found is None:
                raise NotAuthorised(f"{member} is no member of charter version {self.fleet.roster().version}")
            signed = open_any(raw, [found.signing_key])
            self._check_author(member, signed, found.signing_key)
            why_not = await self.fleet.turns.alone(member, lambda: self._append(signed, raw))
            if not why_not and isinstance(signed.fact, NodeRevocation) and self.fleet.on_revoked is not None:
                await self.fleet.on_revoked(signed.fact)
            return why_not

    async def _append(self, signed: Signed[Any], raw: bytes) -> str:
        party = key_id(signed.key)
        store = self.fleet.store
        following = await store.log_next_seq(party)
        known = await store.statement(party, signed.seq)
        if known and raw not in known:
            if len(known) == 1:  # the evidence: two of one number. A third says nothing more, and there is no end of them
                await store.write(b"", With(statements=(StatementRow.of(raw),)))
            return f"another statement {signed.seq} of this key is there already: two histories of one node"
        if signed.seq > following:
            return f"statement {following} is missing before it"
        if not known:
            await self.fleet.heads.check(raw)
            await check_references(store, raw)
            if isinstance(signed.fact, InstanceCommit):
                await self._check_opened(signed.fact)
            await check_chained(store, self.fleet.clock(), raw)
            await self._check_room(party, signed)
            await store.write(b"", With(statements=(StatementRow.of(raw, getattr(signed.fact, "run", None)),)))
            await self.fleet.changes.bump()
        return ""

    def _check_author(self, speaker: str, signed: Signed[object], member_key: bytes) -> None:
        member = getattr(signed.fact, "member", None)
        if member != speaker:
            raise Refused("member", f"{speaker} cannot speak for {member}")
        if (signed.key == member_key) != isinstance(signed.fact, MEMBERS_OWN):
            raise Refused(
                "signatures", "a member's signing key signs delegations, revocations and data commitments, its node's key everything else"
            )

    async def _check_opened(self, said: InstanceCommit) -> None:
        engine = await self.fleet.engine(InstanceId.decode(said.instance).run)
        if engine is None:
            raise Refused("instance", "is of no run of this consortium")
        await self.openings.check(said, engine.state)

    async def _check_room(self, party: str, signed: Signed[object]) -> None:
        """No member can bloat the log: what it may say is bounded by the runs there are."""
        run = getattr(signed.fact, "run", None)
        most = MOST_BESIDES
        if run is not None:
            engine = await self.fleet.engine(run)
            if engine is None:
                raise Refused("run", "is no run of this consortium")
            most = MOST_PER_EXCHANGE * (engine.state.facts.plan.max_exchanges + 1)
        if await self.fleet.store.statements_of(party, run) >= most:
            raise Refused("seq", f"over {most} statements of this node for one run")
