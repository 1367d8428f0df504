"""Delivers this node's statements to the log, in the order of their numbers, before anything that refers to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import takewhile

import structlog

from dure.errors import Unavailable
from dure_participant.store import NodeStore
from dure_participant.transport import Line

log = structlog.get_logger()

BATCH = 32


class Courier:
    """One node's.

    Args:
        before: the member's own statements (its delegations), which the log must have first.
        line: the connection, or raises `Unavailable`.
    """

    def __init__(self, store: NodeStore, before: tuple[bytes, ...], line: Callable[[], Line]) -> None:
        self._store, self._first, self._line = store, before, line
        self._turn = asyncio.Lock()
        self._greeted: Line | None = None

    async def flush(self, carried: Sequence[bytes] = ()) -> None:
        """Returns once everything signed so far is in the log, durably; of `carried`, what the caller's next message brings itself, and of
        what was signed after it, perhaps nothing.

        Raises:
            Unavailable: not connected, or the coordinator does not take one; try again.
        """
        async with self._turn:
            line = self._line()
            if self._greeted is not line:
                await self._deliver(line, list(self._first))
                self._greeted = line
            while waiting := await asyncio.to_thread(self._before, carried):
                await self._deliver(line, [envelope for _, envelope in waiting])
                await asyncio.to_thread(self._store.mark_delivered, waiting[-1][0])

    async def taken(self, carried: Sequence[bytes]) -> None:
        """The message that brought these was accepted: they are entries."""
        async with self._turn:
            await asyncio.to_thread(self._mark, carried)

    def _before(self, carried: Sequence[bytes]) -> list[tuple[int, bytes]]:
        """Up to those that the message brings one after another: one of them that others stand behind must not keep these back."""
        waiting = self._store.undelivered(BATCH)
        last = max((at for at, one in enumerate(waiting) if one[1] in carried), default=None)
        if last is None:
            return waiting
        while last and waiting[last - 1][1] in carried:
            last -= 1
        return waiting[:last]

    def _mark(self, carried: Sequence[bytes]) -> None:
        theirs = list(takewhile(lambda one: one[1] in carried, self._store.undelivered(BATCH)))
        if theirs:
            self._store.mark_delivered(theirs[-1][0])

    async def _deliver(self, line: Line, envelopes: list[bytes]) -> None:
        """Every one of them; in as many messages as it takes."""
        for at in range(0, len(envelopes), BATCH):
            given = envelopes[at : at + BATCH]
            answer = await line.append(given)
            if answer.accepted < len(given):
                log.error("log.statement_refused", reason=answer.reason)
                raise Unavailable(f"the log does not take this node's statement: {answer.reason}")
