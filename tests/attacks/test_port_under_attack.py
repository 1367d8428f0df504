"""A dishonest node over real mutual TLS: other members' names and uploads, uploads that do not hold, and attempts to wear the port out."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import replace

import grpc
import pytest
from attacks.ports import Hand, Port, hands, sends, serving, uploads

from dure.blobs import chunk_leaf
from dure.secagg.ids import upload_id
from dure.statements.dsse import key_id
from dure.statements.kinds import InstanceCommit, RunApproval
from dure.statements.statement import Chain, seal
from dure.tlog.merkle import merkle_root
from dure.wire.bulk import PUSH_METHOD, Frame, FrameKind, Refusal, decode_frame, encode_frame, push_chunk
from dure.wire.control import encode_report
from dure.wire.messages import Report, ReportKind
from dure_coordinator.exchange import view
from dure_coordinator.exchange.events import Abort
from dure_coordinator.log.intake import Intake
from dure_coordinator.rpc import log as log_service
from dure_coordinator.rpc.server import MOST_UP_BYTES, Limits
from dure_participant.exchange import actions as act
from dure_pb.v1 import log_pb2, log_pb2_grpc, members_pb2

# -- another member's sender id ------------------------------------------------------------------------------------------


async def test_a_report_that_names_another_member_is_refused_whatever_it_signs(tmp_path):
    """Who speaks is who the certificate says: without that in Fleet.report chan's own approval, sent by ara, would be ara's."""
    async with serving(tmp_path) as port, hands(port) as (ara, _bora, chan):
        engine = await port.start_run()
        theirs = (await chan.go(sends(ReportKind.APPROVAL))).report
        reply = await ara.report(theirs)
        assert not reply.accepted and reply.field == "signatures"
        by_ara, _ = seal(RunApproval(engine.run, "chan", "n1"), ara.identity.key, Chain(), time.time())
        reply = await ara.report(Report(engine.run, ReportKind.APPROVAL, body=by_ara.to_bytes()))
        assert not reply.accepted and reply.field == "member"
        assert not engine.state.approvals


async def test_a_run_of_which_a_member_is_no_part_answers_it_nothing(tmp_path):
    """Without the roster in Fleet.report a member could speak in any run whose id it knows."""
    async with serving(tmp_path) as port, hands(port, "ara") as (ara,):
        reply = await ara.report(Report(b"x" * 32, ReportKind.LOST, body=b"{}"))
        assert not reply.accepted and reply.field == "run"


# -- uploads -----------------------------------------------------------------------------------------------------------


async def to_upload(port: Port, everyone: list[Hand]) -> list[act.Upload]:
    """A run whose members all have begun the upload of the scales; nothing of it is sent."""
    engine = await port.start_run()
    asking = asyncio.create_task(_ask_when_idle(port, engine))
    found = await asyncio.gather(*(hand.go(uploads) for hand in everyone))
    await asking
    return found  # type: ignore[return-value]


async def _ask_when_idle(port: Port, engine) -> None:
    while engine.state.phase != "idle":
        await engine.changes.wait(engine.changes.version, 1.0)
    await port.ask(engine)


async def push(hand: Hand, upload: bytes, *frames: bytes) -> Frame:
    """Sends these frames after the stream is resumed; the last frame that comes back."""
    call = hand.channel.stream_stream(PUSH_METHOD)()
    await call.write(encode_frame(FrameKind.RESUME, upload))
    answer = decode_frame(await call.read())
    for frame in frames if answer.kind is FrameKind.RESUME else ():
        try:
            await call.write(frame)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            break
    if answer.kind is FrameKind.RESUME:
        answer = decode_frame(await asyncio.wait_for(call.read(), 20))
    call.cancel()
    return answer


def chunks(length: int, size: int) -> list[bytes]:
    return [os.urandom(min(size, length - at)) for at in range(0, length, size)]


def commit(hand: Hand, action: act.Upload, data: list[bytes], **change) -> bytes:
    fields = dict(
        instance=action.instance,
        ctx=action.ctx,
        member=hand.identity.member,
        root=merkle_root(chunk_leaf(c) for c in data),
        length=sum(map(len, data)),
        trailer=(1,),
        tag=5,
        usage_sha256=None,
    )
    envelope, after = seal(InstanceCommit(**{**fields, **change}), hand.identity.key, hand.chain, time.time())
    if not change:  # what is refused was never said: its number is the next one's
        hand.chain = after
    return envelope.to_bytes()


def refused(frame: Frame, *words: str) -> bool:
    assert frame.kind is FrameKind.REFUSE, frame
    why = Refusal.decode(frame)
    assert all(w in f"{why.field}: {why.why}" for w in words), why
    return True


async def test_uploads_that_do_not_hold_count_for_nothing_and_the_true_one_still_does(tmp_path):
    """Oversized, truncated, not matching their leaf, their root or their instance; in another's name: each refused by name."""
    async with serving(tmp_path) as port, hands(port) as everyone:
        actions = await to_upload(port, everyone)
        ara, action = everyone[0], actions[0]
        data = chunks(action.length, action.chunk_bytes)
        frames = [push_chunk(action.upload, k, chunk_leaf(c), c) for k, c in enumerate(data)]
        end = lambda body: encode_frame(FrameKind.COMMIT, action.upload, len(data), body)  # noqa: E731
        engine = next(iter(port.coordinator.fleet.runs.values()))

        assert refused(await push(ara, upload_id(action.instance, "bora")), "no run takes this upload")
        other_leaf = push_chunk(action.upload, 0, bytes(32), data[0])
        assert refused(await push(ara, action.upload, other_leaf), "leaf")
        too_long = push_chunk(action.upload, 0, chunk_leaf(data[0] + b"x"), data[0] + b"x")
        assert refused(await push(ara, action.upload, too_long), "")
        assert refused(await push(ara, action.upload, encode_frame(FrameKind.COMMIT, action.upload, 0, b"{}")), "commit after 0 of")
        assert refused(await push(ara, action.upload, *frames, push_chunk(action.upload, len(data), chunk_leaf(b"x"), b"x")), "chunk")
        for change, why in (
            ({"root": b"r" * 32}, "root"),
            ({"length": 8}, "length"),
            ({"member": "bora"}, "another member or instance"),
            ({"instance": actions[1].instance[:-1] + b"\x07"}, "another member or instance"),
            ({"ctx": b"x" * 32}, "ctx"),
            ({"trailer": (1, 2)}, "trailer"),
        ):
            assert refused(await push(ara, action.upload, *frames[:0], end(commit(ara, action, data, **change))), why)
        assert refused(await push(ara, action.upload, end(commit(everyone[1], actions[1], data))), "signatures")
        assert not engine.state.exchange.instance.commits
        good = commit(ara, action, data)
        assert (await push(ara, action.upload, end(good))).kind is FrameKind.DONE
        assert (await push(ara, action.upload)).kind is FrameKind.DONE, "the same again gets the same answer"
        assert set(engine.state.exchange.instance.commits) == {"ara"}


