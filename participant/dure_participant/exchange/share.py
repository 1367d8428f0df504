"""Share: deal once per instance (rule 0). In `update`, dealing says that this node verified the scales."""

from __future__ import annotations

from dataclasses import replace

from dure.errors import Refused
from dure.secagg import instance as sums
from dure.wire.messages import Directive
from dure_participant.exchange.rules import may_send, payload_sha256, sent_bytes
from dure_participant.exchange.state import EpochWork, ExchangeWork, InstanceWork, OpenedScales
from dure_participant.exchange.turn import Turn, document, epoch_keys, instance_id, joined_epoch, lose, same, secret_of
from dure_participant.exchange.verify import take_aggregate

MAX_ATTEMPTS = 32
"""Of one instance's share phase: no honest coordinator needs more, and each is kept here until the exchange is over."""


def follow_share(turn: Turn, directive: Directive) -> None:
    """Deals for this cohort; asked again, the identical bytes; another cohort needs another attempt."""
    exchange = turn.state.exchange
    if exchange is None or exchange.number != directive.exchange:
        raise Refused("exchange", f"this node is not in exchange {directive.exchange}")
    if exchange.sat_out or exchange.trained is None:
        turn.change(kind="execute")
        return
    epoch = joined_epoch(turn.state, exchange.epoch)
    if epoch is None:
        lose(turn, exchange.epoch, f"this node has no keys of epoch {exchange.epoch}")
        return
    known = next((i for i in exchange.instances if i.instance == directive.instance), None)
    if known is not None:
        same(
            "members",
            directive.members,
            known.cohort,
            "is another cohort than this instance was dealt to; it takes another attempt (rule 0)",
        )
        turn.change(kind="share")
        return
    purpose, attempt = _judge(turn, exchange, epoch, directive)
    fresh = InstanceWork(
        directive.instance, purpose, attempt, directive.members, group_key=epoch_keys(epoch).group_key, node_keys=dict(epoch.node_keys)
    )
    if purpose == "update":
        scales = _scales(turn, exchange, directive)
        turn.put_instance(fresh)
        turn.change(kind="share")
        if scales is not None:
            deal(turn, fresh, scales)
        return
    may_send(turn, exchange, purpose, directive.instance)
    turn.put_instance(fresh)
    turn.change(kind="share")
    deal(turn, fresh, None)


def _judge(turn: Turn, exchange: ExchangeWork, epoch: EpochWork, directive: Directive) -> tuple[str, int]:
    """(purpose, attempt) of an instance this node may deal in."""
    where, cohort = instance_id(directive.instance), directive.members
    same("instance.consortium", where.consortium, turn.site.consortium)
    same("instance.run", where.run, turn.state.run)
    same("instance.exchange", where.exchange, exchange.number)
    same("instance.epoch", where.epoch, epoch.number)
    same("instance.fragment", where.fragment, 0)
    purpose = str(where.purpose)
    pair = exchange.category == "train" and bool(exchange.layout)
    if purpose not in (("scales", "update") if pair else ("scalars",)):
        raise Refused(
            "instance.purpose", f"{purpose} does not fit a {exchange.category} exchange {'with' if exchange.layout else 'without'} arrays"
        )
    if turn.site.member not in cohort or not set(cohort) <= set(epoch.members) or len(cohort) < turn.u_min:
        raise Refused("members", f"must be at least {turn.u_min} members of epoch {epoch.number} with this one among them")
    if ended := [m for m in cohort if m not in turn.site.members or epoch.node_keys[m] in turn.site.ended_keys]:
        raise Refused("members", f"{ended[0]} may take no part any more: it left, or its node's key was revoked or replaced")
    if doubted := [m for m in cohort if turn.state.doubted.get(m) == epoch.number]:
        raise Refused("members", f"{doubted[0]} is refused for epoch {epoch.number}: its node's key signed two histories (rule 7)")
    if where.attempt >= MAX_ATTEMPTS:
        raise Refused("instance.attempt", f"must be below {MAX_ATTEMPTS}")
    for earlier in exchange.instances:
        if earlier.purpose == purpose:
            if where.attempt <= earlier.attempt:
                raise Refused("instance.attempt", f"{where.attempt} is not above {earlier.attempt}")
            if sent_bytes(turn.history, earlier.instance):
                raise Refused("instance.attempt", "this node has sent bytes in the attempt before; it must be voided first (rule 2)")
        elif purpose == "scales":
            raise Refused("instance.purpose", "the update of this exchange has begun")
    return purpose, where.attempt


def _scales(turn: Turn, exchange: ExchangeWork, directive: Directive) -> OpenedScales | None:
    """The verified scales this update names; None while the sum is still to be verified."""
    may_send(turn, exchange, "update", directive.instance)
    survivors, aggregate = (document(directive.documents, f"scales_{name}") for name in ("survivors", "aggregate"))
    blob = document(directive.documents, "scales_sum").decode("ascii", "replace")
    found = exchange.scales or turn.state.scales
    if found is not None and found.aggregate_sha256 == payload_sha256(aggregate):
        check_scales(turn, exchange, found, directive.members)
        same("scales_survivors", payload_sha256(survivors), found.survivors_sha256)
        turn.change_exchange(scales=found)
        return found
    take_aggregate(turn, survivors, aggregate, blob, purpose="scales")
    return None


def check_scales(turn: Turn, exchange: ExchangeWork, scales: OpenedScales, cohort: tuple[str, ...]) -> None:
    """Rule 2: an update names opened scales on the same weights of which this node, and its whole cohort, are survivors."""
    same("scales", scales.weights_id, exchange.weights_id, "are of other weights")
    if turn.site.member not in scales.survivors or not set(cohort) <= set(scales.survivors):
        raise Refused("members", "must all be survivors of the scales")


def deal(turn: Turn, work: InstanceWork, scales: OpenedScales | None) -> None:
    """Fresh secrets; the share message is stored before it leaves."""
    exchange = turn.exchange
    epoch = joined_epoch(turn.state, exchange.epoch)
    assert epoch is not None
    if scales is not None:
        check_scales(turn, exchange, scales, work.cohort)
    secret, message = sums.deal(
        instance=instance_id(work.instance),
        cohort=work.cohort,
        me=turn.site.member,
        epoch=epoch_keys(epoch),
        colluders=turn.site.colluders,
        node_key=turn.site.node_key,
        rng=turn.rng,
        known=secret_of(work) if work.secret else None,
    )
    turn.put_instance(replace(work, secret=secret.to_bytes(), share=message))
