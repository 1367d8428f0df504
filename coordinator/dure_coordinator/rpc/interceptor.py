"""The one place where a call on the members' port is authorised: certificate *and* charter, for every RPC.

TLS has already checked that some member's CA signed the certificate. Here: exactly one subject alternative name of any
kind (a URI constraint does not limit DNS names), a SPIFFE id whose host is a charter member's, signed by *that* member's
CA, in its time. What passes is a `Caller`; no handler sees anything of the peer but that.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import structlog

from dure.errors import DureError, NotAuthorised
from dure_coordinator.callers import Caller, Papers, Roster, in_time, read_papers

log = structlog.get_logger()

CALLER: ContextVar[Caller] = ContextVar("dure_caller")


def member_of(_context: Any) -> str:
    """The member behind the running call; for handlers below `Authorise`."""
    try:
        return CALLER.get().member
    except LookupError:
        raise NotAuthorised("this call was not authorised") from None


class Authorise(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # untyped base
    """Puts a `Caller` into the context of every handler, or ends the call with UNAUTHENTICATED."""

    def __init__(self, roster: Callable[[], Roster], *, calls_per_member: int = 32, clock: Callable[[], float] = time.time) -> None:
        self._roster, self._limit, self._clock = roster, calls_per_member, clock
        self._calls: Counter[str] = Counter()
        self._papers: tuple[Roster | None, dict[bytes, Papers]] = (None, {})
        """Certificates that passed under this roster: a node sends dozens of calls a round, and reading one takes as long as a report."""
        self._live: dict[asyncio.Task[Any], tuple[Any, bytes | None]] = {}
        """Calls under way: their context and certificate."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        for shape in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behaviour = getattr(handler, shape)
            if behaviour is not None:
                return handler._replace(**{shape: self._guard(behaviour, details.method)})
        return handler

    def _guard(self, behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(behaviour):

            async def stream(request: Any, context: Any) -> Any:
                with self._counted(await self._admit(context, method), context):
                    async for answer in behaviour(request, context):
                        yield answer

            return stream

        async def call(request: Any, context: Any) -> Any:
            with self._counted(await self._admit(context, method), context):
                return await behaviour(request, context)

        return call

    async def _admit(self, context: Any, method: str) -> Caller:
        pem = _certificate(context)
        try:
            caller = in_time(self._read(pem), self._clock())
        except NotAuthorised as e:
            log.warning("members.refused", method=method, peer=context.peer(), reason=str(e))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, one_line(e))
            raise AssertionError("abort raises") from e
        if self._calls[caller.member] >= self._limit:
            log.warning("members.too_many_calls", method=method, member=caller.member)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"at most {self._limit} calls of one member at a time")
        CALLER.set(caller)
        return caller

    def _read(self, pem: bytes | None) -> Papers:
        roster = self._roster()
        if self._papers[0] is not roster or len(self._papers[1]) > 1000:
            self._papers = (roster, {})
        known = self._papers[1]
        if pem not in known:
            found = read_papers(pem, roster)
            assert pem is not None
            known[pem] = found
        return known[pem]

    @contextmanager
    def _counted(self, caller: Caller, context: Any) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._calls[caller.member] += 1
        self._live[task] = (context, _certificate(context))
        try:
            yield
        finally:
            self._calls[caller.member] -= 1
            del self._live[task]

    async def recheck(self) -> None:
        """Ends every call under way whose caller would not be let in now: the roster or the denylist has changed."""
        for task, (context, pem) in list(self._live.items()):
            try:
                in_time(self._read(pem), self._clock())
            except NotAuthorised as e:
                log.warning("members.cut", peer=context.peer(), reason=str(e))
                with contextlib.suppress(Exception):  # it raises when it has told, and also when the peer is gone already
                    await context.abort(grpc.StatusCode.UNAUTHENTICATED, one_line(e))
                task.cancel()


def _certificate(context: Any) -> bytes | None:
    found: bytes | None = context.auth_context().get("x509_pem_cert", [None])[0]
    return found


def one_line(error: DureError) -> str:
    return " ".join(str(error).split())[:1000]
