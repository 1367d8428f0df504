"""One run in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dure.apps import App
from dure_participant.difference import Pinned
from dure_participant.exchange.state import NodeRunState
from dure_participant.uploads import Stream
from dure_participant.worker_host import WorkerHost


@dataclass
class Run:
    """One run in this process: its state and what is being done for it."""

    run: bytes
    state: NodeRunState
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    """Ids of actions that ended and are owed only because the state has not moved on; not started again until it does."""
    jobs: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    streams: dict[bytes, Stream] = field(default_factory=dict)
    """By upload id."""
    pinned: Pinned | None = None
    """Of the update trained last; a restart forgets it."""
    worker: WorkerHost | None = None
    app: App | None = None
    """As unpacked; it does not change."""
    unsaved: bool = False
    """The state differs from the stored one in what the coordinator will say again."""
    saving: asyncio.Task[None] | None = None
    told_of_output: bool = False
    """That the app prints more than is kept."""
    waited: bool = False
    """An exchange passed while the environment was missing: the next one is not waited through."""
    drawn: str = ""
    """Blob id text of first weights that were found to be those of the joint seed; a restart looks again."""
    pulled_bytes: int = 0
    """Of blobs, since the last usage statement; a restart forgets them."""

    @property
    def label(self) -> str:
        return self.run.hex()[:12]


class Shelf:
    """Where new blobs come into being that no state names yet, or what no state names is cleared away; never both at once."""

    def __init__(self) -> None:
        self._makers = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._clearing = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def making(self) -> AsyncIterator[None]:
        """Until the state names what was made; several at once."""
        async with self._clearing:
            self._makers += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._makers -= 1
            if not self._makers:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def clearing(self) -> AsyncIterator[None]:
        """Waits until nobody makes anything."""
        while True:
            await self._empty.wait()
            async with self._clearing:
                if not self._makers:
                    yield
                    return


def folder_of(directory: Path, run: Run) -> Path:
    """Of one run, in the node's folder."""
    return directory / "runs" / run.run.hex()[:16]


def local_of(directory: Path, run: Run, exchange: int) -> Path:
    """Local weights after an exchange's training, flat."""
    return folder_of(directory, run) / f"local-{exchange:06d}.f32"
