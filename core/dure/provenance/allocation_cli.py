"""`dure allocation`: who gets which part of something, by the contributions in the log; signed by k members, and an entry of the log."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any

import typer

from dure.audit import contributions_cli as table
from dure.audit.allocations import find, load, must_match, table_at
from dure.audit.places import LogPlace, log_of
from dure.console import DEFAULT_DIR, AsJson, Dir, Yes, draw, one_line_errors, say, show_json
from dure.errors import BadInput, NotAuthorised
from dure.identity.files import read, write_atomic
from dure.identity.member import MemberFolder
from dure.provenance.allocation import AGREED, BASES, check_members, check_portions, shared_out, shown_by, sums, table_sha256
from dure.provenance.attestation import Voters, entry_of, merge, read_signatures, read_statement, sign, statement_of
from dure.provenance.contributions import Row
from dure.provenance.serving import serving_coordinator
from dure.statements import schema
from dure.statements.kinds import Allocation, AllocationPublished, Portion
from dure.tlog.checkpoint import Checkpoint

app = typer.Typer(no_args_is_help=True, help="Who gets which part, by the contributions in the log; signed by k members.")
File = Annotated[Path, typer.Argument(metavar="ALLOCATION", help="The file that `dure allocation draft` wrote.")]
PUBLISH_S = 90.0
MILLION = 1_000_000


@app.command()
@one_line_errors
def draft(
    name: Annotated[str, typer.Option(help="A name for it: letters, digits, '.', '_' and '-'.")],
    by: Annotated[str, typer.Option("--by", help=f"The column to share out by: {', '.join(BASES)}.")] = "",
    portion: Annotated[list[str], typer.Option("--portion", metavar="MEMBER=PARTS", help="Agreed parts, one for each member.")] = [],  # noqa: B006
    whole: Annotated[int, typer.Option(min=1, max=10**9, help="How many parts the whole has.")] = MILLION,
    purpose: Annotated[str, typer.Option(help="In words: what is shared out.")] = "",
    target: Annotated[Path | None, typer.Option("--out", help="The file; default: NAME.allocation.json here.")] = None,
    run: table.OnlyRun = "",
    since: table.Since = "",
    until: table.Until = "",
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Propose how something is shared out, citing the table of contributions at the log's newest cosigned head.

    Either in proportion to a column of the table (--by), in whole parts that add up exactly: then anybody can compute the portions again.
    Or by agreement (--portion for every member): then the table is cited, and the portions are the members' word.

    Example: dure allocation draft --name titan-2026 --by tokens --run 3f9a --dir hub
    """
    if bool(by) == bool(portion):
        raise BadInput("give either --by COLUMN or --portion MEMBER=PARTS for each member")
    if by and by not in BASES:
        raise BadInput(f"--by {by}: must be one of {', '.join(BASES)}")
    place = log_of(directory)
    head = place.head().checkpoint
    span = table.span_of(since, until)
    rows = table.rows_at(place.tree(), place.charters, head.size, run, span)
    if not rows:
        raise BadInput("no run is in the log yet: there is nothing to share out by")
    portions = shared_out(whole, sums(rows, by)) if by else _agreed(portion)
    said = _allocation(place, head, name, purpose, rows, span, by or AGREED, whole if by else sum(s.parts for s in portions), portions)
    path = target or Path(f"{name}.allocation.json")
    write_atomic(path, statement_of(said))
    _show(said, rows, {"file": str(path), "needed": place.charter.terms.k}, as_json)
    if not as_json:
        say(f"next: send {path} to the members; {place.charter.terms.k} of them must `dure allocation sign {path} --node THEIR-NODE`")


def _agreed(words: list[str]) -> tuple[Portion, ...]:
    found = []
    for word in words:
        member, _, parts = word.partition("=")
        if not parts.isascii() or not parts.isdigit() or len(parts) > 10:
            raise BadInput(f"--portion {word}: must be MEMBER=PARTS, parts a whole number")
        found.append(schema.decode(Portion, {"member": member, "parts": int(parts)}, f"--portion {word}"))
    return tuple(sorted(found, key=lambda s: s.member))


def _allocation(
    place: LogPlace,
    head: Checkpoint,
    name: str,
    purpose: str,
    rows: tuple[Row, ...],
    span: tuple[int, int],
    basis: str,
    whole: int,
    portions: tuple[Portion, ...],
) -> Allocation:
    charter = place.charter
    made = Allocation(
        name=name,
        consortium=charter.terms.consortium_id,
        charter_version=charter.version,
        charter_sha256=charter.digest,
        purpose=purpose,
        runs=tuple(sorted({row.run for row in rows})),
        begun_from=span[0],
        begun_before=span[1],
        log_size=head.size,
        log_root=head.root,
        table_sha256=table_sha256(rows),
        basis=basis,
        whole=whole,
        portions=portions,
    )
    check_portions(made)
    check_members(made, place.charters)
    return read_statement(statement_of(made), Allocation)


