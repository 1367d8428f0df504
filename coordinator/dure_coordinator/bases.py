"""Weights a new run may start from: an earlier run's model or a safetensors file; and every sum that was opened on them.

The plan lists those sums (kinds.NamedBase): members compare the list with their own memory, and their operators consent to each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from dure.blobs import BlobId, BlobStore, DiskFull
from dure.errors import BadInput, DureError
from dure.model.layout import Layout
from dure.model.safetensors_file import SafetensorsFile
from dure.model.weights import check_finite, flatten_to, open_flat, weights_id
from dure.secagg import thresholds
from dure.secagg.ids import InstanceId
from dure.statements.kinds import EarlierSum, InstanceOpen, InstanceSurvivors, InstanceVoid, NamedBase
from dure.statements.statement import read_verified
from dure_coordinator.exchange.rounds import Model, models
from dure_coordinator.export import Found, model_of
from dure_coordinator.fleet import Fleet
from dure_coordinator.storage.store import Store

T = TypeVar("T")
READ_BYTES = 1 << 22
KEEP_S = 3600.0
"""How long a run's weights stay for a run that is to start from them: it is registered, and names them, once its app was tried."""


@dataclass(frozen=True)
class Start:
    """First weights, in the blob store, with what the plan says of them."""

    blob: BlobId
    layout: Layout
    base: NamedBase


async def start_from(fleet: Fleet, source: str, round_number: int | None, colluders: int) -> Start:
    """The weights `--from` names: a file if there is one of that name, else a run.

    Raises:
        BadInput: no such run, round or file; a file that is no float32 safetensors; weights of a run that is not over, or that its
            ServerApp made of bases that its members computed.
        DiskFull: no room to take the file in.
    """
    path = Path(source)
    if await asyncio.to_thread(path.is_file):
        if round_number is not None:
            raise BadInput("--round goes with a run, and --from names a file")
        blob, layout, digest = await asyncio.to_thread(import_file, fleet.blobs, path)
        return await _start(fleet, blob, layout, f"file {plain(path.name)[:100]}, SHA-256 {digest.hex()}", colluders, file_sha256=digest)
    if "/" in source or source.endswith(".safetensors"):
        raise BadInput(f"--from {source}: no such file; the coordinator reads it, under the user it runs as")
    engine = await fleet.find(source)
    found: Found = await model_of(engine, fleet.store, fleet.blobs, round_number)
    await engine.performer.restored(engine, str(found.blob), KEEP_S, check=True)
    if engine.state.facts.named_step:
        known = models(engine.state)
        await engine.performer.restored(engine, known[max(known)].weights, KEEP_S, check=True)
        if not await asyncio.to_thread(is_base, fleet.blobs, known, found):
            raise BadInput(
                f"--from {source}: what its ServerApp returned is none of the bases that its members computed, and no audit could follow "
                f"it; give --round N (the newest is {max(known)}), or export it and start from the file, as a model from outside"
            )
    row = fleet.rows[engine.run]
    origin = f"run {engine.run.hex()[:12]} ({row.name}), {found.what}"
    return await _start(fleet, found.blob, found.layout, origin, colluders, run=engine.run)


def is_base(blobs: BlobStore, known: Mapping[int, Model], found: Found) -> bool:
    """Whether these weights are those of a base that members computed: by their blob, or, of the newest, by their id.

    Args:
        known: the run's models by round; the newest must be in the store.
    """
    if any(model.weights == str(found.blob) for model in known.values()):
        return True
    newest = known[max(known)]
    return _id_of(blobs, BlobId.parse(newest.weights), Layout.from_json(newest.layout)) == _id_of(blobs, found.blob, found.layout)


def plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


async def _start(
    fleet: Fleet, blob: BlobId, layout: Layout, origin: str, colluders: int, *, run: bytes | None = None, file_sha256: bytes | None = None
) -> Start:
    wid = await asyncio.to_thread(_id_of, fleet.blobs, blob, layout)
    earlier = await earlier_sums(fleet, wid, colluders)
    return Start(blob, layout, NamedBase(wid, layout.tensors_sha256, layout.parameters, origin, run, file_sha256, earlier))


def _id_of(blobs: BlobStore, blob: BlobId, layout: Layout) -> bytes:
    return weights_id(open_flat(blobs.path(blob), layout), layout)


def import_file(blobs: BlobStore, path: Path) -> tuple[BlobId, Layout, bytes]:
    """A safetensors file as a flat blob: (blob, layout in the file's order, SHA-256 of the file). Memory: one tensor.

    Raises:
        BadInput: the file cannot be read, or names the first tensor that is not float32 or not finite.
    """
    try:
        digest = sha256()
        with path.open("rb") as file:
            while part := file.read(READ_BYTES):
                digest.update(part)
        tensors = SafetensorsFile(path)
        with blobs.writer() as out:
            flatten_to(out.append, tensors, tensors.layout)
            blob = out.commit().id
        check_finite(open_flat(blobs.path(blob), tensors.layout), tensors.layout)
    except DiskFull:
        raise
    except OSError as error:
        raise BadInput(f"--from {path}: cannot be read: {error.strerror}") from None
    except DureError as error:
        raise BadInput(f"--from {path}: {error}") from None
    return blob, tensors.layout, digest.digest()


async def earlier_sums(fleet: Fleet, wid: bytes, colluders: int) -> tuple[EarlierSum, ...]:
    """Every instance on these weights that was opened, or was certified and may have been; by the signed statements, oldest first.

    Raises:
        BadInput: an instance is under way on them, or was given up by too few members to be sure that it stays closed.
    """
    opens = [o for o in await _facts(fleet.store, "instance-open", InstanceOpen) if o.weights_id == wid]
    if not opens:
        return ()
    closed = await _facts(fleet.store, "instance-survivors", InstanceSurvivors)
    certified = {s.instance: tuple(u.member for u in s.survivors) for s in closed}
    voids: dict[bytes, set[str]] = {}
    for void in await _facts(fleet.store, "instance-void", InstanceVoid):
        voids.setdefault(void.instance, set()).add(void.member)
    found = []
    for opened in opens:
        cohort = {m.member for m in opened.cohort}
        missing = thresholds.voids_needed(len(cohort), colluders) - len(voids.get(opened.instance, set()) & cohort)
        if missing <= 0:
            continue
        if opened.instance not in certified:
            raise BadInput(_undecided(fleet, opened, cohort - voids.get(opened.instance, set()), missing))
        purpose = InstanceId.decode(opened.instance).purpose.value
        found.append(EarlierSum(opened.instance, opened.category, purpose, certified[opened.instance]))
    return tuple(found)


def _undecided(fleet: Fleet, opened: InstanceOpen, silent: set[str], missing: int) -> str:
    where = InstanceId.decode(opened.instance)
    row = fleet.rows.get(where.run)
    what = f"exchange {where.exchange} of run {where.run.hex()[:12]} on these weights"
    if row is not None and row.label == "open":
        return f"{what} is under way; `dure run stop {where.run.hex()[:12]}` first, or start from another round"
    return f"{what} was given up, and {missing} more of {', '.join(sorted(silent))} must say so; their nodes do when they connect"


async def _facts(store: Store, kind: str, form: type[T]) -> list[T]:
    rows = await store.statements(kind=kind)
    return await asyncio.to_thread(lambda: [read_verified(row.envelope, form) for row in rows])
