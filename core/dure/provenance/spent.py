"""What members say their training took, added up: FLOP by three methods, and energy. What nobody said is null, never 0. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from dure.statements.kinds import Counter, Usage
from dure.statements.schema import Items, Pattern

MJ_PER_KWH = 3_600_000_000
"""Millijoules."""


@dataclass(frozen=True)
class Total:
    """A sum, and over how many usage statements."""

    amount: Annotated[str, Pattern(r"[1-9][0-9]{0,39}")]
    """A whole number as text, as in the statements."""
    statements: Counter

    @property
    def kwh(self) -> float:
        """Of millijoules."""
        return int(self.amount) / MJ_PER_KWH


@dataclass(frozen=True)
class Spent:
    """Of some usage statements; null where none of them says it."""

    formula_flop: Total | None = None
    """6 x parameters x tokens where something was trained, 2 x parameters x tokens elsewhere."""
    measured_flop: Total | None = None
    """Counted by the members' own code."""
    hardware_flop: Total | None = None
    """Worker seconds x peak rate: an upper bound."""
    energy_millijoules: Annotated[Mapping[str, Total], Items(0, 2)] = field(default_factory=dict)
    """By source: declared, nvml."""


def said_of_hardware(said: Usage) -> int | None:
    """FLOP by hardware as the member's site says it."""
    return int(said.hardware_flop) if said.hardware_flop is not None else None


def spent(usages: Sequence[Usage], hardware: Callable[[Usage], int | None] = said_of_hardware) -> Spent:
    """What these statements come to. `hardware`: FLOP by hardware of one; None where nobody knows."""
    energy = {source: _total(u.energy.millijoules for u in usages if u.energy and u.energy.source == source) for source in SOURCES}
    return Spent(
        formula_flop=_total(int(u.formula_flop) for u in usages if u.formula_flop is not None),
        measured_flop=_total(int(u.measured_flop) for u in usages if u.measured_flop is not None),
        hardware_flop=_total(flop for u in usages if (flop := hardware(u)) is not None),
        energy_millijoules={source: total for source, total in energy.items() if total is not None},
    )


SOURCES = ("declared", "nvml")


def _total(amounts: Iterable[int]) -> Total | None:
    known = [amount for amount in amounts if amount > 0]
    return Total(str(sum(known)), len(known)) if known else None


def flop_in_words(total: Total | None, of: int) -> str | None:
    """With how many of the statements say it, where not all do; None for nothing."""
    return f"{int(total.amount):.3e} FLOP{_partly(total, of)}" if total is not None else None


def energy_in_words(energy: Mapping[str, Total], of: int) -> str | None:
    """By source, in kWh."""
    names = {"declared": "by the power their sites declare", "nvml": "by the devices' counters"}
    parts = [f"{total.kwh:.6g} kWh {names[source]}{_partly(total, of)}" for source, total in sorted(energy.items())]
    return "; ".join(parts) or None


def _partly(total: Total, of: int) -> str:
    return f" (said by {total.statements} of {of} usage statements)" if total.statements < of else ""
