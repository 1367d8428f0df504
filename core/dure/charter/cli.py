"""`dure charter`: from join requests to the charter everybody obeys."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from dure.charter.coordinator import CoordinatorFolder
from dure.charter.draft import Proposal, default_toml, proposed, take_in, terms_from, text_of
from dure.charter.model import check_current, tolerance
from dure.console import DEFAULT_DIR, AsJson, Dir, one_line_errors, say, show_json
from dure.identity import keys
from dure.identity.cli import describe
from dure.identity.files import read, write_atomic
from dure.statements import schema

app = typer.Typer(no_args_is_help=True, help="From join requests to the charter everybody obeys: draft, propose, publish, show.")


@app.command()
@one_line_errors
def draft(
    requests: Annotated[list[Path], typer.Argument(help="Requests of the members: to join, to leave, to have their keys replaced.")],
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Take in members' requests and write charter.toml for people to edit. Nothing counts before the members have signed it.

    Example: dure charter draft *.join.json

    A member that will not leave by itself is taken off the list in charter.toml.
    """
    folder = CoordinatorFolder.load(directory)
    target = directory / "charter.toml"
    before = text_of(target) if target.exists() else ""
    taken = take_in(folder, requests, before)
    text = default_toml(folder.name, list(taken.members.values()), before)
    terms = terms_from(folder, text, taken.members)  # before anything is written
    taken.keep(directory / "joins")
    write_atomic(target, text.encode())
    if as_json:
        show_json({"draft": str(target), "members": list(taken.members), "tolerance": tolerance(terms), "said": taken.said})
        return
    for request in taken.members.values():
        say(f"  {request.member.id:<32} {keys.words(request.digest)}")
    for line in [*taken.said, tolerance(terms)]:
        say(line)
    say(f"next: compare the fingerprints by telephone, edit {target}, then `dure charter propose`")


@app.command()
@one_line_errors
def propose(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Turn charter.toml into N.root.json for the members to sign.

    Example: dure charter propose
    """
    tell(proposed(CoordinatorFolder.load(directory), time.time()), as_json)


def tell(proposal: Proposal, as_json: bool) -> None:
    """A proposal, for whoever must send it to the members."""
    terms, path, digest = proposal.terms, proposal.path, proposal.digest.hex()
    if as_json:
        body = {"proposal": str(path), "version": proposal.version, "digest": digest, "tolerance": tolerance(terms)}
        show_json({**body, "changes": list(proposal.changes)})
        return
    say(f"{path}: version {proposal.version}, digest {digest}")
    for line in proposal.changes:
        say(f"  {line}")
    if proposal.replaces:
        say("it replaces an earlier proposal with other terms: signatures over that one no longer count")
    say(tolerance(terms))
    say(f"next: send it to the members; {terms.k} of {len(terms.members)} must `dure member sign {path.name}`")


@app.command()
@one_line_errors
def publish(
    signatures: Annotated[list[Path], typer.Argument(help="Signature files of the members.")],
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Put the members' signatures into the proposal; refused below k, naming who is missing.

    Example: dure charter publish *.sig
    """
    folder = CoordinatorFolder.load(directory)
    version = len(folder.versions()) + 1
    published = f"version {version - 1} is in force; " if version > 1 else ""
    raw = read(folder.root_path(version), f"a proposal: {published}make one with `dure charter propose`")
    charter = folder.publish(raw, {str(path): read(path, "a signature of `dure member sign`") for path in signatures})
    if as_json:
        show_json({"version": charter.version, "digest": charter.digest.hex(), "consortium": str(folder.published_path())})
        return
    say(f"charter version {charter.version} is in force, digest {charter.digest.hex()}")
    if version > 1:
        say("a coordinator that serves obeys it within seconds, and so does every node that is connected")
    say(f"next: send {folder.published_path()} to every member, and `dure coordinator serve`")


@app.command()
@one_line_errors
def show(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """The charter in force, in words.

    Example: dure charter show --dir hub
    """
    charter = CoordinatorFolder.load(directory).charter()
    if as_json:
        show_json({"version": charter.version, "digest": charter.digest.hex(), **schema.encode(charter.terms)})
        return
    for line in describe(charter.terms, charter.version, charter.digest):
        say(line)
    say(f"in force until {datetime.fromtimestamp(charter.expires, UTC):%Y-%m-%d}")
    check_current(charter, time.time())
