"""`dure demo`: a whole consortium on this machine, from keys to a joint model, in one command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dure.errors import BadInput, DureError

app = typer.Typer(add_completion=False)

MEMBER_NAMES = ("games", "government", "law", "semiconductor", "telecom")


@app.callback(invoke_without_command=True)
def demo(
    members: Annotated[int, typer.Option(help="How many members, 3 to 5; with 3 no dropout is survived.")] = 5,
    rounds: Annotated[int, typer.Option(help="Rounds of training.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of pretrain's data order; its first weights are drawn by the members.")] = 7,
    which: Annotated[str, typer.Option("--app", help="digits (seconds) or pretrain (a language model, minutes).")] = "pretrain",
    directory: Annotated[Path, typer.Option("--dir", help="Where every role keeps its state; emptied first.")] = Path(".demo"),
    kill: Annotated[bool, typer.Option(help="Kill one node with SIGKILL in the middle of an exchange.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object last, progress on standard error.")] = False,
) -> None:
    """Play a consortium on this machine: five members, real processes, mutual TLS, masked sums, one node killed on the way.

    Everything it does goes through the commands you would type yourself; their state and logs stay in --dir.

    Example: dure demo --members 5 --rounds 4 --seed 7 --json
    """
    from dure_demo.scenario import Scenario, play

    console = Console(stderr=as_json)
    try:
        if not 3 <= members <= len(MEMBER_NAMES):
            raise BadInput(f"--members {members}: the demo has texts for 3 to {len(MEMBER_NAMES)} members")
        if rounds < 1:
            raise BadInput(f"--rounds {rounds}: at least 1")
        if which not in ("digits", "pretrain"):
            raise BadInput(f"--app {which}: digits or pretrain")
        names = MEMBER_NAMES if members == 5 else ("semiconductor", *[n for n in MEMBER_NAMES if n != "semiconductor"])[:members]
        # Three members tolerate no dropout, and the round of the killed node must not be the last.
        scenario = Scenario(tuple(sorted(names)), rounds, seed, which, directory.resolve(), kill and members > 3 and rounds > 2)
        outcome = play(scenario, console)
    except DureError as failed:
        print(f"error: {failed}", file=sys.stderr)
        raise typer.Exit(failed.exit_code) from None
    if as_json:
        print(json.dumps(outcome, ensure_ascii=False))
