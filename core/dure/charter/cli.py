"""`dure charter`: from join requests to the charter everybody obeys."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from dure.charter import root
from dure.charter.coordinator import CoordinatorFolder
from dure.charter.draft import default_toml, joins, terms_from
from dure.charter.model import check_terms, tolerance
from dure.console import DEFAULT_DIR, AsJson, Dir, one_line_errors, say, show_json
from dure.errors import BadInput
from dure.identity import keys
from dure.identity.cli import describe
from dure.identity.files import read, write_atomic
from dure.identity.member import JoinRequest
from dure.statements import schema

app = typer.Typer(no_args_is_help=True, help="From join requests to the charter everybody obeys: draft, propose, publish, show.")


@app.command()
@one_line_errors
def draft(
    requests: Annotated[list[Path], typer.Argument(help="Join requests of the members.")],
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Take in join requests and write charter.toml for people to edit.

    Example: dure charter draft *.join.json
    """
    folder = CoordinatorFolder.load(directory)
    loaded = [(path, JoinRequest.load(path)) for path in requests]
    for path, request in loaded:
        write_atomic(directory / "joins" / f"{request.member.id}.join.json", read(path, "a join request"))
    everybody = list(joins(folder).values())
    target = directory / "charter.toml"
    write_atomic(target, default_toml(folder.name, everybody).encode())
    terms = terms_from(folder)
    if as_json:
        show_json({"draft": str(target), "members": [r.member.id for r in everybody], "tolerance": tolerance(terms)})
        return
    for request in everybody:
        say(f"  {request.member.id:<32} {keys.words(request.digest)}")
    say(tolerance(terms))
    say(f"next: compare the fingerprints by telephone, edit {target}, then `dure charter propose`")


@app.command()
@one_line_errors
def propose(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Turn charter.toml into N.root.json for the members to sign.

    Example: dure charter propose
    """
    folder = CoordinatorFolder.load(directory)
    terms = terms_from(folder)
    version = len(folder.versions()) + 1
    raw = root.propose(terms, version, datetime.now(UTC))
    path = folder.root_path(version)
    write_atomic(path, raw)
    digest = root.digest(root.parse(raw)).hex()
    if as_json:
        show_json({"proposal": str(path), "version": version, "digest": digest, "tolerance": tolerance(terms)})
        return
    say(f"{path}: version {version}, digest {digest}")
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
    raw = read(folder.root_path(version), "make it with `dure charter propose`")
    charter = folder.publish(raw, {path.name: read(path, "a signature of `dure member sign`") for path in signatures})
    if as_json:
        show_json({"version": charter.version, "digest": charter.digest.hex(), "consortium": str(folder.published_path())})
        return
    say(f"charter version {charter.version} is in force, digest {charter.digest.hex()}")
    say(f"next: send {folder.published_path()} to every member, and `dure coordinator serve`")


@app.command()
@one_line_errors
def show(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """The charter in force, in words.

    Example: dure charter show --dir hub
    """
    charter = CoordinatorFolder.load(directory).charter()
    check_terms(charter.terms)
    if as_json:
        show_json({"version": charter.version, "digest": charter.digest.hex(), **schema.encode(charter.terms)})
        return
    if charter.expires < datetime.now(UTC).timestamp():
        raise BadInput(f"charter version {charter.version} has expired; propose a new version")
    for line in describe(charter.terms, charter.version, charter.digest):
        say(line)
