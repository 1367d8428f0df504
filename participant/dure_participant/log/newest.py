"""The newest head that a coordinator told of: those before it are of no use, however fast it tells."""

from __future__ import annotations

import asyncio


class Newest:
    """One place, written and read on one event loop: who tells of heads without end fills it again and again, not the memory."""

    def __init__(self) -> None:
        self._head: bytes | None = None
        self._told = asyncio.Event()

    def put(self, head: bytes) -> None:
        """In the place of what nobody has taken yet."""
        self._head = head
        self._told.set()

    async def get(self, gather_s: float = 0.0) -> bytes:
        """Waits for a head, then so long for newer ones; the last of them."""
        await self._told.wait()
        await asyncio.sleep(gather_s)
        self._told.clear()
        assert self._head is not None
        return self._head
