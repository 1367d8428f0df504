"""`dure contributions`: who did what, from the log of a coordinator or a node's own mirror of it; for an auditor, from a bundle."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from dure.audit.allocations import find, must_match
from dure.audit.bundle import PartMissing
from dure.audit.level1 import Result
from dure.audit.places import log_of
from dure.audit.reading import verified
from dure.charter import root as charter_root
from dure.charter.model import Charter
from dure.console import DEFAULT_DIR, AsJson, Dir, draw, one_line_errors, say, show_json
from dure.errors import BadInput, Refused
from dure.plain_text import plain
from dure.provenance.allocation import shown_by
from dure.provenance.contributions import SELF_DECLARED, Row, contributions
from dure.provenance.spent import Spent, energy_in_words, flop_in_words
from dure.statements.kinds import Allocation, RunPlan
from dure.tlog.tiles import TiledTree

app = typer.Typer(add_completion=False)

OnlyRun = Annotated[str, typer.Option("--run", help="One run: the beginning of its id, or its app's name; default: all.")]
Since = Annotated[str, typer.Option("--from", metavar="DATE", help="Exchanges begun on this day (UTC, YYYY-MM-DD) or later.")]
Until = Annotated[str, typer.Option("--to", metavar="DATE", help="Exchanges begun on this day (UTC) or earlier.")]
Check = Annotated[str, typer.Option("--check", metavar="ALLOCATION", help="Its name in the log, or a file: does it follow from the table?")]
Format = Annotated[str, typer.Option("--format", help="table | csv | json")]

SIGNED_BY = {
    "invited": "coordinator",
    "counted": "coordinator and a quorum of the members",
    "late": "coordinator",
    "left_out": "coordinator",
    "unsummed": "coordinator",
    "accepted": "the member",
}
COLUMNS = ("run", "app", "member", "invited", "counted", "late", "left_out", "unsummed", "accepted", *SELF_DECLARED)


@app.command()
@one_line_errors
def main(
    run: OnlyRun = "",
    since: Since = "",
    until: Until = "",
    check: Check = "",
    form: Format = "table",
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Who did what, per member and run, from the signed statements in the log on this machine.

    Every entry's signature is checked on the way, so the coordinator, a member's node (its own mirror) and an auditor (`dure audit
    contributions`) get the same table. Columns that are only the member's own word are marked. Exchanges that failed before anything was
    opened are in no statement, and not here. With --check, whether an allocation (`dure allocation`) follows from the table at the head it
    cites: exit 0 only if it does.

    Example: dure contributions --run 3f9a --format csv --dir hub
    """
    place = log_of(directory)
    tree = place.tree()
    if check:
        show_checked(check, tree, place.charters, as_json)
        return
    show(found(tree, place.charters, run, since, until), "json" if as_json else form, tree.size)


def found(tree: TiledTree, versions: Sequence[Charter], run: str, since: str, until: str) -> tuple[Row, ...]:
    """The rows asked for.

    Raises:
        BadInput: no such run, or a date that is none.
        Refused: names the first entry that does not hold.
    """
    return rows_at(tree, versions, tree.size, run, span_of(since, until))


def rows_at(tree: TiledTree, versions: Sequence[Charter], size: int, run: str, span: tuple[int, int]) -> tuple[Row, ...]:
    """The same, of so many first entries and of exchanges begun in this span of unix seconds."""

    def wanted(run_id: bytes, plan: RunPlan) -> bool:
        return not run or run_id.hex().startswith(run.lower()) or run in (plan.name, plan.app_name)

    rows = contributions(verified(tree.entries(0, size), versions), runs=wanted, span=span)
    if run and not rows:
        raise BadInput(f"--run {run}: no run in the log starts so; `dure contributions` shows all")
    return rows


def span_of(since: str, until: str) -> tuple[int, int]:
    """Unix seconds [from, to) of these days; all there is where one is not given. Raises BadInput."""
    return _day(since, "--from") if since else 0, _day(until, "--to") + 86_400 if until else 2**48


def show_checked(asked: str, tree: TiledTree, versions: Sequence[Charter], as_json: bool) -> None:
    """Prints whether an allocation follows from the table at the head it cites.

    Raises:
        Refused: it does not; says what.
    """
    one = find(asked, tree, versions)
    must_match(tree, versions, one.said)
    if as_json:
        signed = {"entry": one.entry, "signed_by": list(one.signers), "portions": portions_of(one.said), "whole": one.said.whole}
        show_json({"allocation": one.said.name, "holds": True, "basis": one.said.basis, "shown": shown_by(one.said), **signed})
        return
    where = f"entry {one.entry}, signed by {', '.join(one.signers)}" if one.entry is not None else "in no entry of this log: a draft"
    say(f"allocation {one.said.name} ({where}): {shown_by(one.said)}")


def portions_of(said: Allocation) -> dict[str, int]:
    """Parts by member."""
    return {portion.member: portion.parts for portion in said.portions}


def _day(text: str, option: str) -> int:
    try:
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            raise ValueError
        return int(datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC).timestamp())
    except ValueError:
        raise BadInput(f"{option} {text}: must be a day, as 2026-11-25") from None


def show(rows: tuple[Row, ...], form: str, size: int) -> None:
    """Prints them in the form asked for.

    Raises:
        BadInput: there is no such form.
    """
    if form == "json":
        show_json({"rows": [as_dict(r) for r in rows], "signed_by": SIGNED_BY, "self_declared": list(SELF_DECLARED), "entries": size})
    elif form == "csv":
        print(as_csv(rows), end="")
    elif form == "table":
        _table(rows, size)
    else:
        raise BadInput(f"--format {form}: must be table, csv or json")


