"""What a plan runs in at this node: its own environment, the one its operator named, or the agent's interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dure.environments import place
from dure.environments.runtime import command_in
from dure.errors import Unavailable
from dure.statements.kinds import RunPlan
from dure_participant.store import Decision
from dure_participant.worker_host import OWN_INTERPRETER

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
        return OWN_INTERPRETER
    found = place.prepared(directory, env_sha256)
    if found is None:
        raise NotPrepared(env_sha256, run, directory)
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
