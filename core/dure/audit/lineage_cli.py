"""`dure audit lineage`: where a run's weights come from, recomputed on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from dure.audit.bundle import Bundle
from dure.audit.level1 import Result, verify
from dure.audit.lineage import Lineage, Progress, recompute, unreferenced
from dure.audit.parts import Exported, RunRecord, chosen, export_run, records
from dure.audit.places import LogPlace
from dure.audit.reading import verified
from dure.blobs import BlobStore
from dure.charter import root as charter_root
from dure.charter.model import Charter
from dure.console import AsJson, err, one_line_errors, say, show_json
from dure.errors import BadInput, DureError, NotAuthorised
from dure.model.safetensors_file import SafetensorsFile
from dure.model.weights import flatten, open_flat, weights_id
from dure.tlog.tiles import TiledTree


class NotDescended(NotAuthorised):
    """A model's weights are none of those that were recomputed."""

    exit_code = 8


def versions_of(roots: list[bytes]) -> list[Charter]:
    """Every charter version, verified from the first, whose digest the caller has compared with the pin."""
    pin = charter_root.digest(charter_root.parse(roots[0]))
    return [charter_root.walk(roots[:n], pin) for n in range(1, len(roots) + 1)]


def add_run(place: LogPlace, wanted: str, scratch: Path) -> Exported:
    """Puts a run's parts into a bundle that is being made from this place."""
    size = place.head().checkpoint.size
    found = records(verified(place.tree().entries(0, size), versions_of(list(place.roots))))
    return export_run(BlobStore(place.directory / "blobs"), chosen(found, wanted), scratch)


def lineage(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that was exported with --run.")],
    pin: Annotated[str, typer.Option("--root-sha256", help="64 hex digits: charter version 1, compared over a second channel.")],
    run: Annotated[str | None, typer.Option(help="Only this run; a unique beginning. Default: every run the bundle has parts of.")] = None,
    model: Annotated[Path | None, typer.Option(help="A model.safetensors, or its folder: must be one of the weights recomputed.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for two models and two sums at a time; default: the system's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute a run's weights: from the seed its members drew, or the weights its plan names, sum by sum.

    The log is checked first, as `dure audit verify --level 1` does. Exit codes as there; 8: the model is none of the recomputed weights.

    Example: dure audit lineage bundle --root-sha256 3f9a… --model release/model.safetensors
    """
    one_line_errors(_lineage)(folder, pin, run, model, work, as_json)


def _lineage(folder: Path, pin: str, run: str | None, model: Path | None, work: Path | None, as_json: bool) -> None:
    from dure.audit.cli import pin_of

    bundle = Bundle.open(folder)
    result = verify(bundle, pin_of(pin))
    if not result.holds:
        first = [*result.findings, *result.unknown][0]
        raise NotAuthorised(f"the log does not hold, so nothing is recomputed from it: {first.where}: {first.why}")
    found, lineages = _recomputed(bundle, result, run, work)
    matched = None if model is None else match(model, lineages)
    if as_json:
        show_json({"runs": [in_json(one, found[one.run]) for one in lineages], "model": matched})
        return
    for one in lineages:
        for line in lines(one, found[one.run]):
            say(line)
    if matched is not None:
        say(f"{model}: the weights of run {matched['run'][:12]} after exchange {matched['exchange']}, recomputed")


def _recomputed(bundle: Bundle, result: Result, run: str | None, work: Path | None) -> tuple[dict[bytes, RunRecord], list[Lineage]]:
    versions = versions_of(bundle.roots())
    tree = TiledTree(lambda path: bundle.read(f"log/{path}"), result.size)
    found = records(verified(tree.entries(), versions))
    if extra := unreferenced(bundle, found):
        raise BadInput(f"{extra[0]}: is no part of this bundle: nothing covers it")
    there = {name.split("/")[1] for name in bundle.names() if name.startswith("rounds/")}
    wanted = [chosen(found, run)] if run is not None else [r for r in found.values() if r.run.hex() in there]
    if not wanted:
        raise BadInput(f"{bundle.folder} has no parts of any run: it was exported without --run, and shows level 1 only")
    lineages = []
    for record in wanted:
        with tempfile.TemporaryDirectory(prefix="dure-lineage-", dir=work) as scratch:
            charter = versions[record.plan.charter_version - 1]
            lineages.append(recompute(bundle, record, charter, Path(scratch), progress=_progress(record)))
    return found, lineages


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
    except (OSError, DureError) as error:
        raise BadInput(f"{path}: cannot be read as a model: {error}") from None
    for one in lineages:
        if wid in one.models:
            return {"file": str(path), "weights_id": wid.hex(), "run": one.run.hex(), "exchange": one.models[wid]}
    raise NotDescended(f"{path}: its weights (id {wid.hex()[:16]}…) are none of those recomputed from this bundle")


def lines(one: Lineage, record: RunRecord) -> list[str]:
    """What was recomputed, for a person."""
    head = f"run {one.run.hex()[:12]} {record.plan.app_name}: first weights {one.begins} ({one.origin})"
    if not one.recomputable:
        return [head, "  its ServerApp makes the bases: signed, not recomputed"]
    seed = [f"  seed {one.seed.hex()}, put together from what each member committed to before any was opened: proved"] if one.seed else []
    many = f"  {len(one.exchanges)} exchanges recomputed, each base as its members accepted it: proved"
    return [head, *seed, many, f"  newest weights {one.weights_id.hex()}"]


def in_json(one: Lineage, record: RunRecord) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "run": one.run.hex(),
        "app": record.plan.app_name,
        "first_weights": one.begins,
        "origin": one.origin,
        "seed": one.seed.hex(),
        "recomputed": one.recomputable,
        "exchanges": list(one.exchanges),
        "weights_id": one.weights_id.hex(),
    }


def _progress(record: RunRecord) -> Progress:
    if not err.is_terminal:
        return lambda _done, _all: None
    from rich.progress import Progress as Bar

    bar = Bar(console=err, transient=True)
    task = bar.add_task(f"run {record.run.hex()[:12]}", total=None)

    def show(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done == total:
            bar.stop()

    return show
