"""Whoever a newer charter version removes is cut off at once and gets nothing more into the log; nodes go by what they verified."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime

import grpc
import pytest
from attacks.ports import Founded, Port, found, hands, sends, serving

from dure.charter import root
from dure.charter.consortium import ConsortiumFile
from dure.errors import BadInput, DureError, NotAuthorised, Refused, Unavailable
from dure.identity.node import load_node
from dure.provenance.attestation import statement_of
from dure.statements.dsse import IN_TOTO, pae
from dure.statements.kinds import Allocation, AllocationPublished, CharterVersion, Portion, Release, ReleasePublished
from dure.statements.statement import read_verified
from dure.tlog.merkle import EMPTY_ROOT
from dure.wire.control import decode_hello_reply, encode_hello
from dure.wire.messages import PROTOCOL_VERSION, Hello, ReportKind
from dure_coordinator import standing
from dure_coordinator.rpc import attested
from dure_coordinator.storage.store import StoreUnusable
from dure_pb.v1 import log_pb2, log_pb2_grpc

NAMES = ("ara", "bora", "chan", "dana")


def publish(founded: Founded, number: int, signers: tuple[str, ...] = NAMES, **changes: object) -> bytes:
    """A further version, signed and published; its file."""
    before = founded.hub.versions()
    raw = root.propose(replace(root.terms_of(root.parse(before[-1])), **changes), number, datetime.now(UTC))
    founded.hub.publish(raw, {n: root.sign(raw, n, founded.members[n].governance_key) for n in signers})
    return founded.hub.versions()[-1]


def without(founded: Founded, name: str) -> dict[str, object]:
    terms = founded.hub.charter().terms
    return {"members": tuple(m for m in terms.members if m.id != name), "k": 2}


async def test_a_removed_member_is_cut_off_at_once_and_gets_nothing_more_into_the_log(tmp_path):
    """Without the recheck of live calls its streams would go on; without the roster its next call would be let in."""
    async with serving(tmp_path, names=NAMES) as port, hands(port, *NAMES) as nodes:
        await port.coordinator.start()
        engine = await port.start_run()
        dana = nodes[-1]
        approval = (await dana.go(sends(ReportKind.APPROVAL))).report
        assert (await dana.report(approval)).accepted
        publish(port.founded, 2, **without(port.founded, "dana"))
        await standing.obey(port.coordinator)
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await asyncio.wait_for(dana.following, 10)
        assert cut.value.code() is grpc.StatusCode.UNAUTHENTICATED and "dana.titan is no member of charter version 2" in cut.value.details()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await log_pb2_grpc.LogServiceStub(dana.channel).Append(log_pb2.AppendRequest(envelopes=[approval.body]))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "before enough members had approved" in engine.label[1]
        # The others' streams end too: they greet again, and are given the version.
        await asyncio.wait_for(nodes[0].following, 10)
        ara = nodes[0].identity
        said = Hello(PROTOCOL_VERSION, ara.charter.digest, ara.delegation, "test")
        reply = decode_hello_reply(await nodes[0].stub.Hello(encode_hello(said)))
        assert ara.followed(reply.charter_roots).charter.version == 2
        assert load_node(ara.directory).charter.version == 2, "it is on disk before it is obeyed"
        rows = await port.coordinator.store.statements(kind=CharterVersion.kind)
        assert [read_verified(r.envelope, CharterVersion).version for r in rows] == [1, 2]
        assert port.coordinator.charters.positions == [0, await port.coordinator.store.log_index(rows[1].digest)]


async def test_what_is_on_its_way_when_a_version_comes_is_taken_in_before_it_or_not_at_all(tmp_path):
    """Without the gate a statement judged under the old version could become an entry after the new one, under a key that ended."""
    async with serving(tmp_path, names=NAMES) as port, hands(port, "dana") as (dana,):
        await port.coordinator.start()
        await port.start_run()
        report = (await dana.go(sends(ReportKind.APPROVAL))).report
        publish(port.founded, 2, **without(port.founded, "dana"))
        async with port.coordinator.fleet.gate.passing():
            obeying = asyncio.create_task(standing.obey(port.coordinator))
            await asyncio.sleep(0.2)
            assert not obeying.done() and port.coordinator.charter.version == 1
            late = asyncio.create_task(dana.report(report))
            await asyncio.sleep(0.2)
        await asyncio.wait_for(obeying, 10)
        with pytest.raises(grpc.aio.AioRpcError):
            await late
        assert await port.coordinator.store.statements(kind="run-approval") == []


async def test_who_hangs_up_while_its_statement_is_taken_in_does_not_bring_it_in_after_the_version(tmp_path):
    """Its work goes on without it: the gate that let the caller go would let an entry of an ended key follow the version's."""
    async with serving(tmp_path, names=NAMES) as port:
        gate, turns = port.coordinator.fleet.gate, port.coordinator.fleet.turns
        begun, may_end, order = asyncio.Event(), asyncio.Event(), []

        async def work() -> None:
            begun.set()
            await may_end.wait()
            order.append("kept")

        async def call() -> None:
            async with gate.passing():
                await turns.alone("dana", work)

        async def close() -> None:
            async with gate.closed():
                order.append("version")

        caller = asyncio.create_task(call())
        await begun.wait()
        caller.cancel()
        closing = asyncio.create_task(close())
        await asyncio.wait({caller, closing}, timeout=0.1)
        may_end.set()
        await asyncio.wait_for(closing, 5)
        assert caller.cancelled() and order == ["kept", "version"]


