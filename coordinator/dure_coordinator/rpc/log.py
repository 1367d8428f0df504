"""The log over the members' port. Translation only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog

from dure.charter.log_keys import witness_name
from dure.errors import Refused
from dure.statements.dsse import MAX_ENVELOPE_BYTES
from dure.wire.control import WireRefused
from dure_coordinator.log.intake import Intake
from dure_coordinator.log.publisher import Publisher
from dure_coordinator.log.witnesses import MAX_ANSWER_BYTES, StreamWitness, Witnesses
from dure_coordinator.rpc.interceptor import CALLER
from dure_coordinator.rpc.status import answering
from dure_pb.v1 import log_pb2 as pb
from dure_pb.v1 import log_pb2_grpc as rpc

log = structlog.get_logger()

BATCH = 64
"""Entries in one message: at most 2 MiB."""
MAX_PATH = 100


class Log(rpc.LogServiceServicer):
    """Every method runs below the interceptor, so `CALLER` is set."""

    def __init__(self, intake: Intake, publisher: Publisher, witnesses: Witnesses) -> None:
        self._intake, self._publisher, self._witnesses = intake, publisher, witnesses

    async def Append(self, request: pb.AppendRequest, context: Any) -> pb.AppendResponse:
        async with answering(context):
            caller, accepted = CALLER.get(), 0
            for envelope in request.envelopes[:BATCH]:
                if len(envelope) > MAX_ENVELOPE_BYTES:
                    raise WireRefused("envelopes", f"one is larger than {MAX_ENVELOPE_BYTES} bytes")
                why_not = await self._intake.append(caller, envelope)
                if why_not:
                    return pb.AppendResponse(accepted=accepted, reason=why_not)
                accepted += 1
            return pb.AppendResponse(accepted=accepted)

    async def Witness(self, requests: AsyncIterator[pb.WitnessRequest], context: Any) -> AsyncIterator[pb.WitnessResponse]:
        caller = CALLER.get()
        async with answering(context):
            self._intake.fleet.session(caller)
        name = witness_name(self._intake.fleet.roster().members[caller.member].host)
        witness = self._witnesses.arrive(name)
        reading = asyncio.create_task(self._read(requests, witness))
        await self._publisher.committed.bump()
        try:
            while True:
                number, body = await witness.next()
                yield pb.WitnessResponse(number=number, add_checkpoint=body)
        finally:
            reading.cancel()
            self._witnesses.leave(name, witness)

    async def _read(self, requests: AsyncIterator[pb.WitnessRequest], witness: StreamWitness) -> None:
        async for answer in requests:
            if len(answer.body) <= MAX_ANSWER_BYTES:
                witness.answer(answer.number, answer.status, answer.body)
        witness.gone()

    async def Entries(self, request: pb.EntriesRequest, context: Any) -> AsyncIterator[pb.EntriesResponse]:
        async with answering(context):
            if not 0 <= request.start <= request.end <= self._publisher.files.size:
                raise Refused("end", f"must lie in 0…{self._publisher.files.size}")
            for start in range(request.start, request.end, BATCH):
                entries = await self._publisher.store.log_entries(start, min(request.end, start + BATCH))
                yield pb.EntriesResponse(entries=entries)

    async def File(self, request: pb.FileRequest, context: Any) -> pb.FileResponse:
        async with answering(context):
            if len(request.path) > MAX_PATH:
                raise WireRefused("path", f"longer than {MAX_PATH} characters")
            try:
                return pb.FileResponse(data=await asyncio.to_thread(self._publisher.files.read, request.path))
            except FileNotFoundError:
                raise Refused("path", "is no file of this log now") from None
