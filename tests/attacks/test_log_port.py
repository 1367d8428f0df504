"""The log on the real members' port: what a member sends out of form ends its call, naming the field, and costs nobody else anything."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from attacks.ports import Hand, hands, serving

from dure.tlog.witness import WitnessRefused
from dure.wire import log as wire
from dure_pb.v1 import log_pb2 as pb
from dure_pb.v1.log_pb2_grpc import LogServiceStub


@pytest.fixture
async def at(tmp_path):
    """(port, one member's node that was greeted)."""
    async with serving(tmp_path) as port, hands(port, "ara") as (hand,):
        yield port, hand


async def refused(call) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code().name, error.value.details()


async def test_statements_spans_and_paths_out_of_form_are_refused_by_field(at):
    _, hand = at
    log = LogServiceStub(hand.channel)
    assert (await refused(log.Append(pb.AppendRequest(envelopes=[b"x"] * 65))))[1].startswith("envelopes: ")
    for path in ("../log.key", "tile/0/../../../log.key", "/etc/passwd", "cosigned", "tile/0/0"):
        code, words = await refused(log.File(pb.FileRequest(path=path)))
        assert (code, words.startswith("path: ")) == ("INVALID_ARGUMENT", True)
    assert (await refused(log.File(pb.FileRequest(path="checkpoint"))))[1] == "path: is no file of this log now"
    assert (await refused(log.Entries(pb.EntriesRequest(start=0, end=10**9)).read()))[1].startswith("end: ")


async def witness_of(hand: Hand, port) -> tuple[grpc.aio.StreamStreamCall, str]:
    call = LogServiceStub(hand.channel).Witness()
    await call.write(wire.encode_head_answer(wire.HeadAnswer()))
    async with asyncio.timeout(20):
        while not port.coordinator.witnesses.streams:  # noqa: ASYNC110  # a plain dict; nobody wakes us
            await asyncio.sleep(0.01)
    return call, next(iter(port.coordinator.witnesses.streams))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.WitnessRequest(number=0, status=200), "number"),
        (pb.WitnessRequest(number=1, status=7), "status"),
        (pb.WitnessRequest(number=1, status=200, body=bytes(65_537)), "body"),
    ],
)
async def test_a_witness_that_answers_out_of_form_loses_its_stream_and_the_head_goes_on_without_it(at, message, field):
    port, hand = at
    call, name = await witness_of(hand, port)
    asking = asyncio.create_task(port.coordinator.witnesses.reach()[name].add_checkpoint(b"old 0\n\nx"))
    await call.read()
    await call.write(message)
    code, words = await refused(call.read())
    assert (code, words.startswith(f"{field}: ")) == ("INVALID_ARGUMENT", True)
    with pytest.raises(Exception, match="went away"):
        await asyncio.wait_for(asking, 20)
    assert port.coordinator.witnesses.reach() == {}


async def test_a_witness_whose_answer_is_in_form_is_heard(at):
    port, hand = at
    call, name = await witness_of(hand, port)
    asking = asyncio.create_task(port.coordinator.witnesses.reach()[name].add_checkpoint(b"old 0\n\nx"))
    asked = wire.decode_head_asked(await call.read(), 0)
    await call.write(wire.encode_head_answer(wire.HeadAnswer(asked.number, 409, b"7\n")))
    with pytest.raises(WitnessRefused) as told:
        await asyncio.wait_for(asking, 20)
    assert (told.value.status, told.value.size) == (409, 7)
