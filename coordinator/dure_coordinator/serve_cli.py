"""`dure coordinator serve` and `status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dure.console import DEFAULT_DIR, AsJson, Dir, Metrics, one_line_errors, say, show_json
from dure.identity.files import read_json


def register(app: typer.Typer) -> None:
    """Add the commands to `dure coordinator`."""

    @app.command()
    @one_line_errors
    def serve(
        directory: Dir = DEFAULT_DIR,
        listen: Annotated[str | None, typer.Option(help="host:port to bind; default: the advertised port.")] = None,
        metrics: Metrics = None,
    ) -> None:
        """Serve the members until SIGTERM: the members' port (mutual TLS) and the admin socket.

        Example: dure coordinator serve --dir /var/lib/dure
        """
        from dure_coordinator.app import serve as run

        run(directory, listen, metrics)

    @app.command()
    @one_line_errors
    def enter(
        file: Annotated[Path, typer.Argument(help="From a member: `dure member revoke` or `dure data register` made it.")],
        directory: Dir = DEFAULT_DIR,
        as_json: AsJson = False,
    ) -> None:
        """Put what a member signed into the log: a revocation, a data commitment. You cannot make one, and cannot change it.

        Example: dure coordinator enter krafton.revocation.json --dir /var/lib/dure
        """
        from dure_coordinator.admin_client import call

        body = read_json(file, "a file made with `dure member revoke` or `dure data register`", "member", "statements")
        found = call(directory, "enter", {"member": body["member"], "statements": body["statements"]})
        if as_json:
            show_json(found)
            return
        say(f"{found['statements']} statements of {found['member']} are in the log; a node that they revoke is cut off")

    @app.command()
    @one_line_errors
    def status(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
        """Who is connected, which runs there are.

        Example: dure coordinator status --json
        """
        from dure_coordinator.admin_client import call

        found = call(directory, "status", {})
        if as_json:
            show_json(found)
            return
        say(f"{found['name']} at {found['address']}, charter version {found['charter_version']}, up {found['up_s']:.0f} s")
        say(f"connected: {', '.join(found['connected']) or 'nobody'} of {', '.join(found['members'])}")
        if found["trouble"]:
            say(found["trouble"])
        log = found["log"]
        say(f"log: {log['size']} entries under a cosigned head{'; ' + log['trouble'] if log['trouble'] else ''}")
        for name, why in sorted(log["witnesses"].items()):
            say(f"  {'the next head waits for' if log['missing'] else 'not under the newest head:'} {name}: {why}")
        kept = found["uploads"]
        say(f"masked uploads on disk: {kept['uploads']} with {kept['length']:,} of {kept['quota']:,} bytes")
        for run in found["runs"]:
            say(f"run {run['run'][:12]} {run['name']}: {run['state']} {run['reason']}")
