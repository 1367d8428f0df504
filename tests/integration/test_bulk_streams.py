"""Blobs down and uploads up over real grpc.aio on port 0, with connections that break and peers that lie."""

import asyncio
import contextlib
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import ClassVar

import grpc
import pytest

from dure.blobs import BlobId, BlobMissing, BlobRefused, BlobStore, DiskFull, Manifest, chunk_leaf
from dure.errors import NotAuthorised, Refused, Unavailable
from dure.tlog.merkle import merkle_root
from dure.wire.bulk import (
    PULL_METHOD,
    PUSH_METHOD,
    FrameKind,
    PullRequest,
    Refusal,
    decode_frame,
    encode_frame,
    push_chunk,
    split_manifest,
)
from dure.wire.control import WireRefused
from dure_coordinator.quotas import Quotas
from dure_coordinator.rpc.bulk import BulkService, BulkSettings
from dure_coordinator.spool import Spool, Spools
from dure_participant.bulk import BulkRefused, Retry, pull_blob, pull_through, push_upload

UPLOAD = b"\x05" * 32
RUN = b"r" * 32
CHUNK = 4096
QUICK = Retry(attempts=3, first_pause_s=0.01, longest_pause_s=0.02)


@dataclass
class Policy:
    """Everyone may do everything, except what a test takes away."""

    store: BlobStore
    spools: Spools
    length: int = 20 * CHUNK + 100
    committed: dict[bytes, bytes] = field(default_factory=dict)
    error: Exception | None = None
    wrap: type | None = None
    opened: int = 0
    run_of: Callable[[bytes], bytes] = lambda _upload: RUN

    async def authorise_pull(self, member: str, blob: BlobId):
        if self.error:
            raise self.error
        reader = self.store.open(blob)
        return RUN, self.wrap(reader) if self.wrap else reader

    async def open_upload(self, member: str, upload: bytes) -> tuple[bytes, Spool | bytes]:
        if self.error:
            raise self.error
        self.opened += 1
        if upload in self.committed:
            return RUN, b"answer to " + self.committed[upload]
        return self.run_of(upload), self.spools.open(upload, length=self.length, chunk_bytes=CHUNK)

    async def commit_upload(self, member: str, upload: bytes, commit: bytes) -> bytes:
        spool = self.spools.open(upload, length=self.length, chunk_bytes=CHUNK)
        await asyncio.to_thread(spool.finish, commit)
        self.committed[upload] = commit
        return b"answer to " + commit


@dataclass
class Site:
    policy: Policy
    service: BulkService
    address: str
    server: grpc.aio.Server


def member_of(context) -> str:
    member = dict(context.invocation_metadata()).get("member", "a")
    if member == "stranger":
        raise NotAuthorised("unknown certificate")
    return member


async def serve(service: BulkService, address: str = "127.0.0.1:0") -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port(address)
    await server.start()
    return server, f"127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def running(tmp_path, **settings) -> AsyncIterator[Site]:
    policy = Policy(BlobStore(tmp_path / "there"), Spools(tmp_path / "spools", quotas=Quotas(2**30)))
    service = BulkService(policy, member_of, BulkSettings(**settings))
    server, address = await serve(service)
    try:
        yield Site(policy, service, address, server)
    finally:
        await server.stop(None)


def upload_of(length: int) -> tuple[list[bytes], bytes]:
    data = os.urandom(length)
    chunks = [data[i : i + CHUNK] for i in range(0, length, CHUNK)]
    return chunks, merkle_root(chunk_leaf(c) for c in chunks)


async def frames_of(call) -> list:
    out = []
    while (data := await call.read()) is not grpc.aio.EOF:
        out.append(decode_frame(data))
    return out


# -- down ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 3 * CHUNK, 3 * CHUNK + 1])
async def test_blob_arrives_verified_and_complete(tmp_path, length):
    data, here, seen = os.urandom(length), BlobStore(tmp_path / "here"), []
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        blob = site.policy.store.put_bytes(data, chunk_bytes=CHUNK)
        manifest = await pull_blob(channel, blob, here, lambda k, n: seen.append((k, n)))
        assert await pull_blob(channel, blob, here) == manifest
    assert here.read_bytes(blob, limit=length) == data
    assert seen == [(k + 1, manifest.chunks) for k in range(manifest.chunks)]


class BreaksOnce:
    """A reader whose fifth chunk kills the stream, once per test."""

    broken = False
    asked: ClassVar[list[int]] = []

    def __init__(self, reader):
        self.reader, self.manifest, self.close = reader, reader.manifest, reader.close

    def read_chunk(self, k):
        type(self).asked.append(k)
        if k == 5 and not BreaksOnce.broken:
            BreaksOnce.broken = True
            raise RuntimeError("the coordinator dies here")
        return self.reader.read_chunk(k)


