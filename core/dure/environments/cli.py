"""`dure node env` and `dure coordinator env`: the same three commands, each on its role's own folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dure.apps import app_lock, read_app
from dure.console import DEFAULT_DIR, AsJson, Dir, err, one_line_errors, say, show_json
from dure.environments import place
from dure.environments.imports import imported_by
from dure.environments.lock import Lock, read_lock
from dure.environments.place import Environment
from dure.environments.wheels import lock_of, read_wheels
from dure.errors import BadInput

AppFolder = Callable[[Path, str], Path]
"""(the role's directory, what the user typed) → the app's folder."""
Named = Annotated[str, typer.Argument(metavar="APP", help="The app's folder; at a node also the digest of a plan it was offered.")]
Digest = Annotated[str, typer.Argument(metavar="DIGEST", help="Beginning of its lock digest or its own, from `env list`.")]


def environments(app_folder: AppFolder) -> typer.Typer:
    """The command group of one role."""
    group = typer.Typer(no_args_is_help=True, help="Environments: the packages an app runs with, prepared offline, apart from all others.")

    @group.command()
    @one_line_errors
    def prepare(
        app: Named,
        wheels: Annotated[Path, typer.Option(help="Folder with the wheels; nothing else is asked, no network either.")],
        lock: Annotated[
            Path | None, typer.Option(help="A lock, where the app has none; default: one of every wheel in the folder.")
        ] = None,
        directory: Dir = DEFAULT_DIR,
        as_json: AsJson = False,
    ) -> None:
        """Make the environment an app runs in, offline, from its lock and a folder of wheels; every wheel by its hash.

        Example: dure node env prepare apps/mine --wheels /srv/wheels --dir /var/lib/dure

        A lock is `requirements.lock` or `pylock.toml` in the app's folder and names every package by version and SHA-256. Dure, and flwr
        with what it needs, may be left out of it: they are lent. Made whole or not at all; a second time it is there at once.
        """
        from dure.environments.prepare import prepare as make

        folder = app_folder(directory, app)
        found = read_app(folder)
        chosen = choose_lock(folder, lock, wheels)
        modules = imported_by(folder, found.clientapp, found.serverapp)
        tell = (lambda line: err.print(line, markup=False)) if as_json else say
        made = make(directory, chosen, wheels, modules, tell)
        if as_json:
            show_json(facts(made))
            return
        say(f"environment {made.env_sha256} is ready: {len(made.packages)} packages, {made.bytes / 1e6:.0f} MB")
        if found.env_sha256 is None:
            say(
                f"the app has no lock, so its plans name none; where one is to run in it: dure node allow PLAN --env {made.env_sha256[:12]}"
            )

    @group.command("list")
    @one_line_errors
    def show(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
        """Environments that are prepared here, by the digest of their lock.

        Example: dure node env list --json
        """
        made = place.all_prepared(directory)
        if as_json:
            show_json({"environments": [facts(environment) for environment in made]})
            return
        for e in made:
            packages = ", ".join(f"{name} {version}" for name, version in list(e.packages.items())[:6])
            say(f"{e.env_sha256[:16]}  {e.bytes / 1e6:.0f} MB  {packages}{' …' if len(e.packages) > 6 else ''}")
        if not made:
            say("no environment prepared here")

    @group.command()
    @one_line_errors
    def remove(digest: Digest, directory: Dir = DEFAULT_DIR) -> None:
        """Remove an environment; plans that name it wait until it is prepared again.

        Example: dure node env remove 3f9a12
        """
        found = place.named(directory, digest)
        place.remove(found)
        say(f"environment {found.env_sha256[:16]}… removed from {found.folder}")

    return group


def choose_lock(folder: Path, given: Path | None, wheels: Path) -> Lock:
    """The app's lock; where it has none the one given, else one of every wheel in the folder.

    Raises:
        BadInput: both; a plan names the app's own.
    """
    own = app_lock(folder)
    if own is not None and given is not None:
        raise BadInput(f"--lock {given}: {folder} has {own.file}, and plans of this app name that one; leave --lock out")
    if own is not None:
        return own
    if given is not None:
        if not given.is_file():
            raise BadInput(f"--lock {given} is not a file")
        return read_lock(given.name, given.read_bytes())
    return read_lock("the folder's own lock", lock_of(read_wheels(wheels)).encode())


def facts(environment: Environment) -> dict[str, object]:
    return {
        "env_sha256": environment.env_sha256,
        "digest": environment.digest,
        "folder": str(environment.folder),
        "packages": dict(environment.packages),
        "bytes": environment.bytes,
    }
