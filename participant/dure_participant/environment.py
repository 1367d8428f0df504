"""What a plan runs in at this node: its own environment, one its operator named, or the agent's interpreter; and the node's word on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import dure
from dure.environments import place
from dure.errors import Unavailable
from dure.statements.kinds import EnvCommitment, RunPlan
from dure_participant.accelerators import ask, declared, looked_up
from dure_participant.settings import NodeSettings
from dure_participant.store import Decision

PREPARE = "dure node env prepare {} --wheels FOLDER"


class NotPrepared(Unavailable):
    """The environment is not there yet; the message names it and the command that makes it.

    Attributes:
        told: the same for the coordinator, whose administrator asks the operator: nothing of this site's in it.
    """

    def __init__(self, env_sha256: bytes, run: bytes, directory: Path) -> None:
        short = env_sha256.hex()[:16]
        self.told = f"environment {short} is not prepared at this node; its operator runs: {PREPARE.format(run.hex()[:16])}"
        super().__init__(f"environment {short} is not prepared at this node; its operator runs: {how_to_prepare(directory, run)}")


def env_of(plan: RunPlan, decision: Decision | None) -> bytes | None:
    """Lock digest of the environment; None: the agent's own interpreter."""
    return plan.env_sha256 or (decision.env_sha256 if decision is not None else None)


def how_to_prepare(directory: Path, run: bytes) -> str:
    return f"{PREPARE.format(run.hex()[:16])} --dir {directory}"


def launcher(directory: Path, env_sha256: bytes | None, run: bytes) -> Sequence[str]:
    """How the worker's module is started; its name and arguments follow.

    Raises:
        NotPrepared: not yet; look again.
        BadInput: it cannot be used with this version of Dure.
    """
    if env_sha256 is None:
        return place.OWN_INTERPRETER
    found = place.prepared(directory, env_sha256)
    if found is None:
        raise NotPrepared(env_sha256, run, directory)
    from dure.environments.runtime import command_in  # not for commands that start no worker

    return command_in(found)


def in_words(directory: Path, plan: RunPlan, run: bytes, chosen: bytes | None) -> str:
    """One line for the operator who decides. `chosen`: what the operator named."""
    env = plan.env_sha256 or chosen
    if env is None:
        return "environment: this node's own interpreter, with whatever is installed beside dure"
    found = place.prepared(directory, env)
    if found is None:
        return f"environment: packages by lock {env.hex()}, NOT prepared here; next: {how_to_prepare(directory, run)}"
    packages = ", ".join(f"{name} {version}" for name, version in found.packages.items())
    return f"environment: packages by lock {env.hex()}, prepared here: {packages or 'none'}"


def commitment(member: str, settings: NodeSettings, plan: RunPlan, env_sha256: bytes | None) -> EnvCommitment:
    """This node's word on what the plan's app works in here. It names kinds of things: no host or user, no path, no device's number.

    Args:
        env_sha256: `env_of` the plan.
    """
    return EnvCommitment(
        member=member,
        dure_version=version("dure"),
        dure_commit=commit_of(Path(dure.__file__).resolve().parents[2]),
        app_sha256=plan.app_sha256,
        lock_sha256=env_sha256,
        python=place.python_tag(),
        accelerators=declared(settings.accelerators) or looked_up(settings.device),
    )


@lru_cache(maxsize=4)
def commit_of(folder: Path, ask: Callable[[Sequence[str]], str | None] = ask) -> str | None:
    """The git commit that this source tree is, to the byte; None for an installed package, or a tree with changes of its own."""
    if not (folder / ".git").exists() or not (folder / "core" / "dure").is_dir():
        return None
    if ask(("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")) != "":
        return None
    found = (ask(("git", "-C", str(folder), "rev-parse", "HEAD")) or "").strip()
    return found if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", found) else None
