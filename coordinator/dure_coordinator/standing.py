"""Who may take part from now on: a newer charter version comes into force, and what follows from it for nodes and runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from dure.charter.succession import barred
from dure.errors import DureError, Refused
from dure.statements.kinds import NodeDelegation, NodeRevocation
from dure.statements.statement import open_statement, read_verified
from dure_coordinator.callers import Roster
from dure_coordinator.engine import RunEngine
from dure_coordinator.exchange.events import Halt, Tick
from dure_coordinator.exchange.state import RunPhase
from dure_coordinator.storage.store import Store

if TYPE_CHECKING:
    from dure_coordinator.app import Coordinator

log = structlog.get_logger()

LOOK_S = 1.0
"""How often a serving coordinator looks for what `dure charter publish` wrote."""


async def watch(coordinator: Coordinator) -> None:
    """Obeys versions as they are published, until cancelled. One that cannot be obeyed is said once, shown by status, and tried again.

    A full disk that stood in the way of a removal must not keep the removed member in.
    """
    seen: object = None
    while True:
        await asyncio.sleep(LOOK_S)
        now = await asyncio.to_thread(_stamp, coordinator)
        if now == seen and not coordinator.charter_trouble:
            continue
        seen, why = now, ""
        try:
            await obey(coordinator)
        except Exception as error:  # our own mistake, too, must not end the looking
            why = f"the published charter is not obeyed: {error if isinstance(error, DureError) else repr(error)}"
            if why != coordinator.charter_trouble:
                log.error("charter.not_obeyed", reason=why, exc_info=not isinstance(error, DureError))
        coordinator.charter_trouble = why


def _stamp(coordinator: Coordinator) -> object:
    try:
        found = coordinator.folder.published_path().stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


async def obey(coordinator: Coordinator) -> None:
    """Takes versions published since: their entries are the first thing of a new order, and nobody they left out gets anything in after.

    Raises:
        DureError: what is published cannot be obeyed, and everything is as before; or it is an entry, and what follows from it was cut
            short: called again, it is done from its beginning.
    """
    newer = await asyncio.to_thread(coordinator.charters.newer)
    if not newer and not coordinator.obeying:
        return
    await coordinator.publisher.may_sign()
    async with coordinator.fleet.gate.closed():
        if newer:
            await enter(coordinator, newer)
        coordinator.obeying = True
        coordinator.roster_changed()
        await refit(coordinator)
        await settle(coordinator)
    log.info("charter.in_force", version=coordinator.charter.version, sha256=coordinator.charter.digest.hex())
    if coordinator.door is not None:
        await coordinator.door.renew(coordinator.roster.anchors())
    await coordinator.fleet.new_era()
    coordinator.obeying = False


async def enter(coordinator: Coordinator, newer: tuple[bytes, ...]) -> None:
    """These versions are entries when this returns, and count; where they could not be written, those before count still."""
    before = coordinator.charters.roots
    coordinator.charters.take(newer)
    try:
        await coordinator.enter_charter()
    except BaseException:
        coordinator.charters.back_to(before)
        raise


async def refit(coordinator: Coordinator) -> None:
    """Open runs learn the members' newer keys."""
    fleet = coordinator.fleet
    for engine in _open(coordinator):
        row = fleet.rows[engine.run]
        await engine.refit(fleet.logic_of(fleet.facts_of(row, fleet.plan_of(row))))
        await engine.submit(Tick())


async def settle(coordinator: Coordinator) -> None:
    """Nodes that may take no part any more are out, and runs that the charter in force does not allow end after their round."""
    fleet, roster = coordinator.fleet, coordinator.roster
    known = {m: s.delegation for m, s in fleet.sessions.items()}
    for engine in _open(coordinator):
        known |= {m: p.delegation for m, p in engine.state.present.items() if m not in known}
    await fleet.dismiss({m: why for m, delegation in known.items() if (why := why_out(roster, m, delegation))})
    for engine in _open(coordinator):
        if why := _why_over(coordinator, engine):
            await engine.submit(Halt(why))


def _open(coordinator: Coordinator) -> Iterator[RunEngine]:
    return (engine for engine in list(coordinator.fleet.runs.values()) if not engine.ended)


def _why_over(coordinator: Coordinator, engine: RunEngine) -> str:
    plan, newest = engine.state.facts.plan, coordinator.charter.version
    if engine.state.phase is RunPhase.APPROVING and plan.charter_version < newest:
        return f"charter version {newest} came into force before enough members had approved; start the run again"
    return barred(plan, coordinator.charters.all)


def why_out(roster: Roster, member: str, delegation: bytes) -> str:
    """Why a node with this delegation may take no part; "" if it may."""
    found = roster.members.get(member)
    if found is None:
        return f"{member} is no member of charter version {roster.version}"
    try:
        word = open_statement(delegation, NodeDelegation, [found.signing_key]).fact
    except Refused:
        return f"charter version {roster.version} replaces the keys of {member}"
    return f"node {word.node} was revoked by {member}" if word.generation <= roster.revoked_generation(member) else ""


async def revoked_in(store: Store) -> tuple[NodeRevocation, ...]:
    """Every revocation in the log."""
    return tuple(read_verified(row.envelope, NodeRevocation) for row in await store.statements(kind=NodeRevocation.kind))


async def revoke(coordinator: Coordinator, fact: NodeRevocation) -> None:
    """A revocation is an entry, and the gate is closed: its node is out of every run and its calls end.

    Brought again, it adds nothing to what is held in memory, and what was cut short the first time is done.
    """
    if fact not in coordinator.roster.revoked:
        coordinator.roster = replace(coordinator.roster, revoked=(*coordinator.roster.revoked, fact))
        log.warning("node.revoked", member=fact.member, node=fact.node, generation=fact.generation)
    await settle(coordinator)
    if coordinator.door is not None:
        # Not awaited: the call that brought it may be one that is cut.
        coordinator.cutting = asyncio.create_task(coordinator.door.port.authorise.recheck(), name="revocation")
