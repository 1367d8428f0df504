"""A run that cannot be read, for whatever reason, is that run's trouble: it is shown as such, and the others go on."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa
from attacks.ports import found
from sim.exchange_world import make_plan

from dure.errors import Unavailable
from dure.statements.statement import Chain, seal
from dure_coordinator.app import Coordinator
from dure_coordinator.exchange.events import Abort
from dure_coordinator.rpc.admin import Admin
from dure_coordinator.settings import CoordinatorSettings
from dure_coordinator.storage import tables as t
from dure_coordinator.storage.store import RunRow, With

DAMAGE = {
    "an event that is none": sa.update(t.events).values(body=b'{"kind": "nonsense"}'),
    "an event of noise": sa.update(t.events).values(body=bytes(range(256))),
    "an event that is missing": sa.update(t.events).values(position=t.events.c.position + 1),
    "a plan of noise": sa.update(t.runs).values(plan=b"\xff\x00 no plan"),
    "a plan that nobody signed": sa.update(t.runs).values(plan=b'{"payload":"e30=","payloadType":"x","signatures":[]}'),
}


async def opened(hub):
    coordinator = await Coordinator.open(hub, CoordinatorSettings())
    coordinator.fleet.on_opened = None
    return coordinator


async def add_run(coordinator, founded, number):
    charter = coordinator.charter
    named = {"consortium": charter.terms.consortium_id, "charter_sha256": charter.digest, "nonce": bytes([number]) * 16}
    plan = make_plan(tuple(founded.nodes), charter.colluders, "average", **named)
    envelope, _ = seal(plan, founded.hub.signing_key, Chain(), time.time())
    row = RunRow(envelope.payload_sha256, plan.name, envelope.to_bytes(), plan.app_sha256, created=time.time())
    return await coordinator.fleet.add(row, With())


async def test_runs_that_cannot_be_read_are_marked_and_the_others_go_on(tmp_path):
    founded = found(tmp_path)
    coordinator = await opened(founded.hub)
    bad = {what: (await add_run(coordinator, founded, k)).run for k, what in enumerate(DAMAGE)}
    good = (await add_run(coordinator, founded, 99)).run
    with coordinator.store.engine.begin() as c:
        for what, change in DAMAGE.items():
            table = change.entity_description["table"]
            c.execute(change.where(table.c.run == bad[what]))
    await coordinator.close()

    coordinator = await opened(founded.hub)
    listed = {bytes.fromhex(r["run"]): r for r in (await Admin(coordinator)._list({}, b""))["runs"]}
    assert {listed[run]["state"] for run in bad.values()} == {"unreadable"}
    assert all("cannot be read" in listed[run]["reason"] and "\n" not in listed[run]["reason"] for run in bad.values())
    for run in bad.values():
        with pytest.raises(Unavailable, match=r"cannot be read.*use the Dure that wrote it, or a backup"):
            await coordinator.fleet.find(run.hex())
    assert listed[good]["state"] == "running"
    assert coordinator.fleet.open_runs() == [good]
    engine = await coordinator.fleet.find(good.hex())
    assert (await engine.submit(Abort("seen"))).changed
    await coordinator.close()

    coordinator = await opened(founded.hub)
    assert coordinator.fleet.rows[good].label == "aborted"
    await coordinator.close()
