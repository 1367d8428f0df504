"""A run's model as a file, at its end or in mid-run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dure.blobs import BlobId, BlobStore
from dure.errors import BadInput
from dure.model.layout import MAX_LAYOUT_BYTES, Layout
from dure.model.safetensors_file import write_safetensors
from dure_coordinator.engine import RunEngine
from dure_coordinator.exchange.rounds import Model, models
from dure_coordinator.storage.store import Store


@dataclass(frozen=True)
class Found:
    """One model of a run."""

    blob: BlobId
    layout: Layout
    round: int
    """Rounds it has behind it."""
    what: str
    """In words."""
    record: bytes = b""
    """Base record of these very weights, as members accepted it; b"" if there is none."""


async def model_of(engine: RunEngine, store: Store, blobs: BlobStore, wanted: int | None) -> Found:
    """The model after a round, or the newest one.

    Raises:
        BadInput: there is none yet; or none of that round, naming those there are.
    """
    known = models(engine.state)
    if not known:
        raise BadInput(f"run {engine.run.hex()[:12]} has no model yet; its first exchange brings one")
    newest = max(known)
    if wanted is None and (final := await _final(engine, store, blobs)) is not None:
        same = known[newest].weights == str(final[0]) and known[newest].layout == final[1].to_json()
        return Found(*final, newest, "the ServerApp's result", known[newest].record if same else b"")
    number = newest if wanted is None else wanted
    if number not in known:
        raise BadInput(f"run {engine.run.hex()[:12]} has no model of round {number}; it has those of rounds 0 (its first) to {newest}")
    return _found(known[number], number)


def _found(model: Model, number: int) -> Found:
    what = f"after round {number}" if number else "the run's first weights"
    return Found(BlobId.parse(model.weights), Layout.from_json(model.layout), number, what, model.record)


async def _final(engine: RunEngine, store: Store, blobs: BlobStore) -> tuple[BlobId, Layout] | None:
    """What the ServerApp returned, with the layout it returned it in."""
    rows = {r.purpose: r.blob for r in await store.blobs(engine.run) if r.purpose in ("final", "final-layout")}
    if set(rows) != {"final", "final-layout"}:
        return None
    raw = await asyncio.to_thread(blobs.read_bytes, BlobId.parse(rows["final-layout"]), limit=MAX_LAYOUT_BYTES)
    return BlobId.parse(rows["final"]), Layout.from_json(raw)


def write_model(blobs: BlobStore, found: Found, out: Path, run: bytes) -> None:
    """`model.safetensors`, `layout.json` and, where members computed these weights, `base.json`, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "dure.run": run.hex(), "dure.round": str(found.round)}
    write_safetensors(out / "model.safetensors", np.frombuffer(blobs.map(found.blob), np.float32), found.layout, metadata)
    (out / "layout.json").write_bytes(found.layout.to_json())
    base = out / "base.json"
    if found.record:
        base.write_bytes(found.record)
    else:
        base.unlink(missing_ok=True)