@app.command("sign")
@one_line_errors
def sign_command(
    file: File,
    node: Annotated[Path, typer.Option(help="Your node's folder: the table is made again from your own mirror of the log.")],
    directory: Dir = DEFAULT_DIR,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """See an allocation beside the table of contributions from your own mirror, and sign it with your governance key.

    Refused where the table, or portions that follow from it, are not what your own log gives.

    Example: dure allocation sign titan-2026.allocation.json --node krafton/node --dir krafton/keys
    """
    member, place, found = MemberFolder.load(directory), log_of(node), load(file)
    if member.pin is None or member.pin != place.pin:
        raise NotAuthorised(f"{node} is a node of another consortium than the one pinned in {directory}; `dure member trust DIGEST`")
    said, charter = found.said, place.charter
    if (said.consortium, said.charter_version, said.charter_sha256) != (charter.terms.consortium_id, charter.version, charter.digest):
        raise NotAuthorised(f"{file}: is of charter version {said.charter_version}, in force is {charter.version}; let it be drafted anew")
    if charter.member(member.member.id).governance_key != member.member.governance_key:
        raise NotAuthorised(f"the charter's governance key of {member.member.id} is not the one in {directory}")
    rows = must_match(place.tree(), place.charters, said)
    if not as_json:
        _show(said, rows, {}, as_json)
    if not yes and not typer.confirm("Sign this allocation for your organisation?"):
        raise BadInput("not signed")
    path = directory / f"{said.name}.allocation.{member.member.id}.sig"
    write_atomic(path, sign(found.statement, member.governance_key).to_bytes())
    if as_json:
        show_json({"signature": str(path), "allocation": said.name, "shown": shown_by(said)})
    else:
        say(f"signed: {path}; send it to the administrator")


@app.command()
@one_line_errors
def publish(
    file: File,
    signatures: Annotated[list[Path], typer.Argument(help="Signature files of the members.")],
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Enter an allocation into the log, at the coordinator; refused below k, naming who is missing. Saying it again is harmless.

    Example: dure allocation publish titan-2026.allocation.json *.allocation.*.sig --dir hub
    """
    place, found = log_of(directory), load(file)
    must_match(place.tree(), place.charters, found.said)
    files = [(p.name, read(p, "a member's signature, made with `dure allocation sign`")) for p in signatures]
    voters = Voters.of(found.said.charter_version, place.charters, Allocation.kind)
    envelope = merge(found.statement, read_signatures(files, Allocation.kind), voters)
    entry = entry_of(envelope, voters, AllocationPublished)
    told = serving_coordinator("allocation publish")(directory, "allocation-publish", {"entry": schema.encode(entry)}, timeout_s=PUBLISH_S)
    signers = [s.member for s in entry.signatures]
    proof = file.with_name(f"{found.said.name}.allocation.tlog-proof")
    write_atomic(proof, base64.b64decode(told["proof"]))
    if as_json:
        show_json({"allocation": found.said.name, "index": told["index"], "signed_by": signers, "proof": str(proof)})
        return
    say(f"{found.said.name}: entry {told['index']} of the log; signed by {', '.join(signers)}")
    say(f"next: anybody may `dure contributions --check {found.said.name}`, an auditor `dure audit contributions BUNDLE --check …`")


@app.command()
@one_line_errors
def show(
    asked: Annotated[str, typer.Argument(metavar="ALLOCATION", help="Its name in the log, or a file.")],
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """An allocation and the table at the head it cites. Whether the one follows from the other: `dure contributions --check`.

    Example: dure allocation show titan-2026 --dir krafton/node
    """
    place = log_of(directory)
    tree = place.tree()
    found = find(asked, tree, place.charters)
    extra: dict[str, Any] = {"entry": found.entry, "signed_by": list(found.signers)}
    _show(found.said, table_at(tree, place.charters, found.said), extra, as_json)
    if not as_json:
        say(
            f"entry {found.entry} of the log, signed by {', '.join(found.signers)}"
            if found.entry is not None
            else "in no entry of this log"
        )


def _show(said: Allocation, rows: tuple[Row, ...], extra: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json({"allocation": said.name, "basis": said.basis, "whole": said.whole, "portions": table.portions_of(said), **extra})
        return
    say(f"allocation {said.name}: {said.purpose or 'no purpose given'}")
    say(f"  by {said.basis}, {said.whole:,} parts; contributions of {len(said.runs)} runs at {said.log_size} entries of the log")
    draw(_table(said, rows))
    say(shown_by(said))


def _table(said: Allocation, rows: tuple[Row, ...]) -> Any:
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("member")
    columns = {name: sums(rows, name) for name in BASES}
    for name in (*BASES, "parts"):
        shown.add_column(name, justify="right")
    parts = table.portions_of(said)
    for member in sorted({*parts, *(row.member for row in rows)}):
        shown.add_row(member, *(f"{columns[name].get(member, 0):,}" for name in BASES), f"{parts.get(member, 0):,}")
    return shown
