"""Heads that members' statements name: one of another history never becomes part of an entry here, where every audit would meet it."""

from __future__ import annotations

import asyncio

from dure.errors import Refused, Unavailable
from dure.statements.dsse import Envelope
from dure.statements.statement import SeenHead, read_place
from dure.tlog.merkle import root_at
from dure_coordinator.log.publisher import Publisher

REMEMBERED = 256
"""Heads that were looked at: nodes name the newest few."""


class NamedHeads:
    """One log's."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._own: dict[SeenHead, None] = {}

    async def check(self, *envelopes: bytes) -> None:
        """That each of these statements names a head of this log, or none.

        Raises:
            Refused: out of form, or a head that this log never had.
            Unavailable: a head of more entries than are published here now.
        """
        for raw in envelopes:
            head = read_place(Envelope.from_bytes(raw).payload).seen
            if head is not None and head not in self._own:
                await self.own(head)

    async def own(self, head: SeenHead) -> None:
        """That this is a head of this log. Raises as `check`."""
        size = self._publisher.size
        if head.size > size:
            raise Unavailable(f"checkpoint: names a head of {head.size} entries, and {size} are published here; try again")
        files = self._publisher.files
        if await asyncio.to_thread(root_at, files.tree(size).node, head.size) != head.root:
            raise Refused(
                "checkpoint", f"names a head of {head.size} entries that this log never had: its signer was shown another history"
            )
        self._own[head] = None
        for old in list(self._own)[:-REMEMBERED]:
            del self._own[old]
