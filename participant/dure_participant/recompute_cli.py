"""`dure node recompute`: asks the running node, which owns the connection, and shows how far it is."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from dure.console import DEFAULT_DIR, AsJson, Dir, err, one_line_errors, say, show_json
from dure.errors import BadInput, Unavailable
from dure.identity.node import load_node
from dure_participant.store import NodeStore, Recomputation

LOOK_S = 0.3
EXITS = {"agrees": 0, "gone": Unavailable.exit_code, "failed": Unavailable.exit_code}
"""By finding; everything else speaks against the coordinator and exits with 1."""


def register(app: typer.Typer) -> None:
    """Add the command to `dure node`."""

    @app.command()
    @one_line_errors
    def recompute(
        run: Annotated[str, typer.Argument(metavar="RUN", help="Run id; a unique beginning is enough.")],
        exchange: Annotated[int | None, typer.Option(help="Number of the exchange; default: the last one this node accepted.")] = None,
        directory: Dir = DEFAULT_DIR,
        as_json: AsJson = False,
    ) -> None:
        """Add the sums of an exchange up again, from every member's masked upload, and compare with what this node accepted.

        Example: dure node recompute 3f9a --exchange 4

        The uploads come from the coordinator and are checked, chunk by chunk, against what their members signed; the revealed seeds against
        their commitments. It fetches as many bytes as there are survivors, times the size of an update. If a sum does not hold, the chunk
        is named, this node takes no further part in the run, and a signed dispute goes to everybody (exit code 1). Uploads are there until
        the charter's challenge window has closed (exit code 5 afterwards). The node must be running.
        """
        from dure_participant.app import is_running

        load_node(directory)
        store = NodeStore(directory / "node.sqlite")
        run_id = _run(store, run)
        number = store.ask_recomputation(run_id, _exchange(store, run_id, exchange))
        if not is_running(directory):
            raise Unavailable("this node is not running; start it with `dure node run`: it then does what was asked, and `gave` shows it")
        ended = _wait(store, number, quiet=as_json)
        _show(ended, as_json)


def _run(store: NodeStore, prefix: str) -> bytes:
    found = [run for run in store.states() if run.hex().startswith(prefix.lower())]
    if len(found) != 1:
        raise BadInput(f"{prefix}: {len(found) or 'no'} runs of this node start so; `dure node status` shows all")
    return found[0]


def _exchange(store: NodeStore, run: bytes, wanted: int | None) -> int:
    accepted = sorted(store.accepted(run))
    if not accepted:
        raise BadInput(f"run {run.hex()[:12]}: this node has accepted no sum of it yet, so there is nothing to compare with")
    if wanted is not None and wanted not in accepted:
        raise BadInput(f"--exchange {wanted}: this node accepted no sum of it; accepted were {', '.join(map(str, accepted))}")
    return accepted[-1] if wanted is None else wanted


def _wait(store: NodeStore, number: int, *, quiet: bool) -> Recomputation:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("recomputing"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.fields[waits]}")
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal, transient=True) as bar:
        task = bar.add_task("recomputing", total=None, waits="")
        while True:
            (row,) = store.recomputations(number=number)
            if row.result is not None:
                return row
            bar.update(task, completed=row.done, total=row.total or None, waits=f"waiting: {row.waits}" if row.waits else "")
            time.sleep(LOOK_S)


def _show(row: Recomputation, as_json: bool) -> None:
    sums: list[dict[str, Any]] = row.result or []
    code = max((EXITS.get(s["finding"], 1) for s in sums), key=lambda c: (c == 1, c), default=Unavailable.exit_code)
    if as_json:
        show_json({"run": row.run.hex(), "exchange": row.exchange, "agrees": code == 0, "sums": sums})
    for found in sums if not as_json else ():
        say(f"run {row.run.hex()[:12]} exchange {row.exchange}, {found['purpose']}: {found['words']}")
    if code:
        raise typer.Exit(code)
