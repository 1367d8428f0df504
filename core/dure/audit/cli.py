"""`dure audit`: make a bundle, and check one offline. Needs nothing but the bare `dure`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dure.audit import bundle as bundles
from dure.audit import report
from dure.audit.contributions_cli import of_bundle
from dure.audit.level1 import Result, verify
from dure.audit.lineage_cli import add_run, lineage
from dure.audit.parts import Exported
from dure.audit.places import log_of
from dure.console import DEFAULT_DIR, AsJson, Dir, draw, err, one_line_errors, out, say, show_json
from dure.errors import BadInput

app = typer.Typer(no_args_is_help=True, help="Auditor: check a bundle offline, without trusting the coordinator.")

app.command("contributions")(of_bundle)
app.command("lineage")(lineage)


@app.callback()
def group() -> None:
    """Auditor: check a bundle offline, without trusting the coordinator."""


@app.command()
@one_line_errors
def export(
    target: Annotated[Path, typer.Option("--out", help="The bundle's folder; must not be there yet.")],
    run: Annotated[str | None, typer.Option(help="With what this run's models are recomputed from (level 2); a unique beginning.")] = None,
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Make a bundle from a coordinator's log, or from a node's own mirror of it.

    A member needs nobody's help: its node has the whole log. The same log gives the same bytes.

    Example: dure audit export --dir /var/lib/dure/node --out bundle

    Example: dure audit export --dir /var/lib/dure/coordinator --run 3f9a --out bundle     also the sums, for `dure audit lineage`
    """
    place = log_of(directory)
    parts: list[Exported] = []
    more = (lambda scratch: parts.append(add_run(place, run, scratch))) if run is not None else (lambda _scratch: None)
    size = bundles.export(place.tree(), place.head(), place.roots, target, more)
    missing = [name for part in parts for name in part.missing]
    if as_json:
        found = {"parts": sum(part.files for part in parts), "missing": missing}
        show_json({"bundle": str(target), "entries": size, "root_sha256": place.pin.hex(), **(found if run is not None else {})})
        return
    say(f"{target}: {size} entries" + (f", {sum(part.files for part in parts)} parts of the run" if run is not None else ""))
    if missing:
        say(f"  not here: {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}; only the coordinator's folder has a run's sums")
    say(f"next: dure audit verify {target} --root-sha256 {place.pin.hex()}")


@app.command("verify")
@one_line_errors
def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")],
    pin: Annotated[str, typer.Option("--root-sha256", help="64 hex digits: charter version 1, compared over a second channel.")],
    level: Annotated[int, typer.Option(help="1: the log. (2: models, 3: sums are not there yet.)")] = 1,
    as_json: AsJson = False,
) -> None:
    """Check everything a bundle's log can show; exit 0 only if all of it holds.

    Exit codes: 1 something does not hold (each named), 2 a file is missing or out of form, 3 too few signatures, 6 wrong pin,
    7 this machine's clock is off by a day.

    Example: dure audit verify bundle --root-sha256 3f9a…
    """
    if level != 1:
        raise BadInput(f"--level {level}: only level 1 is there yet")
    result = verify(bundles.Bundle.open(folder), pin_of(pin), progress=_progress() if out.is_terminal else lambda _done, _all: None)
    if as_json:
        show_json(report.as_json(result))
    else:
        _tell(result)
    if not result.holds:
        raise typer.Exit(1)


def pin_of(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise BadInput("--root-sha256: must be the 64 hex digits of charter version 1; ask a member for them over a second channel")
    return raw


def _progress() -> Callable[[int, int], None]:
    from rich.progress import Progress

    bar = Progress(console=err, transient=True)
    task = bar.add_task("entries", total=None)

    def show(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done == total:
            bar.stop()

    return show


def _tell(result: Result) -> None:
    from rich.table import Table

    table = Table(title=f"level 1: {result.size} entries, root {result.root.hex()[:16]}…", title_justify="left")
    for column in ("claim", "shown by", "detail"):
        table.add_column(column)
    for row in report.rows(result):
        table.add_row(row.claim, row.how, row.detail)
    draw(table)
    for run in report.run_rows(result.history):
        counted = ", ".join(f"{m} {n}" for m, n in run["counted"].items())
        say(f"run {run['run'][:12]} {run['app']}: {run['exchanges_summed']} exchanges summed, bases {run['bases']}")
        say(f"  exchanges each member is in the sum of: {counted}")
    for finding in [*result.findings, *result.unknown][:50]:
        say(f"  NOT {finding.where}: {finding.why}")
    if len(result.findings) > 50:
        say(f"  … and {len(result.findings) - 50} more (--json has all)")
    say("all of level 1 holds" if result.holds else f"{len(result.findings) + len(result.unknown)} things do not hold")
