"""The coordinator's own keys are replaced by a charter version: what the old ones sign after its entry counts for nothing, and is named."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from attacks.ports import Founded, Port, serving
from sim.exchange_world import make_plan
from support.commands import dure, refused, worked

from dure.audit.bundle import Bundle
from dure.audit.level1 import verify
from dure.audit.reading import verified
from dure.charter import root
from dure.charter.consortium import ConsortiumFile
from dure.charter.draft import proposed
from dure.charter.log_keys import log_key, log_keys, witness_name
from dure.errors import DureError, NotAuthorised, Refused, Unavailable
from dure.identity.keys import public_bytes
from dure.identity.node import NodeIdentity
from dure.statements.dsse import Envelope, key_id
from dure.statements.kinds import CharterVersion
from dure.statements.statement import seal
from dure.tlog.checkpoint import Checkpoint
from dure.tlog.files import CHECKPOINT, LogFiles
from dure.tlog.note import Note, sign
from dure.tlog.witness import refusal_of
from dure_coordinator import standing
from dure_coordinator.app import Coordinator
from dure_coordinator.log.restore import restore
from dure_coordinator.rpc.server import Door, Limits, members_port
from dure_coordinator.settings import CoordinatorSettings
from dure_coordinator.storage.store import StatementRow, StoreUnusable, With
from dure_participant.log import mirror as mirrors
from dure_participant.log.mirror import EVIDENCE, carried
from dure_participant.settings import NodeSettings
from dure_participant.standing import Standing, mirror_of
from dure_participant.store import NodeStore

NAMES = ("ara", "bora", "chan", "dana")
"""c = 1, k = 3; three witnesses are a quorum."""


class Site:
    """A member's node as far as the log goes: its standing, and its mirror, which cosigns what the real coordinator asks it about."""

    def __init__(self, identity: NodeIdentity, coordinator: Coordinator) -> None:
        self.coordinator, self.folder = coordinator, identity.directory
        store = NodeStore(identity.directory / "node.sqlite")
        self.mirror = mirror_of(identity, NodeSettings(), store, time.time)
        self.standing = Standing(identity, NodeSettings(), self.mirror)

    async def add_checkpoint(self, request: bytes, entries: Sequence[bytes] = ()) -> bytes:
        status, body = await self.mirror.add_checkpoint(request, carried(entries, self._fetch))
        if status != 200:
            raise refusal_of(status, body)
        return body

    async def _fetch(self, start: int, end: int) -> AsyncIterator[bytes]:
        for entry in await self.coordinator.store.log_entries(start, end):
            yield entry

    def tell(self, _head: bytes) -> None:
        """Only what it cosigned itself is looked at here."""

    def greet(self) -> None:
        self.standing.obey(self.coordinator.charters.roots)

    @property
    def evidence(self) -> list[str]:
        return [path.read_text() for path in sorted((self.folder / EVIDENCE).glob("*/why"))]


@dataclass
class World:
    port: Port
    sites: list[Site]

    @property
    def coordinator(self) -> Coordinator:
        return self.port.coordinator

    @property
    def hub(self) -> Path:
        return self.port.founded.hub.directory

    async def entries(self) -> list[bytes]:
        store = self.coordinator.store
        return await store.log_entries(0, (await store.log_head()).size)

    async def say(self, name: str, key=None) -> None:
        """A plan of that name, signed as `dure run start` does; or with another key."""
        charter, key = self.coordinator.charter, key or self.coordinator.charters.signing_key
        facts = {"consortium": charter.terms.consortium_id, "charter_version": charter.version, "charter_sha256": charter.digest}
        party = key_id(public_bytes(key))
        plan = make_plan(NAMES, charter.colluders, "average", name=name, **facts)
        envelope, after = seal(plan, key, await self.coordinator.store.chain_of(party), time.time())
        await self.coordinator.store.write(b"", With(statements=(StatementRow.of(envelope.to_bytes()),), chain=(party, after)))

    async def replace(self) -> None:
        """New keys, proposed, signed by the members, published and obeyed; every node greets anew, as it does when its stream ends."""
        sign_and_publish(self.port.founded)
        await self.obey()

    async def obey(self) -> None:
        await standing.obey(self.coordinator)
        for site in self.sites:
            site.greet()

    def head(self) -> Note:
        return Note.from_bytes((self.hub / "log" / CHECKPOINT).read_bytes())


