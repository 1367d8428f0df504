"""A usage statement that names an environment nobody committed to, or a commit that names no usage, becomes no entry: every audit of the
consortium would fail by it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from types import SimpleNamespace

import grpc
import pytest
from attacks.ports import hands, serving
from support.synthetic_log import environment

from dure.errors import Refused, Unavailable
from dure.identity.keys import public_bytes
from dure.secagg import tlv
from dure.secagg.certificate import context
from dure.secagg.ids import InstanceId, Purpose
from dure.statements.dsse import Envelope, key_id
from dure.statements.kinds import (
    CohortMember,
    EnvCommitment,
    ExchangeAccept,
    InstanceCommit,
    InstanceOpen,
    NodeDelegation,
    RunApproval,
    Usage,
)
from dure.statements.statement import Chain, SeenHead, seal
from dure.wire.messages import Report, ReportKind
from dure_coordinator.exchange.state import InstancePhase, InstanceState
from dure_coordinator.log import opened as opened_module
from dure_coordinator.storage.store import StatementRow, With
from dure_pb.v1 import log_pb2 as pb
from dure_pb.v1.log_pb2_grpc import LogServiceStub


class Speaker:
    """A node that signs what it likes, in order."""

    def __init__(self, hand) -> None:
        self.hand, self.chain, self.log = hand, Chain(), LogServiceStub(hand.channel)

    async def say(self, fact) -> bytes:
        """Its digest, once it is an entry; a refused one was never said."""
        envelope, chain = seal(fact, self.hand.identity.key, self.chain, time.time())
        assert (await self.log.Append(pb.AppendRequest(envelopes=[envelope.to_bytes()]))).accepted == 1
        self.chain = chain
        return envelope.sha256

    async def refused(self, fact) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.say(fact)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        return error.value.details()


async def test_only_what_the_same_member_said_in_an_entry_before_can_be_named(tmp_path):
    async with serving(tmp_path) as port, hands(port, "ara", "bora") as found:
        engine = await port.start_run()
        await port.coordinator.enter_charter()
        ara, bora = (Speaker(hand) for hand in found)

        def usage(member: str, named: bytes | None) -> Usage:
            return Usage(engine.run, 1, member, 1, 1, 1, 1, 1, "cpu", environment_sha256=named)

        later, _ = seal(environment("ara"), ara.hand.identity.key, Chain(7, bytes(32)), time.time())
        for named in (bytes(32), later.sha256):
            assert (await ara.refused(usage("ara", named))).startswith("environment_sha256: names no entry of the log")
        assert (await ara.refused(environment("bora"))).startswith("member: ")
        theirs, mine = await bora.say(environment("bora")), await ara.say(environment("ara"))
        word = await port.coordinator.store.statements(kind=NodeDelegation.kind)
        for named in (theirs, *(Envelope.from_bytes(row.envelope).sha256 for row in word[:1])):
            assert "which is no env-commitment of ara" in await ara.refused(usage("ara", named))
        spent = await ara.say(usage("ara", mine))
        assert len(await port.coordinator.store.statements(kind=EnvCommitment.kind)) == 2

        # A commit names its usage statement in the same way, whether it ends an upload or comes by itself.
        def commit(exchange: int, named: bytes) -> InstanceCommit:
            where = InstanceId(engine.state.facts.consortium, engine.run, exchange, Purpose.SCALARS)
            return InstanceCommit(where.tlv(), bytes(32), "ara", bytes(32), 0, (1,), 1, named)

        for named, why in ((bytes(32), "names no entry"), (mine, "is no usage of ara"), (theirs, "is no usage of ara")):
            assert why in await ara.refused(commit(1, named))
        assert "of another exchange" in await ara.refused(commit(2, spent))

        # An acceptance brings a usage statement, too, and it becomes an entry with it.
        accept, chain = seal(ExchangeAccept(engine.run, 1, "ara", (bytes(32),), (), None), ara.hand.identity.key, ara.chain, time.time())
        told, _ = seal(usage("ara", theirs), ara.hand.identity.key, chain, time.time())
        report = Report(engine.run, ReportKind.ACCEPT, 1, body=tlv.encode(accept.to_bytes(), told.to_bytes()))
        caller = port.coordinator.fleet.sessions["ara"].caller
        assert (await port.coordinator.fleet.report(caller, report)).field == "environment_sha256"


async def test_a_commit_by_itself_is_to_an_instance_as_the_log_has_it_by_one_of_its_cohort(tmp_path, monkeypatch):
    """Without `Openings` one member's word about an instance that never was would stand in the log for good."""
    async with serving(tmp_path) as port, hands(port, "ara", "bora") as found:
        engine = await port.start_run()
        await port.coordinator.enter_charter()
        ara, bora = (Speaker(hand) for hand in found)
        where = InstanceId(engine.state.facts.consortium, engine.run, 1, Purpose.SCALARS)
        cohort = tuple(CohortMember(m, bytes(32), 1) for m in ("ara", "chan", "dan"))
        zero = bytes(32)
        words = (where.tlv(), 1, zero, engine.run, "evaluate", "evaluate", zero, zero, zero, zero, 0, "none")
        opened, _ = seal(InstanceOpen(*words, cohort, (), zero, None, 3, 3, 99), port.founded.hub.signing_key, Chain(), time.time())
        await port.coordinator.store.write(engine.run, With(statements=(StatementRow.of(opened.to_bytes(), engine.run),)))

        def commit(member: str, **other) -> InstanceCommit:
            right = InstanceCommit(where.tlv(), context(where, opened.payload_sha256), member, zero, 0, (1,), 1, None)
            return replace(right, **other)

        assert (await ara.refused(commit("ara", instance=replace(where, exchange=2).tlv()))).startswith("instance: ")
        assert (await ara.refused(commit("ara", ctx=zero))).startswith("ctx: ")
        assert (await bora.refused(commit("bora"))).startswith("member: is not in the cohort")
        assert await ara.say(commit("ara"))

        # Asked again and again about instances that never were, the coordinator reads the run's openings no second time.
        read, statements = [], port.coordinator.store.statements
        monkeypatch.setattr(port.coordinator.store, "statements", lambda **what: read.append(what) or statements(**what))
        for number in range(2, 9):
            assert (await ara.refused(commit("ara", instance=replace(where, exchange=number).tlv()))).startswith("instance: ")
        assert {"run": engine.run, "kind": InstanceOpen.kind} not in read

        # One that is opened later is in the run's state.
        later = replace(where, exchange=2).tlv()
        made = InstanceState(later, "scalars", 0, 1, ("ara",), 3, InstancePhase.UPLOAD, 0.0, ctx=bytes([7]) * 32)
        monkeypatch.setattr(opened_module, "all_exchanges", lambda _state: (SimpleNamespace(number=2, instances=(made,)),))
        assert (await ara.refused(commit("ara", instance=later))).startswith("ctx: ")
        assert await ara.say(commit("ara", instance=later, ctx=made.ctx))


