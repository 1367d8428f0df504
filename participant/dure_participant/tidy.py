"""What nobody needs any more, removed, or kept to be written over: blobs no run's state names, local weights of exchanges that are over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from dure.blobs import BlobId, BlobStore
from dure.model.base import BaseRecord
from dure_participant.exchange.state import NodeRunState

SPARE = "spare.f32"
"""Local weights of an exchange that is over: a later one writes over them. Their pages are in memory and their blocks on disk, which new
files' are not; and whoever still reads the old ones finds out by their hashes."""
_LOCAL = re.compile(r"local-(\d{6,})\..*")


def tidy(directory: Path, blobs: BlobStore, states: Iterable[NodeRunState]) -> None:
    """Runs in a thread. The caller holds off whoever makes blobs that no state names yet, and readers of what no state names any more."""
    states = list(states)
    needed = {blob for state in states for blob in named(state)}
    for blob in blobs.ids():
        if blob not in needed:
            blobs.remove(blob, spare=True)
    for state in states:
        folder = directory / "runs" / state.run.hex()[:16]
        current = state.exchange.number if state.exchange is not None and not state.finished else 2**48
        for path in folder.glob("local-*"):
            found = _LOCAL.fullmatch(path.name)
            if found is not None and int(found[1]) < current:
                path.replace(folder / SPARE)
        if state.finished:
            (folder / SPARE).unlink(missing_ok=True)


def named(state: NodeRunState) -> Iterator[BlobId]:
    """Blobs this run's state may still be asked about. Of a finished run: its last model."""
    yield from _of_record(state.base_record)
    if state.finished:
        return
    texts = [state.app_blob]
    opened = [state.scales]
    if state.exchange is not None:
        yield from _of_record(state.exchange.base_record)
        opened.append(state.exchange.scales)
        texts += [state.exchange.weights, *(work.sum for work in state.exchange.instances)]
    for scales in opened:
        if scales is not None:
            texts += [scales.sum, scales.e_b]
    for text in texts:
        if text:
            yield BlobId.parse(text)


def _of_record(record: bytes) -> Iterator[BlobId]:
    if record:
        base = BaseRecord.from_json(record)
        yield from (blob for blob in (base.weights, base.outer_state, base.e_b) if blob is not None)
