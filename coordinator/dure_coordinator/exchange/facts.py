"""What one run is about, fixed when it is made: everything `decide` may rely on without asking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dure.statements.kinds import RunPlan


@dataclass(frozen=True)
class RunFacts:
    """The constants of one run. Built from plan and charter; a refold needs the very same, but for keys that came since."""

    consortium: bytes
    """16 bytes, the charter's."""
    run: bytes
    """32 bytes: SHA-256 of the run-plan payload."""
    plan: RunPlan
    plan_envelope: bytes
    """DSSE bytes of the plan, as every roster member gets them."""
    charter_version: int
    charter_sha256: bytes
    member_signing_keys: Mapping[str, tuple[bytes, ...]]
    """Per roster member every signing key (32 bytes) it had in the plan's charter version or has had since: node delegations verify under
    one of them. Keys are only ever added, so that the log folds to the same state; whose count now is for the members' port to judge."""
    """32 bytes; every statement a `Sign` duty asks for is signed with it."""
    challenge_window_s: int = 0
    """Seconds for which survivors' uploads stay after their exchange, from the charter."""
    epoch_max_s: float = 86_400.0
    """Age in seconds at which keys are agreed anew, between exchanges."""

    @property
    def roster(self) -> tuple[str, ...]:
        """Bytewise ordered member ids."""
        return tuple(sorted(self.plan.roster))

    @property
    def u_min(self) -> int:
        """Survivors at least, and approvals a run opens with."""
        return self.plan.u_min

    @property
    def colluders(self) -> int:
        return self.plan.colluders

    @property
    def named_step(self) -> bool:
        """True where members recompute the next base themselves."""
        return self.plan.outer_step.named
