"""Blobs this node holds: fetched once, known by their weights id, and checked before anything is computed from them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dure.blobs import BlobDamaged, BlobId, BlobStore
from dure.errors import Unavailable
from dure.model.layout import Layout
from dure.model.weights import open_flat, weights_id
from dure_participant.bulk import pull_blob
from dure_participant.transport import Line

WEIGHTS_KNOWN = 8
"""Bases whose weights ids are remembered."""


class Held:
    """One per agent. `line` is the connection, or raises `Unavailable`."""

    def __init__(self, store: BlobStore, line: Callable[[], Line]) -> None:
        self.store, self._line = store, line
        self._pulls: dict[BlobId, asyncio.Lock] = {}
        self._weights_ids: dict[tuple[BlobId, bytes], bytes] = {}

    async def pull(self, blob: BlobId) -> int:
        """The blob is in the store; returns how many bytes were fetched for it, 0 where it was there."""
        fetched = 0
        async with self._pulls.setdefault(blob, asyncio.Lock()):
            if not await asyncio.to_thread(self.store.has, blob):
                await pull_blob(self._line().channel, blob, self.store)
                fetched = blob.length
        self._pulls.pop(blob, None)
        return fetched

    def weights_id(self, blob: BlobId, layout: Layout) -> bytes:
        """Of these weights under this layout: computed once, and known of a base this node made itself. In a thread.

        Once it is known the bytes are not read for it: whoever uses them checks their leaves (`check`, `Difference.check_base`).
        """
        found = self._weights_ids.get((blob, layout.digest))
        return found if found is not None else self.know(blob, layout, weights_id(open_flat(self.store.path(blob), layout), layout))

    def know(self, blob: BlobId, layout: Layout, found: bytes) -> bytes:
        """Remembers the weights id of a blob; the last few."""
        self._weights_ids[blob, layout.digest] = found
        for old in list(self._weights_ids)[:-WEIGHTS_KNOWN]:
            del self._weights_ids[old]
        return found

    def check(self, blob: BlobId) -> None:
        """Every chunk has its hash, or the blob goes (`Unavailable`: it is fetched again). In a thread."""
        try:
            self.store.verify(blob)
        except BlobDamaged as error:
            raise self.damaged(blob, error) from error

    def damaged(self, blob: BlobId, error: BlobDamaged) -> Unavailable:
        """Removes a blob the disk has changed; what to raise."""
        self.store.remove(blob)
        return Unavailable(f"{error}; it was removed, and is fetched again")