async def test_a_commit_that_does_not_follow_its_signers_statement_before_ends_no_upload(tmp_path, monkeypatch):
    """It would wait for ever to become an entry, and the survivor set, the coordinator's word, would name a commit that is none."""
    async with serving(tmp_path) as port, hands(port, "ara", "bora") as (hand, _):
        engine = await port.start_run()
        await port.coordinator.enter_charter()
        fleet, ara = port.coordinator.fleet, Speaker(hand)
        await ara.say(environment("ara"))
        where = InstanceId(engine.state.facts.consortium, engine.run, 1, Purpose.SCALARS).tlv()
        monkeypatch.setattr(fleet, "_slot", lambda _member, _upload: (engine, SimpleNamespace(instance=where, length=1, chunk_bytes=1)))
        monkeypatch.setattr(fleet.spools, "open", lambda *_args, **_named: SimpleNamespace(finish=lambda _root: None))
        submitted = []
        monkeypatch.setattr(fleet, "_submit", lambda *words: submitted.append(words))

        def commit(chain: Chain) -> bytes:
            said = InstanceCommit(where, bytes(32), "ara", bytes(32), 1, (1,), 1, None)
            return seal(said, hand.identity.key, chain, time.time())[0].to_bytes()

        with pytest.raises(Unavailable, match="statement 1 of this key is missing before statement 2"):
            await fleet.commit_upload("ara", bytes(32), commit(replace(ara.chain, seq=2)))
        with pytest.raises(Refused, match="seq: another statement 0"):
            await fleet.commit_upload("ara", bytes(32), commit(Chain()))
        with pytest.raises(Refused, match="prev: "):
            await fleet.commit_upload("ara", bytes(32), commit(replace(ara.chain, prev=bytes(32))))
        assert not submitted


