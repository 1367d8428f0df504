"""What grpc.aio makes of a channel that is closed under a call, and how whoever waits hears of it (grpcio 1.85)."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc


def cancelled_itself() -> bool:
    """Whether it is this task that was cancelled, and not only the call it waits for: closing a channel cancels its calls."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def begun(call: Any) -> None:
    """Until messages may be written to a stream.

    A call whose channel is closed before that is over, but its first write would wait for ever (aio/_call.py: `_metadata_sent` is set by
    success alone).

    Raises:
        grpc.aio.UsageError: the channel was closed.
        grpc.aio.AioRpcError: the call ended.
    """
    ended = asyncio.get_running_loop().create_future()
    call.add_done_callback(lambda _call: None if ended.done() else ended.set_result(None))
    beginning = asyncio.ensure_future(call.wait_for_connection())
    try:
        await asyncio.wait({beginning, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not beginning.done():
            raise grpc.aio.UsageError("the channel was closed before the call began")
        await beginning
    finally:
        beginning.cancel()
        ended.cancel()
