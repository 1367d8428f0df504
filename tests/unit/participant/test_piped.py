"""What arrives on the event loop is worked on in one thread: in order, bounded, and ended by either side."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dure.errors import Refused
from dure_participant.piped import through_thread


async def count(upto: int, sent: list[int] | None = None):
    for i in range(upto):
        if sent is not None:
            sent.append(i)
        yield i
        await asyncio.sleep(0)


async def test_everything_comes_through_in_order():
    assert await through_thread(count(100), list) == list(range(100))


async def test_no_more_is_asked_for_than_may_wait_for_the_thread():
    sent, go = [], threading.Event()

    def slow(pieces):
        go.wait(5)
        return sum(pieces)

    done = asyncio.create_task(through_thread(count(50, sent), slow, ahead=3))
    await asyncio.sleep(0.05)
    assert len(sent) == 4, "three wait, one is in hand"
    go.set()
    assert await done == sum(range(50))


async def test_an_error_in_the_thread_ends_the_arriving():
    def refuse(pieces):
        for piece in pieces:
            if piece == 5:
                raise Refused("sum", "is wrong")

    sent = []
    with pytest.raises(Refused, match="is wrong"):
        await through_thread(count(10_000, sent), refuse)
    assert len(sent) < 20


@pytest.mark.parametrize("how", ["error", "cancelled"])
async def test_what_ends_the_arriving_ends_the_thread(how):
    ended = threading.Event()

    async def broken():
        yield 1
        if how == "error":
            raise ConnectionError("cut")
        await asyncio.sleep(60)

    def work(pieces):
        try:
            return list(pieces)
        finally:
            ended.set()

    task = asyncio.create_task(through_thread(broken(), work))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(ConnectionError if how == "error" else asyncio.CancelledError):
        await task
    assert ended.is_set()