async def test_a_removed_member_signs_no_release_that_was_made_before_and_the_others_still_can(tmp_path, monkeypatch):
    """A signature has no time: after its removal dana could sign what was made while it was a member."""
    monkeypatch.setattr(attested, "COSIGNED_S", 0.1)
    async with serving(tmp_path, names=NAMES) as port:
        await port.coordinator.start()
        engine, charter, zero = await port.start_run(), port.coordinator.charter, bytes(32)
        about = (charter.terms.consortium_id, 1, charter.digest, engine.run)
        statement = statement_of(Release("titan-1", *about, 0, zero, zero, zero, 0, EMPTY_ROOT))
        publish(port.founded, 2, **without(port.founded, "dana"))
        await standing.obey(port.coordinator)

        async def published_by(*members: str) -> dict[str, object]:
            keys = {m: port.founded.members[m].governance_key for m in members}
            lines = [{"member": m, "signature": key.sign(pae(IN_TOTO, statement)).hex()} for m, key in keys.items()]
            return await attested.publish(
                port.coordinator, ReleasePublished, {"entry": {"statement": statement.decode(), "signatures": lines}}
            )

        with pytest.raises(NotAuthorised, match="signed by dana, who is no member or whose key was taken out before it was entered"):
            await published_by("ara", "bora", "dana")
        with pytest.raises(NotAuthorised, match="signed by 2 of 3 members, 3 are needed; not yet by chan"):
            await published_by("ara", "bora")
        assert await port.coordinator.store.statements(kind=ReleasePublished.kind) == []
        with pytest.raises(Unavailable, match="the release is entered and not cosigned yet"):
            await published_by("ara", "bora", "chan")
        assert len(await port.coordinator.store.statements(kind=ReleasePublished.kind)) == 1


async def test_an_allocation_for_somebody_who_never_was_a_member_becomes_no_entry(tmp_path):
    """Enough members can sign one; as an entry, level 1 of every audit of this log would find it wrong for good."""
    async with serving(tmp_path, names=NAMES) as port:
        await port.coordinator.start()
        engine, charter = await port.start_run(), port.coordinator.charter
        about = (charter.terms.consortium_id, 1, charter.digest, "", (engine.run,), 0, 1, 0, EMPTY_ROOT, bytes(32), "agreed", 1)
        statement = statement_of(Allocation("a-2026", *about, (Portion("ara", 1), Portion("stranger", 0))))
        keys = {m: port.founded.members[m].governance_key for m in NAMES}
        lines = [{"member": m, "signature": key.sign(pae(IN_TOTO, statement)).hex()} for m, key in keys.items()]
        with pytest.raises(Refused, match="portions: name somebody who never was a member: stranger"):
            await attested.publish(port.coordinator, AllocationPublished, {"entry": {"statement": statement.decode(), "signatures": lines}})
        assert await port.coordinator.store.statements(kind=AllocationPublished.kind) == []


@pytest.mark.parametrize("broken", ["enter_charter", "roster_changed"])
async def test_a_removal_that_the_disk_cut_short_is_done_once_the_disk_lets_it(tmp_path, broken, monkeypatch):
    """It was given up for good: the removed member's streams and its part in open runs went on until somebody restarted the coordinator."""
    monkeypatch.setattr(standing, "LOOK_S", 0.05)
    async with serving(tmp_path, names=NAMES) as port, hands(port, *NAMES) as nodes:
        await port.coordinator.start()
        whole, tried = getattr(port.coordinator, broken), []

        def fails(*_args: object) -> object:
            tried.append(port.coordinator.charter.version)
            if len(tried) < 3:
                raise StoreUnusable("database: disk is full")
            return whole()

        monkeypatch.setattr(port.coordinator, broken, fails)
        watching = asyncio.create_task(standing.watch(port.coordinator))
        publish(port.founded, 2, **without(port.founded, "dana"))
        with pytest.raises(grpc.aio.AioRpcError, match=r"dana\.titan is no member of charter version 2"):
            await asyncio.wait_for(nodes[-1].following, 10)
        await asyncio.sleep(0.2)
        assert len(tried) == 3 and port.coordinator.charter_trouble == "" and not port.coordinator.obeying
        assert [v.version for v in port.coordinator.charters.all] == [1, 2] and len(port.coordinator.charters.positions) == 2
        watching.cancel()


