"""A request of the ServerApp becomes an exchange, or is answered at once with the reason why not."""

from __future__ import annotations

import json
from dataclasses import replace

from dure.blobs import BlobId
from dure.errors import DureError, Refused
from dure.model import per_node
from dure.model.base import BaseRecord
from dure.model.content import ArrayItem, Instruction, content_id
from dure.statements.dsse import canonical_json
from dure_coordinator.exchange.approving import candidates
from dure_coordinator.exchange.close import answer_at_once
from dure_coordinator.exchange.common import Taken, abort, all_exchanges, away, in_flight, is_connected, names, refuse
from dure_coordinator.exchange.epoch import epoch_is_due, start_epoch
from dure_coordinator.exchange.events import Asked
from dure_coordinator.exchange.past import slim, update_opened
from dure_coordinator.exchange.state import ExchangePhase, ExchangeState, RunPhase, RunState
from dure_coordinator.exchange.steering import halted_by


def take_asked(state: RunState, event: Asked, now: float) -> Taken:
    """The same seq and digest change nothing; the same seq with another digest ends the run: the ServerApp diverged."""
    known = _digest_of(state, event.seq)
    if known == event.digest:
        return Taken(state)
    if known is not None:
        why = f"the ServerApp repeated request {event.seq} with another content: it is not deterministic, so it cannot be resumed"
        return Taken(abort(state, why), refuse("digest", why))
    if state.phase in (RunPhase.FINISHED, RunPhase.ABORTED):
        return Taken(state, refuse("run", f"is {state.phase}: {state.reason}"))
    last = max(state.answers, default=0)
    # Not last + 1: the journal answers some requests itself (weights summed already), and those are never asked here.
    if state.queued is not None or in_flight(state) is not None or event.seq <= last:
        return Taken(state, refuse("seq", f"is {event.seq}, the next is above {last} once the last is answered"))
    try:
        instruction = instruction_of(event)
    except DureError as e:
        return Taken(answer_at_once(state, event, f"the request cannot be read: {e}"))
    if why := _other_base(state, instruction):
        return Taken(abort(state, why), refuse("weights", why))
    if state.halting and instruction.category == "train":
        after = halted_by(state, event)
        return Taken(after, refuse("run", f"is {after.phase}: {after.reason}"))
    if why_not := _judge(state, event, instruction):
        return Taken(answer_at_once(state, event, why_not))
    return Taken(replace(state, queued=event))


def _digest_of(state: RunState, seq: int) -> bytes | None:
    if seq in state.answers:
        return state.answers[seq]
    for asked in (state.queued, state.exchange.asked if in_flight(state) and state.exchange else None):
        if asked is not None and asked.seq == seq:
            return asked.digest
    return None


def instruction_of(asked: Asked) -> Instruction:
    try:
        data = json.loads(asked.instruction)
    except (ValueError, RecursionError):
        raise Refused("instruction", "is not JSON") from None
    return Instruction.from_json(data)


def _judge(state: RunState, event: Asked, instruction: Instruction) -> str:
    """Why this request is refused at once; "" if it may run. Each is refused by the nodes too (rules 2 and 6)."""
    facts, plan, arrays = state.facts, state.facts.plan, instruction.arrays
    if state.exchanges >= plan.max_exchanges:
        return f"the plan allows {plan.max_exchanges} exchanges and all are used; a new plan may allow more"
    if strangers := [m for m in event.members if m not in facts.roster]:
        return f"{names(strangers)} not in the run's roster"
    if event.members and len(event.members) < facts.u_min:
        return f"{len(event.members)} members were chosen, {facts.u_min} are needed: a smaller sum would single members out"
    if why_not := _judge_values(state, event, instruction):
        return why_not
    category = instruction.category
    before = [e for e in _opened(state) if e.category == category]
    if arrays is None:
        content = content_id(instruction, plan.per_node_config)
        spent = [e.number for e in before if not e.has_arrays]
        if len(spent) >= plan.scalars_max:
            return f"the plan allows {plan.scalars_max} {category} exchanges without arrays and all are used"
        twice = [e.number for e in before if not e.has_arrays and e.content_id == content]
        return f"exchange {twice[0]} has summed this very message already; each is answered once per run" if twice else ""
    if not event.weights:
        return "the instruction has arrays and no weights were handed over"
    if twice := [e.number for e in before if e.weights_id == arrays.weights_id]:
        return f"exchange {twice[0]} has summed {category} replies on these weights already; two sums on one base could single a member out"
    if facts.named_step and state.base_record and arrays.weights_id != state.base_weights_id:
        return (
            "the weights are not the base that exchange made: where the plan names the outer step, the ServerApp must hand on what it got"
        )
    return ""


def _judge_values(state: RunState, event: Asked, instruction: Instruction) -> str:
    """Why the values per node cannot be sent: every member asked has its own, for the keys the plan lists, and none for others."""
    permitted = state.facts.plan.per_node_config
    try:
        values = node_values_of(event)
        for member in event.members or tuple(values) or ("",):
            per_node.check_stated(instruction, per_node.stated(values.get(member, {})), permitted)
    except DureError as e:
        return str(e)
    return ""


def node_values_of(asked: Asked) -> dict[str, per_node.NodeValues]:
    """Per member its own values; empty where everybody is sent the same."""
    found = json.loads(asked.node_values or b"{}")
    return {member: per_node.from_json(canonical_json(values)) for member, values in found.items()}


