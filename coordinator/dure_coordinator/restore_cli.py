"""`dure coordinator restore-log`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dure.console import DEFAULT_DIR, AsJson, Dir, one_line_errors, say, show_json


def register(app: typer.Typer) -> None:
    """Add the command to `dure coordinator`."""

    @app.command("restore-log")
    @one_line_errors
    def restore_log(
        mirror: Annotated[Path, typer.Argument(help="A node's folder, a copy that has its log, or a bundle; or this very folder.")],
        directory: Dir = DEFAULT_DIR,
        as_json: AsJson = False,
    ) -> None:
        """Bring a database that is older than its log up to it again. For a coordinator that was restored from a backup, and stopped.

        The mirror counts because this log's own key signed its head. Runs that were open end: their nodes are past what this database
        remembers of them. What it has signed meanwhile, under numbers that were taken, is set aside in `log-set-aside`.

        Example: dure coordinator restore-log /media/stick/krafton-node --dir /var/lib/dure/coordinator
        """
        import asyncio

        from dure.charter.coordinator import CoordinatorFolder
        from dure_coordinator.app import database_of, only_one
        from dure_coordinator.log.restore import Restored, restore
        from dure_coordinator.settings import load
        from dure_coordinator.storage.store import Store

        async def run() -> Restored:
            folder = CoordinatorFolder.load(directory)
            store = await Store.open(database_of(folder, load(directory)))
            try:
                return await restore(store, folder, mirror)
            finally:
                await store.close()

        with only_one(directory):
            done = asyncio.run(run())
        if as_json:
            show_json({"before": done.before, "entries": done.size, "set_aside": done.set_aside, "ended": list(done.ended)})
            return
        say(f"the log has {done.size} entries; it had {done.before}. {done.set_aside} statements were set aside")
        for name in done.ended:
            say(f"run {name[:12]} ended: its nodes are past what this copy remembers; go on with `dure run start --from {name[:12]}`")
        say("next: dure coordinator serve; it signs once a quorum of witnesses has confirmed the log")
