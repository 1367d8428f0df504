"""A coordinator that went back in time signs nothing, says so, and comes back from a member's mirror; it never shows two histories."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from attacks.ports import Founded, found
from sim.exchange_world import make_plan
from support.http_witness import HttpWitnessServer

from dure.charter.log_keys import log_key, origin_of, witness_name
from dure.errors import BadInput, DureError
from dure.identity.keys import load_signing_key, public_bytes
from dure.statements.dsse import key_id
from dure.statements.kinds import CharterVersion
from dure.statements.statement import Chain, seal
from dure.tlog.checkpoint import Checkpoint
from dure.tlog.files import LogFiles
from dure.tlog.note import Note, sign
from dure_coordinator.app import Coordinator, database_of
from dure_coordinator.log.restore import Restored, restore
from dure_coordinator.rpc.admin import Admin
from dure_coordinator.settings import CoordinatorSettings
from dure_coordinator.storage.store import RunRow, StatementRow, Store, With
from dure_demo.consortium import dure_command, node_environment


@dataclass
class Home:
    """A coordinator's folder, its members' witnesses over HTTP (which remember), and copies of the folder."""

    root: Path
    founded: Founded
    servers: dict[str, HttpWitnessServer]

    @property
    def hub(self) -> Path:
        return self.founded.hub.directory

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Coordinator]:
        urls = {name: server.url for name, server in self.servers.items()}
        coordinator = await Coordinator.open(self.founded.hub, CoordinatorSettings(http_witnesses=urls))
        coordinator.fleet.on_opened = None
        await coordinator.charters.enter_first()
        coordinator.publisher.before_signing = coordinator.enter_charter
        try:
            yield coordinator
        finally:
            await coordinator.close()

    async def say(self, coordinator: Coordinator, *names: str) -> None:
        """Signs a plan of that name as `dure run start` does, whether it may or not, and opens its run."""
        key, charter = self.founded.hub.signing_key, coordinator.charter
        named = {"consortium": charter.terms.consortium_id, "charter_sha256": charter.digest, "w_max": 1000}
        for name in names:
            plan = make_plan(tuple(self.founded.members), charter.colluders, "average", name=name, **named)
            party = key_id(public_bytes(key))
            envelope, after = seal(plan, key, await coordinator.store.chain_of(party), time.time())
            raw, run = envelope.to_bytes(), envelope.payload_sha256
            row = RunRow(run, name, raw, plan.app_sha256, created=time.time())
            await coordinator.fleet.add(row, With(statements=(StatementRow.of(raw, run),), chain=(party, after)))

    def keep(self, name: str) -> Path:
        """A copy of the folder as it is now."""
        return shutil.copytree(self.hub, self.root / name, ignore=shutil.ignore_patterns("sockets"))

    def go_back(self, copy: Path) -> None:
        shutil.rmtree(self.hub)
        shutil.copytree(copy, self.hub)

    async def restore(self, mirror: Path) -> Restored:
        store = await Store.open(database_of(self.founded.hub, CoordinatorSettings()))
        try:
            return await restore(store, self.founded.hub, mirror)
        finally:
            await store.close()

    def entries(self, folder: Path) -> list[bytes]:
        files = LogFiles(folder / "log", log_key(self.founded.hub.charter().terms))
        return list(files.tree(files.size).entries())


@pytest.fixture
def home(tmp_path):
    founded, servers = found(tmp_path), {}
    charter = founded.hub.charter()
    for name, member in founded.members.items():
        key, host = load_signing_key(member.directory / "witness.key"), witness_name(charter.member(name).host)
        servers[name] = HttpWitnessServer(tmp_path / f"{name}.seen", log_key(charter.terms), host, key).start()
    yield Home(tmp_path, founded, servers)
    for server in servers.values():
        server.stop()


@pytest.fixture
async def gone_back(home) -> tuple[Home, Path]:
    """(coordinator as it was after its first run, a member's mirror of after the third)."""
    async with home.up() as coordinator:
        await home.say(coordinator, "first")
        assert await coordinator.publisher.publish()
    backup = home.keep("backup")
    async with home.up() as coordinator:
        assert await coordinator.publisher.publish()
        await home.say(coordinator, "second", "third")
        assert await coordinator.publisher.publish()
        assert coordinator.publisher.size == 4
    mirror = home.keep("mirror")
    home.go_back(backup)
    return home, mirror


async def may_sign(coordinator: Coordinator) -> bool:
    try:
        async with asyncio.timeout(0.3):
            await coordinator.publisher.may_sign()
    except TimeoutError:
        return False
    return True


async def test_a_new_or_restarted_log_signs_once_the_quorum_has_confirmed_it(home):
    for name in ("first", "second"):
        async with home.up() as coordinator:
            assert not await may_sign(coordinator)
            assert await coordinator.publisher.publish()
            assert await may_sign(coordinator)
            await home.say(coordinator, name)
            assert await coordinator.publisher.publish()


async def test_a_coordinator_set_back_to_before_its_first_head_signs_its_first_statement_to_the_byte_and_no_other(gone_back):
    """Its folder is as `dure charter publish` left it: nothing here says that there ever was a head, only the witnesses know."""
    home, mirror = gone_back
    for name in ("log", "coordinator.sqlite", "coordinator.sqlite-wal", "coordinator.sqlite-shm"):
        path = home.hub / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    async with home.up() as coordinator:
        assert (await coordinator.store.log_head()).size == 1
        assert await coordinator.store.log_entries(0, 1) == home.entries(mirror)[:1]
        assert not await coordinator.publisher.publish()
        assert not await may_sign(coordinator)
        assert "has seen 4 entries, this log has 1" in coordinator.publisher.refusals["ara.titan/witness"]
    done = await home.restore(mirror)
    assert (done.before, done.size, done.set_aside) == (1, 4, 0)


async def test_a_restarted_coordinator_signs_nothing_while_too_few_witnesses_are_there_and_names_them(home, monkeypatch):
    async with home.up() as coordinator:
        assert await coordinator.publisher.publish()
    port = home.servers["ara"].stop()
    async with home.up() as coordinator:
        assert not await coordinator.publisher.publish()
        assert not await may_sign(coordinator)
        monkeypatch.setattr("dure_coordinator.rpc.admin.CONFIRM_S", 0.1)
        with pytest.raises(DureError, match=r"too few witnesses have confirmed .*ara.titan/witness: .*refused"):
            await Admin(coordinator)._may_sign()
        home.servers["ara"].start(port)
        assert await coordinator.publisher.publish()
        await Admin(coordinator)._may_sign()


async def test_a_coordinator_restored_from_a_backup_signs_nothing_and_says_what_to_do(gone_back, monkeypatch):
    """Without the question to the witnesses it would sign a second statement under a number that is taken, and hand it out."""
    home, _ = gone_back
    monkeypatch.setattr("dure_coordinator.rpc.admin.CONFIRM_S", 0.3)
    async with home.up() as coordinator:
        running = asyncio.create_task(coordinator.publisher.run())
        with pytest.raises(DureError, match=r"this log has 2 entries .*ara.titan/witness 4.*Nothing is signed; stop it, then `dure coord"):
            await Admin(coordinator)._may_sign()
        status = await Admin(coordinator)._status({}, b"")
        assert "restore-log" in status["log"]["trouble"]
        assert "has seen 4 entries, this log has 2" in status["log"]["witnesses"]["ara.titan/witness"]
        running.cancel()
        assert (await coordinator.store.log_head()).size == 2


async def test_it_comes_back_from_a_members_mirror_and_goes_on_in_the_same_history(gone_back):
    home, mirror = gone_back
    words = ["coordinator", "restore-log", str(mirror), "--dir", str(home.hub), "--json"]
    how = {"capture_output": True, "text": True, "env": node_environment(), "timeout": 100}
    done = await asyncio.to_thread(subprocess.run, [*dure_command(), *words], **how)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["before"], told["entries"], told["set_aside"], len(told["ended"])) == (2, 4, 0, 1)
    async with home.up() as coordinator:
        assert [(r.name, r.label) for r in coordinator.fleet.rows.values()] == [("first", "aborted")]
        engine = await coordinator.fleet.find("first")
        assert engine.ended and "older copy" in engine.label[1]
        assert await coordinator.publisher.publish()
        assert await may_sign(coordinator)
        await home.say(coordinator, "fourth")
        assert await coordinator.publisher.publish()
    assert home.entries(home.hub)[:4] == home.entries(mirror)
    assert all(server.seen.size == 5 for server in home.servers.values())
    with pytest.raises(BadInput, match="nothing to restore"):
        await home.restore(mirror)