async def test_pull_goes_on_at_the_chunk_where_the_connection_broke(tmp_path):
    BreaksOnce.broken, BreaksOnce.asked = False, []
    data, here = os.urandom(9 * CHUNK), BlobStore(tmp_path / "here")
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        blob = site.policy.store.put_bytes(data, chunk_bytes=CHUNK)
        site.policy.wrap = BreaksOnce
        await pull_blob(channel, blob, here, retry=QUICK)
    assert BreaksOnce.asked == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert here.read_bytes(blob, limit=len(data)) == data


async def test_a_blob_that_only_passes_by_goes_on_at_the_chunk_where_the_connection_broke(tmp_path):
    BreaksOnce.broken, BreaksOnce.asked = False, []
    data = os.urandom(9 * CHUNK)
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        blob = site.policy.store.put_bytes(data, chunk_bytes=CHUNK)
        site.policy.wrap = BreaksOnce
        found = [(manifest.id, k, bytes(chunk)) async for manifest, k, chunk in pull_through(channel, blob, retry=QUICK)]
    assert BreaksOnce.asked == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert found == [(blob, k, data[k * CHUNK : (k + 1) * CHUNK]) for k in range(9)]


async def test_only_the_chunks_asked_for_are_sent(tmp_path):
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        blob = site.policy.store.put_bytes(os.urandom(9 * CHUNK), chunk_bytes=CHUNK)
        frames = await frames_of(channel.unary_stream(PULL_METHOD)(PullRequest(blob, 3, 2).encode()))
    assert [(f.kind, f.chunk) for f in frames] == [(FrameKind.CHUNK, 3), (FrameKind.CHUNK, 4), (FrameKind.DONE, 5)]


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (NotAuthorised("not on this run's roster"), "member"),
        (Refused("blob", "not of this run"), "blob"),
        (BlobMissing(BlobId(bytes(32), 1)), "coordinator"),
    ],
)
async def test_refused_pull_names_the_field_and_is_not_repeated(tmp_path, error, field):
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        site.policy.error = error
        with pytest.raises(BulkRefused) as e:
            await pull_blob(channel, BlobId(bytes(32), 1), BlobStore(tmp_path / "here"))
        assert e.value.field == field
    assert str(tmp_path) not in str(e.value)


async def test_busy_coordinator_is_asked_again_and_then_given_up_naming_why(tmp_path):
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        site.policy.error = DiskFull(tmp_path)
        with pytest.raises(Unavailable, match="no room") as e:
            await pull_blob(channel, BlobId(bytes(32), 1), BlobStore(tmp_path / "here"), retry=QUICK)
    assert str(tmp_path) not in str(e.value)


async def test_stranger_is_turned_away_before_anything_else(tmp_path):
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        for call in (
            channel.unary_stream(PULL_METHOD)(b"", metadata=(("member", "stranger"),)),
            channel.stream_stream(PUSH_METHOD)(metadata=(("member", "stranger"),)),
        ):
            assert await call.code() == grpc.StatusCode.UNAUTHENTICATED


def lying(answer):
    """A server whose Pull answers these frames."""

    async def pull(request, context):
        for frame in answer:
            await context.write(frame)

    return grpc.method_handlers_generic_handler("dure.v1.Bulk", {"Pull": grpc.unary_stream_rpc_method_handler(pull)})


GOOD = [b"x" * CHUNK, b"y" * CHUNK, b"z"]
MANIFEST = Manifest(tuple(chunk_leaf(c) for c in GOOD), 2 * CHUNK + 1, CHUNK)
OTHER = Manifest(MANIFEST.leaves[::-1], 2 * CHUNK + 1, CHUNK)
ROOT = MANIFEST.id.root
PARTS = split_manifest(ROOT, MANIFEST.encode())