async def test_an_upload_after_its_instance_was_given_up_finds_no_room(tmp_path):
    """Dropped: without the slot's phase a late upload would lie on the coordinator's disk with its R public (secure-aggregation.md §7)."""
    async with serving(tmp_path) as port, hands(port) as everyone:
        actions = await to_upload(port, everyone)
        engine = next(iter(port.coordinator.fleet.runs.values()))
        await engine.submit(Abort("given up"))
        assert refused(await push(everyone[0], actions[0].upload), "no run takes this upload")


# -- wearing the port out --------------------------------------------------------------------------------------------------


async def test_a_message_larger_than_any_member_has_reason_to_send_is_not_read(tmp_path):
    """Without the port's own limit each of 32 calls of a member could hold 16 MiB of ours."""
    async with serving(tmp_path) as port, hands(port, "ara") as (ara,):
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await ara.stub.Report(members_pb2.ReportRequest(run=b"x" * 32, kind="lost", body=bytes(MOST_UP_BYTES + (1 << 20))), timeout=20)
        assert e.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        large = Report(b"x" * 32, ReportKind.LOST, body=bytes(5000))
        reply = await ara.stub.Report(encode_report(large), timeout=20)
        assert not reply.accepted and reply.field == "body"


async def test_a_stranger_that_connects_and_says_nothing_is_gone_after_the_handshakes_time(tmp_path):
    """Without grpc.server_handshake_timeout_ms each silent connection would be held for two minutes."""
    async with serving(tmp_path, Limits(handshake_s=1.0)) as port:
        host, _, number = port.address.rpartition(":")

        def silent() -> float:
            began = time.monotonic()
            with socket.create_connection((host, int(number)), timeout=30) as stranger:
                stranger.settimeout(30)
                while stranger.recv(4096):
                    pass
            return time.monotonic() - began

        assert await asyncio.to_thread(silent) < 15


