"""The node's line to the coordinator: dials out, mutual TLS, reconnects for ever. The only grpc import here besides bulk.py."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from importlib.metadata import version

import grpc

from dure.errors import BadInput, NotAuthorised, Unavailable
from dure.identity.node import NodeIdentity
from dure.wire.control import (
    WireRefused,
    decode_directive,
    decode_hello_reply,
    decode_report_reply,
    encode_hello,
    encode_report,
)
from dure.wire.messages import MAX_CONTROL_BYTES, PROTOCOL_VERSION, Directive, Hello, HelloReply, Report, ReportReply
from dure_pb.v1 import members_pb2 as pb
from dure_pb.v1 import members_pb2_grpc as rpc

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.3, 15.0
CALL_DEADLINE_S = 60.0
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_CONTROL_BYTES),
    ("grpc.max_send_message_length", MAX_CONTROL_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.enable_retries", 0),
]
REFUSED = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
}


def back_off(attempt: int) -> float:
    """Seconds to wait before trying again: doubling, capped, with jitter so that members do not return in step."""
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt, 16)) * (0.5 + random.random() / 2))  # noqa: S311  # jitter, not a secret


class Line:
    """One channel to the coordinator; made anew after every break."""

    def __init__(self, identity: NodeIdentity) -> None:
        self._identity = identity
        credentials = grpc.ssl_channel_credentials(identity.coordinator_ca_pem, identity.tls_key_pem, identity.tls_certificate_pem)
        self.channel = grpc.aio.secure_channel(identity.address, credentials, OPTIONS)
        self._members = rpc.MembersServiceStub(self.channel)

    async def close(self) -> None:
        await self.channel.close(None)

    async def hello(self) -> HelloReply:
        """Greet the coordinator.

        Raises:
            NotAuthorised, BadInput: it refuses this node for good; its own words.
            Unavailable: not reached.
        """
        hello = Hello(PROTOCOL_VERSION, self._identity.charter.digest, self._identity.delegation, f"dure {version('dure')}")
        try:
            answer = await self._members.Hello(encode_hello(hello), timeout=CALL_DEADLINE_S)
            reply = decode_hello_reply(answer)
        except grpc.aio.AioRpcError as error:
            if error.code() in REFUSED:
                raise NotAuthorised(f"the coordinator refuses this node: {error.details()}") from None
            raise Unavailable(f"{self._identity.address}: {error.details()}") from None
        except WireRefused as error:
            raise BadInput(f"the coordinator's greeting is out of form: {error}") from None
        if reply.protocol_version < PROTOCOL_VERSION - 1:
            raise BadInput(
                f"the coordinator speaks protocol {reply.protocol_version}, this node {PROTOCOL_VERSION}; upgrade the coordinator"
            )
        return reply

    async def follow(self) -> AsyncIterator[Directive]:
        """Directives as they change, until the stream breaks (`Unavailable`). One out of form is skipped and raised to nobody: the next
        one stands on its own."""
        try:
            async for message in self._members.Follow(pb.FollowRequest()):
                try:
                    yield decode_directive(message)
                except WireRefused as error:
                    raise Unavailable(f"a directive is out of form: {error}") from None
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"{self._identity.address}: {error.details()}") from None

    async def report(self, report: Report) -> ReportReply:
        """Send a report and return its answer.

        Raises:
            Unavailable: no answer; send it again, it is idempotent.
        """
        try:
            return decode_report_reply(await self._members.Report(encode_report(report), timeout=CALL_DEADLINE_S))
        except grpc.aio.AioRpcError as error:
            if error.code() in REFUSED:
                return ReportReply(False, "call", error.details() or "refused")
            raise Unavailable(f"{self._identity.address}: {error.details()}") from None
        except grpc.aio.UsageError:  # the line was closed under this call; the next one takes it up
            raise Unavailable(f"{self._identity.address}: the connection is being made anew") from None
        except WireRefused as error:
            raise Unavailable(f"an answer is out of form: {error}") from None


async def pause(attempt: int) -> None:
    """Wait before the next try."""
    await asyncio.sleep(back_off(attempt))
