"""`dure audit`: make a bundle, and check one offline. Needs nothing but the bare `dure`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from dure.audit import bundle as bundles
from dure.audit import report
from dure.audit.contributions_cli import of_bundle
from dure.audit.kept import Kept, own_key, place_of
from dure.audit.level1 import verify
from dure.audit.level2 import lines, match, trace
from dure.audit.level3 import add_up
from dure.audit.lineage_cli import add_runs, bars, lineage
from dure.audit.pages import Found, found_in_json, page_of
from dure.audit.parts import Exported
from dure.audit.places import log_of
from dure.audit.similarity_cli import similarity
from dure.console import DEFAULT_DIR, AsJson, Dir, draw, err, one_line_errors, say, show_json
from dure.errors import BadInput
from dure.identity.files import write_atomic

LISTED = 50
"""Findings printed for people."""

app = typer.Typer(no_args_is_help=True, help="Auditor: check a bundle offline, without trusting the coordinator.")

app.command("contributions")(of_bundle)
app.command("lineage")(lineage)
app.command("similarity")(similarity)


@app.callback()
def group() -> None:
    """Auditor: check a bundle offline, without trusting the coordinator."""


@app.command()
@one_line_errors
def export(
    target: Annotated[Path, typer.Option("--out", help="The bundle's folder; must not be there yet.")],
    run: Annotated[
        list[str] | None, typer.Option(help="With what this run's models are recomputed from (level 2); a unique beginning. Repeatable.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="With the parts of every run of the log.")] = False,
    ancestors: Annotated[
        bool,
        typer.Option("--ancestors/--without-ancestors", help="Also the runs whose models those runs began with. Leave out if too large."),
    ] = True,
    level: Annotated[int, typer.Option(min=2, max=3, help="With --run or --all. 3: also the masked uploads that were kept.")] = 2,
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Make a bundle from a coordinator's log, or from a node's own mirror of it.

    A member needs nobody's help: its node has the whole log. The same log gives the same bytes.

    Example: dure audit export --dir /var/lib/dure/node --out bundle

    Example: dure audit export --dir /var/lib/dure/coordinator --run 3f9a --out bundle     also the sums, for `dure audit lineage`

    A run that began with an earlier run's model (`dure run start --from`) brings that run's parts along, and so on to the oldest.
    """
    if run and every:
        raise BadInput("--all takes every run; leave --run out")
    place = log_of(directory)
    parts: list[Exported] = []
    wanted = None if every else run
    more = (lambda scratch: parts.extend(add_runs(place, wanted, level, scratch, ancestors=ancestors))) if run or every else _nothing
    size = bundles.export(place.tree(), place.head(), place.roots, target, more)
    if as_json:
        show_json({"bundle": str(target), "entries": size, "root_sha256": place.pin.hex(), **(_in_json(parts) if run or every else {})})
        return
    say(f"{target}: {size} entries" + (f", {sum(part.files for part in parts)} parts of {len(parts)} runs" if run or every else ""))
    for line in (line for part in parts for line in _exported(part)):
        say(line)
    say(f"next: dure audit verify {target} --root-sha256 {place.pin.hex()}")


def _nothing(_scratch: Path) -> None:
    """No run's parts."""


def _in_json(parts: Sequence[Exported]) -> dict[str, object]:
    runs = [
        {"run": p.run.hex(), "ancestor_of": p.ancestor_of.hex() or None, "parts": p.files, "uploads": p.uploads, "missing": list(p.missing)}
        for p in parts
    ]
    missing = [f"{p.run.hex()[:12]}/{name}" for p in parts for name in p.missing]
    return {"parts": sum(p.files for p in parts), "uploads": sum(p.uploads for p in parts), "missing": missing, "runs": runs}


def _exported(part: Exported) -> list[str]:
    why = f", whose model run {part.ancestor_of.hex()[:12]} goes back to" if part.ancestor_of else ""
    lines = [f"  run {part.run.hex()[:12]}{why}: {part.files} parts" + (f", {part.uploads} of them uploads" if part.uploads else "")]
    if part.missing:
        names = f"{', '.join(part.missing[:5])}{' …' if len(part.missing) > 5 else ''}"
        lines.append(f"    not here: {names}; only the coordinator's folder has a run's sums")
    return lines


