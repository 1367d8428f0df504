"""`dure coordinator`: set up and serve."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dure.charter.coordinator import CoordinatorFolder
from dure.console import DEFAULT_DIR, AsJson, Dir, first_use, one_line_errors, say, show_json
from dure.environments.cli import environments
from dure.errors import BadInput
from dure.identity import keys
from dure_coordinator import keys_cli, restore_cli, serve_cli

app = typer.Typer(no_args_is_help=True, help="The consortium's coordinator: keys, server, state.")


@app.callback()
def group() -> None:
    """The consortium's coordinator: keys, server, state."""


@app.command()
@one_line_errors
def init(
    name: Annotated[str, typer.Option(help="Name of the consortium.")],
    advertise: Annotated[str, typer.Option(help="host:port under which members reach this coordinator.")],
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Make the coordinator's keys, CA and server certificate.

    Example: dure coordinator init --name titan --advertise hub.example:7443
    """
    with first_use(directory):
        folder = CoordinatorFolder.create(directory, name, advertise, time.time())
    fingerprint = keys.fingerprint(folder.ca_pem)
    if as_json:
        show_json({"name": name, "advertise": advertise, "consortium": folder.consortium_id.hex(), "ca_sha256": fingerprint.hex()})
        return
    say(f"coordinator of {name} at {advertise}")
    say(f"CA fingerprint  {keys.words(fingerprint)}")
    say("next: collect join requests and `dure charter draft *.join.json`")


def _app_folder(_directory: Path, app_name: str) -> Path:
    if not Path(app_name).is_dir():
        raise BadInput(f"{app_name} is not an app's folder")
    return Path(app_name)


app.add_typer(environments(_app_folder), name="env")
serve_cli.register(app)
restore_cli.register(app)
keys_cli.register(app)