async def test_what_it_signed_meanwhile_is_set_aside_and_members_statements_are_not_lost(gone_back):
    """As by a coordinator of before this defence: it went on, its files and database too, though no witness cosigned."""
    home, mirror = gone_back
    async with home.up() as coordinator:
        await home.say(coordinator, "other", "another", "onemore")
        delegation = home.founded.nodes["ara"].delegation
        await coordinator.store.write(b"", With(statements=(StatementRow.of(delegation),)))
        assert not await coordinator.publisher.publish()
    done = await home.restore(mirror)
    assert (done.before, done.size, done.set_aside) == (6, 5, 3)
    assert len(list((home.hub / "log-set-aside").glob("*/*.json"))) == 3
    async with home.up() as coordinator:
        assert await coordinator.store.log_entries(0, 5) == [*home.entries(mirror), delegation]
        await home.say(coordinator, "fourth")
        assert await coordinator.publisher.publish()
        assert (await coordinator.store.log_entries(5, 6)) == [
            coordinator.fleet.rows[max(coordinator.fleet.rows, key=_created(coordinator))].plan
        ]


def _created(coordinator):
    return lambda run: coordinator.fleet.rows[run].created


async def test_a_database_alone_that_went_back_comes_back_from_the_logs_own_files(gone_back):
    home, mirror = gone_back
    shutil.rmtree(home.hub / "log")
    shutil.copytree(mirror / "log", home.hub / "log")
    async with home.up() as coordinator:
        with pytest.raises(DureError, match=rf"nothing is signed. Stop this coordinator, then `dure coordinator restore-log {home.hub}`"):
            await coordinator.publisher.publish()
        assert not await may_sign(coordinator)
    assert (await home.restore(home.hub)).size == 4
    async with home.up() as coordinator:
        assert await coordinator.publisher.publish()
        assert coordinator.publisher.size == 4


