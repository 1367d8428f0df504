"""Masked uploads: made chunk by chunk when the stream asks for them, outside the event loop, and written down nowhere.

Per chunk: read local weights → subtract the base → compare with what was promised → encode → tag → mask → hash. The bytes depend only
on what was persisted before (rule 1): rounding key, weight, metrics, scales, the instance's secrets, and the digest of the update. So any
chunk can be made again, for a stream that broke or after a restart, and is the same; one whose update has changed is not made.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dure.blobs import chunk_leaf
from dure.errors import Refused, Unavailable
from dure.secagg.encode import Weight
from dure.secagg.kernel import UploadEncoder
from dure.secagg.scales import CHUNK_BLOCKS, weighted
from dure.tlog.merkle import merkle_root
from dure_participant.bulk import BulkRefused
from dure_participant.difference import GONE, Difference, Pinned
from dure_participant.exchange.actions import Upload
from dure_participant.exchange.inputs import UploadReady

THREADS = 2

Made = tuple[bytes, memoryview]
"""(leaf, masked bytes) of one chunk."""


@dataclass(frozen=True)
class Sources:
    """What an upload is made from."""

    encoder: UploadEncoder
    update: Difference | None = None
    """None for `scalars`, and for `scales`, which need no more than `pinned`."""
    pinned: Pinned | None = None
    """None for `scalars`."""


class MaskedUpload:
    """One upload; `chunk` may be called from several threads, in any order, any number of times.

    Args:
        open_sources: called once, in the thread of the first chunk: a commit that is durable already needs none of it. Raises `Refused`
            where the update is not the one that was promised.
    """

    def __init__(self, action: Upload, open_sources: Callable[[], Sources]) -> None:
        self.action = action
        self._open = open_sources
        self._opened: Sources | None = None
        self._leaves: dict[int, bytes] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def chunks(self) -> int:
        return -(-self.action.length // self.action.chunk_bytes)

    def chunk(self, k: int) -> Made:
        """Chunk k, to send.

        Raises:
            Refused: base or local weights have changed since they were promised.
        """
        masked = masked_chunk(self._sources(), k, Weight(self.action.weight_int))
        leaf = chunk_leaf(masked)
        with self._lock:
            if k not in self._leaves:
                self._bytes += len(masked)
            if self._leaves.setdefault(k, leaf) != leaf:
                raise Refused("update", GONE)
        return leaf, masked

    def complete(self) -> UploadReady:
        """What ends the stream; makes the chunks that were never asked for, because the coordinator has them from before a restart."""
        missing = [k for k in range(self.chunks) if k not in self._leaves]
        if missing:
            with ThreadPoolExecutor(THREADS, thread_name_prefix="upload") as pool:
                for _leaf in pool.map(lambda k: self.chunk(k)[0], missing):
                    pass
        if self._bytes != self.action.length:
            raise Refused("upload", f"encoded {self._bytes} bytes, {self.action.length} were promised")
        trailer, tag = self._sources().encoder.finish()
        return UploadReady(self.action.instance, merkle_root([self._leaves[k] for k in range(self.chunks)]), self._bytes, trailer, tag)

    def _sources(self) -> Sources:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened


def masked_chunk(sources: Sources, k: int, weight: Weight) -> memoryview:
    """Chunk k, encoded and masked.

    Raises:
        Refused: the update is not the promised one any more.
        DureError: a value that cannot be encoded; names the element.
    """
    if sources.encoder.kind == "ring":
        assert sources.update is not None and sources.pinned is not None
        return sources.encoder.chunk(k, sources.update.promised(k, sources.pinned))[0]
    assert sources.pinned is not None
    largest = sources.pinned.largest[k * CHUNK_BLOCKS : (k + 1) * CHUNK_BLOCKS]
    return sources.encoder.chunk_from_maxima(k, weighted(largest, weight.w_hat))[0]


CommitOf = Callable[[], Awaitable[bytes]]
Send = Callable[[MaskedUpload, CommitOf], Awaitable[bytes]]
"""Sends an upload and the commit it is given after the last chunk; returns the coordinator's answer."""


@dataclass
class Stream:
    """An upload on its way: the task that sends it, what is known once all of it was made, and the commit the exchange logic signs then."""

    upload: MaskedUpload
    ready: asyncio.Future[UploadReady]
    envelope: asyncio.Future[bytes]
    sending: asyncio.Future[bytes]

    async def made(self) -> UploadReady:
        """What the commit will say, once every chunk was made and handed to the stream.

        Raises:
            Unavailable: the stream broke; open another one.
            DureError: it cannot be made.
        """
        await asyncio.wait({self.ready, self.sending}, return_when=asyncio.FIRST_COMPLETED)
        if not self.ready.done():
            if self.sending.cancelled():
                raise Unavailable("the upload's stream was cut; it is taken up again")
            error = self.sending.exception()
            if error is not None and not isinstance(error, BulkRefused):
                raise error
            return await asyncio.to_thread(self.upload.complete)  # nobody wants the bytes; the commit is still this node's word
        return self.ready.result()

    def cancel(self) -> None:
        """Stop sending; it can be taken up again."""
        self.sending.cancel()
        for waiting in (self.envelope, self.ready):
            waiting.cancel()


def open_stream(upload: MaskedUpload, send: Send, envelope: bytes | None = None) -> Stream:
    """Start sending. `envelope`: the commit where it was signed before; then nothing but what the coordinator lacks is made."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[UploadReady] = loop.create_future()
    signed: asyncio.Future[bytes] = loop.create_future()
    if envelope is not None:
        signed.set_result(envelope)

    async def commit_of() -> bytes:
        if not signed.done() and not ready.done():
            found = await asyncio.to_thread(upload.complete)
            if not ready.done():
                ready.set_result(found)
        return await asyncio.shield(signed)

    sending = asyncio.ensure_future(send(upload, commit_of))
    # Whoever commits looks at the result; until then a broken stream is no news, it is taken up again.
    sending.add_done_callback(lambda t: t.cancelled() or t.exception())
    return Stream(upload, ready, signed, sending)