async def test_a_report_whose_statements_do_not_follow_their_signers_before_brings_none(tmp_path):
    """One that can never be an entry was kept all the same, and the run went on with it; an acceptance's two may follow each other."""
    async with serving(tmp_path) as port, hands(port, "ara", "bora") as (hand, _):
        engine = await port.start_run()
        await port.coordinator.enter_charter()
        fleet, store, ara = port.coordinator.fleet, port.coordinator.store, Speaker(hand)
        await ara.say(environment("ara"))
        spent = Usage(engine.run, 1, "ara", 1, 1, 1, 1, 1, "cpu", environment_sha256=None)
        word = ExchangeAccept(engine.run, 1, "ara", (bytes(32),), (), None)

        async def answer(first: Chain, second: Chain | None = None) -> str:
            usage, after = seal(spent, hand.identity.key, first, time.time())
            accept, _ = seal(word, hand.identity.key, second or after, time.time())
            body = tlv.encode(accept.to_bytes(), usage.to_bytes())
            return (await fleet.report(fleet.sessions["ara"].caller, Report(engine.run, ReportKind.ACCEPT, 1, body=body))).field

        assert await answer(Chain()) == "seq"
        assert await answer(ara.chain, ara.chain) == "seq"
        assert await answer(replace(ara.chain, prev=bytes(32))) == "prev"
        assert await answer(ara.chain, Chain(2, bytes(32))) == "prev"
        for ahead in (replace(ara.chain, seq=2), ara.chain):
            with pytest.raises(Unavailable, match="send it first"):
                await answer(ahead, Chain(3, bytes(32)))
        assert await answer(ara.chain) == "exchange"  # in a row; there is no such exchange
        assert not await store.statements(kind=ExchangeAccept.kind)


async def test_a_statement_that_goes_on_from_the_evidence_against_its_signer_becomes_no_entry(tmp_path):
    """Of two of one number one is the entry; an entry that followed the other would end every audit of the log there."""
    async with serving(tmp_path) as port, hands(port, "ara", "bora") as (hand, _):
        await port.start_run()
        await port.coordinator.enter_charter()
        ara = Speaker(hand)
        await ara.say(environment("ara"))
        other, forked = seal(environment("ara"), hand.identity.key, Chain(), time.time() + 1)
        answer = await ara.log.Append(pb.AppendRequest(envelopes=[other.to_bytes()]))
        assert answer.accepted == 0 and "two histories" in answer.reason
        ara.chain, right = forked, ara.chain
        assert (await ara.refused(environment("ara"))).startswith("prev: ")
        ara.chain = right
        await ara.say(environment("ara"))


async def test_a_statement_under_two_signatures_becomes_no_entry_in_another_partys_chain(tmp_path):
    """The first key id is where it would be kept: the coordinator's own next number, or another member's, would be taken by it."""
    async with serving(tmp_path) as port, hands(port, "ara", "bora") as found:
        await port.start_run()
        await port.coordinator.enter_charter()
        ara, bora = (Speaker(hand) for hand in found)
        store, coordinators = port.coordinator.store, key_id(public_bytes(port.founded.hub.signing_key))
        others = {coordinators: await store.chain_of(coordinators), key_id(public_bytes(bora.hand.identity.key)): Chain()}
        for other, chain in others.items():
            own, _ = seal(environment("ara"), ara.hand.identity.key, chain, time.time())
            forged = Envelope(own.payload, ((other, bytes(64)), *own.signatures), own.payload_type)
            with pytest.raises(grpc.aio.AioRpcError, match="signatures"):
                await ara.log.Append(pb.AppendRequest(envelopes=[forged.to_bytes()]))
            assert not await store.statement(other, chain.seq)
        await bora.say(environment("bora"))


