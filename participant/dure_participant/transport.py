"""The node's line to the coordinator: dials out, mutual TLS, reconnects for ever. Besides bulk.py and calls.py nothing here knows grpc."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

import grpc

from dure.errors import BadInput, NotAuthorised, Unavailable
from dure.identity.node import NodeIdentity
from dure.wire import log as log_wire
from dure.wire.control import (
    WireRefused,
    decode_directive,
    decode_evidence,
    decode_hello_reply,
    decode_report_reply,
    encode_evidence_query,
    encode_hello,
    encode_report,
)
from dure.wire.messages import (
    MAX_CONTROL_BYTES,
    PROTOCOL_VERSION,
    Directive,
    EvidenceQuery,
    Hello,
    HelloReply,
    Report,
    ReportReply,
    SumEvidence,
)
from dure_participant.calls import begun, cancelled_itself
from dure_pb.v1 import log_pb2_grpc as log_rpc
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


class _Refused(Exception):
    """The coordinator refuses a call for good; its own words."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        super().__init__(words)
        self.code = code


class Line:
    """One channel to the coordinator; made anew after every break."""

    def __init__(self, identity: NodeIdentity) -> None:
        self._identity = identity
        credentials = grpc.ssl_channel_credentials(identity.coordinator_ca_pem, identity.tls_key_pem, identity.tls_certificate_pem)
        self.channel = grpc.aio.secure_channel(identity.address, credentials, OPTIONS)
        self._members = rpc.MembersServiceStub(self.channel)
        self._log = log_rpc.LogServiceStub(self.channel)

    async def close(self) -> None:
        await self.channel.close(None)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Around one call: whatever breaks it is `Unavailable`, and a refusal `_Refused`.

        A channel that is closed under a call cancels the call, and with it whoever waits: of that, only what was meant for the task passes.
        """
        address = self._identity.address
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if error.code() in REFUSED:
                raise _Refused(error.code(), error.details() or "refused") from None
            raise Unavailable(f"{address}: {error.details()}") from None
        except grpc.aio.UsageError:
            raise Unavailable(f"{address}: the connection is being made anew") from None
        except asyncio.CancelledError:
            if cancelled_itself():
                raise
            raise Unavailable(f"{address}: the connection is being made anew") from None
        except WireRefused as error:
            raise Unavailable(f"{address}: an answer is out of form: {error}") from None

    async def hello(self) -> HelloReply:
        """Greet the coordinator.

        Raises:
            NotAuthorised, BadInput: it refuses this node for good; its own words.
            Unavailable: not reached.
        """
        hello = Hello(PROTOCOL_VERSION, self._identity.charter.digest, self._identity.delegation, f"dure {version('dure')}")
        try:
            with self._asking():
                answer = await self._members.Hello(encode_hello(hello), timeout=CALL_DEADLINE_S)
        except _Refused as error:
            raise NotAuthorised(f"the coordinator refuses this node: {error}") from None
        try:
            reply = decode_hello_reply(answer)
        except WireRefused as error:
            raise BadInput(f"the coordinator's greeting is out of form: {error}") from None
        if reply.protocol_version < PROTOCOL_VERSION - 1:
            raise BadInput(
                f"the coordinator speaks protocol {reply.protocol_version}, this node {PROTOCOL_VERSION}; upgrade the coordinator"
            )
        return reply

    async def follow(self) -> AsyncIterator[Directive]:
        """Directives as they change, until the stream breaks or one is out of form (`Unavailable`)."""
        stream = aiter(self._members.Follow(pb.FollowRequest()))
        while True:
            try:
                with self._asking():
                    directive = decode_directive(await anext(stream))
            except StopAsyncIteration:
                return
            except _Refused as error:
                raise Unavailable(f"{self._identity.address}: {error}") from None
            yield directive

    async def append(self, envelopes: Sequence[bytes]) -> log_wire.Appended:
        """Hand statements to the log, at most `wire.log.BATCH`.

        Raises:
            Unavailable: no answer; send them again, it is idempotent.
        """
        try:
            with self._asking():
                return log_wire.decode_appended(
                    await self._log.Append(log_wire.encode_append(envelopes), timeout=CALL_DEADLINE_S), len(envelopes)
                )
        except _Refused as error:
            return log_wire.Appended(0, str(error)[:500])

    async def entries(self, start: int, end: int) -> AsyncIterator[bytes]:
        """Entries [start, end) of the log, as the coordinator gives them; fewer if it ends early."""
        stream = aiter(self._log.Entries(log_wire.encode_span(start, end)))
        while True:
            try:
                with self._asking():
                    found = list(log_wire.decode_entries(await anext(stream)))
            except StopAsyncIteration:
                return
            except _Refused as error:
                raise Unavailable(f"{self._identity.address}: {error}") from None
            for entry in found:
                yield entry

    async def log_file(self, path: str) -> bytes:
        """A file of the log as the coordinator has it; `Unavailable` if there is none now."""
        try:
            with self._asking():
                return log_wire.decode_file(await self._log.File(log_wire.encode_path(path), timeout=CALL_DEADLINE_S), path)
        except _Refused as error:
            raise Unavailable(f"{self._identity.address}: {error}") from None

    async def witness(
        self, answer: Callable[[bytes, tuple[bytes, ...]], Awaitable[tuple[int, bytes]]], told: Callable[[bytes], None]
    ) -> None:
        """Be this member's witness until the stream ends (`Unavailable`): each head asked about, with entries it adds, gets its answer.

        Args:
            told: given each head that a quorum is said to have cosigned.
        """
        call, last = self._log.Witness(), 0
        try:
            with self._asking():
                await begun(call)
                await call.write(log_wire.encode_head_answer(log_wire.HeadAnswer()))
                while (message := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]  # missing in grpc-stubs
                    if (head := log_wire.decode_cosigned(message)) is not None:
                        told(head)
                        continue
                    asked = log_wire.decode_head_asked(message, last)
                    last = asked.number
                    said = log_wire.HeadAnswer(last, *await answer(asked.request, asked.entries))
                    await call.write(log_wire.encode_head_answer(said))
        except _Refused as error:
            raise Unavailable(f"{self._identity.address}: {error}") from None
        finally:
            call.cancel()
        raise Unavailable(f"{self._identity.address}: the stream of heads ended")

    async def report(self, report: Report) -> ReportReply:
        """Send a report and return its answer.

        Raises:
            Unavailable: no answer; send it again, it is idempotent.
        """
        try:
            with self._asking():
                return decode_report_reply(await self._members.Report(encode_report(report), timeout=CALL_DEADLINE_S))
        except _Refused as error:
            return ReportReply(False, "call", str(error))

    async def evidence(self, query: EvidenceQuery) -> tuple[SumEvidence, ...]:
        """Where to find what the sums of an exchange were opened from.

        Raises:
            NotAuthorised: the coordinator does not say, in its own words.
            WireRefused: it says what has no form.
            Unavailable: no answer.
        """
        try:
            with self._asking():
                answer = await self._members.Evidence(encode_evidence_query(query), timeout=CALL_DEADLINE_S)
        except _Refused as error:
            if error.code is grpc.StatusCode.UNAUTHENTICATED:  # about this node, not about what it asks for
                raise Unavailable(f"{self._identity.address}: {error}") from None
            raise NotAuthorised(f"the coordinator shows nothing: {error}") from None
        return decode_evidence(answer)


async def pause(attempt: int) -> None:
    """Wait before the next try."""
    await asyncio.sleep(back_off(attempt))
