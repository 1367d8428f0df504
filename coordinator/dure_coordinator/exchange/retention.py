"""How long masked uploads stay once their exchange is over: survivors' until the challenge window has closed, all others not at all.

Source: architecture.md, "What is kept, and how long"; ledger.md, section 4, `keep_uploads`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dure_coordinator.exchange.common import all_exchanges, is_over
from dure_coordinator.exchange.state import ExchangeState, InstancePhase, InstanceState, RunState


@dataclass(frozen=True)
class Keep:
    """What becomes of the uploads of one instance."""

    instance: bytes
    members: tuple[str, ...]
    """Whose stay; everybody else's go at once."""
    until: float
    """Unix seconds."""
    pinned: bool
    """Past that, too: the plan keeps all, or somebody disputes the sum."""


def keep_after(state: RunState, number: int) -> tuple[Keep, ...]:
    """What the end of an exchange means for its uploads; () while it goes on, or if there is none of that number.

    A sum that this exchange took over from an earlier one (scales whose update was voided) stays as long as its own.
    """
    exchange = next((e for e in all_exchanges(state) if e.number == number), None)
    if exchange is None or not is_over(exchange):
        return ()
    until = max(exchange.ended + state.facts.challenge_window_s, _accept_deadline(state, exchange))
    own = {i.instance for i in exchange.instances}
    taken = (exchange.scales,) if exchange.scales is not None and exchange.scales.instance not in own else ()
    return tuple(_keep(state, instance, until) for instance in (*taken, *exchange.instances))


def _accept_deadline(state: RunState, exchange: ExchangeState) -> float:
    """Until then a survivor that was away may still have to verify; 0 once all have accepted."""
    last = exchange.instance
    if last is None or all(m in exchange.accepts for m in last.survivors):
        return 0.0
    return exchange.began + state.facts.plan.deadlines.accept


def _keep(state: RunState, instance: InstanceState, until: float) -> Keep:
    members = instance.survivors if instance.phase is InstancePhase.OPENED else ()
    disputed = any(d.instance == instance.instance for d in state.disputes)
    return Keep(instance.instance, members, until, disputed or state.facts.plan.keep_uploads == "all")