@pytest.mark.parametrize("gone", [False, True], ids=["waiting", "gone"])
async def test_of_two_statements_of_one_number_sent_at_one_moment_only_the_first_counts(tmp_path, monkeypatch, gone):
    """Without `Turns` both follow the one before when they are judged, and the commit counts in its run and is no entry. So it is with a
    caller that goes away meanwhile, too."""
    async with serving(tmp_path) as port, hands(port, "ara", "bora") as (hand, _):
        engine = await port.start_run()
        await port.coordinator.enter_charter()
        fleet, ara, begun = port.coordinator.fleet, Speaker(hand), asyncio.Event()
        await ara.say(environment("ara"))
        where = InstanceId(engine.state.facts.consortium, engine.run, 1, Purpose.SCALARS).tlv()
        monkeypatch.setattr(fleet, "_slot", lambda _member, _upload: (engine, SimpleNamespace(instance=where, length=1, chunk_bytes=1)))
        monkeypatch.setattr(fleet.spools, "open", lambda *_args, **_named: SimpleNamespace(finish=lambda _root: None))

        async def submit(_engine, _event, also) -> None:
            begun.set()
            await asyncio.sleep(0.3)
            await fleet.store.write(engine.run, With(statements=also(None).statements))

        monkeypatch.setattr(fleet, "_submit", submit)
        commit, _ = seal(InstanceCommit(where, bytes(32), "ara", bytes(32), 1, (1,), 1, None), hand.identity.key, ara.chain, time.time())
        uploading = asyncio.create_task(fleet.commit_upload("ara", bytes(32), commit.to_bytes()))
        await begun.wait()
        if gone:
            uploading.cancel()
        other, _ = seal(environment("ara"), hand.identity.key, ara.chain, time.time())
        answer = await ara.log.Append(pb.AppendRequest(envelopes=[other.to_bytes()]))
        assert answer.accepted == 0 and "two histories" in answer.reason
        with contextlib.suppress(asyncio.CancelledError):
            await uploading
        assert await fleet.store.log_index(commit.sha256) is not None


async def test_a_node_that_names_an_older_head_than_before_or_none_is_refused_its_statement(tmp_path, monkeypatch):
    async with serving(tmp_path) as port, hands(port, "ara", "bora") as (hand, _):
        await port.start_run()
        await port.coordinator.enter_charter()
        ara, heads = Speaker(hand), [SeenHead(size, bytes([size]) * 32) for size in (4, 5)]

        async def own(_head: SeenHead) -> None:
            """Whatever is named is of this log."""

        monkeypatch.setattr(port.coordinator.fleet.heads, "own", own)
        for seen in heads:
            ara.chain = replace(ara.chain, seen=seen)
            await ara.say(environment("ara"))
        for older in (heads[0], None):
            ara.chain = replace(ara.chain, seen=older)
            assert (await ara.refused(environment("ara"))).startswith("checkpoint: must not be older than the head of 5 entries")


async def test_a_statement_dated_days_ahead_becomes_no_entry(tmp_path):
    """Without the limit one member's clock, or its malice, would end every audit with "a clock was off by a day"."""
    async with serving(tmp_path) as port, hands(port, "ara") as (hand,):
        engine = await port.start_run()
        await port.coordinator.enter_charter()
        ara = Speaker(hand)
        for days, taken in ((2, False), (7_000, False), (0, True)):
            envelope, _ = seal(environment("ara"), hand.identity.key, Chain(), time.time() + 86_400 * days)
            if taken:
                assert (await ara.log.Append(pb.AppendRequest(envelopes=[envelope.to_bytes()]))).accepted == 1
                continue
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await ara.log.Append(pb.AppendRequest(envelopes=[envelope.to_bytes()]))
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert f"time: is {days * 24} hours from now" in error.value.details()
        ahead, _ = seal(RunApproval(engine.run, "ara", "n1"), hand.identity.key, Chain(1, envelope.sha256), time.time() + 200_000)
        report = Report(engine.run, ReportKind.APPROVAL, body=ahead.to_bytes())
        assert (await port.coordinator.fleet.report(port.coordinator.fleet.sessions["ara"].caller, report)).field == "time"