@app.command("verify")
@one_line_errors
def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")],
    pin: Annotated[str, typer.Option("--root-sha256", help="64 hex digits: charter version 1, compared over a second channel.")],
    level: Annotated[
        int, typer.Option(min=1, max=3, help="1: the log. 2: and the models, from the sums. 3: and the sums, from the uploads.")
    ] = 1,
    model: Annotated[
        Path | None, typer.Option(help="With level 2: a model.safetensors or its folder, which must be among the models.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report here: one file in Korean and English, prints on A4.")] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="With level 2: folder to keep what was established in, and two models and two sums; default: beside the bundle."),
    ] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="Processes that verify; default: every core this one may use.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check everything a bundle can show, offline; exit 0 only if all of it holds.

    Exit codes: 0 all holds; 1 something does not hold, each named (or an entry is of a kind this version does not know); 2 a file is
    missing, and the table says what could be checked without it, or an argument is out of form; 3 a charter version has too few signatures;
    4 another audit of this bundle is under way; 5 no room on the disk, or a process was ended; 6 the pin is of another consortium;
    7 a clock was off by a day, this machine's or a signer's; 8 a run was planned under an expired charter; 9 the model is none of those
    recomputed.

    Levels 2 and 3 may be ended (Ctrl-C, a power cut) and started again with the same bundle and pin: they go on where they were, from
    BUNDLE's neighbour dure-audit-…, or below --work; it is gone once the audit is through. Level 1 begins anew each time.

    Example: dure audit verify bundle --root-sha256 3f9a…

    Example: dure audit verify bundle --root-sha256 3f9a… --level 2 --model release --html report.html
    """
    if level == 1 and model is not None:
        raise BadInput("--model is looked for among recomputed models; add --level 2")
    bundle = bundles.Bundle.open(folder)
    result = verify(bundle, pin_of(pin), cores=cores, progress=_progress("entries"))
    with _kept(folder, pin_of(pin), work) if level > 1 and result.holds else nullcontext() as kept:
        traced = trace(bundle, result, kept=kept, watching=bars()) if level > 1 and result.holds else None
        summed = add_up(bundle, traced, threads=cores, kept=kept, progress=_progress("sums")) if level > 2 and traced is not None else None
    matched = match(model, traced.lineages) if model is not None and traced is not None and not traced.exit_code else None
    found = Found(result, level, traced, summed, matched)
    if html is not None:
        write_atomic(html, page_of(found, pin).encode())
    if as_json:
        show_json(found_in_json(found))
    else:
        _tell(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


@contextmanager
def _kept(bundle: Path, pin: bytes, work: Path | None) -> Iterator[Kept | None]:
    """Where this audit's findings are kept until it is through. None: nowhere, since the bundle is where nothing can be written."""
    try:
        kept = Kept.open(place_of(bundle, pin, work), own_key(), err.print)
    except OSError as error:
        if work is not None:
            raise BadInput(f"--work {work}: {error.strerror}") from None
        err.print(f"nothing can be kept beside {bundle} ({error.strerror}): an audit that is ended begins again; --work DIR keeps it there")
        yield None
        return
    finished = False
    try:
        yield kept
        finished = True
    finally:
        kept.close(finished=finished)


def pin_of(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise BadInput("--root-sha256: must be the 64 hex digits of charter version 1; ask a member for them over a second channel")
    return raw


def _progress(what: str) -> Callable[[int, int], None]:
    if not err.is_terminal:
        return lambda _done, _all: None
    from rich.progress import Progress

    bar = Progress(console=err, transient=True)
    task = bar.add_task(what, total=None)

    def show(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done == total:
            bar.stop()

    return show


def _tell(found: Found) -> None:
    from rich.table import Table

    result, traced = found.result, found.traced
    table = Table(title=f"level {found.level}: {result.size} entries, root {result.root.hex()[:16]}…", title_justify="left")
    for column in ("claim", "shown by", "detail"):
        table.add_column(column)
    for row in found.rows:
        table.add_row(row.claim, row.how, row.detail)
    draw(table)
    for run in report.run_rows(result.history):
        counted = ", ".join(f"{m} {n}" for m, n in run["counted"].items())
        say(f"run {run['run'][:12]} {run['app']}: {run['exchanges_summed']} exchanges summed, bases {run['bases']}")
        say(f"  exchanges each member is in the sum of: {counted}")
    for named in report.environment_rows(result.history)[:LISTED]:
        say(f"{named['member']} says that it trains in (self-declared): {named['words']}")
    for line in _beyond(found):
        say(line)
    for finding in found.findings[:LISTED]:
        say(f"  NOT {finding.where}: {finding.why}")
    for name in found.missing[:LISTED]:
        say(f"  MISSING {name}")
    wrong = len(found.findings) + result.unlisted
    if max(wrong, len(found.missing)) > LISTED:
        say("  … (--json lists more)")
    asked = 1 if traced is None else found.level
    say(_verdict(asked, wrong, len(found.missing), found.left))


def _beyond(found: Found) -> list[str]:
    """What levels 2 and 3 found, run by run."""
    told: list[str] = []
    if found.traced is not None:
        told += [line for one in found.traced.lineages for line in lines(one, found.traced)]
    if found.summed is not None:
        lower = [f"{run.hex()[:12]} exchange {number}" for (run, number), level in sorted(found.summed.levels.items()) if level < 3]
        told += [f"  shown to level 2 only: {', '.join(lower[:20])}{' …' if len(lower) > 20 else ''}"] if lower else []
    if (model := found.matched) is not None:
        told.append(f"{model['file']}: the weights of run {model['run'][:12]} after exchange {model['exchange']}, recomputed")
    return told


def _verdict(level: int, wrong: int, missing: int, left: str) -> str:
    if wrong:
        return f"{wrong} things do not hold"
    if missing:
        return f"nothing contradicts, and {missing} files are missing: the table says what could be checked without them; export anew"
    return f"all of level {level} holds" if not left else f"what is here of level {level} holds; not shown to it: {left}"