async def test_a_member_that_comes_and_goes_is_slowed_down_and_the_others_are_not(tmp_path):
    """Each arrival is two rows in every run's log: without Pace a member could fill the disk by reconnecting."""
    async with serving(tmp_path, Limits(arrivals_per_minute=5)) as port, hands(port, "ara", "bora") as (ara, bora):
        engine = await port.start_run()
        before, codes = engine.position, []
        for _ in range(12):
            call = ara.stub.Follow(members_pb2.FollowRequest())
            try:
                await asyncio.wait_for(call.read(), 20)
                codes.append("OK")
            except grpc.aio.AioRpcError as error:
                codes.append(error.code().name)
            call.cancel()
        assert codes[:4] == ["OK"] * 4 and set(codes[5:]) == {"RESOURCE_EXHAUSTED"}
        assert engine.position - before <= 2 * 6
        with pytest.raises(grpc.aio.AioRpcError, match="times a minute"):
            for _ in range(6):
                await ara.hello()
        await bora.hello()


async def test_a_node_that_takes_no_directive_loses_its_stream_and_holds_nothing(tmp_path):
    """Slow loris on Follow: it answers pings and takes nothing; without the time in rpc.status.taken it would hold directives for ever."""
    async with serving(tmp_path, Limits(follow_write_s=1.0)) as port:
        fleet = port.coordinator.fleet
        async with hands(port, "ara", narrow=True) as (ara,):
            call = ara.stub.Follow(members_pb2.FollowRequest())
            await until(lambda: "ara" in fleet.here)
            engine = await port.start_run()
            large = replace(view.directive(engine.state, "ara"), documents={"plan": bytes(6 << 20)})
            fleet.directives = lambda member: {engine.run: large}  # type: ignore[method-assign]
            await fleet.changes.bump()
            await until(lambda: not fleet.here)
            call.cancel()


async def test_a_node_that_takes_no_entries_loses_their_stream(tmp_path, monkeypatch):
    """Each of a member's streams would hold a batch of the log, up to 2 MiB, for as long as its connection lives."""
    monkeypatch.setattr(log_service, "WRITE_S", 0.3)
    async with serving(tmp_path) as port, hands(port, "ara", narrow=True) as (ara,):

        async def much(start: int, end: int) -> list[bytes]:
            return [bytes(8_000)] * (end - start)

        monkeypatch.setattr(port.coordinator.store, "log_entries", much)
        monkeypatch.setattr(log_service.wire, "decode_span", lambda message, _size: (message.start, message.end))
        call = log_pb2_grpc.LogServiceStub(ara.channel).Entries(log_pb2.EntriesRequest(start=0, end=64_000))
        authorise = port.coordinator.door.port.authorise
        await until(lambda: authorise._calls["ara"])
        await until(lambda: not authorise._calls["ara"])
        call.cancel()


async def until(done) -> None:
    for _ in range(100):
        if done():
            return
        await asyncio.sleep(0.2)
    raise AssertionError("waited 20 s")


async def test_one_member_has_so_many_calls_at_a_time_and_no_more(tmp_path):
    """Without the count in Authorise one member's calls could take every thread and descriptor of the coordinator."""
    async with serving(tmp_path, Limits(calls_per_member=3)) as port, hands(port, "bora") as (bora,):
        ara = port.founded.nodes["ara"]
        channels = []
        codes = []
        for i in range(5):
            credentials = grpc.ssl_channel_credentials(port.ca, ara.tls_key_pem, ara.tls_certificate_pem)
            channel = grpc.aio.secure_channel(port.address, credentials, [("grpc.use_local_subchannel_pool", 1), ("n", i)])
            channels.append(channel)
            call = channel.stream_stream(PUSH_METHOD)()
            reading = asyncio.create_task(call.read())
            await asyncio.sleep(0.3)
            codes.append((await call.code()).name if reading.done() else "open")
        assert codes == ["open"] * 3 + ["RESOURCE_EXHAUSTED"] * 2
        await bora.hello()
        await asyncio.gather(*(c.close() for c in channels))


async def test_of_two_histories_one_piece_of_evidence_is_kept_and_not_one_per_lie(tmp_path):
    """Without the count in Intake.append a member could sign its statement 0 again and again, each kept for ever."""
    async with serving(tmp_path) as port, hands(port, "ara") as (ara,):
        engine = await port.start_run()
        intake, caller = Intake(port.coordinator.fleet), port.coordinator.fleet.sessions["ara"].caller
        answers = []
        for i in range(6):
            envelope, _ = seal(RunApproval(engine.run, "ara", f"n{i}"), ara.identity.key, Chain(), time.time())
            answers.append(await intake.append(caller, envelope.to_bytes()))
        assert answers[0] == "" and all("two histories" in a for a in answers[1:])
        party = key_id(ara.identity.key.public_key().public_bytes_raw())
        assert len(await port.coordinator.store.statement(party, 0)) == 2
