"""What a site allows, applied outside user code: the operator's word on a plan, or a rule in site-policy.toml.

    [[allow]]
    app = "pretrain*"          # app name, shell pattern
    app_sha256 = "ab12…"       # or exactly this app; at least one of the two
    env_sha256 = "cd34…"       # the environment, by its lock: the plan's own or, where the plan names none, the one to run it in
    run = "titan-*"            # run name, shell pattern
    max_rounds = 100
    max_weight = 65536         # the plan's w_max at most
    device = "cpu"             # only while this node's setting `device` is so
    allow_when_no_earlier_runs = true   # cannot be otherwise; may be said

Only plans the coordinator signed and the pinned charter permits come here. A rule gives consent only where this node has no earlier run:
then a person must look (rule 2). Everything else waits for `dure node allow PLAN-DIGEST`.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dure.console import span_words
from dure.errors import BadInput
from dure.model.lineage_words import lineage
from dure.statements.kinds import Deadlines, RunPlan
from dure_participant.exchange import again
from dure_participant.exchange.again import needs_consent
from dure_participant.exchange.site import History
from dure_participant.settings import NodeSettings

FILE = "site-policy.toml"
KEYS = {
    "app": str,
    "app_sha256": str,
    "env_sha256": str,
    "run": str,
    "max_rounds": int,
    "max_weight": int,
    "device": str,
    "allow_when_no_earlier_runs": bool,
}


@dataclass(frozen=True)
class Rule:
    """One [[allow]] table; None does not restrict."""

    number: int = 0
    """Its place in the file, from one."""
    app: str | None = None
    app_sha256: str | None = None
    env_sha256: str | None = None
    run: str | None = None
    max_rounds: int | None = None
    max_weight: int | None = None
    device: str | None = None
    allow_when_no_earlier_runs: bool = True

    @property
    def named(self) -> str:
        return f"{FILE}, rule {self.number}"

    def admits(self, plan: RunPlan, settings: NodeSettings) -> bool:
        """Whether every condition of the rule holds for this plan on this node."""
        return (
            (self.app is None or fnmatch.fnmatchcase(plan.app_name, self.app))
            and (self.app_sha256 is None or plan.app_sha256.hex() == self.app_sha256)
            and (self.env_sha256 is None or plan.env_sha256 is None or plan.env_sha256.hex() == self.env_sha256)
            and (self.run is None or fnmatch.fnmatchcase(plan.name, self.run))
            and (self.max_rounds is None or plan.rounds <= self.max_rounds)
            and (self.max_weight is None or plan.w_max <= self.max_weight)
            and (self.device is None or settings.device == self.device)
        )


def load(directory: Path) -> tuple[Rule, ...]:
    """The rules of a node's folder; none where there is no file.

    Raises:
        BadInput: the file does not parse; a broken policy allows nothing.
    """
    path = directory / FILE
    if not path.exists():
        return ()
    try:
        body: dict[str, Any] = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
    tables = body.pop("allow", [])
    if body or not isinstance(tables, list):
        raise BadInput(f"{path}: holds [[allow]] tables and nothing else; {', '.join(sorted(body)) or 'allow'} is not one")
    return tuple(_rule(path, number, table) for number, table in enumerate(tables, 1))


def _rule(path: Path, number: int, table: Any) -> Rule:
    if not isinstance(table, dict):
        raise BadInput(f"{path}: rule {number} is not a table; write [[allow]]")
    for key, value in table.items():
        if key not in KEYS or type(value) is not KEYS[key]:
            raise BadInput(f"{path}: rule {number}: {key} is unknown or of the wrong type; keys are {', '.join(KEYS)}")
    for key in ("app_sha256", "env_sha256"):
        if key in table and not re.fullmatch(r"[0-9a-f]{64}", table[key]):
            raise BadInput(f"{path}: rule {number}: {key} is not 64 lower-case hex digits")
    if "app" not in table and "app_sha256" not in table:
        raise BadInput(f"{path}: rule {number}: needs app or app_sha256")
    if table.get("allow_when_no_earlier_runs") is False:
        raise BadInput(f"{path}: rule {number}: where there are earlier runs only a person can consent, with `dure node allow`")
    return Rule(number=number, **table)


def consent(rules: tuple[Rule, ...], plan: RunPlan, history: History, settings: NodeSettings) -> Rule | None:
    """The first rule that consents to this plan; None where a person must look: after an earlier run, or on weights summed before."""
    if history.sent or needs_consent(plan):
        return None
    return next((rule for rule in rules if rule.admits(plan, settings)), None)


def in_words(plan: RunPlan, digest: bytes, history: History, environment: str) -> list[str]:
    """A plan for the person who must decide on it. `environment`: what it will run in here (environment.py)."""
    step = plan.outer_step.name
    settings = ", ".join(f"{k}={v}" for k, v in sorted(plan.settings.items())) or "defaults"
    lines = [
        f"plan {digest.hex()}",
        f"run {plan.name}: app {plan.app_name} {plan.app_version}, code digest {plan.app_sha256.hex()}",
        environment,
        f"members: {', '.join(plan.roster)}; at least {plan.u_min} must finish an exchange",
        f"who could open a sum: more than {plan.colluders} members working together with the coordinator",
        f"{plan.rounds} rounds, at most {plan.max_exchanges} exchanges; settings: {settings}",
        times_in_words(plan.deadlines),
        f"next base: {'' if step != 'none' else 'chosen by the app, '}{lineage(step)}",
        *([f"averaged whatever the step: {', '.join(plan.outer_step.averaged)}, integers"] if plan.outer_step.averaged else []),
        *(f"may differ per node, for everybody to see: {key}, of {', '.join(some)}" for key, some in sorted(plan.per_node_config.items())),
        f"masked: updates, losses and metrics. In the clear: that you took part, examples (at most {plan.w_max}), tokens, seconds, bytes;",
        "  and the kind of error, where the app fails on this node (not its message)",
    ]
    lines += again.in_words(plan.base, plan) if plan.base is not None else ["first weights: as the coordinator sends them"]
    return [*lines, *_earlier_runs(plan, history)]


def times_in_words(limits: Deadlines) -> str:
    """What a site must keep up with, not to be left out."""
    quick = max(limits.epoch, limits.share, limits.survivors, limits.reveal)
    train, upload, verify = (span_words(s) for s in (limits.execute, limits.upload, limits.accept))
    between = f"and at most {span_words(quick)} for each answer between; the plan waits {span_words(limits.approve)} for approvals"
    return f"times: {train} to train, {upload} to upload, {verify} to verify, {between}"


def _earlier_runs(plan: RunPlan, history: History) -> list[str]:
    """Every earlier run of this node on the same tensors; on any, where the plan does not say which it starts from."""
    named = plan.base.tensors_sha256 if plan.base is not None else None
    alike = {s.run for s in history.sent if named is None or s.tensors == named}
    on = "on a model of the same shape" if named is not None else "on some model"
    return [f"this node has taken part in run {run.hex()[:12]} before, {on}" for run in sorted(alike)]
