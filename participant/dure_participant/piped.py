"""What arrives on the event loop, worked on in one thread while the next of it arrives."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4
"""Pieces that may wait for the thread."""


@dataclass(frozen=True)
class _Ended:
    """No more comes: it was the end, or there is an error."""

    error: BaseException | None


async def through_thread(pieces: AsyncIterator[T], work: Callable[[Iterator[T]], R], *, ahead: int = AHEAD) -> R:
    """What `work` returns; it runs in a thread and takes what `pieces` brings, in order. One hop a piece, none waits for an answer.

    Raises whatever either raises; an error of `pieces`, or a cancellation, ends `work` where it waits for the next piece.
    """
    loop, room = asyncio.get_running_loop(), asyncio.Semaphore(ahead)
    arrived: queue.SimpleQueue[T | _Ended] = queue.SimpleQueue()

    def taken() -> Iterator[T]:
        while not isinstance(piece := arrived.get(), _Ended):
            yield piece
            loop.call_soon_threadsafe(room.release)
        if piece.error is not None:
            raise piece.error

    working = asyncio.ensure_future(asyncio.to_thread(lambda: work(taken())))
    working.add_done_callback(lambda _: room.release())  # whoever waits for room sees that nobody takes any more
    try:
        async for piece in pieces:
            await room.acquire()
            if working.done():
                break
            arrived.put(piece)
        arrived.put(_Ended(None))
        return await asyncio.shield(working)
    except BaseException as error:
        arrived.put(_Ended(error))
        await asyncio.wait({working})
        if not working.cancelled():
            working.exception()
        raise
