"""The one entrance of the node's half: state and input give the next state, actions, and a note in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dure.statements.statement import Chain
from dure_participant.exchange.actions import Action
from dure_participant.exchange.inputs import Input
from dure_participant.exchange.site import History, Sent, Site
from dure_participant.exchange.state import NodeRunState


@dataclass(frozen=True)
class Step:
    """What an input led to. The agent stores state, chain and records in one transaction, then performs the actions."""

    state: NodeRunState
    chain: Chain
    """Of the node key; shared by all runs of this node, so runs take turns in `step`."""
    records: tuple[Sent, ...]
    """Add to the history (by instance; a later record replaces an earlier one)."""
    actions: tuple[Action, ...]
    note: str
    """One line for the operator; "" when there is nothing to say."""


def begin(run: bytes) -> NodeRunState:
    """The state before the run's first directive."""
    return NodeRunState(run=run)


def step(site: Site, history: History, chain: Chain, state: NodeRunState, given: Input, now: float, rng: Callable[[int], bytes]) -> Step:
    """The next state. Whatever the coordinator sends wrongly changes nothing and is named in `note`; never raises for it.

    Args:
        history: of this node, all runs.
        now: unix seconds.
        rng: n fresh random bytes.
    """
    raise NotImplementedError


def owed(site: Site, state: NodeRunState) -> tuple[Action, ...]:
    """What is to be done in this state: performed again after a restart, with the same bytes."""
    raise NotImplementedError
