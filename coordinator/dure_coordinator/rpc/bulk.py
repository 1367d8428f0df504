"""The bulk methods of the members' port: blobs down, uploads up, as frames of `dure.wire.bulk`.

Who may read or send what is not decided here: every question goes to a `BulkPolicy`. Disk and hashing run in threads,
so the event loop only moves frames; a stream holds a few chunks in memory (`WINDOW_CHUNKS`), and a slow peer slows only itself,
because nothing is read (or written) before gRPC's own flow control lets it.

`app.py` should call `sys.setswitchinterval(0.0005)`: with the default of 5 ms the storing threads wait for the
interpreter lock behind gRPC's poller, and a push runs at 0.3 instead of 0.9 GiB/s (loopback, two cores, tmpfs).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from dure.blobs import BlobId, DiskFull, Manifest
from dure.errors import DureError, NotAuthorised, Unavailable
from dure.wire.bulk import (
    SERVICE,
    Frame,
    FrameKind,
    PullRequest,
    Refusal,
    decode_frame,
    encode_frame,
    expect,
    split_manifest,
    split_push_chunk,
)
from dure.wire.control import WireRefused
from dure_coordinator.spool import Spool, SpoolsFull

__all__ = ["BulkPolicy", "BulkService", "BulkSettings", "ChunkSource"]

Context = Any  # grpc.aio.ServicerContext[bytes, bytes]
EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in grpc-stubs
WINDOW_CHUNKS = 8
"""Chunks of one upload that wait for the disk; then nothing more is read from its stream."""
Arrived = asyncio.Queue[tuple[int, bytes, memoryview] | None]


class ChunkSource(Protocol):
    """A blob someone was allowed to read; `dure.blobs.BlobReader` is one. Called from threads."""

    @property
    def manifest(self) -> Manifest: ...

    def read_chunk(self, k: int) -> bytes: ...

    def close(self) -> None: ...


class BulkPolicy(Protocol):
    """Who may move which bytes. Raises `NotAuthorised`, `Refused` (never again), or `Unavailable` (try later)."""

    async def authorise_pull(self, member: str, blob: BlobId) -> tuple[bytes, ChunkSource]:
        """(run, the blob, open), if this member may read it now. Closed by the caller."""
        ...

    async def open_upload(self, member: str, upload: bytes) -> tuple[bytes, Spool | bytes]:
        """(run, where this upload's chunks go; or, if its commit is durable already, the answer it got)."""
        ...

    async def commit_upload(self, member: str, upload: bytes, commit: bytes) -> bytes:
        """Judges the signed commit, checks the root (`Spool.finish`, in a thread), makes both durable, answers.

        All chunks are durable when this is called. The same commit gets the same answer.
        """
        ...


@dataclass(frozen=True)
class BulkSettings:
    """Limits of the bulk streams."""

    streams_per_run: int = 4
    """Pulls and pushes of one member for one run at a time; more are refused with "try later". By run, so that the streams of a large one,
    which go on for hours, are not in the way of a small one's."""
    streams_per_member: int = 24
    """The same of one member for all its runs: fewer than the calls it may make, so that its reports get through."""
    idle_s: float = 300.0
    """A peer that neither sends nor takes a frame for so long loses its stream; it may resume."""


@dataclass
class BulkService:
    """Both methods. Register with `server.add_generic_rpc_handlers((service.handler(),))`."""

    policy: BulkPolicy
    identify: Callable[[Context], str]
    """The member behind a call, from its certificate; raises `NotAuthorised`."""
    settings: BulkSettings = field(default_factory=BulkSettings)
    on_full: Callable[[DiskFull | SpoolsFull], None] = lambda _error: None
    """Told when an upload found no room: its operator must hear of it, the member only hears "later"."""
    _streams: Counter[str | tuple[str, bytes]] = field(default_factory=Counter)
    """By member, and by member and run."""
    _pushes: dict[tuple[str, bytes], asyncio.Task[None]] = field(default_factory=dict)

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """No serialisers are given, so gRPC hands the bytes through as they are."""
        methods = {
            "Pull": grpc.unary_stream_rpc_method_handler(self.pull),
            "Push": grpc.stream_stream_rpc_method_handler(self.push),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    # -- down ------------------------------------------------------------------------------------------------------

    async def pull(self, request: bytes, context: Context) -> None:
        member = await self._member(context)
        root = bytes(32)
        try:
            wanted = PullRequest.decode(request)
            root = wanted.blob.root
            with self._stream(member, self.settings.streams_per_member):
                await self._send_blob(member, wanted, context)
        except DureError as e:
            await self._write(context, refusal_of(e).encode(root))

    async def _send_blob(self, member: str, wanted: PullRequest, context: Context) -> None:
        run, source = await self.policy.authorise_pull(member, wanted.blob)
        try:
            with self._stream((member, run), self.settings.streams_per_run):
                await self._send(source, wanted, context)
        finally:
            source.close()

    async def _send(self, source: ChunkSource, wanted: PullRequest, context: Context) -> None:
        manifest = source.manifest
        if wanted.first > manifest.chunks:
            raise WireRefused("chunk", f"is {wanted.first}, the blob has {manifest.chunks}")
        end = min(manifest.chunks, wanted.first + wanted.count) if wanted.count else manifest.chunks
        if wanted.manifest:
            for part in split_manifest(wanted.blob.root, manifest.encode()):
                await self._write(context, part)
        ahead: asyncio.Task[bytes] | None = None
        try:
            for k in range(wanted.first, end):
                frame = await (ahead or _chunk_frame(source, wanted.blob.root, k))
                ahead = asyncio.create_task(_chunk_frame(source, wanted.blob.root, k + 1)) if k + 1 < end else None
                await self._write(context, frame)
        finally:
            if ahead is not None:  # the thread must be out of `source` before it is closed
                await asyncio.wait({ahead})
                ahead.exception()
        await self._write(context, encode_frame(FrameKind.DONE, wanted.blob.root, end))

    # -- up --------------------------------------------------------------------------------------------------------

    async def push(self, _requests: object, context: Context) -> None:
        member = await self._member(context)
        upload = bytes(32)
        try:
            first = await self._read(context)
            if first is None:
                return
            upload = expect(first, FrameKind.RESUME, id=first.id, chunk=0).id
            await self._supersede(member, upload)
            with self._stream(member, self.settings.streams_per_member):
                await self._run_push(member, upload, context)
        except DureError as e:
            if isinstance(e, DiskFull | SpoolsFull):  # the peer learns "later"; who can do something about it, learns what
                self.on_full(e)
            await self._write(context, refusal_of(e).encode(upload))

    async def _supersede(self, member: str, upload: bytes) -> None:
        """A member that reconnects has left its older stream for this upload, whether we have noticed or not."""
        while (older := self._pushes.get((member, upload))) is not None:
            older.cancel()
            await asyncio.wait({older})
            if self._pushes.get((member, upload)) is older:
                del self._pushes[member, upload]

    async def _run_push(self, member: str, upload: bytes, context: Context) -> None:
        task = asyncio.create_task(self._take_upload(member, upload, context))
        self._pushes[member, upload] = task
        try:
            await asyncio.wait({task})
            if task.cancelled():
                raise Superseded()
            task.result()
        finally:
            task.cancel()
            if self._pushes.get((member, upload)) is task:
                del self._pushes[member, upload]

    async def _take_upload(self, member: str, upload: bytes, context: Context) -> None:
        run, spool = await self.policy.open_upload(member, upload)
        if isinstance(spool, bytes):
            await self._write(context, encode_frame(FrameKind.DONE, upload, 0, spool))
            return
        with self._stream((member, run), self.settings.streams_per_run):
            await self._take(member, upload, spool, context)

    async def _take(self, member: str, upload: bytes, spool: Spool, context: Context) -> None:
        try:
            commit = await self._take_chunks(spool, upload, context)
        finally:
            # What came counts at the next resume, however this stream ended.
            await asyncio.shield(asyncio.to_thread(_sync_quietly, spool))
        if commit is None:
            return
        await asyncio.to_thread(spool.sync)  # raises what the quiet one did not
        reply = await self.policy.commit_upload(member, upload, commit)
        await self._write(context, encode_frame(FrameKind.DONE, upload, spool.chunks, reply))

    async def _take_chunks(self, spool: Spool, upload: bytes, context: Context) -> bytes | None:
        """Chunks into the spool until the commit, which is returned; None if the peer left before."""
        first = await asyncio.to_thread(spool.sync)
        await self._write(context, encode_frame(FrameKind.RESUME, upload, first))
        arrived: Arrived = asyncio.Queue(WINDOW_CHUNKS)
        try:
            async with asyncio.TaskGroup() as group:  # a chunk that cannot be stored ends the reading, and vice versa
                group.create_task(_store_as_they_come(spool, arrived))
                commit = await self._read_chunks(spool, upload, context, first, arrived)
                await arrived.put(None)
        except ExceptionGroup as e:
            raise e.exceptions[0] from None
        return commit

    async def _read_chunks(self, spool: Spool, upload: bytes, context: Context, k: int, arrived: Arrived) -> bytes | None:
        while (frame := await self._read(context)) is not None:
            expect(frame, FrameKind.CHUNK, FrameKind.COMMIT, id=upload, chunk=k)
            if frame.kind is FrameKind.COMMIT:
                if k != spool.chunks:
                    raise WireRefused("chunk", f"commit after {k} of {spool.chunks} chunks")
                return bytes(frame.payload)
            await arrived.put((k, *split_push_chunk(frame)))
            k += 1
        return None

    # -- both ------------------------------------------------------------------------------------------------------

    async def _member(self, context: Context) -> str:
        try:
            return self.identify(context)
        except NotAuthorised as e:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(e))
            raise AssertionError("abort raises") from e

    @contextlib.contextmanager
    def _stream(self, whose: str | tuple[str, bytes], most: int) -> Iterator[None]:
        if self._streams[whose] >= most:
            raise TooManyStreams(most, "per member" if isinstance(whose, str) else "per member and run")
        self._streams[whose] += 1
        try:
            yield
        finally:
            self._streams[whose] -= 1
            if not self._streams[whose]:
                del self._streams[whose]

    async def _read(self, context: Context) -> Frame | None:
        """The next frame, judged; None when the peer has ended its side."""
        try:
            async with asyncio.timeout(self.settings.idle_s):
                data = await context.read()
        except TimeoutError:
            raise Idle(self.settings.idle_s) from None
        return None if data is EOF else decode_frame(data)

    async def _write(self, context: Context, frame: bytes) -> None:
        try:
            async with asyncio.timeout(self.settings.idle_s):
                await context.write(frame)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no frame taken for {self.settings.idle_s} s")


class TooManyStreams(Unavailable):
    """The member has all its streams open already; it waits for one to end."""

    field = "streams"

    def __init__(self, limit: int, of: str) -> None:
        self.why = f"at most {limit} bulk streams {of} at a time"
        super().__init__(self.why)


class Superseded(Unavailable):
    """The member opened a newer stream for the same upload; this one ends."""

    field = "upload"
    why = "a newer stream of the same upload took over"


class Idle(Unavailable):
    """The peer sent nothing for too long; it may resume."""

    field = "stream"

    def __init__(self, idle_s: float) -> None:
        self.why = f"nothing came for {idle_s} s"
        super().__init__(self.why)


def refusal_of(error: DureError) -> Refusal:
    """What the peer is told: field and reason where the error has them; never a path of this machine."""
    again = isinstance(error, Unavailable)
    named, why = getattr(error, "field", None), getattr(error, "why", None)
    if isinstance(named, str) and isinstance(why, str):
        return Refusal(named, why, again)
    if isinstance(error, NotAuthorised):
        return Refusal("member", str(error), False)
    if again:
        return Refusal("coordinator", "has no room or is busy; try again later", True)
    return Refusal("coordinator", f"cannot serve this ({type(error).__name__}); its operator finds more in the log", False)


async def _chunk_frame(source: ChunkSource, root: bytes, k: int) -> bytes:
    return await asyncio.to_thread(lambda: encode_frame(FrameKind.CHUNK, root, k, source.read_chunk(k)))


async def _store_as_they_come(spool: Spool, arrived: Arrived) -> None:
    """Stores until None comes. Whatever waits goes into one visit to a thread: the visits cost more than the work."""
    while (item := await arrived.get()) is not None:
        batch, last = [item], False
        while not arrived.empty() and not last:
            more = arrived.get_nowait()
            last = more is None
            if more is not None:
                batch.append(more)
        await asyncio.to_thread(_store, spool, batch)
        if last:
            return


def _store(spool: Spool, batch: list[tuple[int, bytes, memoryview]]) -> None:
    for k, leaf, chunk in batch:
        spool.write(k, chunk, leaf=leaf)


def _sync_quietly(spool: Spool) -> None:
    with contextlib.suppress(DureError, OSError):
        spool.sync()
