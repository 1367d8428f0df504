"""The demo's story: found, start, train, lose a node, get it back, compare, tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dure.errors import BadInput, Unavailable
from dure_coordinator.watch import Watch, dropout_line
from dure_demo.audit import audit, auditors_own, wait_for_mirror
from dure_demo.consortium import Consortium
from dure_demo.release import check_release, release
from dure_demo.table import show_members

KILLED = "semiconductor"
KILLED_IN_ROUND = 2
POLL_S = 0.1
RUN_DEADLINE_S = 1_800.0
"""A demo that takes longer than this is stuck, and says so."""


@dataclass(frozen=True)
class Scenario:
    """What to play. `app` is pretrain or digits; state is kept under `directory`."""

    members: tuple[str, ...]
    rounds: int
    seed: int
    app: str
    directory: Path
    kill: bool

    def exchange_of_round(self, number: int) -> int:
        """Number of the train exchange of a round; both count from one. In pretrain's first exchange the seed of the weights is drawn."""
        return 2 * number - 1 if self.app == "digits" else number + 1


def app_folder(name: str) -> Path:
    """The example app's folder in this checkout."""
    folder = Path(__file__).resolve().parents[2] / "apps" / name
    if not (folder / "pyproject.toml").is_file():
        raise BadInput(f"{folder}: the demo runs from a checkout of the repository; clone it and use `make demo`")
    return folder


Say = Callable[[str], None]


def play(scenario: Scenario, console: Console) -> dict[str, Any]:
    """Play the whole story and return what `--json` prints.

    Raises:
        DureError: a step failed; the message says which and where its log is.
    """

    def head(line: str) -> None:
        console.print(f"== {line}", highlight=False, markup=False, soft_wrap=True, style="bold")

    def say(line: str) -> None:
        console.print(f"   {line}", highlight=False, markup=False, soft_wrap=True)

    texts = None
    if scenario.app == "pretrain":
        head("texts: five packages, pinned by hash")
        texts = _texts(scenario, say)
    consortium = Consortium(scenario.directory / "consortium", scenario.members, say)
    head("founding: keys, charter, signatures")
    consortium.found()
    for member in scenario.members:
        if texts is not None:
            consortium.configure(member, {"data": str(texts / member)})
    try:
        head("coordinator and nodes, each its own process, mutual TLS everywhere")
        run = _begin(scenario, consortium, texts, say)
        head("training: masked sums, nobody reads another's update")
        shown = _watch(scenario, consortium, run, console)
        consortium.export(run, scenario.directory / "model")
        consortium.export(run, scenario.directory / "first", round_number=0)
        if texts is not None:
            _complete(scenario, texts)
        head("a release: the model with its evidence, signed by the members it takes")
        released = release(consortium, scenario.directory / "model", scenario.directory / "release", say)
        wait_for_mirror(consortium, scenario.members[0])
    finally:
        consortium.stop()
    outcome = _outcome(scenario, shown) | released
    show_members(console, outcome["members"])
    for dropout in outcome["dropouts"]:
        say(dropout_line(dropout))
    if texts is not None:
        head("comparing: each member alone with the same budget, on everybody's held-out text")
        _compare(scenario, texts, outcome, console, say)
    else:
        outcome["metrics"] = dict(shown["metrics"])
    head("audit, offline: nothing of the coordinator's is believed")
    auditor, with_what = auditors_own(scenario.directory / "cache" / "auditor", say)
    outcome |= with_what | audit(consortium, auditor, run, Path(outcome["model"]), scenario.directory / "bundle", say)
    check_release(auditor, Path(outcome["release"]), outcome["root_sha256"], say)
    head(f"the joint model: {outcome['model']}")
    return outcome


def _begin(scenario: Scenario, consortium: Consortium, texts: Path | None, say: Say) -> str:
    """Start every process and the run; returns the run's id once every operator allowed the plan."""
    consortium.serve()
    for member in scenario.members:
        consortium.start_node(member)
    step = "average" if scenario.app == "digits" else None  # pretrain names its own
    settings = _settings(scenario, texts)
    run, plan_digest = consortium.run_start(app_folder(scenario.app), rounds=scenario.rounds, settings=settings, outer_step=step)
    say(f"run {run[:12]}: plan {plan_digest[:16]}…")
    for member in scenario.members:
        consortium.allow(member, plan_digest)
    say("every operator allowed the plan")
    return run


