"""A coordinator is upgraded in the middle of a run: the database of the release before opens, complete, and the run goes on."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from sim.exchange_world import TAKEN_UP, World
from support import old_database

from dure.statements.kinds import InstanceAggregate, RunPlan
from dure.statements.statement import read_verified
from dure.tlog.merkle import merkle_root
from dure_coordinator.app import exchange_logic
from dure_coordinator.engine import RunEngine
from dure_coordinator.exchange.state import RunPhase
from dure_coordinator.storage.store import NewEvent, Store


class Idle:
    async def perform(self, run, duty):
        await asyncio.Event().wait()


@pytest.fixture
async def upgraded(tmp_path):
    path = old_database.opened(tmp_path)
    with sqlite3.connect(path) as db:
        assert db.execute("select version_num from alembic_version").fetchone() == (old_database.REVISION,)
    store = await Store.open(f"sqlite:///{path}")
    yield store
    await store.close()


AGAIN = "events or plans are of another form now: `python -m support.old_database` writes the file anew, while nothing is released"


def world_of(row) -> World:
    """The consortium whose run it is; its keys are made from a seed."""
    world = old_database.consortium()
    assert world.run == row.run, AGAIN
    return world


async def loaded(store, world, row) -> RunEngine:
    engine = RunEngine(row.run, row.created, exchange_logic(world.facts), store, Idle())
    await engine.load()
    return engine


async def test_the_database_of_the_release_before_is_complete_after_the_upgrade(upgraded):
    (row,) = await upgraded.runs()
    world = world_of(row)
    assert read_verified(row.plan, RunPlan) == world.plan
    state = (await loaded(upgraded, world, row)).state
    assert (state.phase, state.exchange.number, state.exchange.category) == (RunPhase.IDLE, 1, "query")
    assert set(state.counted) == set(world.members)

    statements = await upgraded.statements(run=row.run)
    assert {s.kind for s in statements} >= {"run-plan", "run-approval", "instance-open", "instance-survivors", "exchange-accept", "usage"}
    aggregate = next(s for s in statements if s.kind == "instance-aggregate")
    assert read_verified(aggregate.envelope, InstanceAggregate).instance == state.exchange.instance.instance
    head = await upgraded.log_head()
    entries = await upgraded.log_entries(0, head.size)
    assert head.size == len(statements) > 15
    assert merkle_root(entries) == head.root()


async def test_the_run_goes_on_after_the_upgrade(upgraded):
    (row,) = await upgraded.runs()
    first = await upgraded.events(row.run)
    world = world_of(row)
    old_database.remember(world)
    world.state, world.log = (await loaded(upgraded, world, row)).state, [(e.time, e.body) for e in first]
    world.chain = await upgraded.chain_of((await upgraded.statements(kind="run-plan"))[0].party)
    world.now = first[-1].time + 3600
    world.apply(TAKEN_UP)
    for member in world.members:
        world.connect(member)
    world.run_until(lambda w: w.idle())
    reply = world.exchange(2, "query", config=0.2)
    assert reply.status == "ok" and set(reply.survivors) == set(world.members)
    world.check_statements()

    fresh = [NewEvent(len(first) + k, at, body) for k, (at, body) in enumerate(world.log[len(first) :])]
    await upgraded.append(row.run, *fresh)
    assert (await loaded(upgraded, world, row)).state == world.state
