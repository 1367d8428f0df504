"""A plan's deadlines from the command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from dure.errors import BadInput
from dure.statements.kinds import Deadlines

UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
MOST_S = 10 * 86_400
"""As `kinds.Seconds` has it."""


def read_deadlines(texts: Iterable[str]) -> dict[str, int]:
    """Seconds by phase, from `execute=6h` and the like; a phase that is named twice has the last one.

    Raises:
        BadInput: names the phase that is none (and the nearest that is one), or the time that is out of range.
    """
    return dict(_one(text) for text in texts)


def _one(text: str) -> tuple[str, int]:
    phase, equals, time = (part.strip() for part in text.partition("="))
    phases = list(asdict(Deadlines()))
    if phase not in phases:
        near = difflib.get_close_matches(phase, phases, n=1, cutoff=0.5)
        raise BadInput(
            f"--deadline {text}: no phase {phase!r}; " + (f"did you mean {near[0]}?" if near else f"phases are {', '.join(phases)}")
        )
    found = re.fullmatch(r"(\d{1,7})([smhd]?)", time)
    limit_s = int(found[1]) * UNITS_S[found[2] or "s"] if found else 0
    if not equals or not 1 <= limit_s <= MOST_S:
        raise BadInput(f"--deadline {text}: write {phase}=TIME, from 1 second to 10 days, such as {phase}=90, {phase}=45m or {phase}=6h")
    return phase, limit_s


def checked(limits_s: Mapping[str, object]) -> dict[str, int]:
    """The same in whole seconds, as the admin socket takes them."""
    return read_deadlines(f"{phase}={limit_s}" for phase, limit_s in limits_s.items())