def _settings(scenario: Scenario, texts: Path | None) -> Mapping[str, str]:
    if texts is not None:
        return {"seed": str(scenario.seed), "tokenizer": str(texts / "tokenizer.json")}
    # Digits train in milliseconds; more epochs give the killed node something to be in the middle of.
    return {"local-epochs": "40", "learning-rate": "0.05"}


def _watch(scenario: Scenario, consortium: Consortium, run: str, console: Console) -> dict[str, Any]:
    deadline = time.monotonic() + RUN_DEADLINE_S
    killed = back = False
    with Watch(console) as watch:
        while True:
            shown = consortium.run_show(run)
            watch.update(shown)
            state = shown["state"]
            if state == "finished":
                return shown
            if state == "aborted":
                raise Unavailable(f"the run was aborted: {shown.get('reason')}; logs are in {consortium.root / 'logs'}")
            at = scenario.exchange_of_round(KILLED_IN_ROUND)
            if scenario.kill and not killed and _in_mid_exchange(shown, at):
                consortium.kill(KILLED)
                killed = True
                watch.note(f"SIGKILL: {KILLED}'s node and worker are gone, in the middle of round {KILLED_IN_ROUND}")
            if killed and not back and int(shown["exchanges_closed"]) >= at:
                consortium.start_node(KILLED)
                back = True
                watch.note(f"{KILLED}'s node is back, with fresh optimiser state, for round {KILLED_IN_ROUND + 1}")
            if time.monotonic() > deadline:
                raise Unavailable(f"the run did not finish in {RUN_DEADLINE_S:.0f} s; logs are in {consortium.root / 'logs'}")
            time.sleep(POLL_S)


def _in_mid_exchange(shown: Mapping[str, Any], exchange: int) -> bool:
    """Whether that exchange is under way, and not yet so far that the member's part in it is done."""
    return shown["exchange"] == exchange and shown["phase"] in ("execute", "share", "open", "upload")


def _outcome(scenario: Scenario, shown: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rounds_completed": sum(line["category"] == "train" and line["status"] == "ok" for line in shown["history"]),
        "dropouts": shown["dropouts"],
        "members": [
            {
                "name": name,
                "exchanges_counted": int(facts["exchanges_counted"]),
                "tokens": int(facts["tokens"]),
                "seconds": round(float(facts["seconds"]), 3),
                "bytes_up": int(facts["bytes_up"]),
                "bytes_down": int(facts["bytes_down"]),
            }
            for name, facts in sorted(shown["members"].items())
        ],
        "model": str(scenario.directory / "model" / "model.safetensors"),
    }


def _texts(scenario: Scenario, say: Say) -> Path:
    """The members' texts, fetched and cleaned once per machine."""
    from dure_demo.data import prepare

    cache, out = scenario.directory / "cache", scenario.directory / "texts"
    prepare(cache, out, say)
    return out


def _complete(scenario: Scenario, texts: Path) -> None:
    """config.json and tokenizer beside the weights: then transformers loads the folder."""
    from dure_demo.recipe import Recipe, complete_export

    recipe = Recipe.of_app(scenario.members, rounds=scenario.rounds, seed=scenario.seed)
    complete_export(scenario.directory / "model", recipe, texts / "tokenizer.json")


def _compare(scenario: Scenario, texts: Path, outcome: dict[str, Any], console: Console, say: Say) -> None:
    """Joint against solo, outside the protocol; adds perplexity and bits_per_byte."""
    from dure_demo.compare import compare

    model, work, first = Path(outcome["model"]), scenario.directory / "solo", scenario.directory / "first" / "model.safetensors"
    found = compare(
        scenario.members, scenario.rounds, scenario.seed, texts=texts, model=model, initial=first, work=work, console=console, say=say
    )
    outcome.update(found)