def sign_and_publish(founded: Founded) -> None:
    founded.hub.make_keys(("signing", "log"), time.time())
    raw = proposed(founded.hub, time.time()).path.read_bytes()
    founded.hub.publish(raw, {n: root.sign(raw, n, member.governance_key) for n, member in founded.members.items()})


@asynccontextmanager
async def playing(folder: Path) -> AsyncIterator[World]:
    """A coordinator whose log has a cosigned head, and its members' witnesses."""
    async with serving(folder, names=NAMES) as port:
        sites = [Site(identity, port.coordinator) for identity in port.founded.nodes.values()]
        for name, site in zip(NAMES, sites, strict=True):
            port.coordinator.witnesses.streams[witness_name(port.coordinator.charter.member(name).host)] = site
        await port.coordinator.enter_charter()
        world = World(port, sites)
        await world.say("first")
        assert await port.coordinator.publisher.publish()
        yield world


async def test_heads_and_entries_are_by_the_old_keys_up_to_the_versions_entry_and_by_the_new_ones_from_it_on(tmp_path):
    async with playing(tmp_path) as world:
        before = world.head()
        sign_and_publish(world.port.founded)
        await standing.obey(world.coordinator)
        assert not await world.coordinator.publisher.publish(), "nobody has heard of the new key yet"
        assert all(site.evidence == [] for site in world.sites), "which is no lie of the log"
        for site in world.sites:
            site.greet()
        await world.say("second")
        assert await world.coordinator.publisher.publish()
        one, two = world.coordinator.charters.all
        assert (log_key(one.terms) in before.verify([log_key(one.terms)]), before.verify([log_key(two.terms)])) == (True, {})
        assert (log_key(two.terms) in world.head().verify([log_key(two.terms)]), world.head().verify([log_key(one.terms)])) == (True, {})
        signers = [Envelope.from_bytes(entry).signatures[0][0] for entry in await world.entries()]
        old, new = (key_id(charter.terms.coordinator.signing_key) for charter in (one, two))
        assert signers == [old, old, new, new]
        # The old keys need not be there any more: a restart, an audit, a proof by its index.
        for name in ("signing.key", "log.key"):
            (world.hub / name).unlink()
        await (await Coordinator.open(world.port.founded.hub, CoordinatorSettings())).close()
        worked("audit", "export", "--dir", world.hub, "--out", tmp_path / "bundle")
        result = verify(Bundle.open(tmp_path / "bundle"), one.digest)
        assert (result.findings, result.versions) == ([], 2)
        worked("log", "prove", "1", "--out", tmp_path / "p", "--dir", world.hub)
        worked("log", "verify", tmp_path / "p", "--entry", tmp_path / "p.json", "--dir", world.sites[0].folder)
        assert log_key(two.terms).vkey() in worked("log", "show", "--dir", world.hub)


async def test_a_coordinator_that_goes_on_with_the_old_log_key_gets_no_cosignature_and_is_named(tmp_path):
    """Without the judgement by the version in force at the head's size, who stole the old key could sign a head to this day."""
    async with playing(tmp_path) as world:
        old = world.port.founded.hub.log_key
        await world.replace()
        world.coordinator.publisher.key = lambda _named: old
        assert not await world.coordinator.publisher.publish()
        why = "the head of 3 entries is not signed by the log key of charter version 2, in force there"
        assert all(why in site.evidence[0] for site in world.sites)


async def test_a_coordinator_that_shows_the_version_and_goes_on_without_its_entry_is_named(tmp_path, monkeypatch):
    """Without it the old keys would be good for as long as the coordinator does not make the version an entry."""
    async with playing(tmp_path) as world:
        sign_and_publish(world.port.founded)
        for site in world.sites:
            site.standing.obey(world.port.founded.hub.versions())
        await world.say("second")
        assert await world.coordinator.publisher.publish(), "a head may have been under way"
        later = time.monotonic() + mirrors.UNDER_WAY_S + 1
        monkeypatch.setattr(mirrors.time, "monotonic", lambda: later)
        await world.say("third")
        assert not await world.coordinator.publisher.publish()
        assert all("charter version 2, which the coordinator showed over a minute ago" in site.evidence[0] for site in world.sites)


