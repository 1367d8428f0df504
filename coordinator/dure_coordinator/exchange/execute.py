"""Nodes execute the instruction and say so; the cohort is frozen from those that are ready. Freeze first, deal afterwards."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Literal

from dure.errors import DureError, Refused
from dure.wire.messages import Report, why_not_spoken
from dure_coordinator.exchange.close import fail_exchange
from dure_coordinator.exchange.common import (
    NOT_READY,
    OK,
    Taken,
    hex_field,
    in_flight,
    is_lost,
    json_body,
    names,
    refusal_of,
    refuse,
    silence,
    sit_out,
    with_exchange,
)
from dure_coordinator.exchange.share import begin_instance
from dure_coordinator.exchange.state import ExchangePhase, ExchangeState, Ready, RunState

_READY = {"content_id": str, "weights_id": str, "layout": str, "metrics": list, "protocol": int, "seq": int, "prev": str}
MAX_METRICS = 64
MAX_METRIC_CHARS = 128


def take_ready(state: RunState, member: str, report: Report, now: float) -> Taken:
    """Compared field by field with what was asked: a node that executed something else is not in the cohort."""
    exchange = in_flight(state)
    if exchange is None or report.exchange != exchange.number:
        return Taken(state, refuse("exchange", f"{report.exchange} is not being run"))
    if member not in exchange.members:
        return Taken(state, refuse("member", "is not asked in this exchange"))
    try:
        ready = decode_ready(report.body)
    except DureError as e:
        return Taken(state, refusal_of(e))
    if (kept := exchange.ready.get(member)) is not None:  # one per exchange: each one kept is one in the log
        return Taken(state, OK if kept == ready else refuse("body", "another ready was kept; a node is ready once in an exchange"))
    if (why := _differs(state, exchange, member, ready)) is not None:
        return Taken(state, refuse(*why))
    if exchange.phase is not ExchangePhase.EXECUTE:
        return Taken(state, refuse("exchange", "the cohort is frozen"))
    if member in exchange.sat_out:
        return Taken(state, refuse("member", f"is out of this exchange: {exchange.sat_out[member][1]}"))
    seqs = {**state.seqs, state.present[member].node_key.hex(): ready.seq}
    return Taken(with_exchange(replace(state, seqs=seqs), ready={**exchange.ready, member: ready}))


def decode_ready(body: bytes) -> Ready:
    data = json_body(body, _READY, tuple(_READY))
    metrics = data["metrics"]
    if not all(isinstance(m, str) and 0 < len(m) <= MAX_METRIC_CHARS and m.isprintable() for m in metrics):
        raise Refused("metrics", f"must be names of 1 to {MAX_METRIC_CHARS} printable characters")
    if metrics != sorted(set(metrics)) or len(metrics) > MAX_METRICS:
        raise Refused("metrics", f"must be at most {MAX_METRICS} distinct names in order")
    if why := why_not_spoken(data["protocol"], "the node"):
        raise Refused("protocol", why)
    if not 0 <= data["seq"] < 2**48:
        raise Refused("seq", "must be in 0..2^48")
    digests = [hex_field(data, name, 32) for name in ("content_id", "weights_id", "layout")]
    return Ready(digests[0], digests[1], digests[2], tuple(metrics), data["seq"], hex_field(data, "prev", 32))


def _differs(state: RunState, exchange: ExchangeState, member: str, ready: Ready) -> tuple[str, str] | None:
    if ready.content_id != exchange.content_id:
        return "content_id", "the node executed another instruction"
    if ready.weights_id != exchange.weights_id:
        return "weights_id", "the node started from other weights"
    if ready.layout_sha256 != layout_digest(exchange):
        return "layout", "the node's model has another layout"
    if ready.seq < state.seqs.get(state.present[member].node_key.hex(), 0):
        return "seq", "went back: this node was restored from a backup and needs a new key (`dure node init` in a new folder)"
    if exchange.metrics and ready.metrics != exchange.metrics:
        return "metrics", f"are {', '.join(ready.metrics) or 'none'}; this run sums {', '.join(exchange.metrics)}"
    return None


def layout_digest(exchange: ExchangeState) -> bytes:
    """SHA-256 of the layout's canonical JSON; zeros without arrays."""
    from hashlib import sha256

    return sha256(exchange.layout).digest() if exchange.layout else bytes(32)