@pytest.mark.parametrize(
    "what", ["nothing there", "an entry changed", "another log", "another history", "a newer charter", "an older copy"]
)
async def test_a_mirror_that_does_not_hold_changes_nothing(gone_back, what):
    home, mirror = gone_back
    words = {
        "nothing there": "holds no log/checkpoint",
        "an entry changed": "its entries do not give its head",
        "another log": "origin",
        "another history": "two histories of one log",
        "a newer charter": "the log has a charter version 2 that is not in it",
        "an older copy": "nothing to restore",
    }[what]
    if what == "nothing there":
        shutil.rmtree(mirror / "log")
    if what == "an entry changed":
        path = next((mirror / "log/tile/entries").glob("000.p/4"))
        data = path.read_bytes()
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    if what == "another log":
        _sign_anew(home, mirror, home.entries(mirror), "dure/other/log")
    if what == "another history":
        _sign_anew(home, mirror, home.entries(mirror)[::-1])
    if what == "a newer charter":
        newer, _ = seal(CharterVersion(2, bytes(32), bytes(32)), home.founded.hub.signing_key, Chain(4, bytes(32)), 0)
        _sign_anew(home, mirror, [*home.entries(mirror), newer.to_bytes()])
    if what == "an older copy":
        mirror = home.keep("older")
    async with home.up() as coordinator:
        before = (await coordinator.store.log_head()).root()
    with pytest.raises(DureError, match=words):
        await home.restore(mirror)
    async with home.up() as coordinator:
        assert (await coordinator.store.log_head()).root() == before


def _sign_anew(home: Home, mirror: Path, entries: list[bytes], origin: str = "") -> None:
    """A log of these entries, signed by the log's own key, in the mirror's place."""
    terms = home.founded.hub.charter().terms
    shutil.rmtree(mirror / "log")
    files = LogFiles(mirror / "log", log_key(terms))
    files.grow(entries)
    text = Checkpoint(origin or origin_of(terms), files.size, files.root).text()
    note = Note(text, (sign(text, origin or origin_of(terms), home.founded.hub.log_key),))
    (mirror / "log" / "checkpoint").write_bytes(note.to_bytes())
