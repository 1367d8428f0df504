"""A usage statement that names an environment nobody committed to becomes no entry: every audit of the consortium would fail by it."""

from __future__ import annotations

import time

import grpc
import pytest
from attacks.ports import hands, serving
from support.synthetic_log import environment

from dure.secagg import tlv
from dure.statements.dsse import Envelope
from dure.statements.kinds import EnvCommitment, ExchangeAccept, NodeDelegation, Usage
from dure.statements.statement import Chain, seal
from dure.wire.messages import Report, ReportKind
from dure_pb.v1 import log_pb2 as pb
from dure_pb.v1.log_pb2_grpc import LogServiceStub


class Speaker:
    """A node that signs what it likes, in order."""

    def __init__(self, hand) -> None:
        self.hand, self.chain, self.log = hand, Chain(), LogServiceStub(hand.channel)

    async def say(self, fact) -> bytes:
        """Its digest, once it is an entry; a refused one was never said."""
        envelope, chain = seal(fact, self.hand.identity.key, self.chain, time.time())
        assert (await self.log.Append(pb.AppendRequest(envelopes=[envelope.to_bytes()]))).accepted == 1
        self.chain = chain
        return envelope.sha256

    async def refused(self, fact) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.say(fact)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        return error.value.details()


async def test_only_an_environment_of_its_own_that_is_an_entry_before_can_be_named(tmp_path):
    async with serving(tmp_path) as port, hands(port, "ara", "bora") as found:
        engine = await port.start_run()
        await port.coordinator.enter_charter()
        ara, bora = (Speaker(hand) for hand in found)

        def usage(member: str, named: bytes | None) -> Usage:
            return Usage(engine.run, 1, member, 1, 1, 1, 1, 1, "cpu", environment_sha256=named)

        later, _ = seal(environment("ara"), ara.hand.identity.key, Chain(7, bytes(32)), time.time())
        for named in (bytes(32), later.sha256):
            assert (await ara.refused(usage("ara", named))).startswith("environment_sha256: names no entry of the log")
        assert (await ara.refused(environment("bora"))).startswith("member: ")
        theirs, mine = await bora.say(environment("bora")), await ara.say(environment("ara"))
        word = await port.coordinator.store.statements(kind=NodeDelegation.kind)
        for named in (theirs, *(Envelope.from_bytes(row.envelope).sha256 for row in word[:1])):
            assert "which is no env-commitment of ara" in await ara.refused(usage("ara", named))
        await ara.say(usage("ara", mine))
        assert len(await port.coordinator.store.statements(kind=EnvCommitment.kind)) == 2

        # An acceptance brings a usage statement, too, and it becomes an entry with it.
        accept, chain = seal(ExchangeAccept(engine.run, 1, "ara", (bytes(32),), (), None), ara.hand.identity.key, ara.chain, time.time())
        told, _ = seal(usage("ara", theirs), ara.hand.identity.key, chain, time.time())
        report = Report(engine.run, ReportKind.ACCEPT, 1, body=tlv.encode(accept.to_bytes(), told.to_bytes()))
        caller = port.coordinator.fleet.sessions["ara"].caller
        assert (await port.coordinator.fleet.report(caller, report)).field == "environment_sha256"
