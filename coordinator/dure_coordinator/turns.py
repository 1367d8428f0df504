"""One member's statements are looked at and written one after another: what was found when one was judged still holds when it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from dure_coordinator.gate import Gate

T = TypeVar("T")


class Turns:
    """One coordinator's. Two statements of one number, sent at one moment, would both be judged to follow the one before: the second
    would count in its run and never be an entry."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._locks: dict[str, asyncio.Lock] = {}

    async def alone(self, member: str, work: Callable[[], Awaitable[T]]) -> T:
        """Does it once no other of this member is being done.

        A caller, behind the gate, may go away: that ends its waiting, not what was begun, and the gate waits for that as for a caller.
        """
        lock = self._locks.setdefault(member, asyncio.Lock())
        await lock.acquire()
        self._gate.stay()

        async def done() -> T:
            try:
                return await work()
            finally:
                lock.release()
                self._gate.leave()

        doing = asyncio.create_task(done())
        doing.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may be left to look
        return await asyncio.shield(doing)
