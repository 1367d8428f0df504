"""Takes off the disk what need not stay: masked uploads when their time is over and never before, a full disk being no reason
(spool.SpoolsFull says so); bases that are not among a run's last ones and follow from its sums."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from dure.blobs import BlobId, BlobStore
from dure.errors import DureError
from dure_coordinator.engine import RunEngine
from dure_coordinator.exchange.thinning import WEIGHTS, thinned
from dure_coordinator.spool import Spools
from dure_coordinator.storage.store import Store

log = structlog.get_logger()

SWEEP_S = 30.0


@dataclass
class Retention:
    """When an upload may go stands in its row (exchange/retention.py decides), which bases, exchange/thinning.py; this file deletes."""

    store: Store
    spools: Spools
    window_s: float
    """The charter's challenge window, for uploads of runs that ended in mid-exchange."""
    clock: Callable[[], float] = time.time
    blobs: BlobStore | None = None
    runs: Callable[[], Iterable[RunEngine]] = tuple
    keep_bases: int = 4
    """0: all stay."""
    wanted: Callable[[str], bool] = lambda _weights: False
    """Whether somebody asked for these weights and may still read them."""
    shelf: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while one is let go of; shared with whoever looks whether it is there."""
    _thinned: dict[bytes, int] = field(default_factory=dict)
    """Exchanges a run had when it was looked at last."""

    async def sweep(self) -> int:
        """Deletes what may go now; how many uploads that were. Repeating it after a crash is harmless."""
        now = self.clock()
        await self.store.settle_uploads(now + self.window_s)
        gone = await self.store.expired_uploads(now)
        for row in gone:
            await asyncio.to_thread(self.spools.remove, row.upload)
            await self.store.upload_removed(row.upload)
        if gone:
            log.info("uploads.removed", uploads=len(gone), bytes=sum(row.length for row in gone))
        return len(gone)

    async def thin(self) -> int:
        """Lets go of bases; how many blobs that were. A run is looked at when it has a new exchange, so that what somebody had recomputed
        stays a while."""
        count = 0
        for engine in list(self.runs()):
            if engine.state.exchanges == self._thinned.get(engine.run) or self.blobs is None:
                continue
            self._thinned[engine.run] = engine.state.exchanges
            old = set(thinned(engine.state, self.keep_bases))
            gone = [blob for blob in await self.store.thin_blobs(engine.run, WEIGHTS) if blob in old] if old else []
            gone = [blob for blob in gone if await self._let_go(blob)]
            if gone:
                await self.store.forget_blobs(engine.run, gone)
                log.info("bases.removed", run=engine.run.hex()[:12], blobs=len(gone))
            count += len(gone)
        return count

    async def _let_go(self, blob: str) -> bool:
        """False where somebody wants it: it goes when its run is looked at again."""
        async with self.shelf:
            if self.wanted(blob):
                return False
            # The file before its row: a row without one is found again, a file without a row never.
            await asyncio.to_thread(self.blobs.remove, BlobId.parse(blob))  # type: ignore[union-attr]  # looked at by the caller
            return True

    async def run(self) -> None:
        """Sweeps for ever."""
        while True:
            try:
                await self.sweep()
                await self.thin()
            except (DureError, OSError) as e:
                log.warning("uploads.not_removed", reason=str(e))
            await asyncio.sleep(SWEEP_S)
