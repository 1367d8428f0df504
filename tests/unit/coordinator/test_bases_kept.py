"""The last bases of a run stay on the coordinator's disk; an older one is made again from the sums, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sim.exchange_world import World

from dure.blobs import BlobDamaged, BlobId, BlobStore
from dure.errors import Refused
from dure.forecast import forecast
from dure.model.base import BaseRecord
from dure_coordinator.duties_done import Duties
from dure_coordinator.exchange.common import all_exchanges
from dure_coordinator.exchange.thinning import steps_to, thinned
from dure_coordinator.retention import Retention
from dure_coordinator.storage.store import BlobRow, RunRow, Store, With

ROUNDS = 6


@lru_cache(maxsize=4)
def played(step_name: str) -> World:
    world = World(4, 1, seed=5, step_name=step_name)
    world.start()
    world.run_until(lambda w: w.idle())
    weights = world.first_weights()
    for number in range(1, ROUNDS + 1):
        reply = world.exchange(number, "train", weights)
        weights = world.first_weights() if step_name == "none" else reply.blob
    return world


def made(world: World) -> list[str]:
    return [e.reply.blob for e in all_exchanges(world.state)]


@pytest.mark.parametrize("step_name", ["average", "nesterov"])
def test_bases_and_momenta_older_than_the_last_go_and_the_first_weights_never(step_name):
    world = played(step_name)
    exchanges = all_exchanges(world.state)
    gone = set(thinned(world.state, 2))
    assert set(made(world)[: ROUNDS - 3]) <= gone
    assert not gone & set(made(world)[ROUNDS - 3 :]), "the bases of the last two rounds, and the current one"
    assert exchanges[0].asked.weights not in gone
    momenta = [BaseRecord.from_json(e.base_record).outer_state for e in exchanges]
    assert {str(m) for m in momenta[: ROUNDS - 2] if m is not None} <= gone
    opened = {blob for e in exchanges for i in e.instances for blob in (i.sum, i.e_b, i.seeds, i.evidence)}
    assert not gone & opened, "sums, scales, seeds and evidence are the lineage"
    assert thinned(world.state, 0) == thinned(world.state, ROUNDS) == ()


def test_what_a_serverapp_made_goes_too_and_follows_from_no_sum():
    world = played("none")
    exchanges = all_exchanges(world.state)
    gone = set(thinned(world.state, 2))
    assert made(world)[0] in gone, "a mean"
    assert len(steps_to(world.state, made(world)[0], lambda _blob: False)) == 1
    with pytest.raises(Refused, match="follow from no sum"):
        steps_to(world.state, exchanges[1].asked.weights, lambda _blob: False)


def test_the_forecast_counts_the_bases_that_stay():
    plan = played("average").facts.plan
    plan = type(plan)(**{**plan.__dict__, "rounds": 100})
    every, last = forecast(plan, 10**6, 0.0, 1.0), forecast(plan, 10**6, 0.0, 1.0, keep_bases=4)
    assert every.coordinator_disk - last.coordinator_disk == 4 * 10**6 * (100 - 7)


# -- on a disk -----------------------------------------------------------------------------------------------------------


@dataclass
class Disk:
    store: Store
    blobs: BlobStore
    engine: Any
    retention: Retention
    duties: Duties

    def has(self, text: str) -> bool:
        return self.blobs.has(BlobId.parse(text))


@pytest.fixture
async def disk(tmp_path):
    """A finished run's blobs, and the rows the coordinator has of them."""
    world = played("nesterov")
    store, blobs = await Store.open(f"sqlite:///{tmp_path}/c.db"), BlobStore(tmp_path / "blobs")
    await store.add_run(RunRow(world.run, "sim", b"", bytes(32), created=world.began))
    rows = []
    for e in all_exchanges(world.state):
        record = BaseRecord.from_json(e.base_record)
        named = [("base", e.asked.weights), ("model", e.reply.blob), ("outer-state", str(record.outer_state or ""))]
        named += [("sum", i.sum) for i in e.instances] + [("e_b", i.e_b) for i in e.instances]
        rows += [BlobRow(world.run, purpose, text, e.number) for purpose, text in named if text]
    record = BaseRecord.from_json(world.state.base_record)
    rows.append(BlobRow(world.run, "outer-state", str(record.outer_state), ROUNDS))
    for text in {row.blob for row in rows}:
        chunk_bytes = 2**19 if any(row.purpose == "sum" for row in rows if row.blob == text) else 2**20
        assert str(blobs.put_bytes(world.blobs[text], chunk_bytes=chunk_bytes)) == text
    await store.write(world.run, With(blobs=tuple(rows)))
    engine = SimpleNamespace(run=world.run, state=world.state)
    retention = Retention(store, None, 0.0, blobs=blobs, runs=lambda: [engine], keep_bases=2)  # type: ignore[arg-type]
    yield Disk(store, blobs, engine, retention, Duties(store, blobs, None, None, Ed25519PrivateKey.generate(), None))  # type: ignore[arg-type]
    await store.close()