async def test_a_removed_members_witness_in_the_settings_does_not_keep_it_in(tmp_path):
    async with serving(tmp_path, names=NAMES) as port:
        await port.coordinator.start()
        port.coordinator.settings = replace(port.coordinator.settings, http_witnesses={"dana": "http://127.0.0.1:1/w"})
        port.coordinator.roster_changed()
        assert len(port.coordinator.witnesses.fixed) == 1
        publish(port.founded, 2, **without(port.founded, "dana"))
        await standing.obey(port.coordinator)
        assert port.coordinator.roster.version == 2 and port.coordinator.witnesses.fixed == {}


async def test_a_version_that_does_not_follow_is_not_obeyed(tmp_path):
    """What lies in the coordinator's folder is believed as little as what a peer shows."""
    async with serving(tmp_path, names=NAMES) as port:
        await port.coordinator.start()
        folder = port.founded.hub
        good = folder.versions()
        publish(port.founded, 2, w_max=7)
        hub = replace(root.terms_of(root.parse(good[0])).coordinator, log_key=b"k" * 32)
        for wrong in ((good[0], good[0]), good[:1] + folder.versions()[1:] * 2):
            ConsortiumFile("titan", "127.0.0.1:1", tuple(wrong)).write(folder.published_path())
            with pytest.raises((NotAuthorised, BadInput)):
                await standing.obey(port.coordinator)
        ConsortiumFile("titan", "127.0.0.1:1", tuple(good)).write(folder.published_path())
        raw = root.propose(replace(root.terms_of(root.parse(good[0])), coordinator=hub), 2, datetime.now(UTC))
        folder.publish(raw, {n: root.sign(raw, n, port.founded.members[n].governance_key) for n in NAMES})
        with pytest.raises(NotAuthorised, match=r"names another coordinator's key than any log\.key"):
            await standing.obey(port.coordinator)
        assert port.coordinator.charter.version == 1 and port.coordinator.roster.version == 1


async def test_a_member_with_new_keys_is_let_in_under_them_and_not_under_the_old(tmp_path):
    """TLS anchors are those of the version in force: the port is opened anew for a CA it did not know."""
    from dure.identity.node import create_node
    from dure.identity.requests import replace_keys

    async with serving(tmp_path, names=NAMES) as port:
        founded, coordinator = port.founded, port.coordinator
        await coordinator.start()
        new = replace_keys(tmp_path / "new", founded.members["bora"].member, founded.members["bora"], 1, time.time())
        terms = founded.hub.charter().terms
        publish(founded, 2, members=tuple(new.member if m.id == "bora" else m for m in terms.members), signers=("ara", "chan", "dana"))
        await standing.obey(coordinator)
        old = founded.nodes["bora"]
        founded.nodes["bora"] = create_node(new.directory, tmp_path / "bora2", "n1", founded.hub.published_path(), now=time.time())
        again = Port(coordinator.door.port.address, founded, coordinator)
        async with hands(again, "ara", "bora") as (_, bora):
            assert bora.identity.delegated.generation > old.delegated.generation
            founded.nodes["bora"] = old
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async with hands(again, "bora"):
                    pass
            assert "not issued by that member's CA" in refused.value.details()


def test_a_node_takes_no_charter_that_does_not_follow_from_its_own(tmp_path):
    """Rollback, a fork, a version too few signed, another consortium: the node's file stays as it was."""
    founded = found(tmp_path / "c", NAMES)
    one = founded.hub.versions()[0]
    two = publish(founded, 2, w_max=7)
    three = publish(founded, 3, w_max=8)
    terms = root.terms_of(root.parse(one))
    fork = root.propose(replace(terms, w_max=9), 2, datetime.now(UTC))
    fork = root.merge(fork, {n: root.sign(fork, n, founded.members[n].governance_key) for n in NAMES}, one)
    few = root.propose(replace(terms, w_max=9), 3, datetime.now(UTC))
    few = root.merge(few, {n: root.sign(few, n, founded.members[n].governance_key) for n in NAMES[:1]}, two)
    other = found(tmp_path / "other", NAMES)
    node = founded.nodes["ara"].followed((one, two))
    assert node.charter.version == 2
    for wrong in ((one,), (), (one, fork), (one, fork, three), (one, two, few), (one, two, two), (one, two, b"{}"), other.hub.versions()):
        with pytest.raises(DureError):
            node.followed(tuple(wrong))
        assert load_node(node.directory).charter.digest == node.charter.digest
    assert node.followed((one, two)) is node
    assert node.followed((one, two, three)).charter.terms.w_max == 8


def test_a_node_that_its_own_version_removes_says_so_and_can_still_be_looked_at(tmp_path):
    founded = found(tmp_path / "c", NAMES)
    publish(founded, 2, **without(founded, "dana"))
    gone = founded.nodes["dana"].followed(tuple(founded.hub.versions()))
    assert "charter version 2 has dana no more" in gone.ended
    assert founded.nodes["ara"].followed(tuple(founded.hub.versions())).ended == ""
