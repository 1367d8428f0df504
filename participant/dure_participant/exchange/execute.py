"""Execute: what the coordinator sent is judged, the worker trains on it, and the node says what it executed. Rules 2 and 6."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256

from dure.errors import DureError, Refused
from dure.model import per_node
from dure.model.base import BaseRecord
from dure.model.content import Instruction, content_id
from dure.model.layout import Layout
from dure.secagg import encode
from dure.secagg.errors import OutOfRange
from dure.statements.kinds import ExchangeAccept, RunPlan
from dure.statements.statement import open_statement
from dure.wire.messages import PROTOCOL_VERSION, Directive
from dure_participant.exchange.inputs import Trained, TrainResult
from dure_participant.exchange.rules import first_weights, may_begin, sent_bytes, take_voids
from dure_participant.exchange.state import EpochWork, ExchangeWork, TrainedWork
from dure_participant.exchange.turn import Turn, advance_chains, document, joined_epoch, lose, own_word, plain, report_body, same, sit_out

WINDOW = 16
"""No exchange number so far above the last closed one is taken (secure-aggregation.md §2)."""
NO_ID = bytes(32)
UNTOLD = "brought nothing that can be sent; this node's operator sees why"


def follow_execute(turn: Turn, directive: Directive) -> None:
    """Takes one exchange; the same one again is only sent its answer."""
    if "voids" in directive.documents:
        take_voids(turn, directive.documents["voids"])
    state = turn.state
    if state.exchange is not None and state.exchange.number == directive.exchange:
        _same_again(state.exchange, directive)
        turn.change_exchange(deadline_ms=directive.deadline_ms)  # a coordinator that was away gives the phase its whole time again
        turn.change(kind="execute")
        return
    last = max(state.last_closed, state.exchange.number if state.exchange else 0)
    if directive.exchange <= last:
        raise Refused("exchange", f"{directive.exchange} is over; this node has been in {last}")
    epoch = joined_epoch(state, directive.epoch)
    if epoch is None:
        lose(turn, directive.epoch, f"this node has no keys of epoch {directive.epoch}")
        return
    fresh = _judge(turn, directive, epoch)
    _close_what_is_over(turn, directive, epoch)
    last_closed = turn.state.last_closed
    if directive.exchange > min(last_closed + WINDOW, turn.plan.max_exchanges):
        raise Refused("exchange", f"{directive.exchange} is too far ahead of {last_closed}, or above the plan's {turn.plan.max_exchanges}")
    _leave_behind(turn)
    turn.change(exchange=fresh, kind="execute", old_epoch=None if state.epoch is epoch else state.old_epoch)
    if state.frozen:
        sit_out(turn, f"is frozen here: {state.frozen}")
        return
    if turn.site.barred:
        sit_out(turn, turn.site.barred)
        return
    try:
        _may_take_part(turn, fresh)
        may_begin(turn, fresh)
    except Refused as e:
        sit_out(turn, str(e))


def _may_take_part(turn: Turn, exchange: ExchangeWork) -> None:
    """`Refused` where this node contributes to nothing of this kind, whatever the base."""
    above = turn.state.above
    if above is not None and (not exchange.base_record or BaseRecord.from_json(exchange.base_record).exchange <= above):
        raise Refused("base", f"this node's key is younger than the run: it contributes on bases made after exchange {above} only (rule 7)")


def _close_what_is_over(turn: Turn, directive: Directive, epoch: EpochWork) -> None:
    """Closed for this node: u_min others accepted it or a later one; or this node sent no byte in it and its deadline is past (§2)."""
    state, found = turn.state, turn.state.last_closed
    said = sorted((word.exchange for word in _accepts(turn, directive, epoch).values()), reverse=True)
    if len(said) >= turn.u_min:
        found = max(found, said[turn.u_min - 1])
    old = state.exchange
    if old is not None and 0 < old.deadline_ms < turn.now * 1000 and not any(sent_bytes(turn.history, i.instance) for i in old.instances):
        found = max(found, old.number)
    turn.change(last_closed=found)


def _same_again(exchange: ExchangeWork, directive: Directive) -> None:
    said = directive.documents
    same("instruction", said.get("instruction"), exchange.instruction, "was another one for this exchange (rule 6)")
    for name, mine in (
        ("values", exchange.values),
        ("layout", exchange.layout),
        ("weights", exchange.weights.encode()),
        ("base", exchange.base_record),
    ):
        same(name, said.get(name, b""), mine, "was another one for this exchange (rule 6)")


def _judge(turn: Turn, directive: Directive, epoch: EpochWork) -> ExchangeWork:
    """`Refused` naming the field of the instruction, weights or base that this node does not take part on."""
    documents = directive.documents
    raw = document(documents, "instruction")
    try:
        instruction = Instruction.from_json(json.loads(raw))
    except (ValueError, RecursionError):
        raise Refused("instruction", "is not JSON") from None
    if len(directive.members) < turn.u_min or turn.site.member not in directive.members:
        raise Refused("members", f"must be at least {turn.u_min} with this one among them")
    values = documents.get("values", b"")
    permitted = turn.plan.per_node_config
    per_node.check_stated(instruction, per_node.stated(per_node.from_json(values)), permitted)
    fresh = ExchangeWork(
        number=directive.exchange,
        epoch=epoch.number,
        category=instruction.category,
        instruction=raw,
        weights="",
        layout=b"",
        base_record=b"",
        weights_id=NO_ID,
        content_id=content_id(instruction, permitted),
        deadline_ms=directive.deadline_ms,
        values=values,
    )
    arrays = instruction.arrays
    if arrays is None:
        same("layout", documents.get("layout", b""), b"", "is given for an instruction without arrays")
        return fresh
    layout, weights, base = (document(documents, name) for name in ("layout", "weights", "base"))
    same("layout", layout, arrays.layout.to_json(), "is not the instruction's")
    record = BaseRecord.from_json(base)
    same("weights", weights.decode("ascii", "replace"), str(record.weights), "are not those of the base record")
    same("weights", record.weights.length, Layout.from_json(layout).flat_bytes, "have another length than the layout")
    judge_base(turn, directive, record, arrays.weights_id, epoch)
    return replace(fresh, weights=str(record.weights), layout=layout, base_record=base, weights_id=arrays.weights_id)


def judge_base(turn: Turn, directive: Directive, record: BaseRecord, weights_id: bytes, epoch: EpochWork) -> None:
    """The base must be the one this node computed; the first one as the plan says; or one that u_min others computed."""
    state, plan, raw = turn.state, turn.plan, record.to_json()
    if not plan.outer_step.named:
        same("base.step", dict(record.step), {}, "must be empty: the plan leaves the step to the ServerApp")
        same("base.outer_state", record.outer_state, None, "must be null: the plan leaves the step to the ServerApp")
        if record.exchange == 0:
            _named(turn, weights_id)
        if state.base_record:
            mine = BaseRecord.from_json(state.base_record)
            if record.exchange <= mine.exchange:
                same("base", (record.exchange, record.e_b), (mine.exchange, mine.e_b), "does not name the scales this node verified last")
        return
    if state.base_record and raw == state.base_record:
        if state.base_weights_id != NO_ID:
            same("weights_id", weights_id, state.base_weights_id, "are not the weights this node computed")
        return
    if not state.base_record and record.exchange == 0:
        same("weights_id", weights_id, first_weights(turn, weights_id), "are not the first weights this node contributed on in this run")
        expected = BaseRecord.first(record.weights, plan.outer_step.config)
        same("base", raw, expected.to_json(), "is not the first base of this plan")
        _named(turn, weights_id)
        return
    mine_at = BaseRecord.from_json(state.base_record).exchange if state.base_record else 0
    if record.exchange <= mine_at:
        raise Refused("base", f"is not the base this node computed in exchange {mine_at}")
    _accepted_by_others(turn, directive, record, epoch)
    turn.change(base_record=raw, base_weights_id=weights_id, last_closed=max(state.last_closed, record.exchange))
    turn.note(f"takes the base of exchange {record.exchange} as accepted from peers")


def _named(turn: Turn, weights_id: bytes) -> None:
    """The first base is the one the plan names, if it names one."""
    if turn.plan.base is not None:
        same("weights_id", weights_id, turn.plan.base.weights_id, "are not the weights this plan starts from")


def _accepted_by_others(turn: Turn, directive: Directive, record: BaseRecord, epoch: EpochWork) -> None:
    """A node that missed exchanges takes a base only with u_min acceptances of it (ledger.md §5)."""
    words = _accepts(turn, directive, epoch, "accept")
    agreed = sum((word.exchange, word.base_id) == (record.exchange, record.id) for word in words.values())
    if agreed < turn.u_min:
        raise Refused("base", f"{agreed} members accepted it, {turn.u_min} are needed where this node did not compute it itself")


def _accepts(turn: Turn, directive: Directive, epoch: EpochWork, *names: str) -> dict[str, ExchangeAccept]:
    """Each member's acceptance in this run that is in the directive: of the base, or (`closed`) of the newest exchange that ended."""
    found: dict[str, ExchangeAccept] = {}
    for member in turn.plan.roster:
        for name in names or ("accept", "closed"):
            envelope = directive.documents.get(f"{name}/{member}")
            if envelope is None or member not in epoch.node_keys:
                continue
            try:
                signed = open_statement(envelope, ExchangeAccept, [epoch.node_keys[member]])
            except DureError:
                continue
            own_word(turn, signed)
            if (signed.fact.run, signed.fact.member) == (turn.state.run, member):
                found[member] = signed.fact
    return found


