"""Masked uploads stay exactly as long as somebody may ask for them again, and no full disk shortens that."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from sim.exchange_world import World

from dure.blobs import chunk_leaf
from dure.secagg.ids import InstanceId
from dure.tlog.merkle import merkle_root
from dure_coordinator.exchange import decide
from dure_coordinator.exchange.retention import Keep, keep_after
from dure_coordinator.quotas import Quotas
from dure_coordinator.retention import Retention
from dure_coordinator.spool import SpoolRefused, Spools, SpoolsFull
from dure_coordinator.storage.store import RunRow, Store, UploadRow, With

RUN, WINDOW_S = bytes(range(32)), 1000
DATA = [os.urandom(64), os.urandom(20)]


# -- what the exchange logic decides -------------------------------------------------------------------------------


def kept(world: World, number: int) -> dict[str, Keep]:
    return {InstanceId.decode(k.instance).purpose.value: k for k in keep_after(world.state, number)}


def world_of(**how) -> World:
    world = World(4, **how)
    world.facts = replace(world.facts, challenge_window_s=WINDOW_S)
    world.state = decide.begin(world.facts, world.now)
    world.start()
    world.run_until(lambda w: w.idle())
    return world


def test_survivors_uploads_stay_until_the_challenge_window_has_closed():
    world = world_of()
    world.exchange(1, "train", world.first_weights())
    found = kept(world, 1)
    ended = world.state.exchange.ended
    for purpose in ("scales", "update"):
        assert found[purpose].until == ended + WINDOW_S
        assert found[purpose].members == world.members
        assert not found[purpose].pinned
    assert keep_after(world.state, 2) == ()


def test_a_plan_that_keeps_all_uploads_pins_them():
    world = world_of(keep_uploads="all")
    world.exchange(1, "train", world.first_weights())
    assert all(k.pinned for k in keep_after(world.state, 1))


def test_who_has_not_accepted_yet_has_the_accept_deadline_left():
    world = world_of()
    silent = []

    def hold(w: World) -> None:
        exchange = w.state.exchange
        if exchange and exchange.phase == "step" and not silent:
            silent.append(exchange.began)
            w.kill("m03")

    assert world.exchange(1, "train", world.first_weights(), hook=hold).status == "ok"
    assert "m03" not in world.state.exchange.accepts
    deadline = world.state.facts.plan.deadlines.accept
    short = replace(world.state, facts=replace(world.facts, challenge_window_s=0))
    assert keep_after(short, 1)[-1].until == silent[0] + deadline


def test_nothing_of_an_instance_that_was_never_opened_stays():
    world = world_of()

    def lose(w: World) -> None:
        instance = w.state.exchange.instance if w.state.exchange else None
        if instance and instance.purpose == "update" and instance.phase == "upload":
            for m in ("m02", "m03"):
                if w.nodes[m].alive:
                    w.kill(m)

    assert world.exchange(1, "train", world.first_weights(), hook=lose).status == "failed"
    found = kept(world, 1)
    assert found["update"].members == ()
    assert found["scales"].members == world.members


# -- what the database keeps ---------------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path):
    store = await Store.open(f"sqlite:///{tmp_path}/c.db")
    await store.add_run(RunRow(RUN, "digits", b"plan", bytes(32)))
    yield store
    await store.close()


def key_of(member: str, instance: bytes = b"i") -> bytes:
    return (member.encode() + instance).ljust(32, b"\0")


async def spooled(store: Store, folder: Path, *members: str, instance: bytes = b"i") -> Spools:
    """Complete uploads of these members, 84 bytes each."""
    spools = Spools(folder / "spools", quotas=Quotas(1000))
    for member in members:
        await store.begin_upload(UploadRow(key_of(member, instance), RUN, instance, member, 84, 64))
        spool = spools.open(key_of(member, instance), length=84, chunk_bytes=64)
        for k, chunk in enumerate(DATA):
            spool.write(k, chunk)
        spool.finish(merkle_root(map(chunk_leaf, DATA)))
    return spools


def on_disk(spools: Spools) -> set[str]:
    found = spools.keys()
    return {key[:1].decode() for key in found}


async def test_uploads_go_when_their_time_is_over_and_not_before(store, tmp_path):
    spools = await spooled(store, tmp_path, "a", "b", "c")
    now = [100.0]
    retention = Retention(store, spools, WINDOW_S, lambda: now[0])
    assert await retention.sweep() == 0, "an exchange that goes on"
    await store.write(RUN, With(keep=((b"i", ("a", "b"), 500.0, False),)))
    assert await retention.sweep() == 1, "an upload outside the survivor set"
    assert on_disk(spools) == {"a", "b"}
    now[0] = 499.0
    assert await retention.sweep() == 0
    now[0] = 500.0
    assert await retention.sweep() == 2
    assert on_disk(spools) == set()
    assert (await store.upload(key_of("a"))).removed, "the row stays as the record"
    assert await retention.sweep() == 0


async def test_a_later_word_never_shortens_the_time_and_a_dispute_pins(store, tmp_path):
    spools = await spooled(store, tmp_path, "a", "b")
    now = [0.0]
    retention = Retention(store, spools, WINDOW_S, lambda: now[0])
    await store.write(RUN, With(keep=((b"i", ("a", "b"), 500.0, False),)))
    await store.write(RUN, With(keep=((b"i", ("a", "b"), 300.0, False),)))
    await store.write(RUN, With(pin=b"i"))
    now[0] = 10_000.0
    assert await retention.sweep() == 0
    assert (await store.kept_bytes(RUN)).pinned == 2
    assert await store.unpin_uploads(RUN) == 2
    assert (await store.kept_bytes()).until == 500.0
    assert await retention.sweep() == 2
    assert (await store.kept_bytes()).uploads == 0


async def test_uploads_of_a_run_that_ended_in_mid_exchange_go_after_the_window(store, tmp_path):
    spools = await spooled(store, tmp_path, "a")
    now = [0.0]
    retention = Retention(store, spools, WINDOW_S, lambda: now[0])
    await retention.sweep()
    assert (await store.kept_bytes(RUN)).until is None
    await store.write(RUN, With(label=("aborted", "told to")))
    assert await retention.sweep() == 0
    assert (await store.kept_bytes(RUN)).until == WINDOW_S
    now[0] = WINDOW_S
    assert await retention.sweep() == 1


# -- reading them again --------------------------------------------------------------------------------------------


async def test_an_upload_is_read_again_and_stays_readable_while_it_is_removed(store, tmp_path):
    spools = await spooled(store, tmp_path, "a")
    reader = spools.reader(key_of("a"), length=84, chunk_bytes=64)
    spools.remove(key_of("a"))
    assert [reader.read_chunk(k) for k in range(2)] == DATA
    reader.close()
    with pytest.raises(SpoolRefused, match="not kept any more"):
        spools.reader(key_of("a"), length=84, chunk_bytes=64)
    assert on_disk(spools) == set(), "asking for it does not begin a new one"


async def test_uploads_that_nobody_adds_to_hold_no_files_open(store, tmp_path):
    spools = await spooled(store, tmp_path, "a", "b", "c")
    before = len(os.listdir("/proc/self/fd"))
    for member in ("a", "b", "c"):
        spools.release(key_of(member))
    assert len(os.listdir("/proc/self/fd")) == before - 6
    spools.reader(key_of("b"), length=84, chunk_bytes=64).close()
    assert len(os.listdir("/proc/self/fd")) == before - 6


async def test_a_chunk_for_an_upload_that_was_deleted_is_refused_by_name(store, tmp_path):
    spools = Spools(tmp_path / "spools", quotas=Quotas(1000))
    late = spools.open(key_of("z"), length=84, chunk_bytes=64)
    spools.remove(key_of("z"))
    with pytest.raises(SpoolRefused, match="came too late"):
        late.write(0, DATA[0])


async def test_a_quota_that_is_used_up_says_why_nothing_is_dropped_and_what_to_do(store, tmp_path):
    spools = await spooled(store, tmp_path, "a", "b")
    spools.quotas = Quotas(200)
    with pytest.raises(SpoolsFull) as full:
        spools.open(key_of("c"), length=84, chunk_bytes=64)
    assert "challenge window" in str(full.value) and "spool_quota_bytes" in str(full.value)
    assert "\n" not in str(full.value)
    assert on_disk(spools) == {"a", "b"}
    assert spools.used_bytes == 168
