"""`dure run`: plan, start, look, export; steering is in run_steer_cli.py."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dure.apps import pack_app, read_app
from dure.console import DEFAULT_DIR, AsJson, Dir, draw, err, one_line_errors, out, say, show_json, span_words
from dure.environments.lock import LOCK_NAMES, read_lock
from dure.environments.wheels import lock_of, read_wheels
from dure.errors import BadInput, Unavailable
from dure.identity.files import write_atomic
from dure.statements.kinds import Deadlines
from dure_coordinator.admin_client import call
from dure_coordinator.deadlines import read_deadlines
from dure_coordinator.forecast_words import beside_lines, plan_lines, size_lines
from dure_coordinator.run_steer_cli import register
from dure_coordinator.watch import follow, kept_line, phases_table, render

app = typer.Typer(no_args_is_help=True, help="Training runs: plan, start, watch, steer, export. The coordinator must be serving.")

PHASES = ", ".join(f"{name} ({span_words(limit_s)})" for name, limit_s in asdict(Deadlines()).items())
AWAY_S = 120.0
"""How long `watch` waits for a coordinator that is being restarted."""
AppDir = Annotated[Path, typer.Argument(metavar="APP", help="A Flower app folder with [tool.flwr.app] in its pyproject.toml.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Run id; a unique beginning is enough.")]
Rounds = Annotated[int | None, typer.Option(help="Rounds; default: the app's own number.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="key=value of the app's run config; may be repeated.")]
Step = Annotated[str | None, typer.Option(help="average | nesterov,lr=0.8,momentum=0.5 | adam,… | none; default: as the app says.")]
KeepUploads = Annotated[
    str, typer.Option(help="none: masked uploads go once the charter's challenge window has closed; all: kept for good, for auditors.")
]
Members = Annotated[str | None, typer.Option(help="Comma-separated member ids; default: all members.")]
Deadline = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PHASE=TIME",
        help=f"How long a phase may take: {PHASES}. TIME is in seconds, or 90m, 36h, 2d. May be repeated; operators see it in the plan.",
    ),
]

From = Annotated[str | None, typer.Option("--from", metavar="RUN|FILE", help="Start from a run's model or a safetensors file.")]
FromRound = Annotated[int | None, typer.Option("--round", min=0, help="With --from RUN: the model after this round; default: its newest.")]

Initial = Annotated[
    str | None,
    typer.Option(
        metavar="joint|app", help="First weights: from a seed all members draw together (default where the app has rules), or the app's."
    ),
]
Parameters = Annotated[int | None, typer.Option(min=1, help="Elements of the model, where the app shall not be asked.")]
UpMbps = Annotated[float | None, typer.Option(help="A member's link to the coordinator, 10^6 bits per second; default: 100.")]
DownMbps = Annotated[float | None, typer.Option(help="The other way; default: 100.")]
HubMbps = Annotated[float | None, typer.Option(help="The coordinator's own link, for all members together; default: no limit.")]


def _arguments(
    folder: Path,
    rounds: int | None,
    sets: list[str] | None,
    step: str | None,
    members: str | None,
    keep_uploads: str,
    deadlines: list[str] | None,
    source: str | None,
    round_number: int | None,
    initial: str | None,
) -> tuple[dict[str, Any], bytes]:
    packed = pack_app(folder)
    arguments: dict[str, Any] = {"app_sha256": packed.digest.hex(), "set": sets or [], "keep_uploads": keep_uploads}
    if rounds is not None:
        arguments["rounds"] = rounds
    if step is not None:
        arguments["outer_step"] = step
    if members:
        arguments["members"] = [m.strip() for m in members.split(",") if m.strip()]
    if deadlines:
        arguments["deadlines"] = read_deadlines(deadlines)
    if source is not None:
        arguments["from"] = str(Path(source).resolve()) if Path(source).is_file() else source
    if initial is not None:
        if source is not None:
            raise BadInput("--initial: with --from the first weights are there already")
        arguments["initial"] = initial
    if round_number is not None:
        if source is None:
            raise BadInput("--round says which model of a run to start from; give the run with --from")
        arguments["round"] = round_number
    return arguments, packed.archive


@app.command()
@one_line_errors
def plan(
    folder: AppDir,
    rounds: Rounds = None,
    sets: Sets = None,
    outer_step: Step = None,
    members: Members = None,
    keep_uploads: KeepUploads = "none",
    deadline: Deadline = None,
    source: From = None,
    round_number: FromRound = None,
    initial: Initial = None,
    parameters: Parameters = None,
    up_mbps: UpMbps = None,
    down_mbps: DownMbps = None,
    hub_mbps: HubMbps = None,
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """What a run will take: bytes, disk here and at each node, time, and who must be awake. Starts nothing.

    The model's size is asked of the app itself, which runs up to its first broadcast; or give --parameters.

    Example: dure run plan apps/pretrain --rounds 100 --up-mbps 50 --down-mbps 200
    """
    arguments, archive = _arguments(folder, rounds, sets, outer_step, members, keep_uploads, deadline, source, round_number, initial)
    speeds = {"parameters": parameters, "up_mbps": up_mbps, "down_mbps": down_mbps, "hub_mbps": hub_mbps}
    found = call(directory, "run-plan", arguments | {k: v for k, v in speeds.items() if v is not None}, archive)
    if as_json:
        show_json(found)
        return
    for line in plan_lines(found):
        say(line)


@app.command()
@one_line_errors
def start(
    folder: AppDir,
    rounds: Rounds = None,
    sets: Sets = None,
    outer_step: Step = None,
    members: Members = None,
    keep_uploads: KeepUploads = "none",
    deadline: Deadline = None,
    source: From = None,
    round_number: FromRound = None,
    initial: Initial = None,
    parameters: Parameters = None,
    ignore_disk: Annotated[bool, typer.Option("--ignore-disk", help="Start although the forecast exceeds the disk or the quota.")] = False,
    watch_it: Annotated[bool, typer.Option("--watch", help="Stay and show how it goes.")] = False,
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Plan and start a run. It opens once enough members' operators allowed the plan.

    Example: dure run start apps/pretrain --rounds 4 --set seed=7

    Example: dure run start apps/pretrain --deadline execute=6h --deadline upload=45m

    Example: dure run start apps/pretrain --from 3f9a     goes on from that run's model

    Where sums were opened on those weights before, every operator is shown each of them and must consent.
    """
    arguments, archive = _arguments(folder, rounds, sets, outer_step, members, keep_uploads, deadline, source, round_number, initial)
    size = {} if parameters is None else {"parameters": parameters}
    found = call(directory, "run-start", {**arguments, **size, "ignore_disk": ignore_disk}, archive)
    if as_json:
        show_json(found)
    else:
        say(f"run {found['run']}")
        for line in size_lines(found):
            say(line)
        say(f"next: each member's operator looks at the plan: dure node allow {found['plan_digest'][:16]}")
    if watch_it:
        _watched(directory, found["run"], as_json)