async def test_an_old_base_is_let_go_of_and_made_again_bit_for_bit(disk):
    world = played("nesterov")
    old, last = made(world)[1], made(world)[-1]
    assert await disk.retention.thin() > 0
    assert not disk.has(old) and disk.has(last) and disk.has(all_exchanges(world.state)[0].asked.weights)
    assert await disk.retention.thin() == 0, "nothing new"
    await disk.duties.restored(disk.engine, old)
    assert np.array_equal(np.frombuffer(disk.blobs.map(BlobId.parse(old)), np.uint32), np.frombuffer(world.blobs[old], np.uint32))
    disk.retention._thinned.clear()
    assert await disk.retention.thin() > 0, "what was made again has its rows, so it goes again"
    assert not disk.has(old)


async def test_a_base_that_another_run_names_stays(disk):
    world = played("nesterov")
    other, old = bytes(reversed(range(32))), made(world)[0]
    await disk.store.add_run(RunRow(other, "next", b"", bytes(32)), With(blobs=(BlobRow(other, "from", old),)))
    await disk.retention.thin()
    assert disk.has(old) and not disk.has(made(world)[1])
    assert (other, "from") in await disk.store.runs_of_blob(old)


async def test_what_somebody_asked_for_is_not_let_go_of_before_it_is_read(disk):
    """A run that starts from an old round's weights names them only once its app was tried; a coordinator that was just started looks at
    every run, and took them away in between."""
    now, old = [1000.0], made(played("nesterov"))[1]
    disk.duties.clock = lambda: now[0]
    disk.retention.wanted, disk.retention.shelf = disk.duties.is_wanted, disk.duties.shelf
    await disk.retention.thin()
    await disk.duties.restored(disk.engine, old, 3600.0)
    for later, there in ((0.0, True), (3599.0, True), (3601.0, False)):
        now[0] = 1000.0 + later
        disk.retention._thinned.clear()
        await disk.retention.thin()
        assert disk.has(old) is there


async def test_weights_that_somebody_wrote_to_are_not_exported_and_made_again_where_they_follow_from_sums(disk):
    """A ServerApp has the file under a name of its own, and root may write to what is read-only."""
    world = played("nesterov")
    for text in (made(world)[-1], all_exchanges(world.state)[0].asked.weights):
        path = disk.blobs.path(BlobId.parse(text))
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.write(b"\x07")
    await disk.duties.restored(disk.engine, made(world)[-1], check=True)
    disk.blobs.verify(BlobId.parse(made(world)[-1]))
    with pytest.raises(BlobDamaged):
        await disk.duties.restored(disk.engine, all_exchanges(world.state)[0].asked.weights, check=True)
    assert disk.has(all_exchanges(world.state)[0].asked.weights), "nothing gives the first weights back"
