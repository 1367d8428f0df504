"""Config values that differ per node: only for listed keys, only permitted values, in the open for every member to see."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sim.exchange_world import LAYOUT, World

from dure.model.content import ArrayItem, ConfigItem, Instruction
from dure.model.weights import weights_id
from dure.statements.dsse import canonical_json
from dure.statements.kinds import InstanceOpen
from dure.statements.statement import read_verified
from dure.wire.messages import Directive, DirectiveKind
from dure_coordinator.exchange.events import Asked, Done, decode_event
from dure_participant.exchange import actions as act

SHARDS = {"m00": 0, "m01": 1, "m02": 2, "m03": 1}


def a_world(**plan: Any) -> World:
    world = World(4, 1, duplicate=0.0, **{"per_node_config": {"shard": ("0", "1", "2")}, **plan})
    world.executed = {}  # type: ignore[attr-defined]
    train = world.train

    def watched(member: str, action: act.Train) -> Any:
        world.executed[member] = dict(action.instruction.records[-1].values)  # type: ignore[attr-defined, union-attr]
        return train(member, action)

    world.train = watched  # type: ignore[method-assign]
    world.start()
    world.run_until(lambda w: w.idle())
    return world


def ask(world: World, values: dict[str, Any], key: str = "shard") -> Any:
    """One train exchange with `values` of its members; its reply."""
    weights = world.first_weights()
    flat = np.frombuffer(world.blobs[weights], "<f4")
    records = (ArrayItem("arrays", LAYOUT, weights_id(flat, LAYOUT)), ConfigItem("config", {"lr": 0.1, "shard": 0}))
    body = canonical_json(Instruction("train", "1", 60.0, records).to_json())
    each = (
        canonical_json({m: {"config": {key: {"i": v} if isinstance(v, int) else {"s": v}}} for m, v in values.items()}) if values else b""
    )
    seq = max(world.answers, default=0) + 1
    world.apply(Asked(seq, hashlib.sha256(body + each).digest(), body, weights, node_values=each))
    world.run_until(lambda w: seq in w.answers)
    return world.answers[seq]


def opens(world: World) -> list[InstanceOpen]:
    """Every instance-open the coordinator signed, in order; the state lets go of them once an exchange is answered."""
    events = [decode_event(data) for _, data in world.log]
    return [read_verified(e.result["envelope"], InstanceOpen) for e in events if isinstance(e, Done) and e.duty.startswith("open/")]


def test_each_node_executes_its_own_value_and_every_open_states_all_of_them() -> None:
    world = a_world()
    reply = ask(world, SHARDS)
    assert reply.status == "ok", reply.reason
    assert {m: v["shard"] for m, v in world.executed.items()} == SHARDS  # type: ignore[attr-defined]
    stated = [{m.member: m.values for m in opened.cohort} for opened in opens(world)]
    assert stated == [{m: {"config": {"shard": str(v)}} for m, v in SHARDS.items()}] * 2
    world.check_mean(reply, 1, world.state.exchange.asked.weights)  # type: ignore[union-attr]
    world.refold()


def test_only_members_that_were_given_values_are_asked() -> None:
    world = a_world()
    reply = ask(world, {m: v for m, v in SHARDS.items() if m != "m03"})
    assert reply.survivors == ("m00", "m01", "m02") and "m03" not in world.executed  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "key", "plan", "why"),
    [
        ({**SHARDS, "m01": 7}, "shard", {}, "'shard' of 'config': is 7; the plan permits 0, 1, 2"),
        ({**SHARDS, "m01": "1"}, "shard", {}, 'is "1"; the plan permits'),
        (SHARDS, "lr", {}, "'lr' of 'config': is given a value, and the plan lists no such key"),
        (SHARDS, "shard", {"per_node_config": {}}, "the plan lists no such key"),
        ({}, "shard", {}, "'shard' of 'config': has no value"),
    ],
)
def test_values_the_plan_does_not_permit_are_answered_at_once_and_nobody_is_asked(values: Any, key: str, plan: Any, why: str) -> None:
    world = a_world(**plan)
    reply = ask(world, values, key)
    assert reply.status == "failed" and why in reply.reason, reply.reason
    assert world.state.exchanges == 0 and world.executed == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (b'{"config":{"shard":{"i":9}}}', "is 9; the plan permits"),
        (b'{"config":{"lr":{"f":"0000000000000000"},"shard":{"i":1}}}', "the plan lists no such key"),
        (b"", "has no value"),
        (b'{"config": {"shard":{"i":1}}}', "canonical"),
    ],
)
def test_a_node_trains_on_no_value_its_plan_does_not_permit(shown: bytes, why: str) -> None:
    """The coordinator checked and then showed one member something else."""
    world = a_world()

    def other(member: str, directive: Directive) -> Directive:
        if member != "m01" or directive.kind is not DirectiveKind.EXECUTE:
            return directive
        return replace(directive, documents={**directive.documents, "values": shown} if shown else _without(directive))

    world.tamper = other
    reply = ask(world, SHARDS)
    assert "m01" not in reply.survivors and "m01" not in world.executed  # type: ignore[attr-defined]
    assert any(why in note for note in world.nodes["m01"].notes), world.nodes["m01"].notes


def _without(directive: Directive) -> dict[str, bytes]:
    return {name: body for name, body in directive.documents.items() if name != "values"}


def test_a_node_that_executed_another_permitted_value_than_the_open_states_sends_no_byte() -> None:
    world = a_world()

    def other(member: str, directive: Directive) -> Directive:
        if member == "m01" and directive.kind is DirectiveKind.EXECUTE:
            return replace(directive, documents={**directive.documents, "values": b'{"config":{"shard":{"i":2}}}'})
        return directive

    world.tamper = other
    reply = ask(world, SHARDS)
    assert world.executed["m01"]["shard"] == 2  # type: ignore[attr-defined]
    assert "m01" not in reply.survivors
    assert any("not the values this node executed" in note for note in world.nodes["m01"].notes), world.nodes["m01"].notes
    assert not any(member == "m01" for member, _ in world.spools)


def test_a_message_without_listed_keys_needs_no_values_whoever_is_chosen() -> None:
    world = a_world()
    records = (ConfigItem("config", {"lr": 0.1}),)
    body = canonical_json(Instruction("query", "1", 60.0, records).to_json())
    world.apply(Asked(1, hashlib.sha256(body).digest(), body, "", world.members))
    world.run_until(lambda w: 1 in w.answers)
    assert world.answers[1].status == "ok", world.answers[1].reason


def test_a_chosen_member_without_values_of_its_own_is_named_and_nobody_is_asked() -> None:
    world = a_world()
    weights = world.first_weights()
    flat = np.frombuffer(world.blobs[weights], "<f4")
    records = (ArrayItem("arrays", LAYOUT, weights_id(flat, LAYOUT)), ConfigItem("config", {"lr": 0.1, "shard": 0}))
    body = canonical_json(Instruction("train", "1", 60.0, records).to_json())
    each = canonical_json({m: {"config": {"shard": {"i": 0}}} for m in world.members[1:]})
    world.apply(Asked(1, hashlib.sha256(body).digest(), body, weights, world.members, each))
    world.run_until(lambda w: 1 in w.answers)
    assert "has no value" in world.answers[1].reason and world.state.exchanges == 0