async def test_a_statement_under_the_old_signing_key_is_cosigned_by_nobody_and_named_by_witness_and_audit(tmp_path):
    """Nothing is revealed upon a statement that is under no cosigned head: so the old key opens no sum either."""
    async with playing(tmp_path) as world:
        old = world.port.founded.hub.signing_key
        await world.replace()
        assert await world.coordinator.publisher.publish()
        await world.say("stolen", old)
        assert not await world.coordinator.publisher.publish()
        why = "the coordinator's key of charter version 1, which version 2 replaced"
        assert all(f"entry 3 is signed by {why}" in site.evidence[0] for site in world.sites)
        with pytest.raises(Refused, match=r"entry 3: .* is the coordinator.s of charter version 1, which version 2 replaced"):
            list(verified(await world.entries(), world.coordinator.charters.all))


async def test_a_version_is_entered_under_no_other_key_than_its_own(tmp_path, monkeypatch):
    """It shows that somebody holds the new key; and who holds only the old one enters nothing."""
    async with playing(tmp_path) as world:
        old = world.port.founded.hub.signing_key
        with monkeypatch.context() as patch:
            patch.setattr(type(world.port.founded.hub), "signing_key_of", lambda _self, _named: old)
            await world.replace()
        assert not await world.coordinator.publisher.publish()
        assert all("charter version 2 is entered under another key" in site.evidence[0] for site in world.sites)
        with pytest.raises(Refused, match=r"entry 2: .*is entered under another key"):
            list(verified(await world.entries(), world.coordinator.charters.all))


async def test_nothing_is_signed_under_the_old_keys_once_the_version_may_be_an_entry(tmp_path, monkeypatch):
    """The entry was kept and the database broke off before anybody heard of it: a statement or a head by the old keys after it would be
    named by every witness, and condemn the log."""
    async with playing(tmp_path) as world:
        sign_and_publish(world.port.founded)
        charters = world.coordinator.charters

        async def broken(_entered: object) -> None:
            raise StoreUnusable("database: gone")

        with monkeypatch.context() as patch:
            patch.setattr(charters, "_find", broken)
            with pytest.raises(StoreUnusable):
                await standing.obey(world.coordinator)
        assert len(await world.coordinator.store.statements(kind=CharterVersion.kind)) == 2
        with pytest.raises(Unavailable, match="becoming an entry"):
            await world.say("second")
        with pytest.raises(Unavailable, match="becoming an entry"):
            await world.coordinator.publisher.publish()
        await world.obey()
        await world.say("second")
        assert await world.coordinator.publisher.publish()
        assert all(site.evidence == [] for site in world.sites)


async def test_an_administrator_alone_replaces_nothing(tmp_path):
    async with playing(tmp_path) as world:
        founded = world.port.founded
        founded.hub.make_keys(("signing", "log"), time.time())
        raw = proposed(founded.hub, time.time()).path.read_bytes()
        for signers in ((), NAMES[:2]):
            with pytest.raises(NotAuthorised, match="fewer than 3"):
                founded.hub.publish(raw, {n: root.sign(raw, n, founded.members[n].governance_key) for n in signers})
        file = ConsortiumFile.load(founded.hub.published_path())
        ConsortiumFile(file.name, file.address, (*file.roots, raw)).write(founded.hub.published_path())
        with pytest.raises(DureError, match="fewer than 3"):
            await standing.obey(world.coordinator)
        await world.say("second")
        assert await world.coordinator.publisher.publish()
        assert world.head().verify([log_key(world.coordinator.charters.all[0].terms)])


