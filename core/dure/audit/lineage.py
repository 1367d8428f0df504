"""Lineage: a run's weights recomputed from where they began and the sums in its bundle, by whoever holds the bundle.

    seed → first weights → (sums of exchange 1) → base → (sums of exchange 2) → … → the weights that were released

Everything is the members' own computation (dure.model.advance), chunk by chunk, and each base must have the id that u_min members accepted.
Source: ledger.md, section 5. Nothing is believed but a log that was verified before (level 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from dure.audit.bundle import Bundle
from dure.audit.kept import Kept
from dure.audit.parts import ROUNDS, Opened, RunRecord, Step, sum_name
from dure.audit.way import Reached, Way
from dure.blobs import BlobId, BlobStore
from dure.charter.model import Charter
from dure.charter.succession import coordinator_keys, signing_keys
from dure.errors import DureError, Refused
from dure.model.advance import next_base, opened_exponents
from dure.model.base import BaseRecord
from dure.model.initial import initialise
from dure.model.layout import MAX_LAYOUT_BYTES, Layout
from dure.model.rules import Rule
from dure.model.weights import open_flat, weights_id
from dure.recompute.evidence import Trust
from dure.recompute.joint_seed import judged_draw
from dure.secagg.encode import from_words
from dure.secagg.ids import Purpose
from dure.secagg.summing import shape_of

DRAWN, NAMED, SENT = "drawn by the members", "named by the plan", "sent by the run's ServerApp"
Progress = Callable[[int, int], None]
"""(exchanges recomputed, exchanges in all)."""


class LineageBroken(Refused):
    """Weights do not follow from what came before; `field` names the file or the exchange."""


@dataclass(frozen=True)
class Lineage:
    """What was recomputed of one run."""

    run: bytes
    begins: str
    """drawn by the members | named by the plan | sent by the run's ServerApp"""
    origin: str
    """In words: who drew, or where the weights come from."""
    seed: bytes
    """32 bytes where drawn; else empty."""
    exchanges: tuple[int, ...]
    """Recomputed, in order."""
    weights_id: bytes
    """Of the newest base that was recomputed."""
    models: Mapping[bytes, int]
    """weights id -> exchange after which it was the base (0: first), for every base recomputed."""
    recomputable: bool
    """False: the run's own ServerApp makes its bases: signed, not recomputed."""


def recompute(
    bundle: Bundle,
    record: RunRecord,
    versions: Sequence[Charter],
    work: Path,
    *,
    kept: Kept | None = None,
    progress: Progress = lambda _done, _all: None,
) -> Lineage:
    """Recomputes every base of a run.

    Args:
        versions: of the charter, every one.
        work: takes two models and two sums at a time; empty, or `kept.room` of this run.
        kept: what was established before, and where more is written down; None: nothing was, nothing is.

    Raises:
        LineageBroken: names the exchange or file that does not follow.
        PartMissing: a part that is needed is not in the bundle.
    """
    begins = DRAWN if record.plan.initial else NAMED if record.plan.base else SENT
    origin = _origin(record)
    steps = record.steps()
    if not record.named_step or record.first_base_id is None:
        return Lineage(record.run, begins, origin, b"", (), bytes(32), {}, recomputable=record.named_step)
    store = BlobStore(work)
    layout = _layout(bundle, record)
    seed = _seed(bundle, record, versions) if record.plan.initial is not None else b""
    way = Way(bundle, record, steps, seed, kept)
    reached = way.taken_up(store) or _begun(way, layout, store)
    base, wid, models = reached.base, reached.weights_id, reached.models
    for done, step in enumerate(steps[reached.done :], reached.done):
        progress(done, len(steps))
        asked = way.step(base, step)
        after, wid = _moved(bundle, record, layout, store, base, step)
        way.write(asked, after, wid)
        _remove(store, base, after)
        base, models[wid] = after, step.exchange
    progress(len(steps), len(steps))
    return Lineage(record.run, begins, origin, seed, tuple(s.exchange for s in steps), wid, models, recomputable=True)


def _begun(way: Way, layout: Layout, store: BlobStore) -> Reached:
    """At the first base."""
    asked = way.first()
    base = _first(way.bundle, way.record, way.seed, layout, store)
    _same(f"{_home(way.record)}/first weights", base.id, way.record.first_base_id, "are not the base the first exchange started from")
    wid = weights_id(open_flat(store.path(base.weights), layout), layout)
    way.write(asked, base, wid)
    return Reached(0, base, wid, {wid: 0})


def _remove(store: BlobStore, base: BaseRecord, after: BaseRecord) -> None:
    for old in (base.weights, base.outer_state):
        if old is not None and old not in (after.weights, after.outer_state):
            store.remove(old)


def _home(record: RunRecord) -> str:
    return f"{ROUNDS}/{record.run.hex()}"


def _origin(record: RunRecord) -> str:
    if record.plan.initial is not None:
        return "a joint seed" if record.draw is None else f"a joint seed; {len(record.draw.opened.cohort)} members took part in the draw"
    return record.plan.base.origin if record.plan.base is not None else "whatever the ServerApp sent first"


def _layout(bundle: Bundle, record: RunRecord) -> Layout:
    name = f"{_home(record)}/layout.json"
    raw = bundle.read(name)
    if len(raw) > MAX_LAYOUT_BYTES or sha256(raw).digest() != record.layout_sha256:
        raise LineageBroken(name, "is not the layout the log names")
    return Layout.from_json(raw)