def _other_base(state: RunState, instruction: Instruction) -> str:
    """Why this run cannot go on: its plan names the first weights, and the ServerApp sends others before any were trained."""
    named, arrays = state.facts.plan.base, instruction.arrays
    first = not state.base_record or BaseRecord.from_json(state.base_record).exchange == 0
    if named is None or arrays is None or not first or arrays.weights_id == named.weights_id:
        return ""
    return f"the plan starts from {named.origin}, and the ServerApp sends other weights first; without a strategy it must send these itself"


def _opened(state: RunState) -> list[ExchangeState]:
    """Exchanges whose last instance was opened."""
    return [e for e in all_exchanges(state) if e.instance and e.instance.purpose != "scales" and _is_open(e)]


def _is_open(exchange: ExchangeState) -> bool:
    assert exchange.instance is not None
    return exchange.instance.decision == "reveal"


def advance_idle(state: RunState, now: float) -> RunState:
    """Between exchanges: finish, agree new keys, or begin the exchange that was asked for."""
    if state.phase is not RunPhase.IDLE:
        return state
    if state.stopping and state.queued is None:
        return replace(state, phase=RunPhase.FINISHED, reason=state.reason or "the ServerApp returned")
    if state.paused and not state.halting:
        return _waiting(state, f"paused: {state.paused}")
    if epoch_is_due(state, now):
        state = state if state.renew else replace(state, renew=True)
        if missing := away(state, tuple(m for m in state.approvals if m not in state.left_out and m not in state.convicted)):
            return _waiting(state, f"{names(missing)} lost the connection a moment ago and may come back for the new keys")
        if len(candidates(state)) >= state.facts.u_min:
            return start_epoch(state, now)
        if state.left_out:
            return replace(state, left_out=())
        return _waiting(state, f"{len(candidates(state))} of {state.facts.u_min} needed members are connected and approved")
    if state.queued is None:
        return _waiting(state, "waiting for the ServerApp")
    return _begin_exchange(state, state.queued, now)


def _waiting(state: RunState, reason: str) -> RunState:
    return state if state.reason == reason else replace(state, reason=reason)


def _begin_exchange(state: RunState, asked: Asked, now: float) -> RunState:
    assert state.epoch is not None
    facts, instruction = state.facts, instruction_of(asked)
    wanted = asked.members or tuple(node_values_of(asked))
    members = tuple(m for m in state.epoch.members if m not in state.convicted and (not wanted or m in wanted))
    scales = opened_scales(state, instruction)
    if scales is not None:
        assert scales.scales is not None
        members = tuple(m for m in members if m in scales.scales.survivors)
    here = [m for m in members if is_connected(state, m)]
    if len(members) < facts.u_min:
        return answer_at_once(replace(state, queued=None), asked, f"only {names(members)} could take part, {facts.u_min} are needed")
    if len(here) < facts.u_min:
        return _waiting(state, f"{len(here)} of {facts.u_min} needed members are connected; missing: {names(set(members) - set(here))}")
    arrays = instruction.arrays
    exchange = ExchangeState(
        number=state.exchanges + 1,
        epoch=state.epoch.number,
        asked=asked,
        category=instruction.category,  # type: ignore[arg-type]  # judged by Instruction
        has_arrays=arrays is not None,
        weights_id=arrays.weights_id if arrays else bytes(32),
        content_id=content_id(instruction, facts.plan.per_node_config),
        layout=_layout(state, arrays) if arrays else b"",
        base_record=base_for(state, asked, arrays.weights_id) if arrays else b"",
        members=members,
        phase=ExchangePhase.EXECUTE,
        began=now,
        started=now,
        metrics=frozen_metrics(state, instruction.category),
        scales=scales.scales if scales else None,
        scales_exchange=scales.scales_exchange if scales else 0,
    )
    closed = state.closed if state.exchange is None else (*state.closed, slim(state.exchange))
    return replace(
        state, phase=RunPhase.EXCHANGE, exchange=exchange, closed=closed, exchanges=exchange.number, queued=None, left_out=(), reason=""
    )


def _layout(state: RunState, arrays: ArrayItem) -> bytes:
    """Canonical JSON of the layout; a run has one, so the very bytes of the exchange before."""
    layout = arrays.layout.to_json()
    return state.exchange.layout if state.exchange is not None and state.exchange.layout == layout else layout


def frozen_metrics(state: RunState, category: str) -> tuple[str, ...]:
    return state.facts.plan.metrics.get(category) or state.metric_names.get(category, ())


def base_for(state: RunState, asked: Asked, weights_id: bytes) -> bytes:
    """Canonical JSON of the base record an exchange on these weights starts from."""
    if state.base_record and (state.facts.named_step or weights_id == state.base_weights_id):
        return state.base_record
    known = BaseRecord.from_json(state.base_record) if state.base_record else None
    first = BaseRecord.first(BlobId.parse(asked.weights), state.facts.plan.outer_step.config)
    return (replace(first, e_b=known.e_b, exchange=known.exchange) if known else first).to_json()


def opened_scales(state: RunState, instruction: Instruction) -> ExchangeState | None:
    """The exchange that opened scales on these weights whose update was never opened: they are used again (rule 2)."""
    arrays = instruction.arrays
    if arrays is None or instruction.category != "train":
        return None
    last = (state.exchange,) if state.exchange else ()
    for exchange in last + tuple(reversed(state.closed)):
        if exchange.weights_id == arrays.weights_id and exchange.scales is not None and not update_opened(exchange):
            return exchange
    return None
