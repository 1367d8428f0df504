"""The sum of one opened instance, computed again from committed uploads and revealed seeds, and compared chunk by chunk.

No I/O: uploads come through `Source`s, or chunk by chunk into a `Recomputation`. Memory: O(chunk), and 32 bytes per chunk and upload for
the leaves. Members, the coordinator's doubters and the offline audit use this same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dure.blobs import BlobId, BlobRefused, Manifest, chunk_leaf, chunks_of
from dure.errors import DureError
from dure.recompute.evidence import Evidence, Opened, Trust, judge, open_seeds, totals_of
from dure.secagg.recover import Recovered
from dure.secagg.summing import DTYPE, GROUP_OF, add_chunk, unmask_chunk

Kind = Literal["agrees", "sum", "trailer", "tag", "seeds", "evidence", "withheld", "gone"]


@dataclass(frozen=True)
class Finding:
    """How a recomputation ended. All but `agrees` and `gone` speak against the coordinator."""

    kind: Kind
    chunk: int | None = None
    """sum, withheld: which; agrees: None."""
    member: str = ""
    """withheld: whose upload."""
    leaf: bytes | None = None
    """sum: BLAKE3 of this chunk in the sum the coordinator signed."""
    recomputed: bytes | None = None
    """sum: BLAKE3 of this chunk as recomputed."""
    why: str = ""

    @property
    def against_coordinator(self) -> bool:
        return self.kind not in ("agrees", "gone")

    @property
    def words(self) -> str:
        """One line for people."""
        at = "" if self.chunk is None else f" at chunk {self.chunk}"
        return {
            "agrees": "recomputed: agrees",
            "sum": f"the coordinator's sum is wrong{at}",
            "trailer": "the coordinator's opened trailer is not the sum of the committed ones",
            "tag": "the coordinator's opened tag is not the sum of the committed ones",
            "seeds": f"the revealed seeds are wrong: {self.why}",
            "evidence": f"the coordinator's evidence does not hold: {self.why}",
            "withheld": f"the coordinator does not serve what was committed{at}{f' by {self.member}' if self.member else ''}: {self.why}",
            "gone": f"nothing to recompute from: {self.why}",
        }[self.kind]


AGREES = Finding("agrees")


class Source(Protocol):
    """A committed upload one can read; `dure.blobs.BlobReader` is one."""

    @property
    def manifest(self) -> Manifest: ...

    def read_chunk(self, k: int) -> bytes:
        """Chunk k; any DureError means that it is not to be had."""
        ...


def prepare(aggregate: bytes, evidence: bytes, seeds: bytes, trust: Trust) -> tuple[Opened, Recovered] | Finding:
    """Everything short of the uploads: signatures, digests, seeds, trailer and tag; a Finding where one does not hold."""
    try:
        opened = judge(aggregate, Evidence.from_bytes(evidence), trust)
    except DureError as e:
        return Finding("evidence", why=str(e))
    try:
        recovered = open_seeds(opened, seeds)
    except DureError as e:
        return Finding("seeds", why=str(e))
    trailer, tag = totals_of(opened, recovered)
    if trailer != opened.aggregate.trailer:
        return Finding("trailer")
    if tag != opened.aggregate.tag:
        return Finding("tag")
    return opened, recovered


def committed_leaves(opened: Opened, member: str, manifest: Manifest) -> Manifest:
    """The leaves of a survivor's upload, cut as the protocol cuts; `BlobRefused` if its commit names another root."""
    commit = opened.commits[member]
    return _cut(manifest, BlobId(commit.root, commit.length), opened.chunk_bytes)


def summed_leaves(opened: Opened, manifest: Manifest) -> Manifest:
    """The leaves of the coordinator's sum, likewise."""
    return _cut(manifest, BlobId(opened.aggregate.root, opened.aggregate.length), opened.chunk_bytes)


def _cut(manifest: Manifest, wanted: BlobId, chunk_bytes: int) -> Manifest:
    # An id does not bind the size of chunks: a manifest that lies about it must not move their borders.
    found = Manifest(manifest.leaves, wanted.length, chunk_bytes)
    if found.id != wanted:
        raise BlobRefused("root", "is not the one that was signed")
    return found


class Recomputation:
    """Takes verified chunks of all survivors in any order. One thread at a time per chunk; different chunks are independent."""

    def __init__(self, opened: Opened, recovered: Recovered, uploads: Mapping[str, Manifest], total: Manifest) -> None:
        """`uploads`, `total`: as `committed_leaves` and `summed_leaves` gave them."""
        assert set(uploads) == set(opened.survivors)
        self.uploads = uploads
        self._survivors, self._total = opened.survivors, total
        self._group, self._unmask = GROUP_OF[opened.instance.purpose], recovered.unmask
        self._open: dict[int, tuple[NDArray[Any], set[str]]] = {}

    @property
    def chunks(self) -> int:
        return self._total.chunks

    def add(self, member: str, k: int, data: bytes | bytearray | memoryview) -> None:
        """Adds chunk k of this member's upload; `BlobRefused` if it is not the one its commit names."""
        self.uploads[member].check(k, data)
        if k not in self._open:
            self._open[k] = np.zeros(self._total.size_of(k) // DTYPE[self._group].itemsize, DTYPE[self._group]), set()
        part, added = self._open[k]
        assert member not in added, "each upload counts once"
        add_chunk(self._group, part, data)
        added.add(member)

    def forget(self) -> None:
        """Drops chunks that are not complete; they are added again from the start."""
        self._open.clear()

    def finish(self, k: int) -> Finding | None:
        """Chunk k is complete: None if it is what the coordinator signed."""
        part, added = self._open.pop(k)
        assert added == set(self._survivors), "every survivor's chunk is in the sum"
        unmask_chunk(self._group, self._unmask, k, part)
        leaf = chunk_leaf(part.data.cast("B"))
        return None if leaf == self._total.leaves[k] else Finding("sum", chunk=k, leaf=self._total.leaves[k], recomputed=leaf)


def recompute(
    opened: Opened,
    recovered: Recovered,
    uploads: Mapping[str, Source],
    total: Manifest,
    *,
    chunks: Iterable[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Finding:
    """The first chunk that is not what the coordinator signed, or `agrees`.

    Args:
        uploads: by survivor. What cannot be read, or is not what its commit names, is `withheld`.
        total: leaves of the coordinator's sum.
        chunks: only these, in this order, as far as there are so many; None: all.
        progress: called as progress(chunks done, chunks in all).
    """
    leaves: dict[str, Manifest] = {}
    for member in opened.survivors:
        try:
            leaves[member] = committed_leaves(opened, member, uploads[member].manifest)
        except DureError as e:
            return Finding("withheld", member=member, why=str(e))
    try:
        work = Recomputation(opened, recovered, leaves, summed_leaves(opened, total))
    except DureError as e:
        return Finding("withheld", why=f"the sum: {e}")
    wanted = [k for k in (range(work.chunks) if chunks is None else chunks) if k < work.chunks]
    for done, k in enumerate(wanted, 1):
        for member in opened.survivors:
            try:
                work.add(member, k, uploads[member].read_chunk(k))
            except DureError as e:
                return Finding("withheld", chunk=k, member=member, why=str(e))
        if (finding := work.finish(k)) is not None:
            return finding
        if progress is not None:
            progress(done, len(wanted))
    return AGREES


def chunks_in(opened: Opened) -> int:
    """How many chunks the sum has; none in `scalars`."""
    return chunks_of(opened.length, opened.chunk_bytes)