async def test_a_coordinator_restored_to_before_the_change_comes_back_under_the_new_keys(tmp_path):
    """By a member's mirror. A head that the old key signed over the change is none of this log, whatever its folder holds."""
    async with playing(tmp_path) as world:
        old = world.port.founded.hub.log_key
        await world.replace()
        await world.say("second")
        assert await world.coordinator.publisher.publish()
        entries = await world.entries()
    shutil.rmtree(world.hub / "log")
    for path in world.hub.glob("coordinator.sqlite*"):
        path.unlink()
    mirror = world.sites[0].folder
    forged = shutil.copytree(mirror, tmp_path / "forged")
    files = LogFiles(forged / "log", *log_keys(world.coordinator.charters.all)[:1])
    text = Checkpoint(files.keys[0].name, files.size, files.root).text()
    (forged / "log" / CHECKPOINT).write_bytes(Note(text, (sign(text, files.keys[0].name, old),)).to_bytes())
    again = await Coordinator.open(world.port.founded.hub, CoordinatorSettings())
    try:
        with pytest.raises(Refused, match="not signed by the log key of the charter version in force"):
            await restore(again.store, world.port.founded.hub, forged)
        assert (await restore(again.store, world.port.founded.hub, mirror)).size == 4
        assert await again.store.log_entries(0, 4) == entries
    finally:
        await again.close()
    once_more = await Coordinator.open(world.port.founded.hub, CoordinatorSettings())
    new = key_id(public_bytes(once_more.charters.signing_key))
    assert ((await once_more.store.chain_of(new)).seq, once_more.charters.positions) == (2, [0, 2])
    await once_more.close()


def test_the_command_proposes_the_same_keys_again_until_they_are_in_force(tmp_path):
    from attacks.ports import found

    founded = found(tmp_path, NAMES)
    hub = founded.hub.directory
    said = worked("coordinator", "replace-keys", "--only", "log", "--dir", hub)
    assert "REPLACES the coordinator's log key" in said and "signing key" not in said
    raw = (hub / "2.root.json").read_bytes()
    worked("coordinator", "replace-keys", "--only", "log", "--dir", hub)
    worked("charter", "propose", "--dir", hub)
    assert (hub / "2.root.json").read_bytes() == raw
    refused(dure("coordinator", "replace-keys", "--dir", hub), "keys were made for this version already (log)")
    assert founded.hub.log_key.public_key() != founded.hub.log_key_of(root.terms_of(root.parse(raw)).coordinator.log_key).public_key()
    shutil.copy(hub / "2.root.json", tmp_path / "2.root.json")
    shown = worked("member", "sign", tmp_path / "2.root.json", "--yes", "--consortium", hub / "consortium.json", "--dir", tmp_path / "ara")
    assert "REPLACES the coordinator's log key" in shown
    founded.hub.publish(raw, {n: root.sign(raw, n, member.governance_key) for n, member in founded.members.items()})
    assert founded.hub.charter().version == 2
    assert "keys-3" in worked("coordinator", "replace-keys", "--dir", hub)


async def test_a_node_that_was_away_reaches_the_new_ca_through_the_old_one_and_then_trusts_the_new_alone(tmp_path):
    """Twice replaced: one that slept through both still comes in. One that knows the new CA is not served under the old."""
    async with serving(tmp_path, names=NAMES) as port:
        coordinator, founded, old = port.coordinator, port.founded, port.coordinator.tls_files()
        await coordinator.enter_charter()
        for version in (2, 3):
            founded.hub.make_keys(("ca",), time.time())
            raw = proposed(founded.hub, time.time()).path.read_bytes()
            founded.hub.publish(raw, {n: root.sign(raw, n, member.governance_key) for n, member in founded.members.items()})
            await standing.obey(coordinator)
            assert coordinator.charter.version == version
        assert coordinator.door is not None and coordinator.tls_files() != old
        again = Port(coordinator.door.port.address, founded, coordinator)
        asleep = founded.nodes["ara"]
        awake = asleep.followed(founded.hub.versions())
        assert asleep.coordinator_ca_pem != awake.coordinator_ca_pem
        for identity in (asleep, awake):
            assert await connects(again.address, identity)
        port_of = coordinator.fleet, coordinator.fleet.roster
        impostor = Door(lambda tls, at: members_port(*port_of, tls, at, Limits()), lambda: old, "127.0.0.1:0")
        await impostor.open()
        assert await connects(impostor.port.address, asleep), "it has not heard of another CA"
        assert not await connects(impostor.port.address, awake)
        await impostor.port.server.stop(0)


async def connects(address: str, identity: NodeIdentity) -> bool:
    """Whether TLS to the address comes about, each side trusting the other."""
    credentials = grpc.ssl_channel_credentials(identity.coordinator_ca_pem, identity.tls_key_pem, identity.tls_certificate_pem)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), 3)
        except TimeoutError:
            return False
        return True