def _first(bundle: Bundle, record: RunRecord, seed: bytes, layout: Layout, store: BlobStore) -> BaseRecord:
    initial = record.plan.initial
    if initial is not None:
        _same(
            f"{_home(record)}/layout.json", layout.tensors_sha256, initial.tensors_sha256, "has other tensors than the plan's first weights"
        )
        with store.writer() as out:
            initialise(seed, layout, [Rule(r.tensors, r.kind, r.value) for r in initial.rules], out.append)
            weights = out.commit().id
    else:
        name = f"{_home(record)}/first.f32"
        weights = store.put_file(_sized(bundle, name, layout.flat_bytes))
        if record.plan.base is not None:
            _same(
                name, weights_id(open_flat(store.path(weights), layout), layout), record.plan.base.weights_id, "is not what the plan names"
            )
    return BaseRecord.first(weights, record.plan.outer_step.config)


def _seed(bundle: Bundle, record: RunRecord, versions: Sequence[Charter]) -> bytes:
    draw = record.draw
    if draw is None:
        raise LineageBroken(f"run {record.run.hex()[:12]}", "its plan wants first weights that members draw, and the log has no draw")
    trust = trust_of(record, versions)
    evidence, seeds = (bundle.read(f"{_home(record)}/draw.{what}") for what in ("evidence", "seeds"))
    try:
        found = judged_draw(draw.envelope, evidence, seeds, trust)
    except DureError as error:
        raise LineageBroken(f"{_home(record)}/draw.evidence or draw.seeds", str(error)) from None
    if found is None:
        raise LineageBroken(f"{_home(record)}/draw.evidence", "is of another exchange than the draw")
    return found


def trust_of(record: RunRecord, versions: Sequence[Charter]) -> Trust:
    """What a run's sums are judged by: the version its plan names, and members' keys of that and every later one."""
    terms = record.charter(versions).terms
    keys = signing_keys(versions, record.plan.charter_version)
    coordinators = coordinator_keys(versions, record.plan.charter_version)
    return Trust(terms.consortium_id, record.run, coordinators, keys, terms.colluders, record.plan.u_min)


def _moved(bundle: Bundle, record: RunRecord, layout: Layout, store: BlobStore, base: BaseRecord, step: Step) -> tuple[BaseRecord, bytes]:
    """(the base after this exchange, its weights id)"""
    where = f"exchange {step.exchange}"
    _same(where, step.update.opened.base_id, base.id, "started from another base than the one recomputed before it")
    scales, update = (_sum(bundle, record, layout, store, opened) for opened in (step.scales, step.update))
    reference = step.update.opened.scales
    e_b, raw, _ = opened_exponents(store, scales, base.e_b, record.plan.e_cap)
    if reference is None or (reference.instance, reference.e_b_sha256) != (step.scales.said.instance, sha256(raw).digest()):
        raise LineageBroken(where, "its update used other scales than the sum of scales gives")
    totals = from_words(step.update.said.trailer)
    try:
        made = next_base(
            store,
            base=base,
            layout=layout,
            opened=update,
            e_b=e_b,
            bump=0 if step.scales.where.exchange == step.update.where.exchange else 2,
            cohort_size=len(step.update.opened.cohort),
            weight_sum=totals[1] if len(totals) > 1 else 0,  # as a node has it, which then refuses the sum
            outer_step=record.plan.outer_step.config,
            exchange=step.exchange,
            averaged=record.plan.outer_step.averaged,
        )
    except DureError as error:
        raise LineageBroken(where, f"its sum cannot be applied: {error}") from None
    _same(where, made.record.id, step.base_id, f"{len(step.accepted)} members accepted another base than its sums give")
    for blob in (scales, update):
        store.remove(blob)
    return made.record, made.weights_id


def _sum(bundle: Bundle, record: RunRecord, layout: Layout, store: BlobStore, opened: Opened) -> BlobId:
    """A sum's file, in the store once it has the root that the log names; of as many elements as the layout has."""
    name = f"{_home(record)}/{sum_name(opened)}"
    length, chunk_bytes = shape_of(Purpose(opened.where.purpose), layout.elements)
    _same(name, opened.sum.length, length, f"is a sum of {opened.sum.length} bytes, and of this layout it has {length}")
    found = store.put_file(_sized(bundle, name, opened.sum.length), chunk_bytes=chunk_bytes)
    _same(name, found, opened.sum, "is not the sum the log names")
    return found


def _sized(bundle: Bundle, name: str, length: int) -> Path:
    """A part that is copied into the store next: one of nothing but holes would fill the disk, and nobody would be named."""
    path = bundle.existing(name)
    size = path.stat().st_size
    _same(name, size, length, f"has {size} bytes, {length} are what the log names")
    return path


def _same(where: str, got: object, wanted: object, why: str) -> None:
    if got != wanted:
        raise LineageBroken(where, why)


def unreferenced(bundle: Bundle, records: Mapping[bytes, RunRecord]) -> list[str]:
    """Files below rounds/ that no run of the log refers to, or that nothing checks."""
    wanted: set[str] = set()
    for record in records.values():
        names = {"layout.json"} | {sum_name(o) for s in record.steps() for o in (s.scales, s.update)}
        names |= {"draw.evidence", "draw.seeds"} if record.plan.initial is not None else {"first.f32"}
        if not record.named_step:
            names = set()
        for opened in record.aggregates.values():
            begins = sum_name(opened)
            names |= {f"{begins}.evidence", f"{begins}.seeds", *(f"{begins}.{member}.upload" for member in opened.survivors)}
        wanted |= {f"{_home(record)}/{name}" for name in names}
    return sorted(name for name in bundle.names() if name.startswith(f"{ROUNDS}/") and name not in wanted)
