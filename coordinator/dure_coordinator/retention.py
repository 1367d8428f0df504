"""Takes masked uploads off the disk when their time is over, and never before: a full disk is no reason (spool.SpoolsFull says so)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from dure.errors import DureError
from dure_coordinator.spool import Spools
from dure_coordinator.storage.store import Store

log = structlog.get_logger()

SWEEP_S = 30.0


@dataclass
class Retention:
    """When an upload may go stands in its row (exchange/retention.py decides); this file looks and deletes."""

    store: Store
    spools: Spools
    window_s: float
    """The charter's challenge window, for uploads of runs that ended in mid-exchange."""
    clock: Callable[[], float] = time.time

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

    async def run(self) -> None:
        """Sweeps for ever."""
        while True:
            try:
                await self.sweep()
            except (DureError, OSError) as e:
                log.warning("uploads.not_removed", reason=str(e))
            await asyncio.sleep(SWEEP_S)
