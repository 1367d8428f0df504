"""`dure coordinator replace-keys`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dure.charter.cli import tell
from dure.charter.coordinator import REPLACEABLE, CoordinatorFolder
from dure.charter.draft import proposed
from dure.console import DEFAULT_DIR, AsJson, Dir, one_line_errors, say
from dure.errors import BadInput


def register(app: typer.Typer) -> None:
    """Add the command to `dure coordinator`."""
    app.command("replace-keys")(replace)


@one_line_errors
def replace(
    only: Annotated[
        list[str] | None, typer.Option("--only", help="signing (statements), log (heads of the log) or ca (TLS); all unless given.")
    ] = None,
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Make new keys for this coordinator, and propose the charter version that puts them in the place of the old ones.

    Example: dure coordinator replace-keys --dir hub

    They count once enough members have signed that version and it is published: a serving coordinator then signs with them from the next
    entry on, every connected node follows within seconds, and nothing that the old keys sign after that entry counts any more. Runs go on.
    What the old keys signed before stays valid, and a node that was away still reaches a coordinator with a new CA, and learns of it.
    The same command again gives the same keys and the same proposal.
    """
    purposes = tuple(purpose for purpose in REPLACEABLE if not only or purpose in only)
    if unknown := [purpose for purpose in only or () if purpose not in REPLACEABLE]:
        raise BadInput(f"--only {unknown[0]}: can be {' or '.join(REPLACEABLE)}")
    folder = CoordinatorFolder.load(directory)
    if not folder.versions():
        raise BadInput("no charter is published yet, so nobody relies on these keys: make a coordinator anew with `dure coordinator init`")
    place = folder.make_keys(purposes, time.time())
    proposal = proposed(folder, time.time())
    if not as_json:
        say(f"new keys  {place}")
    tell(proposal, as_json)