def take_sit_out(state: RunState, member: str, report: Report, now: float) -> Taken:
    """A node leaves the exchange before its first byte. Body: JSON {reason, convicts?, evidence? (hex)}."""
    exchange = in_flight(state)
    if exchange is None or report.exchange != exchange.number:
        return Taken(state, refuse("exchange", f"{report.exchange} is not being run"))
    if member not in exchange.members:
        return Taken(state, refuse("member", "is not asked in this exchange"))
    if member in exchange.sat_out:
        return Taken(state, OK)
    try:
        said = json_body(report.body, {"reason": str, "convicts": str, "evidence": str}, ("reason",))
    except DureError as e:
        return Taken(state, refusal_of(e))
    instance = exchange.instance
    if instance and member in instance.commits and exchange.phase is not ExchangePhase.STEP:
        return Taken(state, refuse("member", "has committed its upload already"))
    from dure_coordinator.exchange.share import judge_accusation

    state = judge_accusation(state, said)
    return Taken(sit_out(state, member, exchange.phase.value, said["reason"] or "gave no reason"))


def advance_execute(state: RunState, now: float) -> RunState:
    """Freezes the cohort as soon as all have answered, or at the deadline with those who have."""
    exchange = in_flight(state)
    if exchange is None or exchange.phase is not ExchangePhase.EXECUTE:
        return state
    facts = state.facts
    late = now >= exchange.began + facts.plan.deadlines.execute
    able = [m for m in exchange.members if m not in exchange.sat_out]
    if len(able) < facts.u_min:
        return fail_exchange(state, f"{len(able)} members can contribute, {facts.u_min} are needed{_why_out(exchange)}")
    ready = [m for m in able if m in exchange.ready and not is_lost(state, m)]
    pending = [m for m in able if m not in exchange.ready and not is_lost(state, m)]
    if pending and not late:
        return state
    if len(ready) < facts.u_min:
        if not late:
            return state
        limit_s = facts.plan.deadlines.execute
        missing = f"; not ready within {limit_s} s: {names(set(able) - set(ready))}"
        return fail_exchange(state, f"{len(ready)} members were ready in time, {facts.u_min} are needed{missing}{_why_out(exchange)}")
    return _freeze(state, exchange, tuple(ready), now)


def _why_out(exchange: ExchangeState) -> str:
    """Who sat out with which reason, those of one reason together; "" where nobody did."""
    by_reason: dict[str, list[str]] = {}
    for member, (_, reason) in sorted(exchange.sat_out.items()):
        by_reason.setdefault(reason, []).append(member)
    return "".join(f"; {names(members)}: {reason}" for reason, members in by_reason.items())[:400]


def _freeze(state: RunState, exchange: ExchangeState, ready: tuple[str, ...], now: float) -> RunState:
    for member in exchange.members:
        if member not in ready:
            state = sit_out(state, member, "execute", silence(state, member, NOT_READY))
    votes = Counter(exchange.ready[m].metrics for m in ready)
    chosen = exchange.metrics or min(votes, key=lambda names_: (-votes[names_], names_))
    for member in ready:
        if exchange.ready[member].metrics != chosen:
            state = sit_out(
                state, member, "execute", f"brings metrics {json.dumps(exchange.ready[member].metrics)}, most bring {json.dumps(chosen)}"
            )
    cohort = tuple(m for m in ready if exchange.ready[m].metrics == chosen)
    state = replace(with_exchange(state, metrics=chosen), metric_names={**state.metric_names, exchange.category: chosen})
    if len(cohort) < state.facts.u_min:
        return fail_exchange(state, f"{len(cohort)} members bring the same metrics, {state.facts.u_min} are needed")
    purpose: Literal["scales", "update", "scalars"]
    if not (exchange.has_arrays and exchange.category == "train"):
        purpose, phase = "scalars", ExchangePhase.SCALARS
    elif exchange.scales is not None:
        purpose, phase = "update", ExchangePhase.UPDATE
    else:
        purpose, phase = "scales", ExchangePhase.SCALES
    return begin_instance(with_exchange(state, phase=phase, began=now), purpose, cohort, attempt=0, now=now)
