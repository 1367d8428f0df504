"""What stays of an exchange once its answer is given: enough for rule 2, for what may be asked about its sums, and for people.

A run may have thousands of them, so everything here is small: messages of members and statements are in the log of events and among the
statements, and are not needed to decide anything any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dure.statements.kinds import Usage
from dure.statements.statement import read_verified
from dure_coordinator.exchange.state import Counted, ExchangeState, InstancePhase, InstanceState, RunState


def answered(state: RunState, seq: int) -> RunState:
    """The state once the ServerApp's answer is journaled: the exchange it was about is slim from here on."""
    unanswered = tuple(u for u in state.unanswered if u.seq != seq)
    exchange = state.exchange
    over = exchange is not None and exchange.asked.seq == seq
    return replace(state, unanswered=unanswered, exchange=slim(exchange) if exchange is not None and over else exchange)


def slim(exchange: ExchangeState) -> ExchangeState:
    """The exchange without its messages. Certificates stay: they show what was, or may have been, opened."""
    scales = None if exchange.scales is None else _thin(exchange.scales)
    asked = replace(exchange.asked, instruction=b"", node_values=b"")
    own = tuple(scales if scales is not None and i.instance == scales.instance else _thin(i) for i in exchange.instances)
    return replace(exchange, asked=asked, instances=own, scales=scales, ready={}, step_result={}, accepts={}, usages={})


def _thin(instance: InstanceState) -> InstanceState:
    return replace(
        instance,
        shares={},
        open_statement=None,
        open_envelope=b"",
        commits={},
        signatures={},
        survivors_statement=None,
        survivors_proof=b"",
        reveals={},
        recovered=None,
        aggregate_statement=None,
        dropout_envelopes={},
    )


def update_opened(exchange: ExchangeState) -> bool:
    return any(i.purpose == "update" and i.phase is InstancePhase.OPENED for i in exchange.instances)


def count(counted: Mapping[str, Counted], survivors: tuple[str, ...], usages: Mapping[str, bytes]) -> dict[str, Counted]:
    """The totals with one more exchange that these members are in."""
    after = dict(counted)
    for member in survivors:
        was = after.get(member, Counted())
        raw = usages.get(member, b"")
        used = read_verified(raw, Usage) if raw else None
        after[member] = Counted(
            exchanges=was.exchanges + 1,
            tokens=was.tokens + (used.tokens if used else 0),
            steps=was.steps + (used.steps if used else 0),
            milliseconds=was.milliseconds + (used.milliseconds if used else 0),
            bytes_up=was.bytes_up + (used.bytes_up if used else 0),
            bytes_down=was.bytes_down + (used.bytes_down if used else 0),
        )
    return after