def _leave_behind(turn: Turn) -> None:
    """Moves on from the exchange before: its keys are erased; what it sent bytes in and does not know the end of is remembered."""
    old = turn.state.exchange
    if old is None:
        return
    advance_chains(turn, old.number)
    outcomes = {s.instance: s.outcome for s in turn.history.sent}
    kept = []
    for work in old.instances:
        outcome = outcomes.get(work.instance, "")
        unverified_scales = work.purpose == "scales" and outcome == "summed" and not work.verified
        if outcome == "open" or unverified_scales:
            group_key = work.group_key if work.purpose == "scales" else b""
            kept.append(replace(work, secret=b"", share=b"", group_key=group_key, open_envelope=b""))
    turn.change(past=(*turn.state.past, *kept)[-256:])


# -- the worker's result ------------------------------------------------------------------------------------------


def take_trained(turn: Turn, given: Trained) -> None:
    """The node is ready, or sits out with the reason; either is said once."""
    exchange = turn.state.exchange
    if exchange is None or given.exchange != exchange.number or exchange.trained is not None or exchange.sat_out:
        return
    if given.result.problem:
        told = given.result.told or UNTOLD
        if told != given.result.problem:
            turn.note(plain(f"app: {given.result.problem}"))
        sit_out(turn, f"app: {told}")
        return
    try:
        trained = judge_result(turn.plan, exchange, given.result)
    except Refused as e:
        sit_out(turn, str(e))
        return
    wanted = turn.plan.metrics.get(exchange.category) or turn.state.metrics.get(exchange.category)
    if wanted and trained.metrics != tuple(wanted):
        sit_out(turn, f"the app brings metrics {', '.join(trained.metrics) or 'none'}; this run sums {', '.join(wanted)}")
        return
    chain = turn.chain
    ready = report_body(
        content_id=exchange.content_id.hex(),
        weights_id=exchange.weights_id.hex(),
        layout=(sha256(exchange.layout).digest() if exchange.layout else NO_ID).hex(),
        metrics=list(trained.metrics),
        protocol=PROTOCOL_VERSION,
        seq=max(chain.seq - 1, 0),
        prev=(chain.prev or NO_ID).hex(),
    )
    turn.change_exchange(trained=trained, ready=ready)


