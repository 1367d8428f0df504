"""What a site allows, applied outside user code: the operator's word on a plan, or a rule in site-policy.toml.

    [[allow]]
    app = "pretrain*"          # app name, shell pattern
    app_sha256 = "ab12…"       # or exactly this app; at least one of the two
    max_rounds = 100
    max_weight = 65536         # the plan's w_max at most

A rule gives consent only where this node has no earlier run on the same tensors and the charter does the rest; everything else waits for
`dure node allow PLAN-DIGEST`.
"""

from __future__ import annotations

import fnmatch
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dure.errors import BadInput
from dure.statements.kinds import RunPlan
from dure_participant.exchange.site import History

FILE = "site-policy.toml"
KEYS = {"app": str, "app_sha256": str, "max_rounds": int, "max_weight": int}


@dataclass(frozen=True)
class Rule:
    """One [[allow]] table; None does not restrict."""

    app: str | None = None
    app_sha256: str | None = None
    max_rounds: int | None = None
    max_weight: int | None = None

    def admits(self, plan: RunPlan) -> bool:
        """Whether every condition of the rule holds for this plan."""
        return (
            (self.app is None or fnmatch.fnmatchcase(plan.app_name, self.app))
            and (self.app_sha256 is None or plan.app_sha256.hex() == self.app_sha256)
            and (self.max_rounds is None or plan.rounds <= self.max_rounds)
            and (self.max_weight is None or plan.w_max <= self.max_weight)
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
        tables: Any = tomllib.loads(path.read_text()).get("allow", [])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
    rules = []
    for number, table in enumerate(tables, 1):
        for key, value in table.items():
            if key not in KEYS or type(value) is not KEYS[key]:
                raise BadInput(f"{path}: rule {number}: {key} is unknown or of the wrong type; keys are {', '.join(KEYS)}")
        if "app" not in table and "app_sha256" not in table:
            raise BadInput(f"{path}: rule {number}: needs app or app_sha256")
        rules.append(Rule(**table))
    return tuple(rules)


def allows(rules: tuple[Rule, ...], plan: RunPlan, history: History) -> bool:
    """Whether a rule consents. Never where this node has sent anything in another run: then a person must look (rule 2)."""
    return not history.sent and any(rule.admits(plan) for rule in rules)


def in_words(plan: RunPlan, digest: bytes, history: History) -> list[str]:
    """A plan for the person who must decide on it."""
    step = plan.outer_step.name
    settings = ", ".join(f"{k}={v}" for k, v in sorted(plan.settings.items())) or "defaults"
    lines = [
        f"plan {digest.hex()}",
        f"run {plan.name}: app {plan.app_name} {plan.app_version}, code digest {plan.app_sha256.hex()}",
        f"members: {', '.join(plan.roster)}; at least {plan.u_min} must finish an exchange",
        f"who could open a sum: more than {plan.colluders} members working together with the coordinator",
        f"{plan.rounds} rounds, at most {plan.max_exchanges} exchanges; settings: {settings}",
        f"next base: {'computed by every member (' + step + ')' if step != 'none' else 'chosen by the app, signed by the coordinator'}",
        f"masked: updates, losses and metrics. In the clear: that you took part, examples (at most {plan.w_max}), tokens, seconds, bytes",
        "first weights: as the coordinator sends them",
    ]
    earlier = sorted({(s.run.hex()[:12], s.tensors.hex()[:12]) for s in history.sent})
    lines += [f"earlier run {run} of this node, on tensors {tensors}" for run, tensors in earlier]
    return lines
