"""The product's side: `BulkService` over blob store and spools, `pull_blob` and `push_upload`, gRPC, mutual TLS, everything verified."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from dure.blobs import BlobId, BlobReader, BlobStore, chunk_leaf
from dure.memory import keep_freed_memory
from dure.secagg.summing import Group, shape_of
from dure.tlog.merkle import merkle_root
from dure_coordinator.aggregate import sum_spools
from dure_coordinator.rpc.bulk import BulkService
from dure_coordinator.rpc.server import Limits, _options
from dure_coordinator.spool import Spool
from dure_participant.bulk import pull_blob, push_upload
from dure_participant.transport import OPTIONS
from streams.common import Clock, Go

RUN = bytes(32)


@dataclass
class Open:
    """Everyone may fetch the base and send one upload; an answer is given when its chunks are durable and have the root."""

    store: BlobStore
    folder: Path
    length: int
    chunk_bytes: int
    expected: int
    done: asyncio.Event = field(default_factory=asyncio.Event)
    spools: dict[bytes, Spool] = field(default_factory=dict)
    committed: int = 0

    async def authorise_pull(self, member: str, blob: BlobId) -> tuple[bytes, BlobReader]:
        return RUN, self.store.open(blob)

    async def open_upload(self, member: str, upload: bytes) -> tuple[bytes, Spool | bytes]:
        if upload not in self.spools:
            self.spools[upload] = Spool(self.folder, upload, length=self.length, chunk_bytes=self.chunk_bytes)
        return RUN, self.spools[upload]

    async def commit_upload(self, member: str, upload: bytes, commit: bytes) -> bytes:
        await asyncio.to_thread(self.spools[upload].finish, commit)
        self.committed += 1
        if self.committed == self.expected:
            self.done.set()
        return commit


def _as_daemons_do() -> None:
    keep_freed_memory()
    sys.setswitchinterval(0.0005)


def server(go: Go, told: Queue[Any], start: Barrier) -> None:
    """Serves, and adds the uploads when all have come."""
    _as_daemons_do()
    asyncio.run(_serve(go, told, start))


async def _serve(go: Go, told: Queue[Any], start: Barrier) -> None:
    store = BlobStore(go.folder / "hub")
    length, chunk_bytes = shape_of("update", go.params)
    base = np.random.default_rng(1).standard_normal(go.params, dtype=np.float32)
    blob = store.put_bytes(base.data.cast("B"))
    del base
    (go.folder / "spools").mkdir()
    policy = Open(store, go.folder / "spools", length, chunk_bytes, go.clients)
    serving = grpc.aio.server(options=_options(Limits()))
    serving.add_generic_rpc_handlers((BulkService(policy, lambda context: dict(context.invocation_metadata())["member"]).handler(),))
    key, chain = (path.read_bytes() for path in go.credentials.server)
    credentials = grpc.ssl_server_credentials([(key, chain)], go.credentials.client_ca.read_bytes(), require_client_auth=True)
    port = serving.add_secure_port("127.0.0.1:0", credentials)
    await serving.start()
    told.put(("port", (port, str(blob))))
    await asyncio.to_thread(start.wait)
    clock = Clock()
    await policy.done.wait()
    await asyncio.to_thread(sum_spools, list(policy.spools.values()), Group.RING16, None, store.writer(chunk_bytes=chunk_bytes))
    told.put(("served", time.monotonic(), clock.cpu_s()))
    await serving.stop(1.0)


def client(go: Go, number: int, where: tuple[int, str], told: Queue[Any], start: Barrier) -> None:
    """Fetches and sends."""
    _as_daemons_do()
    asyncio.run(_take_part(go, number, where, told, start))


async def _take_part(go: Go, number: int, where: tuple[int, str], told: Queue[Any], start: Barrier) -> None:
    port, blob = where
    store = BlobStore(go.folder / f"client-{number}")
    data = np.random.default_rng(number).integers(0, 1 << 16, go.params, np.uint16).data.cast("B")
    length, chunk_bytes = shape_of("update", go.params)
    leaves: dict[int, bytes] = {}

    def chunk(k: int) -> tuple[bytes, memoryview]:
        part = data[k * chunk_bytes : min(length, (k + 1) * chunk_bytes)]
        leaves[k] = chunk_leaf(part)
        return leaves[k], part

    key, chain = (path.read_bytes() for path in go.credentials.client)
    credentials = grpc.ssl_channel_credentials(go.credentials.server_ca.read_bytes(), key, chain)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, OPTIONS) as channel:
        await channel.channel_ready()
        named: Any = _Named(channel, f"member-{number}")
        await asyncio.to_thread(start.wait)
        clock = Clock()
        await pull_blob(named, BlobId.parse(blob), store)
        fetched = time.monotonic()
        chunks = -(-length // chunk_bytes)
        await push_upload(named, os.urandom(32), chunk, chunks, lambda: merkle_root([leaves[k] for k in range(chunks)]))
        told.put(("client", clock.began, fetched, clock.cpu_s()))


class _Named:
    """The channel with this client's name on every call: all share one certificate here, and streams are counted per member."""

    def __init__(self, channel: Any, name: str) -> None:
        self._channel, self._metadata = channel, (("member", name),)

    def unary_stream(self, method: str) -> Any:
        return lambda request: self._channel.unary_stream(method)(request, metadata=self._metadata)

    def stream_stream(self, method: str) -> Any:
        return lambda: self._channel.stream_stream(method)(metadata=self._metadata)
