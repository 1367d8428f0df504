"""Snapshots: a load from one gives the state the whole log gives, reads the last events only, and never trusts one it cannot read."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
from sim.exchange_world import World

from dure.errors import Refused
from dure_coordinator import engine as engine_module
from dure_coordinator.app import exchange_logic
from dure_coordinator.engine import RunEngine
from dure_coordinator.exchange import past, snapshot
from dure_coordinator.exchange.history import finish_words
from dure_coordinator.exchange.state import InstancePhase, RunState
from dure_coordinator.storage import snapshots as rows
from dure_coordinator.storage.store import NewEvent, RunRow, Store


@lru_cache(maxsize=1)
def played() -> World:
    """Three rounds of four members, and an evaluation after each."""
    world = World(4, 1, seed=5)
    world.start()
    world.run_until(lambda w: w.idle())
    weights = world.first_weights()
    for seq in (1, 3, 5):
        weights = world.exchange(seq, "train", weights).blob
        assert world.exchange(seq + 1, "evaluate", weights).status == "ok"
    return world


@dataclass
class Idle:
    """Does no duty: the log has everything already."""

    async def perform(self, run, duty):
        await asyncio.Event().wait()


@pytest.fixture
async def store(tmp_path):
    made = await Store.open(f"sqlite:///{tmp_path}/c.db")
    await made.add_run(RunRow(played().run, "sim", b"", bytes(32), created=played().began))
    yield made
    await made.close()


async def fill(store: Store) -> None:
    log = played().log
    await store.append(played().run, *(NewEvent(k, at, body) for k, (at, body) in enumerate(log)))


def engine_of(store: Store) -> RunEngine:
    world = played()
    return RunEngine(world.run, world.began, exchange_logic(world.facts), store, Idle())


async def loaded(store: Store) -> RunEngine:
    engine = engine_of(store)
    await engine.load()
    return engine


async def keep(engine: RunEngine) -> None:
    """As the engine does after a commit that makes one due."""
    engine._frozen = -engine_module.SNAPSHOT_EVENTS
    engine._freeze_soon()
    assert engine._freezing is not None
    await engine._freezing


async def test_a_load_from_a_snapshot_gives_the_state_the_whole_log_gives(store):
    await fill(store)
    engine = await loaded(store)
    assert engine.state == played().state
    await keep(engine)
    again = await loaded(store)
    assert (again.state, again.position, again._last, again._frozen) == (engine.state, engine.position, engine._last, engine.position)


async def test_only_the_events_after_the_snapshot_are_read(store, monkeypatch):
    await fill(store)
    await keep(await loaded(store))
    asked = []
    real = store.events

    async def events(run, first=0, most=-1):
        asked.append(first)
        return await real(run, first, most)

    monkeypatch.setattr(store, "events", events)
    assert (await loaded(store)).state == played().state
    assert asked == [len(played().log)]


async def test_exchanges_that_are_over_are_written_once(store):
    world = played()
    await fill(store)
    engine = await loaded(store)
    await keep(engine)
    _, bodies = await store.snapshot(world.run)
    assert len(bodies) == len(world.state.closed) == 5
    first = engine._past
    await keep(engine)
    assert (engine._past, await store.snapshot(world.run)) == (first, await store.snapshot(world.run))


@pytest.mark.parametrize("damage", ["shape", "head", "past", "past gone"])
async def test_a_snapshot_that_cannot_be_read_is_passed_over(store, damage):
    world = played()
    await fill(store)
    await keep(await loaded(store))
    row, bodies = await store.snapshot(world.run)
    if damage == "shape":
        row = replace(row, shape="0" * 64)
    elif damage == "head":
        row = replace(row, head=row.head[:-40])
    elif damage == "past":
        bodies = (b'[null,{"c":["Evil"]}]', *bodies[1:])
    await store.put_snapshot(row, 0, bodies if damage != "past gone" else [b"[]"] * len(bodies))
    engine = await loaded(store)
    assert engine.state == world.state and engine._frozen == 0
    await keep(engine)  # and the next one takes its place, whole
    assert (await loaded(store))._frozen == len(world.log)


async def test_a_log_that_gives_another_state_than_when_it_was_written_is_refused_by_event(store):
    await fill(store)
    at, body = played().log[4]
    await store.append(played().run, NewEvent(len(played().log), at, body))
    with pytest.raises(Refused, match=f"event {len(played().log)}: changed something"):
        await loaded(store)


async def test_an_engine_keeps_a_snapshot_by_itself_and_not_in_mid_exchange(store, monkeypatch):
    """The log is fed to an engine event by event, as it came."""
    monkeypatch.setattr(engine_module, "SNAPSHOT_EVENTS", 20)
    world, engine, kept = played(), await loaded(store), []
    for at, body in world.log:
        engine.clock = lambda at=at: at
        await engine.submit(engine.logic.decode(body))
        if engine._freezing is not None:
            kept.append(engine.position)
            await engine._freezing
    assert engine.state == world.state
    assert len(kept) >= 5
    row, _ = await store.snapshot(world.run)
    assert row.position == kept[-1]
    assert (await loaded(store)).state == world.state
    await engine.close()


# -- form ----------------------------------------------------------------------------------------------------------------


def test_every_settled_state_of_a_run_survives_being_frozen():
    """Also in tests/sim, where every refold is done both ways."""
    world = played()
    frozen = snapshot.freeze(world.state, 0)
    assert snapshot.thaw(world.facts, frozen.head, frozen.past) == world.state
    json.loads(frozen.head)


def test_a_state_in_mid_exchange_is_neither_frozen_nor_thawed():
    world = World(4, 1, seed=6)
    world.start()
    world.run_until(lambda w: w.idle())
    world.ask(1, "train", world.first_weights())
    assert not snapshot.settled(world.state)
    with pytest.raises(AssertionError):
        snapshot.freeze(world.state, 0)


def test_layouts_are_kept_once():
    world = played()
    layout = world.state.exchange.layout
    assert layout and all(e.layout is not None for e in world.state.closed)
    frozen = snapshot.freeze(world.state, 0)
    thawed = snapshot.thaw(world.facts, frozen.head, frozen.past)
    assert len({id(e.layout) for e in (*thawed.closed, thawed.exchange)}) == 1


def test_the_shape_changes_with_the_fields_of_any_class(monkeypatch):
    @dataclass(frozen=True)
    class Presence:
        connected: bool

    before = snapshot.SHAPE
    assert snapshot._shape() == before
    monkeypatch.setitem(snapshot._CLASSES, "Presence", Presence)
    assert snapshot._shape() != before


# -- what stays of an exchange -----------------------------------------------------------------------------------------


def test_an_exchange_that_is_answered_holds_no_message_of_anyone():
    state: RunState = played().state
    for exchange in (*state.closed, state.exchange):
        assert not (exchange.ready or exchange.accepts or exchange.usages or exchange.asked.instruction)
        for instance in (*exchange.instances, *((exchange.scales,) if exchange.scales else ())):
            assert not (instance.shares or instance.commits or instance.reveals or instance.signatures)
            assert instance.recovered is None and instance.open_statement is None
            assert instance.aggregate_envelope and instance.survivors and instance.survivors_envelope, "what was opened stays shown"


def test_scales_keep_what_shows_them_to_be_opened():
    state = played().state
    exchange = next(e for e in state.closed if e.category == "train")
    scales = replace(exchange.scales, survivors_envelope=b"certificate", survivors_proof=b"proof")
    open_update = tuple(replace(i, phase=InstancePhase.VOIDED) if i.purpose == "update" else i for i in exchange.instances)
    voided = past.slim(replace(exchange, scales=scales, instances=open_update))
    assert voided.scales.survivors_envelope == b"certificate"
    assert past.slim(replace(exchange, scales=scales)).scales.survivors_envelope == b"certificate"


def test_what_members_were_counted_for_is_added_up_as_exchanges_close():
    world = played()
    for member in world.members:
        counted = world.state.counted[member]
        assert counted.exchanges == 6
        assert (counted.tokens, counted.steps, counted.milliseconds) == (60, 6, 30)


def test_rows_of_another_run_are_left_alone(tmp_path):
    """One run's snapshot replaces its own rows only."""

    async def go() -> None:
        store = await Store.open(f"sqlite:///{tmp_path}/c.db")
        for run in (b"a" * 32, b"b" * 32):
            await store.add_run(RunRow(run, "x", b"", bytes(32), created=1.0))
            await store.put_snapshot(rows.SnapshotRow(run, 1, 1.0, "s", b"head"), 0, [b"one", b"two"])
        await store.put_snapshot(rows.SnapshotRow(b"a" * 32, 2, 2.0, "s", b"next"), 1, [b"three"])
        assert await store.snapshot(b"a" * 32) == (rows.SnapshotRow(b"a" * 32, 2, 2.0, "s", b"next"), (b"one", b"three"))
        assert (await store.snapshot(b"b" * 32))[1] == (b"one", b"two")
        await store.close()

    asyncio.run(go())


def test_a_run_whose_exchanges_failed_does_not_just_say_that_it_finished():
    """A stock strategy goes through its rounds whatever fails: the run was `finished` after none, and nobody read why."""
    state = played().state
    assert finish_words(state, 3) == "the ServerApp finished after 3 rounds"
    failed = replace(state.exchange, reply=replace(state.exchange.reply, status="failed"), reason="2 members can contribute, 3 are needed")
    words = finish_words(replace(state, exchange=failed), 2)
    assert words == ("the ServerApp finished after 2 rounds; 1 of 6 exchanges failed, the last one: 2 members can contribute, 3 are needed")
