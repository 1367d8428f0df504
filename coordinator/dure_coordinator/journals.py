"""Each run's Flower journal in the database: what its ServerApp asked and was told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dure.model.content import flower_node_id
from dure_coordinator.exchange.duties import Reply
from dure_coordinator.flower.backend import ExchangeRequest
from dure_coordinator.flower.journal import Entry, Journal
from dure_coordinator.storage.store import JournalRow, Store, With


@dataclass
class RunJournal:
    """One run's. Every change is committed before it is visible."""

    run: bytes
    store: Store
    journal: Journal
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    async def load(cls, run: bytes, store: Store) -> RunJournal:
        rows = await store.journal(run)
        nodes = {row.seq: row.nodes for row in rows if row.nodes is not None}
        entries = [
            Entry(row.seq, row.digest, row.category or "", row.weights_id, row.reply, row.summed) for row in rows if row.digest is not None
        ]
        return cls(run, store, Journal(tuple(entries), nodes))

    async def keep_nodes(self, seq: int, nodes: tuple[int, ...]) -> tuple[int, ...]:
        """What `Nodes(seq)` answers, now and at every replay."""
        async with self.lock:
            after = self.journal.with_nodes(seq, nodes)
            await self.store.write(self.run, With(journal=row_of(after, seq)))
            self.journal = after
            return tuple(after.nodes[seq])

    async def ask(self, request: ExchangeRequest) -> Entry:
        """As `Journal.ask`, durable."""
        async with self.lock:
            after, entry = self.journal.ask(request)
            if after is not self.journal:
                await self.store.write(self.run, With(journal=row_of(after, request.seq)))
                self.journal = after
            return entry

    def answered(self, seq: int, reply: Mapping[str, Any], *, summed: bool) -> Journal:
        """The journal with this answer; `journal` becomes it once its row is committed."""
        if not 1 <= seq <= len(self.journal.entries) or self.journal.entries[seq - 1].reply is not None:
            return self.journal
        return self.journal.answered(seq, reply, summed=summed)

    def reply(self, seq: int) -> Mapping[str, Any] | None:
        return self.journal.entries[seq - 1].reply if 1 <= seq <= len(self.journal.entries) else None


@dataclass
class Journals:
    """All runs' journals, loaded when first used."""

    store: Store
    _of: dict[bytes, RunJournal] = field(default_factory=dict)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def of(self, run: bytes) -> RunJournal:
        async with self._lock:
            if run not in self._of:
                self._of[run] = await RunJournal.load(run, self.store)
            return self._of[run]


def row_of(journal: Journal, seq: int) -> JournalRow:
    """The journal's row for one sequence number."""
    nodes = journal.nodes.get(seq)
    row = JournalRow(seq, None if nodes is None else tuple(nodes))
    if not 1 <= seq <= len(journal.entries):
        return row
    e = journal.entries[seq - 1]
    return JournalRow(seq, row.nodes, e.digest, e.category, e.weights_id, None if e.reply is None else dict(e.reply), e.summed)


def reply_record(reply: Reply) -> dict[str, Any]:
    """A reply as the journal keeps it: members as Flower's node ids, arrays as a blob id."""
    return {
        "status": reply.status,
        "arrays": reply.arrays,
        "blob": reply.blob,
        "metrics": dict(reply.metrics),
        "num_examples": reply.num_examples,
        "survivors": sorted(flower_node_id(m) for m in reply.survivors),
        "errors": {str(flower_node_id(m)): why for m, why in sorted(reply.errors.items())},
        "reason": reply.reason,
        "seed": reply.seed.hex(),
    }
