"""Which gRPC status a peer gets for which error, whether it may try again, and what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog

from dure.errors import BadInput, Conflict, DureError, NotAuthorised, Refused, Unavailable
from dure.wire.control import WireRefused

log = structlog.get_logger()

STATUS_OF: dict[type[DureError], grpc.StatusCode] = {
    WireRefused: grpc.StatusCode.INVALID_ARGUMENT,
    Refused: grpc.StatusCode.INVALID_ARGUMENT,
    BadInput: grpc.StatusCode.INVALID_ARGUMENT,
    NotAuthorised: grpc.StatusCode.PERMISSION_DENIED,
    Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    Unavailable: grpc.StatusCode.UNAVAILABLE,  # the only one worth repeating as it is
    DureError: grpc.StatusCode.FAILED_PRECONDITION,
}


def status_of(error: DureError) -> grpc.StatusCode:
    """The status of the nearest class in the table."""
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)


@asynccontextmanager
async def answering(context: Any, *, outside: bool = True) -> AsyncIterator[None]:
    """Ends a call with the right status if the block raises.

    Args:
        outside: the caller is another company: what went wrong on this machine stays on it.
    """
    try:
        yield
    except DureError as e:
        code = status_of(e)
        words = " ".join(str(e).split())[:1000]
        if outside and code is grpc.StatusCode.UNAVAILABLE:
            log.warning("rpc.unavailable", reason=words)
            words = "the coordinator cannot do this now; try again later"
        await context.abort(code, words)
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception as e:
        log.exception("rpc.failed")
        await context.abort(grpc.StatusCode.INTERNAL, f"a fault of the coordinator ({type(e).__name__}); its log has more")


async def taken(context: Any, message: Any, limit_s: float, what: str) -> None:
    """Sends one message of a stream. A peer that takes nothing, though its connection lives, holds it in our memory for so long and no
    longer: then the call ends."""
    try:
        async with asyncio.timeout(limit_s):
            await context.write(message)
    except TimeoutError:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no {what} taken for {limit_s:g} s")