def judge_result(plan: RunPlan, exchange: ExchangeWork, result: TrainResult) -> TrainedWork:
    """What the worker brought as integers that may be summed; `Refused` names what does not fit."""
    same("weights", result.weights_id, exchange.weights_id, "the blob does not hold the weights the instruction names")
    pair = exchange.category == "train" and bool(exchange.layout)
    if result.has_arrays != pair:
        raise Refused(
            "reply", "has no arrays, and a train reply needs them" if pair else "has arrays, and only train replies to arrays may"
        )
    names = tuple(sorted(result.metrics))
    if len(names) > 64 or any(not n or len(n) > 128 or not n.isprintable() for n in names):
        raise Refused("metrics", "at most 64, with names of 1 to 128 printable characters")
    try:
        weight = encode.weight_of(result.weight, plan.w_max)
        encode.check_metrics(weight, result.metrics, len(plan.roster))
    except OutOfRange as e:
        raise Refused(e.what, e.why) from None
    device = "".join(c for c in result.device if c >= " ")[:64]
    values = tuple(float(result.metrics[n]).hex() for n in names)
    used = (result.tokens, result.steps, result.milliseconds)
    work = TrainedWork(result.weights_id, result.has_arrays, result.update_root, weight.w_int, names, values, *used, device)
    return replace(
        work,
        environment=result.environment,
        formula_flop=flop_text(formula_flop(exchange, result.tokens)),
        measured_flop=flop_text(result.measured_flop),
        hardware_flop=flop_text(result.hardware_flop),
        energy=result.energy,
    )


def formula_flop(exchange: ExchangeWork, tokens: int) -> int:
    """6 x parameters x tokens, forward and backward; 2 x where nothing is trained. 0: no arrays, or no tokens.

    Source: Kaplan et al., "Scaling Laws for Neural Language Models", 2020, section 2.1: 2N a token forward, 4N backward.
    """
    parameters = Layout.from_json(exchange.layout).parameters if exchange.layout else 0
    return (6 if exchange.category == "train" else 2) * parameters * tokens


def flop_text(flop: int) -> str | None:
    """As statements have it; None for what nobody knows, and for more than they hold."""
    return str(flop) if 0 < flop < 10**30 else None


def metrics_of(trained: TrainedWork) -> dict[str, float]:
    """Name -> value, exactly as the app gave them."""
    return {name: float.fromhex(value) for name, value in zip(trained.metrics, trained.metric_values, strict=True)}