def as_dict(row: Row) -> dict[str, Any]:
    """One row for scripts."""
    return {
        "run": row.run.hex(),
        "app": row.app,
        "member": row.member,
        "invited": row.invited,
        "counted": row.counted,
        "late": row.late,
        "left_out": [{"exchange": x.exchange, "phase": x.phase, "reason": x.reason, "late": x.late} for x in row.left_out],
        "unsummed": row.unsummed,
        "accepted": row.accepted,
        "tokens": row.tokens,
        "steps": row.steps,
        "seconds": row.seconds,
        "bytes_up": row.bytes_up,
        "bytes_down": row.bytes_down,
        "devices": list(row.devices),
        **_compute(row.spent),
    }


def _compute(spent: Spent) -> dict[str, Any]:
    """FLOP by method and kWh, whatever its source; null where no usage statement says it."""
    methods = {"flop_formula": spent.formula_flop, "flop_measured": spent.measured_flop, "flop_hardware": spent.hardware_flop}
    energy = sum(total.kwh for total in spent.energy_millijoules.values())
    return {name: None if total is None else int(total.amount) for name, total in methods.items()} | {
        "kwh": energy or None,
        "kwh_sources": sorted(spent.energy_millijoules),
    }


def as_csv(rows: tuple[Row, ...]) -> str:
    """One line per row; columns that are the member's own word say so in their name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f"{c}_self_declared" if c in SELF_DECLARED else c for c in COLUMNS])
    for row in rows:
        facts = {**as_dict(row), "left_out": "; ".join(_words(row)), "devices": " ".join(row.devices)}
        writer.writerow([_cell(facts[c]) for c in COLUMNS])
    return text.getvalue()


def _cell(value: object) -> object:
    """A member's words must not become a formula in somebody's spreadsheet, nor steer the terminal they are printed on."""
    if not isinstance(value, str):
        return value
    return f"'{plain(value)}" if value[:1] in ("=", "+", "-", "@") else plain(value)


def _words(row: Row) -> list[str]:
    return [f"exchange {x.exchange}{' (late)' if x.late else ''}, {x.phase or 'survivors'}: {x.reason}" for x in row.left_out]


def compute_words(row: Row) -> list[str]:
    """What the member says its training took; nothing where it does not say."""
    methods = (("formula", row.spent.formula_flop), ("measured", row.spent.measured_flop), ("hardware", row.spent.hardware_flop))
    flop = [f"{words} by {name}" for name, total in methods if (words := flop_in_words(total, row.usages))]
    energy = energy_in_words(row.spent.energy_millijoules, row.usages)
    said = "; ".join([*flop, *([energy] if energy else [])])
    return [f"{said}*"] if said else []


def _table(rows: tuple[Row, ...], size: int) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = (
        "run",
        "member",
        "invited",
        "counted",
        "late",
        "left out",
        "no sum",
        "accepted",
        "tokens*",
        "steps*",
        "seconds*",
        "up*",
        "down*",
    )
    for name in names:
        table.add_column(name, justify="left" if name in ("run", "member") else "right", no_wrap=True)
    for row in rows:
        other = len(row.left_out) - row.late
        counts = (row.invited, row.counted, row.late, other, row.unsummed, row.accepted, row.tokens, row.steps)
        spent = (f"{row.seconds:,.1f}", f"{row.bytes_up / 1e6:,.1f} MB", f"{row.bytes_down / 1e6:,.1f} MB")
        table.add_row(f"{row.run.hex()[:12]} {row.app}", row.member, *(f"{n:,}" for n in counts), *spent)
    draw(table)
    for row in rows:
        for line in (*_words(row), *compute_words(row)):
            say(f"  {row.run.hex()[:12]} {row.member}: {line}")
    say(f"* the member's own word. All else is signed by the coordinator, what is counted by a quorum of members too. {size} entries read")


def must_hold(result: Result) -> None:
    """Raises Refused or PartMissing, naming the first thing that does not hold."""
    wrong = [*result.findings, *result.unknown]
    if wrong:
        raise Refused(wrong[0].where, f"{wrong[0].why}; `dure audit verify` names everything that does not hold")
    if result.missing:
        raise PartMissing(f"{result.missing[0]} is not in the bundle; ask for it again, or export anew")


@one_line_errors
def of_bundle(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")],
    pin: Annotated[str, typer.Option("--root-sha256", help="64 hex digits: charter version 1, compared over a second channel.")],
    run: OnlyRun = "",
    since: Since = "",
    until: Until = "",
    check: Check = "",
    form: Format = "table",
    as_json: AsJson = False,
) -> None:
    """The administrator's table of contributions, recomputed from a bundle whose log was verified first.

    Example: dure audit contributions bundle --root-sha256 3f9a… --format csv
    """
    from dure.audit import bundle as bundles
    from dure.audit.cli import pin_of
    from dure.audit.level1 import verify

    bundle, wanted = bundles.Bundle.open(folder), pin_of(pin)
    result = verify(bundle, wanted)
    must_hold(result)
    versions = charter_root.walk_all(bundle.roots(), wanted)
    tree = TiledTree(lambda path: bundle.read(f"{bundles.LOG}/{path}"), result.size)
    if check:
        show_checked(check, tree, versions, as_json)
        return
    show(found(tree, versions, run, since, until), "json" if as_json else form, result.size)
