"""The members' port: Hello, Follow, Report. Translation only; decisions are the fleet's."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from dure.blobs import BlobId
from dure.errors import Refused
from dure.wire.control import (
    WireRefused,
    decode_evidence_query,
    decode_hello,
    decode_report,
    encode_directive,
    encode_evidence,
    encode_hello_reply,
    encode_report_reply,
)
from dure.wire.messages import Directive, ReportReply
from dure_coordinator.exchange.view import UploadSlot
from dure_coordinator.fleet import ACCEPTED, Fleet
from dure_coordinator.rpc.bulk import ChunkSource
from dure_coordinator.rpc.interceptor import CALLER
from dure_coordinator.rpc.status import answering, taken
from dure_coordinator.spool import Spool
from dure_pb.v1 import members_pb2 as pb
from dure_pb.v1 import members_pb2_grpc as rpc

FOLLOW_IDLE_S = 60.0
"""A quiet stream looks again after so long, in case a change was missed."""


class Pace:
    """How often one member may arrive in a minute; beyond that it hears "later"."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = per_minute, clock
        self._times: dict[str, deque[float]] = {}

    def allow(self, member: str) -> bool:
        times, now = self._times.setdefault(member, deque(maxlen=self._most)), self._clock()
        if len(times) == self._most and now - times[0] < 60.0:
            return False
        times.append(now)
        return True

    async def take(self, member: str, context: Any) -> None:
        if not self.allow(member):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"at most {self._most} times a minute; try again later")


class Members(rpc.MembersServiceServicer):
    """Every method runs below the interceptor, so `CALLER` is set."""

    def __init__(self, fleet: Fleet, *, write_s: float = 60.0, arrivals_per_minute: int = 30) -> None:
        self._fleet, self._write_s = fleet, write_s
        self._hellos, self._follows = Pace(arrivals_per_minute), Pace(arrivals_per_minute)
        self.draining = asyncio.Event()

    async def Hello(self, request: pb.HelloRequest, context: Any) -> pb.HelloResponse:
        await self._hellos.take(CALLER.get().member, context)
        async with answering(context):
            return encode_hello_reply(await self._fleet.hello(CALLER.get(), decode_hello(request)))

    async def Follow(self, _request: pb.FollowRequest, context: Any) -> None:
        caller = CALLER.get()
        await self._follows.take(caller.member, context)
        async with answering(context):
            self._fleet.session(caller)
            token = await self._fleet.arrive(caller.member)
        sent: dict[bytes, Directive] = {}
        era = self._fleet.era
        try:
            while self._fleet.current(caller.member, token) and self._fleet.era == era and not self.draining.is_set():
                seen = self._fleet.changes.version
                for run, directive in self._fleet.directives(caller.member).items():
                    if sent.get(run) != directive:
                        sent[run] = directive
                        await taken(context, encode_directive(directive), self._write_s, "directive")
                await self._fleet.changes.wait(seen, FOLLOW_IDLE_S)
        finally:
            # The stream may end by cancellation; that the member left must be noted all the same.
            await asyncio.shield(asyncio.ensure_future(self._fleet.leave(caller.member, token)))

    async def Report(self, request: pb.ReportRequest, context: Any) -> pb.ReportResponse:
        async with answering(context):
            try:
                report = decode_report(request)
            except WireRefused as e:
                return encode_report_reply(ReportReply(False, e.field, e.why))
            return encode_report_reply(await self._fleet.report(CALLER.get(), report))

    async def Evidence(self, request: pb.EvidenceRequest, context: Any) -> pb.EvidenceResponse:
        async with answering(context):
            return encode_evidence(await self._fleet.evidence(CALLER.get(), decode_evidence_query(request)))


@dataclass
class MembersBulk:
    """`BulkPolicy` by what the runs' states say."""

    fleet: Fleet

    async def authorise_pull(self, member: str, blob: BlobId) -> tuple[bytes, ChunkSource]:
        return await self.fleet.open_blob(member, blob)

    async def open_upload(self, member: str, upload: bytes) -> tuple[bytes, Spool | bytes]:
        run, found = await self.fleet.open_upload(member, upload)
        return run, CommitOnly() if isinstance(found, UploadSlot) else found  # type: ignore[return-value]  # a spool of nothing

    async def commit_upload(self, member: str, upload: bytes, commit: bytes) -> bytes:
        reply = await self.fleet.commit_upload(member, upload, commit)
        if not reply.accepted:
            raise Refused(reply.field or "commit", reply.reason)
        return ACCEPTED


class CommitOnly:
    """The spool of an instance without a vector (`scalars`): the stream brings the commit and nothing else."""

    chunks = 0

    def sync(self) -> int:
        return 0

    def write(self, k: int, chunk: object, *, leaf: object) -> None:
        raise Refused("chunk", "this upload has none")