def chunk(k, data, id=ROOT) -> bytes:
    return encode_frame(FrameKind.CHUNK, id, k, data)


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        ([b"junk"], "frame"),
        ([encode_frame(FrameKind.MANIFEST, ROOT, 0, OTHER.encode())], "manifest"),
        ([encode_frame(FrameKind.MANIFEST, ROOT, 1, MANIFEST.encode())], "chunk"),
        ([encode_frame(FrameKind.MANIFEST, ROOT, 0, MANIFEST.encode()[:-1])], "leaves"),
        ([chunk(0, GOOD[0])], "kind"),
        ([*PARTS, chunk(0, GOOD[1]), chunk(1, GOOD[1])], "payload"),
        ([*PARTS, chunk(0, GOOD[0][:-1]), chunk(1, GOOD[1])], "payload"),
        ([*PARTS, chunk(0, GOOD[0] + b"x"), chunk(1, GOOD[1])], "payload"),
        ([*PARTS, chunk(1, GOOD[1])], "chunk"),
        ([*PARTS, chunk(0, GOOD[0]), chunk(0, GOOD[0])], "chunk"),
        ([*PARTS, chunk(0, GOOD[0], bytes(32))], "id"),
        ([*PARTS, chunk(0, GOOD[0])[:-1]], "payload length"),
        ([*PARTS, *(chunk(k, c) for k, c in enumerate(GOOD)), chunk(3, b"x")], "chunk"),
    ],
)
async def test_lying_coordinator_is_caught_and_the_field_named(tmp_path, answer, field):
    server, here = grpc.aio.server(), BlobStore(tmp_path)
    server.add_generic_rpc_handlers((lying(answer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises((WireRefused, BlobRefused)) as e:
            await pull_blob(channel, MANIFEST.id, here, retry=QUICK)
    await server.stop(None)
    assert e.value.field == field and not here.has(MANIFEST.id)


async def test_large_pull_needs_memory_of_a_few_chunks(tmp_path):
    here = BlobStore(tmp_path / "here")
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        blob = site.policy.store.put_bytes(bytes(64 * 2**20))
        tracemalloc.start()
        await pull_blob(channel, blob, here)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 * 2**20  # both ends are in this process


# -- up --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "async", "with leaf"])
async def test_upload_arrives_and_the_commit_is_answered(tmp_path, form):
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        chunks, root = upload_of(site.policy.length)

        async def slowly(k: int) -> bytes:
            await asyncio.sleep(0)
            return chunks[k]

        chunk_of = {"plain": chunks.__getitem__, "async": slowly, "with leaf": lambda k: (chunk_leaf(chunks[k]), chunks[k])}
        seen: list[int] = []
        reply = await push_upload(channel, UPLOAD, chunk_of[form], len(chunks), lambda: root, lambda k, n: seen.append(k))
        assert reply == b"answer to " + root and seen == list(range(1, len(chunks) + 1))
        again = await push_upload(channel, UPLOAD, pytest.fail, len(chunks), pytest.fail)
        assert again == reply


async def test_push_goes_on_at_the_durable_chunk_after_the_node_was_cut_off(tmp_path):
    made: list[int] = []
    async with running(tmp_path) as site:
        chunks, root = upload_of(site.policy.length)

        async def chunk_of(k: int) -> bytes:
            made.append(k)
            if k == 12 and made.count(12) == 1:
                await asyncio.sleep(0.2)
                raise ConnectionError("the node dies here")
            return chunks[k]

        async with grpc.aio.insecure_channel(site.address) as channel:
            with pytest.raises(ConnectionError):
                await push_upload(channel, UPLOAD, chunk_of, len(chunks), lambda: root)
        first = max(made)
        made.clear()
        async with grpc.aio.insecure_channel(site.address) as channel:
            await push_upload(channel, UPLOAD, lambda k: made.append(k) or chunks[k], len(chunks), lambda: root)
    assert first >= 12 and sorted(made) == list(range(12, len(chunks)))


async def test_push_goes_on_by_itself_when_the_coordinator_restarts(tmp_path):
    async with running(tmp_path) as site:
        chunks, root = upload_of(site.policy.length)
        restarted: list[asyncio.Task] = []

        async def restart() -> None:
            await site.server.stop(None)
            site.policy.spools.close()
            site.policy.spools = Spools(tmp_path / "spools", quotas=Quotas(2**30))
            site.server, _ = await serve(site.service, site.address)

        async def chunk_of(k: int) -> bytes:
            if k == 10 and not restarted:
                restarted.append(asyncio.create_task(restart()))
                await asyncio.sleep(0.1)
            return chunks[k]

        async with grpc.aio.insecure_channel(
            site.address, options=[("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50)]
        ) as channel:
            reply = await push_upload(channel, UPLOAD, chunk_of, len(chunks), lambda: root, retry=Retry(20, 0.05, 0.2))
        assert reply == b"answer to " + root and restarted and site.policy.opened == 2
        await site.server.stop(None)


async def test_newer_stream_of_an_upload_takes_over_from_one_that_hangs(tmp_path):
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        chunks, root = upload_of(site.policy.length)
        hanging = channel.stream_stream(PUSH_METHOD)()
        await hanging.write(encode_frame(FrameKind.RESUME, UPLOAD))
        assert decode_frame(await hanging.read()).chunk == 0
        for k in range(3):
            await hanging.write(push_chunk(UPLOAD, k, chunk_leaf(chunks[k]), chunks[k]))
        assert await push_upload(channel, UPLOAD, chunks.__getitem__, len(chunks), lambda: root)
        refusal = Refusal.decode((await frames_of(hanging))[0])
        assert refusal.field == "upload" and refusal.again


def pushed(k, data, leaf=None, id=UPLOAD) -> bytes:
    return push_chunk(id, k, leaf or chunk_leaf(data), data)


FULL = b"q" * CHUNK


@pytest.mark.parametrize(
    ("frames", "field"),
    [
        ([b"junk"], "frame"),
        ([encode_frame(FrameKind.RESUME, UPLOAD, 1)], "chunk"),
        ([pushed(0, FULL)], "kind"),
        (["resume", encode_frame(FrameKind.RESUME, UPLOAD)], "kind"),
        (["resume", pushed(1, FULL)], "chunk"),
        (["resume", pushed(0, FULL), pushed(0, FULL)], "chunk"),
        (["resume", pushed(0, FULL, id=bytes(32))], "id"),
        (["resume", pushed(0, FULL, leaf=bytes(32)), pushed(1, FULL)], "leaf"),
        (["resume", pushed(0, FULL[:-1]), pushed(1, FULL)], "payload"),
        (["resume", pushed(0, FULL + b"x"), pushed(1, FULL)], "payload"),
        (["resume", pushed(0, FULL)[:-1]], "payload length"),
        (["resume", pushed(0, bytes(2**20)) + b"x"], "frame"),
        (["resume", encode_frame(FrameKind.CHUNK, UPLOAD, 0, b"")], "payload length"),
        (["resume", encode_frame(FrameKind.COMMIT, UPLOAD, 0, b"x")], "chunk"),
        (["resume", *(pushed(k, FULL) for k in range(20)), pushed(20, b"e" * 100),
          encode_frame(FrameKind.COMMIT, UPLOAD, 21, bytes(32))], "root"),
    ],
)  # fmt: skip
async def test_wrong_frame_of_an_upload_is_refused_and_the_field_named(tmp_path, frames, field):
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        call = channel.stream_stream(PUSH_METHOD)()
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            for frame in frames:
                await call.write(encode_frame(FrameKind.RESUME, UPLOAD) if frame == "resume" else frame)
        last = (await asyncio.wait_for(frames_of(call), 10))[-1]
        refusal = Refusal.decode(last)
        assert (refusal.field, refusal.again) == (field, False)
        assert site.policy.committed == {}


@pytest.mark.parametrize("limit", ["streams_per_run", "streams_per_member"])
async def test_streams_of_one_member_are_limited_and_those_of_others_go_on(tmp_path, limit):
    async with running(tmp_path, **{limit: 2}) as site, grpc.aio.insecure_channel(site.address) as channel:
        site.policy.length = CHUNK

        async def begin(upload: int, member: str):
            call = channel.stream_stream(PUSH_METHOD)(metadata=(("member", member),))
            await call.write(encode_frame(FrameKind.RESUME, bytes([upload]) * 32))
            return call, decode_frame(await call.read())

        calls = [await begin(i, "a") for i in range(3)]
        assert [f.kind for _, f in calls] == [FrameKind.RESUME, FrameKind.RESUME, FrameKind.REFUSE]
        assert Refusal.decode(calls[2][1]).field == "streams" and Refusal.decode(calls[2][1]).again
        assert (await begin(9, "b"))[1].kind == FrameKind.RESUME
        await calls[0][0].done_writing()
        assert await frames_of(calls[0][0]) == []
        assert (await begin(3, "a"))[1].kind == FrameKind.RESUME
        for call, _ in calls:
            call.cancel()


async def test_idle_peer_loses_its_stream(tmp_path):
    async with running(tmp_path, idle_s=0.1) as site, grpc.aio.insecure_channel(site.address) as channel:
        call = channel.stream_stream(PUSH_METHOD)()
        await call.write(encode_frame(FrameKind.RESUME, UPLOAD))
        frames = await asyncio.wait_for(frames_of(call), 5)
    assert Refusal.decode(frames[-1]).field == "stream"


async def test_full_disk_at_the_coordinator_means_later_and_nothing_is_half_counted(tmp_path, monkeypatch):
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        chunks, root = upload_of(site.policy.length)
        real, full = Spool._append, [True]

        def append(self, k, data):
            if k == 7 and full:
                full.clear()
                raise DiskFull(self.path)
            real(self, k, data)

        monkeypatch.setattr(Spool, "_append", append)
        reply = await push_upload(channel, UPLOAD, chunks.__getitem__, len(chunks), lambda: root, retry=QUICK)
        assert reply == b"answer to " + root and not full and site.policy.opened == 2


async def test_four_members_push_at_once(tmp_path):
    async with running(tmp_path) as site:
        chunks, root = upload_of(site.policy.length)

        async def one(i: int) -> bytes:
            async with grpc.aio.insecure_channel(site.address) as channel:
                return await push_upload(channel, bytes([i]) * 32, chunks.__getitem__, len(chunks), lambda: root)

        assert await asyncio.gather(*(one(i) for i in range(4))) == [b"answer to " + root] * 4


async def test_large_push_needs_memory_of_a_few_chunks(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "CHUNK", 2**19)
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        site.policy.length = 64 * 2**20
        piece = os.urandom(CHUNK)
        root = merkle_root([chunk_leaf(piece)] * 128)
        tracemalloc.start()
        assert await push_upload(channel, UPLOAD, lambda k: piece, 128, lambda: root)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 24 * 2**20  # both ends are in this process


# -- the line itself goes ----------------------------------------------------------------------------------------------


async def test_a_stream_whose_channel_is_closed_under_it_may_be_taken_up_again_on_the_next(tmp_path):
    """Found by killing a coordinator while members committed: "channel is closed" was taken for a fault, and they sat out."""
    async with running(tmp_path) as site:
        chunks, root = upload_of(site.policy.length)
        channel, asked, signed = grpc.aio.insecure_channel(site.address), asyncio.Event(), asyncio.Event()

        async def commit() -> bytes:
            asked.set()
            await signed.wait()
            return root

        sending = asyncio.create_task(push_upload(channel, UPLOAD, lambda k: chunks[k], len(chunks), commit, retry=QUICK))
        await asked.wait()
        await channel.close(None)
        signed.set()
        with pytest.raises(Unavailable, match="taken up again"):
            await asyncio.wait_for(sending, 10)
        with pytest.raises(Unavailable, match="taken up again"):
            await push_upload(channel, UPLOAD, lambda k: chunks[k], len(chunks), lambda: root, retry=QUICK)
        async with grpc.aio.insecure_channel(site.address) as fresh:
            assert await push_upload(fresh, UPLOAD, lambda k: chunks[k], len(chunks), lambda: root) == b"answer to " + root


@pytest.mark.parametrize("turns", [1, 3, 20])
async def test_a_push_whose_channel_is_closed_before_the_first_frame_may_be_taken_up_again(turns):
    """As when the coordinator is gone for a moment just as an upload begins. grpc.aio's own write would wait for ever."""
    server = socket.create_server(("127.0.0.1", 0))  # takes connections and says nothing
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.getsockname()[1]}")
    pushing = asyncio.ensure_future(push_upload(channel, UPLOAD, lambda _k: b"", 1, lambda: b""))
    for _ in range(turns):
        await asyncio.sleep(0)
    await channel.close()
    with pytest.raises(Unavailable, match="the next one"):
        await asyncio.wait_for(pushing, 5)
    server.close()


async def test_a_push_that_is_cancelled_itself_ends_cancelled(tmp_path):
    async with running(tmp_path) as site, grpc.aio.insecure_channel(site.address) as channel:
        (chunks, root), asked = upload_of(site.policy.length), asyncio.Event()

        async def commit() -> bytes:
            asked.set()
            await asyncio.Event().wait()
            return root

        sending = asyncio.create_task(push_upload(channel, UPLOAD, lambda k: chunks[k], len(chunks), commit, retry=QUICK))
        await asked.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


async def test_a_large_runs_streams_are_not_in_the_way_of_a_small_one(tmp_path):
    """Four transfers of one run, which may go on for hours, were all that a member could have."""
    async with running(tmp_path, streams_per_run=2) as site, grpc.aio.insecure_channel(site.address) as channel:
        site.policy.length, site.policy.run_of = CHUNK, lambda upload: upload[:1]

        async def begin(run: int, number: int):
            call = channel.stream_stream(PUSH_METHOD)(metadata=(("member", "a"),))
            await call.write(encode_frame(FrameKind.RESUME, bytes([run, number]) * 16))
            return call, decode_frame(await call.read()).kind

        calls = [await begin(1, k) for k in range(3)] + [await begin(2, 0)]
        assert [kind for _, kind in calls] == [FrameKind.RESUME, FrameKind.RESUME, FrameKind.REFUSE, FrameKind.RESUME]
        for call, _ in calls:
            call.cancel()
