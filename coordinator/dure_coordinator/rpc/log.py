"""The log over the members' port. Translation only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dure.charter.log_keys import witness_name
from dure.errors import Refused
from dure.wire import log as wire
from dure_coordinator.log.intake import Intake
from dure_coordinator.log.publisher import Publisher
from dure_coordinator.log.witnesses import Cosigned, StreamWitness, Witnesses
from dure_coordinator.rpc.interceptor import CALLER
from dure_coordinator.rpc.status import answering, taken
from dure_pb.v1 import log_pb2 as pb
from dure_pb.v1 import log_pb2_grpc as rpc

WRITE_S = 60.0
"""A node that takes no entries for so long loses their stream; it may ask again from where it stands."""


class Log(rpc.LogServiceServicer):
    """Every method runs below the interceptor, so `CALLER` is set."""

    def __init__(self, intake: Intake, publisher: Publisher, witnesses: Witnesses) -> None:
        self._intake, self._publisher, self._witnesses = intake, publisher, witnesses

    async def Append(self, request: pb.AppendRequest, context: Any) -> pb.AppendResponse:
        async with answering(context):
            caller, accepted = CALLER.get(), 0
            for envelope in wire.decode_append(request):
                why_not = await self._intake.append(caller, envelope)
                if why_not:
                    return wire.encode_appended(wire.Appended(accepted, why_not))
                accepted += 1
            return wire.encode_appended(wire.Appended(accepted))

    async def Witness(self, requests: AsyncIterator[pb.WitnessRequest], context: Any) -> AsyncIterator[pb.WitnessResponse]:
        caller = CALLER.get()
        async with answering(context):
            self._intake.fleet.session(caller)
        name = witness_name(self._intake.fleet.roster().members[caller.member].host)
        witness = self._witnesses.arrive(name)
        if (head := self._publisher.files.published) is not None:
            witness.tell(head.note.to_bytes())
        reading = asyncio.create_task(self._read(requests, witness))
        await self._publisher.committed.bump()
        try:
            async with answering(context):
                while (sent := await self._next(witness, reading)) is not None:
                    yield wire.encode_cosigned(sent.head) if isinstance(sent, Cosigned) else wire.encode_head_asked(sent)
        finally:
            reading.cancel()
            self._witnesses.leave(name, witness)

    async def _next(self, witness: StreamWitness, reading: asyncio.Task[None]) -> wire.HeadAsked | Cosigned | None:
        """The next head to ask about, or to tell of; None once the node has ended its side. What it sent out of form is raised."""
        asking = asyncio.ensure_future(witness.next())
        try:
            await asyncio.wait({asking, reading}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return asking.result()
            reading.result()
            return None
        finally:
            asking.cancel()

    async def _read(self, requests: AsyncIterator[pb.WitnessRequest], witness: StreamWitness) -> None:
        last: int | None = None
        async for message in requests:
            answer = wire.decode_head_answer(message, last)
            last = answer.number
            witness.answer(answer.number, answer.status, answer.body)

    async def Entries(self, request: pb.EntriesRequest, context: Any) -> None:
        async with answering(context):
            first, end = wire.decode_span(request, self._publisher.files.size)
            for start in range(first, end, wire.BATCH):
                entries = await self._publisher.store.log_entries(start, min(end, start + wire.BATCH))
                await taken(context, wire.encode_entries(entries), WRITE_S, "entries")

    async def File(self, request: pb.FileRequest, context: Any) -> pb.FileResponse:
        async with answering(context):
            path = wire.decode_path(request)
            try:
                return wire.encode_file(await asyncio.to_thread(self._publisher.files.read, path))
            except FileNotFoundError:
                raise Refused("path", "is no file of this log now") from None
