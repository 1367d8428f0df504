"""A door that many pass at once, and that is closed for a moment while what is behind it changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Gate:
    """Whoever takes in a signature passes; what decides whose keys count closes it, waits for those inside, changes, and opens it.

    Leaving never waits, so that a cancelled call cannot leave the gate shut behind it.
    """

    def __init__(self) -> None:
        self._inside, self._shut = 0, False
        self._opened, self._left = asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        await self._until_open()
        self.stay()
        try:
            yield
        finally:
            self.leave()

    def stay(self) -> None:
        """For what somebody inside begins and what goes on without him: it is inside, too, until its own `leave`."""
        self._inside += 1

    def leave(self) -> None:
        self._inside -= 1
        self._left.set()

    @contextlib.asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """One at a time."""
        await self._until_open()
        self._shut = True
        self._opened.clear()
        try:
            while self._inside:
                self._left.clear()
                await self._left.wait()
            yield
        finally:
            self._shut = False
            self._opened.set()

    async def _until_open(self) -> None:
        while self._shut:
            await self._opened.wait()
