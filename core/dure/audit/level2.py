"""Level 2: the log, and every run whose parts are in the bundle recomputed from its first weights to its newest."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dure.audit.bundle import LOG, Bundle, PartMissing
from dure.audit.descent import RECOMPUTED, Descent, descent
from dure.audit.descent import row as beginnings
from dure.audit.kept import Kept
from dure.audit.level1 import BROKEN, INCOMPLETE, Finding, Result
from dure.audit.lineage import Lineage, recompute, unreferenced
from dure.audit.parts import RunRecord, chosen, records
from dure.audit.reading import verified
from dure.audit.report import PROVED, SIGNED, UNCHECKED, Row
from dure.charter import root as charter_root
from dure.charter.model import Charter
from dure.errors import BadInput, DureError, NotAuthorised, Unavailable
from dure.model.safetensors_file import SafetensorsFile
from dure.model.weights import flatten, open_flat, weights_id
from dure.provenance.ancestry import Ancestry
from dure.tlog.tiles import TiledTree

Watching = Callable[[RunRecord, int, int], None]
"""(run, exchanges recomputed, exchanges in all)"""


class NotDescended(NotAuthorised):
    """A model's weights are none of those that were recomputed."""

    exit_code = 9


@dataclass
class Traced:
    """What level 2 found."""

    records: dict[bytes, RunRecord]
    """Every run of the log."""
    versions: Sequence[Charter]
    touched: set[bytes]
    """Runs the bundle has parts of."""
    lineages: list[Lineage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """In words: parts without which a run could not be recomputed."""
    ancestry: Ancestry = field(default_factory=Ancestry)
    """Which run began with which other run's weights, as the log tells it."""
    descents: dict[bytes, Descent] = field(default_factory=dict)
    """By run: where first weights come from that were there before it."""

    @property
    def exit_code(self) -> int:
        return BROKEN if self.findings else INCOMPLETE if self.missing else 0

    @property
    def by_run(self) -> dict[bytes, Lineage]:
        return {one.run: one for one in self.lineages}

    @property
    def untouched(self) -> list[RunRecord]:
        """Runs of which the bundle has no part."""
        return [r for r in self.records.values() if r.run not in self.touched and r.named_step]


def trace(
    bundle: Bundle,
    result: Result,
    *,
    run: str | None = None,
    work: Path | None = None,
    kept: Kept | None = None,
    watching: Watching = lambda _r, _d, _a: None,
) -> Traced:
    """Recomputes one run and those it descends from, or every run, of those that the bundle has parts of; in the order of the log.

    Args:
        result: of level 1, which must hold.
        work: where two models and two sums at a time find room; None: the system's folder for temporary files.
        kept: where they find room, instead, and what was established by an audit that was ended.

    Raises:
        BadInput: no such run, or parts of none.
    """
    assert result.holds, "nothing is recomputed from a log that does not hold"
    versions = charter_root.walk_all(bundle.roots(), None)  # level 1 has compared the first with the pin
    tree = TiledTree(lambda path: bundle.read(f"{LOG}/{path}"), result.size)
    there = {name.split("/")[1] for name in bundle.names() if name.startswith("rounds/")}
    ancestry = Ancestry()
    found = records(ancestry.following(verified(tree.entries(), versions)))
    traced = Traced(found, versions, {run for run in found if run.hex() in there}, ancestry=ancestry)
    traced.findings += [Finding(name, "is no part of this bundle: nothing covers it") for name in unreferenced(bundle, found)]
    asked = chosen(found, run).run if run is not None else b""
    line = {asked, *ancestry.chain(asked)} if asked else set(found)
    wanted = [r for r in found.values() if r.run == asked or (r.run in line and (r.run in traced.touched or not r.named_step))]
    if not wanted:
        raise BadInput(f"{bundle.folder} has no parts of any run: it was exported without --run, and shows level 1 only")
    for record in wanted:
        _trace(bundle, record, traced, work, kept, watching)
    return traced


def _trace(bundle: Bundle, record: RunRecord, traced: Traced, work: Path | None, kept: Kept | None, watching: Watching) -> None:
    def progress(done: int, total: int) -> None:
        watching(record, done, total)

    with _room(record, work, kept) as room:
        try:
            came = descent(record, traced.ancestry, traced.by_run)
            found = recompute(bundle, record, traced.versions, room, kept=kept, progress=progress)
        except PartMissing as missing:
            traced.missing.append(str(missing))
        except Unavailable:
            raise  # a full disk says nothing about the bundle
        except DureError as broken:
            traced.findings.append(Finding(f"run {record.run.hex()[:12]}", str(broken)))
        else:
            traced.lineages.append(found)
            if came is not None:
                traced.descents[record.run] = came


@contextmanager
def _room(record: RunRecord, work: Path | None, kept: Kept | None) -> Iterator[Path]:
    """A folder for a run's blobs; gone once the run is done with, or the audit is ended and nothing is kept."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="dure-lineage-", dir=work) as scratch:
            yield Path(scratch)
    else:
        room = kept.room(record.run)
        yield room
        shutil.rmtree(room, ignore_errors=True)


def match(model: Path, lineages: list[Lineage]) -> dict[str, Any]:
    """Which recomputed weights a safetensors file holds.

    Raises:
        NotDescended: none of them.
        BadInput: it is no safetensors file.
    """
    path = model / "model.safetensors" if model.is_dir() else model
    try:
        tensors = SafetensorsFile(path)
        with tempfile.TemporaryDirectory(prefix="dure-lineage-") as scratch:
            flat = Path(scratch) / "flat"
            flatten(tensors, tensors.layout, flat)
            wid = weights_id(open_flat(flat, tensors.layout), tensors.layout)
    except Unavailable:
        raise  # no room to flatten it in says nothing about the model
    except (OSError, DureError) as error:
        raise BadInput(f"{path}: cannot be read as a model: {error}") from None
    for one in lineages:
        if wid in one.models:
            return {"file": str(path), "weights_id": wid.hex(), "run": one.run.hex(), "exchange": one.models[wid]}
    raise NotDescended(f"{path}: its weights (id {wid.hex()[:16]}…) are none of those recomputed from this bundle")


def row(traced: Traced) -> Row:
    """The line of the report that level 1 leaves open."""
    claim = "the released weights follow from the sums"
    done = [one for one in traced.lineages if one.recomputable]
    words = [f"{sum(len(one.exchanges) for one in done)} exchanges of {len(done)} runs recomputed, bit for bit"] if done else []
    if signed := len(traced.lineages) - len(done):
        words.append(f"{signed} runs whose ServerApp makes the bases: signed, not recomputed")
    if traced.missing:
        words.append(traced.missing[0])
    if left := len(traced.untouched):
        words.append(f"{left} runs of the log have no parts here")
    how = UNCHECKED if traced.missing or not traced.lineages else PROVED if done else SIGNED
    return Row(claim, how, "; ".join(words) or "does not hold, see below")


def first_row(traced: Traced) -> Row | None:
    """The line about where weights begin."""
    return beginnings(traced.by_run, traced.descents)


def lines(one: Lineage, traced: Traced) -> list[str]:
    """What was recomputed of a run, for a person."""
    record, came = traced.records[one.run], traced.descents.get(one.run)
    head = f"run {one.run.hex()[:12]} {record.plan.app_name}: first weights {one.begins} ({one.origin})"
    before = [] if came is None else [f"  first weights {came.words()}{': proved' if came.how == RECOMPUTED and one.recomputable else ''}"]
    if not one.recomputable:
        return [head, *before, "  its ServerApp makes the bases: signed, not recomputed"]
    seed = [f"  seed {one.seed.hex()}, put together from what each member committed to before any was opened: proved"] if one.seed else []
    many = f"  {len(one.exchanges)} exchanges recomputed, each base as its members accepted it: proved"
    return [head, *before, *seed, many, f"  newest weights {one.weights_id.hex()}"]


def in_json(one: Lineage, traced: Traced) -> dict[str, Any]:
    """The same for scripts."""
    came = traced.descents.get(one.run)
    return {
        "run": one.run.hex(),
        "app": traced.records[one.run].plan.app_name,
        "first_weights": one.begins,
        "origin": one.origin,
        "from": None if came is None else came.in_json(),
        "seed": one.seed.hex(),
        "recomputed": one.recomputable,
        "exchanges": list(one.exchanges),
        "weights_id": one.weights_id.hex(),
    }