def _watched(directory: Path, run: str, as_json: bool) -> dict[str, Any]:
    """Shows a run until it is over; `Unavailable` if it was aborted."""
    ended = dict(follow(partial(_asked, directory, run), err if as_json else out))
    if ended["state"] == "aborted":
        raise Unavailable(f"run {ended['run'][:12]} was aborted: {ended['reason']}")
    return ended


def _asked(directory: Path, run: str) -> dict[str, Any]:
    """One answer of `run-show`; a coordinator that is being restarted is waited for."""
    give_up = time.monotonic() + AWAY_S
    while True:
        try:
            return call(directory, "run-show", {"run": run})
        except Unavailable:
            if time.monotonic() > give_up:
                raise
            time.sleep(1.0)


@app.command()
@one_line_errors
def watch(run: RunId, directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Live: round, phase of every member, loss, bytes, time left. Plain lines where there is no terminal; ends with the run.

    Example: dure run watch 3f9a

    With --json the lines go to standard error and the run's end to standard output. Interrupting it does not touch the run.
    """
    call(directory, "run-show", {"run": run})  # a name that is none is refused at once
    ended = _watched(directory, run, as_json)
    if as_json:
        show_json(ended)


@app.command()
@one_line_errors
def lock(
    folder: AppDir,
    wheels: Annotated[Path, typer.Option(help="Folder with every wheel the app runs with.")],
    as_json: AsJson = False,
) -> None:
    """Write an app's lock, `requirements.lock`, from a folder of wheels: each by version and SHA-256. The same wheels give the same lock.

    Example: dure run lock apps/mine --wheels wheels

    Plans of the app then name this environment; every site prepares it: `dure node env prepare`, `dure coordinator env prepare`.
    """
    read_app(folder)
    path = folder / LOCK_NAMES[0]
    if (folder / LOCK_NAMES[1]).exists():
        raise BadInput(f"{folder} has {LOCK_NAMES[1]} already; an app has one lock")
    text = lock_of(read_wheels(wheels)).encode()
    found = read_lock(path.name, text)
    write_atomic(path, text)
    if as_json:
        show_json({"lock": str(path), "env_sha256": found.sha256.hex(), "packages": {p.name: p.version for p in found.pins}})
        return
    say(f"{path}: {len(found.pins)} packages, lock digest {found.sha256.hex()}")
    say(f"next: dure coordinator env prepare {folder} --wheels {wheels}, and the same at every node")


@app.command("list")
@one_line_errors
def list_runs(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """All runs, oldest first."""
    found = call(directory, "run-list", {})
    if as_json:
        show_json(found)
        return
    for run in found["runs"] or []:
        when = datetime.fromtimestamp(run["created"], UTC)
        say(f"{run['run'][:12]}  {when:%Y-%m-%d %H:%M}  {run['name']}: {'paused' if run['paused'] else run['state']} {run['reason']}")
    if not found["runs"]:
        say("no runs yet; dure run start APP")


@app.command()
@one_line_errors
def show(
    run: RunId,
    phases: Annotated[bool, typer.Option("--phases", help="Also where the time went: seconds per phase of the last exchanges.")] = False,
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Where a run stands: phase, members, what was counted, who was left out and why.

    Example: dure run show 3f9a --json

    Example: dure run show 3f9a --phases     waiting for nodes to train, or for their links, or for the coordinator?
    """
    found = call(directory, "run-show", {"run": run, "beside": True, "phases": phases})
    if as_json:
        show_json(found)
        return
    draw(render(found))
    for line in beside_lines(found["forecast"]):
        say(line)
    if phases:
        draw(phases_table(found["phases"]))


@app.command("let-go")
@one_line_errors
def let_go(run: RunId, directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Let go of masked uploads that a run which is over keeps for a dispute, or because its plan keeps all.

    Example: dure run let-go 3f9a

    Those whose challenge window is open stay until it closes. Afterwards nobody can recompute these sums.
    """
    found = call(directory, "run-let-go", {"run": run})
    if as_json:
        show_json(found)
    else:
        say(f"{found['let_go']} uploads are no longer kept for good; {kept_line(found)}")


@app.command()
@one_line_errors
def export(
    run: RunId,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for model.safetensors and layout.json.")],
    round_number: Annotated[int | None, typer.Option("--round", min=0, help="The model after this round; default: the newest.")] = None,
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Write a run's model as safetensors, also in mid-run. Round 0 is what the run began with.

    Example: dure run export 3f9a --round 2 --out model
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise BadInput(f"--out {out_dir}: is a file; give a folder")
    arguments: dict[str, Any] = {"run": run, "out": str(out_dir.resolve())}
    if round_number is not None:
        arguments["round"] = round_number
    found = call(directory, "run-export", arguments)
    if as_json:
        show_json(found)
    else:
        say(f"{found['model']}: {found['parameters']} parameters, {found['what']}")


register(app)
