"""A run's own part of a bundle: what the log names by digest and is too large to be in it.

rounds/<run>/layout.json        the model's layout; its SHA-256 stands in every instance-open
rounds/<run>/draw.evidence      signed messages of the draw of the first weights, where the plan has one
rounds/<run>/draw.seeds         what was opened in it
rounds/<run>/first.f32          the first weights, flat, where nobody drew them
rounds/<run>/<exchange>.scales  the opened sums of that exchange; their Merkle roots stand in instance-aggregate
rounds/<run>/<exchange>.update
rounds/<run>/<exchange>.<purpose>.{evidence,seeds}     level 3: what an opened sum was opened from
rounds/<run>/<exchange>.<purpose>.<member>.upload      level 3: a survivor's masked upload, where it was kept

Every file is checked against the log when the lineage is recomputed; one that nothing refers to is named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from dure.blobs import BlobId, BlobStore
from dure.charter.model import Charter
from dure.errors import BadInput, DureError
from dure.model.base import BaseRecord
from dure.model.layout import MAX_LAYOUT_BYTES
from dure.recompute.evidence import MAX_EVIDENCE_BYTES, Evidence
from dure.recompute.joint_seed import is_draw
from dure.secagg.ids import InstanceId, upload_id
from dure.statements import kinds
from dure.statements.dsse import Envelope
from dure.statements.statement import Signed

ROUNDS = "rounds"
_OPENED = r"[0-9]{6,10}\.(?:scales|update|scalars)"
PART = re.compile(
    rf"rounds/([0-9a-f]{{64}})/(layout\.json|draw\.evidence|draw\.seeds|first\.f32|{_OPENED}(?:\.evidence|\.seeds|\.[a-z0-9-]{{1,32}}\.upload)?)"
)
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Opened:
    """One opened instance as the log tells it."""

    where: InstanceId
    opened: kinds.InstanceOpen
    open_sha256: bytes
    """Of the payload."""
    said: kinds.InstanceAggregate
    envelope: bytes
    """DSSE bytes of the aggregate."""
    survivors: tuple[str, ...] = ()

    def upload(self, member: str) -> str:
        """File of this member's upload in the coordinator's spools (docs/spec/formats.md, "Spool")."""
        return upload_id(self.said.instance, member).hex() + ".data"

    @property
    def sum(self) -> BlobId:
        return BlobId(self.said.root, self.said.length)


@dataclass
class RunRecord:
    """What the log says of a run's models."""

    run: bytes
    plan: kinds.RunPlan
    opens: dict[bytes, tuple[kinds.InstanceOpen, bytes]] = field(default_factory=dict)
    """Instance -> (fact, payload digest), of those not opened."""
    survivors: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    """Instance -> its certified survivor set, likewise."""
    aggregates: dict[bytes, Opened] = field(default_factory=dict)
    """By payload digest."""
    accepts: dict[int, dict[str, kinds.ExchangeAccept]] = field(default_factory=dict)
    layout_sha256: bytes = b""

    def charter(self, versions: Sequence[Charter]) -> Charter:
        """The version its plan was made under."""
        return versions[self.plan.charter_version - 1]

    @property
    def named_step(self) -> bool:
        """Whether bases follow from the sums; else the run's own ServerApp makes them, and nothing is recomputed."""
        return self.plan.outer_step.named

    @property
    def draw(self) -> Opened | None:
        """The exchange in which the first weights were drawn."""
        return next((o for o in self.aggregates.values() if is_draw(o.opened)), None)

    def steps(self) -> list[Step]:
        """Exchanges that made a base which u_min members recomputed and accepted, in order."""
        found = []
        for number, words in sorted(self.accepts.items()):
            said = next(iter(words.values()))
            if said.base_id is None or len(words) < self.plan.u_min or len(said.aggregates) != 2:
                continue
            pair = [self.aggregates.get(digest) for digest in said.aggregates]
            if pair[0] is not None and pair[1] is not None:
                found.append(Step(number, pair[0], pair[1], said.base_id, tuple(sorted(words))))
        return found

    @property
    def first_base_id(self) -> bytes | None:
        """Of the base the first exchange with arrays started from; None where there was none."""
        return next((o.opened.base_id for o in self.aggregates.values() if any(o.opened.layout_sha256)), None)


@dataclass(frozen=True)
class Step:
    """One move of the model."""

    exchange: int
    scales: Opened
    update: Opened
    base_id: bytes
    """What came of it, as every member accepted it."""
    accepted: tuple[str, ...]


def records(entries: Iterable[Signed[Any]]) -> dict[bytes, RunRecord]:
    """Every run of a log, from entries that were verified (reading.verified)."""
    found: dict[bytes, RunRecord] = {}
    for signed in entries:
        fact = signed.fact
        if isinstance(fact, kinds.RunPlan):
            found[signed.envelope.payload_sha256] = RunRecord(signed.envelope.payload_sha256, fact)
        elif isinstance(fact, kinds.InstanceOpen) and (record := found.get(fact.run)):
            record.opens[fact.instance] = fact, signed.envelope.payload_sha256
            record.layout_sha256 = record.layout_sha256 or (fact.layout_sha256 if any(fact.layout_sha256) else b"")
        elif isinstance(fact, kinds.InstanceSurvivors):
            if record := found.get(InstanceId.decode(fact.instance).run):
                record.survivors[fact.instance] = tuple(s.member for s in fact.survivors)
        elif isinstance(fact, kinds.InstanceAggregate):
            where = InstanceId.decode(fact.instance)
            if (record := found.get(where.run)) and fact.instance in record.opens:
                opened, digest = record.opens.pop(fact.instance)
                envelope = signed.envelope
                record.aggregates[envelope.payload_sha256] = Opened(
                    where, opened, digest, fact, envelope.to_bytes(), record.survivors.pop(fact.instance, ())
                )
        elif isinstance(fact, kinds.ExchangeAccept) and (record := found.get(fact.run)):
            record.accepts.setdefault(fact.exchange, {})[fact.member] = fact
    return found


