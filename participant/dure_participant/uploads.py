"""Masked uploads: encoded chunk by chunk outside the event loop, written to a file, and sent while the file grows.

Per chunk: read base and local weights (mapped) → subtract → encode → tag → mask → hash. Two threads, an ordered window, memory O(chunk).
The bytes depend only on what was persisted before (rule 1), so encoding again after a crash gives the same file; the file itself serves a
stream that is taken up after the commit was signed. What is in it is masked: it is what leaves.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dure.blobs import chunk_leaf, writing
from dure.errors import Refused
from dure.model.layout import CHUNK_ELEMENTS, Layout
from dure.model.weights import open_flat, shown_part
from dure.secagg.encode import Weight
from dure.secagg.ids import InstanceId
from dure.secagg.kernel import UploadEncoder
from dure.secagg.scales import block_maxima
from dure.tlog.merkle import merkle_root
from dure_participant.exchange.actions import Upload
from dure_participant.exchange.inputs import UploadReady

THREADS = 2
READ_BYTES = 1 << 22

Made = tuple[memoryview, bytes]
"""(masked bytes, leaf) of one chunk."""


def instance_name(instance: bytes) -> str:
    """A plain file name for an instance."""
    decoded = InstanceId.decode(instance)
    return f"{decoded.exchange:06d}-{decoded.purpose.value}-{decoded.attempt}-{decoded.epoch}"


def file_sha256(path: Path) -> bytes:
    """SHA-256 of a file, streamed."""
    digest = sha256()
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
    return digest.digest()


def masked_chunks(
    encoder: UploadEncoder, weight: Weight, base: Path, local: Path, layout: Layout, *, threads: int = THREADS
) -> Iterator[Made]:
    """Every chunk of an upload in order, made by `threads` threads at most one chunk each ahead of the reader.

    Raises:
        DureError: a value that cannot be encoded; names the element.
    """
    before, after = open_flat(base, layout), open_flat(local, layout)

    def ring(k: int) -> Made:
        where = encoder.elements_of(k)
        masked, _part, _clipped = encoder.chunk(k, after[where] - shown_part(before, layout, where))
        return masked, chunk_leaf(masked)

    def field_(k: int) -> Made:
        where = encoder.elements_of(k)
        maxima = []
        for first in range(where.start, where.stop, CHUNK_ELEMENTS):
            part = slice(first, min(first + CHUNK_ELEMENTS, where.stop))
            maxima.append(block_maxima(after[part] - shown_part(before, layout, part), weight.w_hat, first))
        masked, _part, _clipped = encoder.chunk_from_maxima(k, np.concatenate(maxima))
        return masked, chunk_leaf(masked)

    make = ring if encoder.kind == "ring" else field_
    with ThreadPoolExecutor(threads, thread_name_prefix="upload") as pool:
        window: list[Future[Made]] = [pool.submit(make, k) for k in range(min(threads, encoder.chunks))]
        try:
            for k in range(encoder.chunks):
                made = window.pop(0).result()
                if k + threads < encoder.chunks:
                    window.append(pool.submit(make, k + threads))
                yield made
        finally:
            for waiting in window:
                waiting.cancel()


@dataclass
class MaskedFile:
    """A masked upload on disk, perhaps still growing. Written by one thread, read from the event loop."""

    path: Path
    length: int
    chunk_bytes: int
    leaves: list[bytes] = field(default_factory=list)
    """Of the chunks that are there."""
    ready: UploadReady | None = None
    """What ends the stream, once all of it is there."""
    error: str = ""
    stopped: bool = False
    """Set from the event loop: `write` ends at the next chunk."""
    _loop: asyncio.AbstractEventLoop | None = None
    _grown: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def chunks(self) -> int:
        return -(-self.length // self.chunk_bytes)

    @property
    def root(self) -> bytes:
        return merkle_root(self.leaves)

    @classmethod
    def load(cls, path: Path, length: int, chunk_bytes: int) -> MaskedFile:
        """An upload encoded before a restart; its leaves are computed anew.

        Raises:
            Refused: the file is not there whole.
        """
        found = cls(path, length, chunk_bytes)
        if length == 0:
            return found
        if not path.exists() or path.stat().st_size != length:
            raise Refused("upload", "the masked file is gone or short; this node sits the rest of the exchange out")
        with path.open("rb") as file:
            while part := file.read(chunk_bytes):
                found.leaves.append(chunk_leaf(part))
        return found

    def follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake readers of `chunk` on this loop while `write` runs in a thread."""
        self._loop = loop

    def write(
        self, action: Upload, *, base: Path | None, local: Path | None, layout: Layout | None, e_b: NDArray[np.int8] | None
    ) -> UploadReady:
        """Encode the whole upload into the file, durably, and return what ends its stream. Runs in a thread.

        Raises:
            DureError: the local weights are not those the masks were promised to (rule 1), or a value cannot be encoded.
            DiskFull: no room; what was written does not count.
        """
        try:
            return self._write(action, base, local, layout, e_b)
        except BaseException as error:
            self.error = str(error) or type(error).__name__
            self._wake()
            raise

    def _write(
        self, action: Upload, base: Path | None, local: Path | None, layout: Layout | None, e_b: NDArray[np.int8] | None
    ) -> UploadReady:
        encoder = action.encoder(e_b)
        written = 0
        if encoder.kind != "none":
            assert base is not None and local is not None and layout is not None
            if file_sha256(local) != action.update_sha256:
                raise Refused("update", "the trained weights on disk have changed since they were promised; nothing more is sent")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Not emptied first: a stream may be reading what an earlier try wrote, and the bytes are the same.
            with writing(self.path), open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
                for masked, leaf in masked_chunks(encoder, Weight(action.weight_int), base, local, layout):
                    if self.stopped:
                        raise Refused("upload", "stopped; it is taken up again when the node is back")
                    file.write(masked)
                    file.flush()
                    written += len(masked)
                    self.leaves.append(leaf)
                    self._wake()
                file.truncate()
                os.fsync(file.fileno())
        if written != action.length:
            raise Refused("upload", f"encoded {written} bytes, {action.length} were promised")
        trailer, tag = encoder.finish()
        return UploadReady(action.instance, self.root, written, trailer, tag)

    def _wake(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._grown.set)

    async def chunk(self, k: int) -> tuple[bytes, bytes]:
        """(leaf, bytes) of chunk k, as soon as it is there; the same for ever.

        Raises:
            Refused: it never will be, because encoding failed.
        """
        while k >= len(self.leaves):
            if self.error:
                raise Refused("upload", self.error)
            self._grown.clear()
            if k >= len(self.leaves) and not self.error:
                await self._grown.wait()
        return self.leaves[k], await asyncio.to_thread(self._read, k)

    def _read(self, k: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(k * self.chunk_bytes)
            return file.read(self.chunk_bytes)


@dataclass
class Stream:
    """An upload on its way: the file, the task that sends it, and the commit that will end it."""

    file: MaskedFile
    envelope: asyncio.Future[bytes]
    sending: asyncio.Task[bytes]

    def cancel(self) -> None:
        """Stop sending and encoding; both can be taken up again."""
        self.file.stopped = True
        self.sending.cancel()
        if not self.envelope.done():
            self.envelope.cancel()


def open_stream(file: MaskedFile, send: Callable[[MaskedFile, Callable[[], object]], object]) -> Stream:
    """Start sending `file`; `send(file, commit_of)` is the coroutine that does it and returns the coordinator's answer."""
    envelope: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def commit_of() -> bytes:
        return await asyncio.shield(envelope)

    sending: asyncio.Task[bytes] = asyncio.ensure_future(send(file, commit_of))  # type: ignore[arg-type]
    # Whoever commits looks at the result; until then a broken stream is no news, it is taken up again.
    sending.add_done_callback(lambda t: t.cancelled() or t.exception())
    return Stream(file, envelope, sending)
