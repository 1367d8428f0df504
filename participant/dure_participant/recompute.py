"""A sum added up again at a node: what it was opened from is fetched window by window, verified, added, compared, and kept nowhere.

The judging is `dure.recompute`'s; here are the network, the clock and the order. Memory: WINDOW chunks of sum, one chunk in flight, and
32 bytes per chunk and upload for the leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dure.blobs import BlobId, BlobStore, Manifest
from dure.errors import DureError, Unavailable
from dure.recompute.evidence import MAX_EVIDENCE_BYTES, MAX_SEEDS_BYTES, Opened, Trust
from dure.recompute.sums import AGREES, Finding, Recomputation, chunks_in, committed_leaves, prepare, summed_leaves
from dure.secagg.recover import Recovered
from dure.statements.dsse import Envelope
from dure.wire.messages import EvidenceQuery, SumEvidence
from dure_participant.bulk import BulkRefused, pull_bytes, pull_chunks, pull_manifest
from dure_participant.transport import Line

WINDOW = 32
"""Chunks of the sum worked on at once: 16 MiB. Each upload is asked for once per window."""

Progress = Callable[[int, int], None]
"""Called as progress(chunks that agree, chunks in all)."""


@dataclass
class Recomputer:
    """One recomputation at a time; one that was cut short goes on at the window it had reached."""

    blobs: BlobStore
    line: Callable[[], Line]
    """The connection, or `Unavailable`."""
    clock: Callable[[], float] = time.time
    _reached: dict[bytes, int] = field(default_factory=dict)
    """Aggregate digest -> chunks known to agree."""
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def find(
        self,
        trust: Trust,
        exchange: int,
        aggregate_sha256: bytes,
        *,
        chunks: Sequence[int] | None = None,
        kept_until: float | None = None,
        progress: Progress | None = None,
    ) -> Finding:
        """What is to be said of the sum whose instance-aggregate has this payload digest.

        Args:
            chunks: only these; None: all.
            kept_until: unix seconds after which the coordinator need not have the uploads any more; None: it must have them.

        Raises:
            Unavailable: not now. Everything else that goes wrong is the coordinator's, and a finding.
        """
        async with self._one:
            found = await self._find(trust, exchange, aggregate_sha256, chunks, progress or (lambda _done, _total: None))
        if found.kind == "withheld" and kept_until is not None and self.clock() > kept_until:
            return Finding("gone", why="the coordinator has let the uploads go, as it may once the charter's challenge window has closed")
        return found

    async def _find(self, trust: Trust, exchange: int, digest: bytes, chunks: Sequence[int] | None, progress: Progress) -> Finding:
        try:
            shown = await self._shown(trust, exchange, digest)
            if shown is None:
                return Finding("withheld", why="the aggregate this node knows is not shown")
            channel = self.line().channel
            evidence = await pull_bytes(channel, BlobId.parse(shown.evidence), limit=MAX_EVIDENCE_BYTES)
            seeds = await pull_bytes(channel, BlobId.parse(shown.seeds), limit=MAX_SEEDS_BYTES)
        except DureError as e:
            return Finding("withheld", why=_refusal(e))
        ready = await asyncio.to_thread(prepare, shown.aggregate, evidence, seeds, trust)
        if isinstance(ready, Finding):
            return ready
        opened, recovered = ready
        total = chunks_in(opened)
        wanted = list(range(total)) if chunks is None else [k for k in chunks if k < total]
        return await self._add(opened, recovered, wanted, digest if chunks is None else b"", progress)

    async def _shown(self, trust: Trust, exchange: int, digest: bytes) -> SumEvidence | None:
        for said in await self.line().evidence(EvidenceQuery(trust.run, exchange)):
            if Envelope.from_bytes(said.aggregate).payload_sha256 == digest:
                return said
        return None

    async def _add(self, opened: Opened, recovered: Recovered, wanted: list[int], digest: bytes, progress: Progress) -> Finding:
        if not wanted:
            return AGREES
        work = await self._leaves(opened, recovered)
        if isinstance(work, Finding):
            return work
        total, done = len(wanted), self._reached.get(digest, 0)
        progress(done, total)
        while done < total:
            window = _run_of(wanted, done)
            found = await self._window(opened, work, window)
            if found is not None:
                self._reached.pop(digest, None)
                return found
            done += len(window)
            if digest:
                self._reached[digest] = done
            progress(done, total)
        self._reached.pop(digest, None)
        return AGREES

    async def _leaves(self, opened: Opened, recovered: Recovered) -> Recomputation | Finding:
        """Leaves of the sum and of every upload, checked against what was signed."""
        uploads, member = {}, ""
        try:
            total = summed_leaves(opened, await self._manifest(opened, BlobId(opened.aggregate.root, opened.length)))
            for member in opened.survivors:
                commit = opened.commits[member]
                uploads[member] = committed_leaves(opened, member, await self._manifest(opened, BlobId(commit.root, commit.length)))
        except DureError as e:
            return Finding("withheld", member=member, why=_refusal(e))
        return Recomputation(opened, recovered, uploads, total)

    async def _manifest(self, opened: Opened, blob: BlobId) -> Manifest:
        if await asyncio.to_thread(self.blobs.has, blob):
            return await asyncio.to_thread(self.blobs.manifest, blob)
        return await pull_manifest(self.line().channel, blob, chunk_bytes=opened.chunk_bytes)

    async def _window(self, opened: Opened, work: Recomputation, window: list[int]) -> Finding | None:
        """Adds these neighbouring chunks of every upload; the first that differs, or is not served, is the finding."""
        for member in opened.survivors:
            k = window[0]
            try:
                stream = pull_chunks(self.line().channel, work.uploads[member], window[0], len(window))
                async with contextlib.aclosing(stream) as chunks:
                    async for k, data in chunks:
                        await asyncio.to_thread(work.add, member, k, data)
            except DureError as e:
                work.forget()
                return Finding("withheld", chunk=k, member=member, why=_refusal(e))
        for k in window:
            found = await asyncio.to_thread(work.finish, k)
            if found is not None:
                return found
        return None


def _refusal(error: DureError) -> str:
    """In words, what the coordinator refused, or got wrong; raises `Unavailable` where it was not asked at all, or says "later".

    A certificate that ran out, or a port in front of the coordinator, ends a call with a status; the coordinator itself refuses in a frame.
    """
    if isinstance(error, Unavailable):
        raise error
    if isinstance(error, BulkRefused) and error.field == "stream":
        raise Unavailable(str(error)) from error
    return str(error)


def _run_of(wanted: list[int], start: int) -> list[int]:
    """Neighbouring chunks from there on, at most a window of them."""
    end = start + 1
    while end < min(len(wanted), start + WINDOW) and wanted[end] == wanted[end - 1] + 1:
        end += 1
    return wanted[start:end]
