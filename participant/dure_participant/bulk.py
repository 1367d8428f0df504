"""The node's half of the bulk streams: fetch a blob, send an upload; both go on where a broken connection left them.

Retries are here, because only here is known how far a stream came: each attempt that moved something starts the
count of attempts again. What a peer sends is judged by `dure.wire.bulk` and, byte for byte, by leaf hashes.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from dure.blobs import CHUNK_BYTES, BlobId, BlobRefused, BlobStore, Manifest, PartialBlob, chunk_leaf, chunks_of
from dure.errors import Refused, Unavailable
from dure.failpoints import Point, reach
from dure.wire.bulk import (
    MANIFEST_PART_BYTES,
    MAX_MANIFEST_PARTS,
    PULL_METHOD,
    PUSH_METHOD,
    Frame,
    FrameKind,
    PullRequest,
    Refusal,
    decode_frame,
    encode_frame,
    expect,
    push_chunk,
)
from dure.wire.control import WireRefused
from dure_participant.calls import begun, cancelled_itself

Progress = Callable[[int, int], None]
"""Called on the event loop as progress(chunks moved so far, chunks in all)."""
Chunk = bytes | bytearray | memoryview
ChunkOf = Callable[[int], Chunk | tuple[bytes, Chunk] | Awaitable[Chunk | tuple[bytes, Chunk]]]
"""Chunk k of an upload, or (leaf, chunk) if it is hashed already. Plain functions run in a thread; the same k must
give the same bytes for ever. Calls for neighbouring k may overlap."""
CommitOf = Callable[[], bytes | Awaitable[bytes]]

Call = Any  # grpc.aio.UnaryStreamCall or StreamStreamCall, over bytes; grpc-stubs know neither's read()
EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in grpc-stubs
T = TypeVar("T")

_GONE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class BulkRefused(Refused):
    """The coordinator refused the stream for good, naming the field; repeating it changes nothing."""


@dataclass(frozen=True)
class Retry:
    """How a broken stream is taken up again."""

    attempts: int = 8
    """In a row without a chunk moved; then `Unavailable`."""
    first_pause_s: float = 0.2
    """Before the second attempt; doubles each time."""
    longest_pause_s: float = 15.0


_LINE_CUT = "the connection was closed under it; it can be taken up again on the next one"


class _Broken(Exception):
    """The stream ended before it was done; another may go on from there."""


async def pull_blob(
    channel: grpc.aio.Channel,
    blob: BlobId,
    store: BlobStore,
    progress: Progress | None = None,
    *,
    retry: Retry | None = None,
) -> Manifest:
    """The blob, complete and durable in `store`; chunks it has already, from whenever, are not fetched again.

    Raises:
        BulkRefused: the coordinator says no, for good.
        WireRefused, BlobRefused: it sent what is not this blob; nothing of that was kept.
        Unavailable: it could not be reached, or said "later", too often. What came stays for the next call.
        DiskFull: no room here.
    """
    if await asyncio.to_thread(store.has, blob):
        return await asyncio.to_thread(store.manifest, blob)
    return await _persist(lambda count: _pull_once(channel, blob, store, count), progress, retry or Retry(), f"fetching blob {blob}")


async def _pull_once(channel: grpc.aio.Channel, blob: BlobId, store: BlobStore, progress: Progress) -> Manifest:
    manifest = await asyncio.to_thread(store.partial_manifest, blob)
    partial = None if manifest is None else await asyncio.to_thread(store.partial, manifest)
    first = partial.first_missing() if partial else 0
    request = PullRequest(blob, first, 0, manifest=partial is None).encode()
    call = _multi(channel.unary_stream, PULL_METHOD)(request)
    try:
        if partial is None:
            manifest = await _read_manifest(call, blob)
            partial = await asyncio.to_thread(store.partial, manifest)
        await _read_chunks(call, partial, first, progress)
        if not partial.done:
            raise _Broken("chunks are missing")  # holes of an earlier fetch: ask again from the first one
        return await asyncio.to_thread(partial.commit)
    finally:
        call.cancel()
        if partial is not None:
            partial.close()


async def _read_manifest(call: Call, blob: BlobId) -> Manifest:
    parts: list[bytes] = []
    while not parts or len(parts[-1]) == MANIFEST_PART_BYTES:
        if len(parts) > MAX_MANIFEST_PARTS:
            raise WireRefused("manifest", "is longer than any manifest can be")
        frame = expect(await _next(call), FrameKind.MANIFEST, id=blob.root, chunk=len(parts))
        parts.append(bytes(frame.payload))
    return await asyncio.to_thread(Manifest.decode, b"".join(parts), expect=blob)


async def _read_chunks(call: Call, partial: PartialBlob, k: int, progress: Progress) -> None:
    total = partial.manifest.chunks
    storing: asyncio.Task[None] | None = None  # chunk k-1 is hashed and written while chunk k arrives
    try:
        while True:
            try:
                frame = await _next(call)
            except (_Broken, grpc.aio.AioRpcError):
                if storing is not None:
                    await asyncio.shield(storing)  # a chunk that was not this blob's weighs more than the end of the stream
                raise
            expect(frame, FrameKind.CHUNK, FrameKind.DONE, id=partial.manifest.id.root, chunk=k)
            if storing is not None:
                done, storing = storing, None
                await done
                progress(k, total)
            if frame.kind is FrameKind.DONE:
                return
            storing = asyncio.create_task(asyncio.to_thread(partial.accept, k, frame.payload))
            k += 1
    finally:
        if storing is not None:
            await asyncio.wait({storing})
            if not storing.cancelled() and storing.exception() is None:
                progress(k, total)


async def pull_manifest(channel: grpc.aio.Channel, blob: BlobId, *, chunk_bytes: int = CHUNK_BYTES, retry: Retry | None = None) -> Manifest:
    """The leaves of a blob or upload, without its bytes; raises as `pull_blob`.

    Args:
        chunk_bytes: what its chunks must have; others are `WireRefused`.
    """
    request = PullRequest(blob, chunks_of(blob.length, chunk_bytes), 0, manifest=True).encode()

    async def once(_progress: Progress) -> Manifest:
        call = _multi(channel.unary_stream, PULL_METHOD)(request)
        try:
            found = await _read_manifest(call, blob)
        finally:
            call.cancel()
        if found.chunk_bytes != chunk_bytes and found.chunks > 1:
            raise WireRefused("chunk_bytes", f"are {found.chunk_bytes}, must be {chunk_bytes}")
        return Manifest(found.leaves, found.length, chunk_bytes)

    return await _persist(once, None, retry or Retry(), f"fetching the leaves of {blob}")


async def pull_through(
    channel: grpc.aio.Channel, blob: BlobId, *, retry: Retry | None = None
) -> AsyncGenerator[tuple[Manifest, int, memoryview], None]:
    """(manifest, k, chunk k) of all of a blob, in order, each as it arrives; nothing is kept. Whether chunks have their leaves is for
    whoever takes them (`Manifest.check`); raises as `pull_blob`, and goes on where a stream broke."""
    manifest, k, idle, limits, what = None, 0, 0, retry or Retry(), f"fetching {blob}"
    while manifest is None or k < manifest.chunks:
        before, call = (manifest, k), None
        try:
            call = _multi(channel.unary_stream, PULL_METHOD)(PullRequest(blob, k, 0, manifest=manifest is None).encode())
            if manifest is None:
                manifest = await _read_manifest(call, blob)
            while k < manifest.chunks:
                frame = expect(await _next(call), FrameKind.CHUNK, id=blob.root, chunk=k)
                yield manifest, k, frame.payload
                k += 1
        except asyncio.CancelledError as e:
            if cancelled_itself():
                raise
            raise Unavailable(f"{what}: {_LINE_CUT}") from e
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, _Broken) as e:
            idle = 1 if before != (manifest, k) else idle + 1
            await _pause_after(e, idle, limits, what)
        finally:
            if call is not None:
                call.cancel()


async def pull_chunks(
    channel: grpc.aio.Channel, manifest: Manifest, first: int, count: int, *, retry: Retry | None = None
) -> AsyncGenerator[tuple[int, memoryview], None]:
    """(k, chunk k) from `first` on, in order, each as it arrives; nothing is kept. Whether they have their leaves is for whoever takes
    them (`Manifest.check`); raises as `pull_blob`, and goes on where a stream broke."""
    k, end, idle, limits, what = first, first + count, 0, retry or Retry(), f"fetching chunks of {manifest.id}"
    while k < end:
        before = k
        call = None
        try:
            call = _multi(channel.unary_stream, PULL_METHOD)(PullRequest(manifest.id, k, end - k).encode())
            while k < end:
                frame = expect(await _next(call), FrameKind.CHUNK, id=manifest.id.root, chunk=k)
                yield k, frame.payload
                k += 1
        except asyncio.CancelledError as e:
            if cancelled_itself():
                raise
            raise Unavailable(f"{what}: {_LINE_CUT}") from e
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, _Broken) as e:
            idle = 1 if k > before else idle + 1
            await _pause_after(e, idle, limits, what)
        finally:
            if call is not None:
                call.cancel()


async def pull_bytes(channel: grpc.aio.Channel, blob: BlobId, *, limit: int) -> bytes:
    """A small blob whole, its hashes checked, kept nowhere; raises as `pull_blob`, and `BlobRefused` if it is longer than `limit`."""
    if blob.length > limit:
        raise BlobRefused("length", f"at most {limit} bytes expected here, blob has {blob.length}")
    manifest = await pull_manifest(channel, blob)
    parts = []
    async with contextlib.aclosing(pull_chunks(channel, manifest, 0, manifest.chunks)) as chunks:
        async for k, data in chunks:
            manifest.check(k, data)
            parts.append(bytes(data))
    return b"".join(parts)


async def push_upload(
    channel: grpc.aio.Channel,
    upload: bytes,
    chunk_of: ChunkOf,
    chunks: int,
    commit_of: CommitOf,
    progress: Progress | None = None,
    *,
    ahead: int = 3,
    retry: Retry | None = None,
) -> bytes:
    """Sends an upload and its commit; returns the coordinator's answer, given once the commit is durable there.

    Args:
        upload: its 32-byte id; the coordinator knows from it how far an earlier try came.
        chunk_of: called for the chunks the coordinator lacks, at most `ahead` of them before they can be sent.
        commit_of: called after the last chunk was made (after a restart: perhaps without any being made); must give
            the same bytes each time.

    Raises:
        BulkRefused: the coordinator says no, for good.
        Unavailable: it could not be reached, or said "later", too often. The upload may be taken up again.
    """
    return await _persist(
        lambda count: _push_once(channel, upload, chunk_of, chunks, commit_of, count, ahead),
        progress,
        retry or Retry(),
        f"sending upload {upload.hex()[:16]}…",
    )


async def _push_once(
    channel: grpc.aio.Channel,
    upload: bytes,
    chunk_of: ChunkOf,
    chunks: int,
    commit_of: CommitOf,
    progress: Progress,
    ahead: int,
) -> bytes:
    call = _multi(channel.stream_stream, PUSH_METHOD)()
    answer: asyncio.Task[Frame] | None = None
    try:
        await begun(call)
        await _write(call, encode_frame(FrameKind.RESUME, upload), None)
        frame = expect(await _next(call), FrameKind.RESUME, FrameKind.DONE, id=upload)
        if frame.kind is FrameKind.DONE:
            return bytes(frame.payload)
        if frame.chunk > chunks:
            raise WireRefused("chunk", f"the coordinator wants {frame.chunk}, the upload has {chunks}")
        answer = asyncio.create_task(_next(call))
        async with contextlib.aclosing(_made(chunk_of, upload, frame.chunk, chunks, ahead)) as frames:
            k = frame.chunk
            async for data in frames:
                await _write(call, data, answer)
                k += 1
                progress(k, chunks)
                if k < chunks:
                    reach(Point.CHUNK_SENT)
        commit: bytes = await _result(commit_of)
        reach(Point.CHUNKS_SENT)
        await _write(call, encode_frame(FrameKind.COMMIT, upload, chunks, commit), answer)
        return bytes(expect(await answer, FrameKind.DONE, id=upload).payload)
    finally:
        call.cancel()
        if answer is not None:
            answer.cancel()
            await asyncio.wait({answer})
            if not answer.cancelled():
                answer.exception()


async def _made(chunk_of: ChunkOf, upload: bytes, first: int, chunks: int, ahead: int) -> AsyncGenerator[bytes, None]:
    """Chunk frames in order, made up to `ahead` at once."""

    def framed(k: int, made: Any) -> bytes:
        leaf, chunk = made if isinstance(made, tuple) else (chunk_leaf(made), made)
        return push_chunk(upload, k, leaf, chunk)

    def in_one_go(k: int) -> Any:
        """Made, hashed and framed in one visit to a thread; an awaitable comes back as it is."""
        made = chunk_of(k)
        return made if inspect.isawaitable(made) else framed(k, made)

    async def one(k: int) -> bytes:
        made: Any = chunk_of(k) if inspect.iscoroutinefunction(chunk_of) else await asyncio.to_thread(in_one_go, k)
        if inspect.isawaitable(made):
            made = await asyncio.to_thread(framed, k, await made)
        return bytes(made)  # already bytes: no copy

    window: deque[asyncio.Task[bytes]] = deque()
    try:
        for k in range(first, chunks):
            window.append(asyncio.create_task(one(k)))
            if len(window) >= ahead:
                yield await window.popleft()
        while window:
            yield await window.popleft()
    finally:
        for task in window:
            task.cancel()
        if window:
            await asyncio.wait(window)


async def _result(f: Callable[..., Any], *args: int) -> Any:
    """What a plain function (run in a thread) or an async one gives."""
    if inspect.iscoroutinefunction(f):
        return await f(*args)
    made = await asyncio.to_thread(f, *args)
    return await made if inspect.isawaitable(made) else made


def _multi(kind: Callable[..., Any], method: str) -> Callable[..., Call]:
    """The method without serialisers, so that gRPC hands bytes through as they are."""
    return kind(method)  # type: ignore[no-any-return]


async def _next(call: Call) -> Frame:
    """The next frame; `_Broken` if the stream ended, `BulkRefused` or `Unavailable` if the peer refuses."""
    data = await call.read()
    if data is EOF:
        code = await call.code()
        if code not in _GONE and code is not grpc.StatusCode.OK:
            raise BulkRefused("stream", f"{code.name}: {await call.details()}")
        raise _Broken(f"the stream ended early ({code.name})")
    frame = decode_frame(data)
    if frame.kind is FrameKind.REFUSE:
        refusal = Refusal.decode(frame)
        if refusal.again:
            raise _Broken(f"{refusal.field}: {refusal.why}")
        raise BulkRefused(refusal.field, refusal.why)
    return frame


async def _write(call: Call, frame: bytes, answer: asyncio.Task[Frame] | None) -> None:
    """Sends one frame. If the peer has ended the stream, what it said is raised instead of the failed write."""
    try:
        if answer is None or not answer.done():
            await call.write(frame)
            return
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as e:
        if answer is None:
            frame_or_error = await _next(call)
            raise _Broken(f"unexpected {frame_or_error.kind.name}") from e
    assert answer is not None
    early = await answer
    raise WireRefused("kind", f"is {early.kind.name.lower()} before the commit was sent")


async def _persist(once: Callable[[Progress], Awaitable[T]], progress: Progress | None, retry: Retry, what: str) -> T:
    """Runs `once` until it is through; pauses grow, and attempts that moved a chunk start the count again."""
    idle = 0
    while True:
        moved = False

        def count(done: int, total: int) -> None:
            nonlocal moved
            moved = True
            if progress is not None:
                progress(done, total)

        try:
            return await once(count)
        except asyncio.CancelledError as e:
            if cancelled_itself():
                raise
            raise Unavailable(f"{what}: {_LINE_CUT}") from e
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, _Broken) as e:
            idle = 1 if moved else idle + 1
            await _pause_after(e, idle, retry, what)


async def _pause_after(e: Exception, idle: int, retry: Retry, what: str) -> None:
    """Waits before the next attempt, or raises where there is none: `BulkRefused` for good, `Unavailable` for now."""
    if isinstance(e, grpc.aio.UsageError):
        raise Unavailable(f"{what}: {_LINE_CUT}") from e
    reason = str(e)
    if isinstance(e, grpc.aio.AioRpcError):
        reason = f"{e.code().name}: {e.details()}"
        if e.code() not in _GONE:
            raise BulkRefused("stream", reason) from e
    if idle >= retry.attempts:
        raise Unavailable(f"{what}: gave up after {idle} attempts, last: {reason}; it can be taken up again") from e
    await asyncio.sleep(min(retry.first_pause_s * 2 ** (idle - 1), retry.longest_pause_s))
