"""`dure audit lineage`: where a run's weights come from, recomputed on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dure.audit.bundle import Bundle
from dure.audit.level1 import verify
from dure.audit.level2 import Watching, in_json, lines, match, trace
from dure.audit.parts import Exported, RunRecord, chosen, export_runs, records
from dure.audit.places import LogPlace
from dure.audit.reading import verified
from dure.blobs import BlobStore
from dure.console import AsJson, err, fail, one_line_errors, say, show_json
from dure.provenance.ancestry import Ancestry


def add_runs(place: LogPlace, wanted: Sequence[str] | None, level: int, scratch: Path, *, ancestors: bool = True) -> list[Exported]:
    """Puts runs' parts into a bundle that is being made from this place; at level 3 with the uploads that are still there.

    Args:
        wanted: beginnings of their ids; None: every run of the log.
        ancestors: also the runs whose models they began with, and theirs.
    """
    size, ancestry = place.head().checkpoint.size, Ancestry()
    found = records(ancestry.following(verified(place.tree().entries(0, size), place.charters)))
    taken = dict.fromkeys([chosen(found, name).run for name in wanted] if wanted is not None else found, b"")
    for run in [*taken] if ancestors else []:
        for ancestor in ancestry.chain(run):
            taken.setdefault(ancestor, run)
    spools = place.directory / "spools" if level > 2 else None
    return list(export_runs(BlobStore(place.directory / "blobs"), ((found[run], child) for run, child in taken.items()), scratch, spools))


def lineage(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that was exported with --run.")],
    pin: Annotated[str, typer.Option("--root-sha256", help="64 hex digits: charter version 1, compared over a second channel.")],
    run: Annotated[str | None, typer.Option(help="Only this run; a unique beginning. Default: every run the bundle has parts of.")] = None,
    model: Annotated[Path | None, typer.Option(help="A model.safetensors, or its folder: must be one of the weights recomputed.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for two models and two sums at a time; default: the system's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute a run's weights: from the seed its members drew, or the weights its plan names, sum by sum.

    Weights of an earlier run are followed into it: it is recomputed first, from its own seed and sums, if its parts are in the bundle.
    The log is checked first, as `dure audit verify --level 1` does. Exit codes as there; 9: the model is none of the recomputed
    weights.

    Example: dure audit lineage bundle --root-sha256 3f9a… --model release/model.safetensors
    """
    one_line_errors(_lineage)(folder, pin, run, model, work, as_json)


def _lineage(folder: Path, pin: str, run: str | None, model: Path | None, work: Path | None, as_json: bool) -> None:
    from dure.audit.cli import pin_of

    bundle = Bundle.open(folder)
    result = verify(bundle, pin_of(pin))
    if not result.holds:
        first = [*result.findings, *result.unknown, None][0]
        what = f"{first.where}: {first.why}" if first else f"{len(result.missing)} files are missing, {result.missing[0]} among them"
        fail(f"the log does not hold, so nothing is recomputed from it: {what}", result.exit_code)
    traced = trace(bundle, result, run=run, work=work, watching=bars())
    if traced.exit_code:
        wrong = [f"{f.where}: {f.why}" for f in traced.findings] or traced.missing
        fail("; ".join(wrong[:5]), traced.exit_code)
    matched = None if model is None else match(model, traced.lineages)
    if as_json:
        show_json({"runs": [in_json(one, traced) for one in traced.lineages], "model": matched})
        return
    for one in traced.lineages:
        for line in lines(one, traced):
            say(line)
    if matched is not None:
        say(f"{model}: the weights of run {matched['run'][:12]} after exchange {matched['exchange']}, recomputed")


def bars() -> Watching:
    """A progress bar per run, where somebody looks."""
    if not err.is_terminal:
        return lambda _record, _done, _all: None
    from rich.progress import Progress

    bar = Progress(console=err, transient=True)
    tasks = {}

    def show(record: RunRecord, done: int, total: int) -> None:
        if record.run not in tasks:
            tasks[record.run] = bar.add_task(f"run {record.run.hex()[:12]}", total=None)
            bar.start()
        bar.update(tasks[record.run], completed=done, total=total)
        if done == total:
            bar.stop()

    return show