def chosen(all_runs: dict[bytes, RunRecord], wanted: str) -> RunRecord:
    """The run whose id begins so.

    Raises:
        BadInput: none does, or several do.
    """
    fits = [record for run, record in all_runs.items() if run.hex().startswith(wanted.lower())]
    if len(fits) != 1:
        raise BadInput(f"--run {wanted}: {'no run' if not fits else 'more than one run'} of this log begins so")
    return fits[0]


# -- export -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """What of a run could be put into a bundle."""

    run: bytes
    ancestor_of: bytes
    """The run that was asked for and descends from this one; nothing where this one was asked for."""
    files: int
    """In the bundle, uploads among them."""
    missing: tuple[str, ...]
    """Parts that are not in this folder any more."""
    uploads: int = 0
    """Masked uploads, at level 3."""


def export_runs(store: BlobStore, wanted: Iterable[tuple[RunRecord, bytes]], out: Path, spools: Path | None = None) -> Iterator[Exported]:
    """Writes runs' parts below a bundle's folder; the same store and log give the same bytes.

    Args:
        wanted: each run, and the one that it is taken for as an ancestor, if any.
        spools: the coordinator's folder of uploads, for level 3: what each sum was opened from, and the uploads that are still there.
    """
    small = _index(store)
    for record, child in wanted:
        yield _export(store, small, record, child, out, spools)


def _export(store: BlobStore, small: _Small, record: RunRecord, child: bytes, out: Path, spools: Path | None) -> Exported:
    home, missing = out / ROUNDS / record.run.hex(), []
    home.mkdir(parents=True)
    for name, blob in _wanted(store, record, small):
        if blob is None:
            missing.append(name)
        else:
            _copy(store.path(blob), home / name)
    uploads = 0 if spools is None else sum(_export_opened(store, spools, opened, small, home) for opened in record.aggregates.values())
    if not (files := sum(1 for _ in home.iterdir())):
        home.rmdir()
    return Exported(record.run, child, files, tuple(missing), uploads)


def _wanted(store: BlobStore, record: RunRecord, small: _Small) -> Iterator[tuple[str, BlobId | None]]:
    if not record.named_step:
        return
    if record.layout_sha256:
        yield "layout.json", small.by_sha256.get(record.layout_sha256)
    draw = record.draw
    if draw is not None:
        yield "draw.evidence", small.by_open.get(draw.open_sha256)
        yield "draw.seeds", small.by_sha256.get(draw.said.seeds_sha256)
    elif record.first_base_id is not None:
        yield "first.f32", _first(store, record)
    for name, blob in sorted({sum_name(o): o.sum for s in record.steps() for o in (s.scales, s.update)}.items()):
        yield name, blob if store.has(blob) else None


def _export_opened(store: BlobStore, spools: Path, opened: Opened, small: _Small, home: Path) -> int:
    """Evidence, seeds and kept uploads of one sum; how many uploads that is."""
    name, count = sum_name(opened), 0
    evidence, seeds = small.by_open.get(opened.open_sha256), small.by_sha256.get(opened.said.seeds_sha256)
    if evidence is None or seeds is None:
        return 0
    _copy(store.path(evidence), home / f"{name}.evidence")
    _copy(store.path(seeds), home / f"{name}.seeds")
    for member in opened.survivors if opened.said.length else ():
        source = spools / opened.upload(member)
        if source.is_file() and source.stat().st_size == opened.said.length:
            _copy(source, home / f"{name}.{member}.upload")
            count += 1
    return count


def sum_name(opened: Opened) -> str:
    """A sum's file in the bundle, and how those of what it was opened from begin."""
    return f"{opened.where.exchange:06d}.{opened.where.purpose.value}"


def _first(store: BlobStore, record: RunRecord) -> BlobId | None:
    """The first weights, found by the id of the base record they make."""
    config = record.plan.outer_step.config
    return next((b for b in store.ids() if BaseRecord.first(b, config).id == record.first_base_id), None)


@dataclass(frozen=True)
class _Small:
    """Blobs that may be layouts, evidence or seeds: the log names a digest of their bytes, not their blob id."""

    by_sha256: Mapping[bytes, BlobId]
    by_open: Mapping[bytes, BlobId]
    """Evidence, by the payload digest of its instance-open."""


def _index(store: BlobStore) -> _Small:
    """Reads every small blob once."""
    by_sha256, by_open = {}, {}
    for blob in store.ids():
        if 0 < blob.length <= max(MAX_EVIDENCE_BYTES, MAX_LAYOUT_BYTES):
            raw = store.read_bytes(blob, limit=blob.length)
            by_sha256[sha256(raw).digest()] = blob
            if (opened := _opened_by(raw)) is not None:
                by_open[opened] = blob
    return _Small(by_sha256, by_open)


def _opened_by(raw: bytes) -> bytes | None:
    """Payload digest of the open in this evidence; None where it is no evidence."""
    try:
        return Envelope.from_bytes(Evidence.from_bytes(raw).open).payload_sha256
    except DureError:
        return None


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        size, at = os.fstat(read.fileno()).st_size, 0
        while at < size:
            at += os.sendfile(write.fileno(), read.fileno(), at, min(COPY_BYTES, size - at))
