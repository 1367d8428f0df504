"""The table of contributions, from the statements of simulated runs, against what happened in them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from sim.exchange_world import LAYOUT, World
from sim.test_exchange_sim import ready_world

from dure.provenance.contains import contains
from dure.provenance.contributions import Row, contributions
from dure.provenance.drawn_from_log import compute, member_facts, run_in
from dure.provenance.facts import About
from dure.provenance.spent import Total
from dure.statements.anykind import open_any
from dure.statements.kinds import DataCommitment, Usage
from dure.statements.statement import Chain, Signed, seal
from dure_coordinator.exchange.events import Abort, Done, decode_event

ALWAYS = (0.0, float(2**48))


def entries_of(world: World) -> list[Signed[Any]]:
    """Every statement of a world."""
    keys = [
        world.coordinator_key.public_key().public_bytes_raw(),
        *(n.site.node_key.public_key().public_bytes_raw() for n in world.nodes.values()),
    ]
    done = [event for _, body in world.log if isinstance(event := decode_event(body), Done)]
    signed = [event.result["envelope"] for event in done if "envelope" in event.result]
    return [open_any(raw, keys) for raw in dict.fromkeys([world.facts.plan_envelope, *signed, *world.envelopes])]


def rows_of(world: World, **how: Any) -> dict[str, Row]:
    return {r.member: r for r in contributions(entries_of(world), **{"span": ALWAYS, **how})}


def registered(world: World) -> Signed[Any]:
    """m00's word about its data."""
    fact = DataCommitment("m00", "news", b"d" * 32, 3, 900, 7, None, "MIT", None, "2026-01-01")
    key = world.signing["m00"]
    return open_any(seal(fact, key, Chain(1, b"p" * 32), 1_700_000_000)[0], [key.public_key().public_bytes_raw()])


def played() -> World:
    """Four rounds: all; m04's connection lost; m03 silent past the deadline; given up by everybody."""
    world = ready_world(6)
    for member in ("m00", "m01"):
        world.nodes[member].data = (registered(world).envelope.payload_sha256,)
    weights = world.exchange(1, "train", world.first_weights()).blob
    world.kill("m04")
    weights = world.exchange(2, "train", weights).blob
    world.connect("m04")
    world.run_until(lambda w: w.idle())
    world.nodes["m03"].deaf = True
    reply = world.exchange(3, "train", weights)
    assert reply.status == "ok" and "m03" not in reply.survivors
    world.hear_again("m03")
    world.run_until(lambda w: w.idle())
    world.ask(4, "train", reply.blob)
    world.run_until(lambda w: bool(w.state.exchange and w.state.exchange.number == 4 and w.state.exchange.instance))
    world.run_until(lambda w: len(w.state.exchange.instance.commits) > 1)  # type: ignore[union-attr]
    world.apply(Abort("enough"))
    world.run_until(lambda w: not w.bag)
    return world


@pytest.fixture(scope="module")
def world() -> World:
    return played()


def test_every_member_is_counted_where_it_is_in_the_sum_and_nowhere_else(world: World) -> None:
    rows = rows_of(world)
    ended = [e for e in (*world.state.closed, world.state.exchange) if e is not None]
    for member, row in rows.items():
        counted = [e for e in ended if e.reply and e.reply.status == "ok" and member in e.reply.survivors]
        assert (row.counted, row.accepted) == (len(counted), len(counted))
        assert row.invited == row.counted + len(row.left_out) + row.unsummed == 4
        assert (row.tokens, row.steps, row.milliseconds) == (10 * row.counted, row.counted, 5 * row.counted), "as the simulated worker says"
        assert row.devices == ("cpu",) and row.usages == row.counted
        assert row.spent.formula_flop == Total(str(6 * LAYOUT.parameters * 10 * row.counted), row.counted)
        assert row.spent.hardware_flop == Total(str(5 * 10**9 * row.counted), row.counted)
        assert row.spent.energy_millijoules == {"declared": Total(str(500 * row.counted), row.counted)}
        assert row.spent.measured_flop is None, "the app did not count"
    assert rows["m00"].unsummed == 1


def test_whoever_missed_a_deadline_is_late_and_whoever_was_gone_is_not(world: World) -> None:
    rows = rows_of(world)
    late, gone = rows["m03"].left_out, rows["m04"].left_out
    assert [(x.exchange, x.late, x.reason) for x in late] == [(3, True, "was not ready at the deadline")]
    assert [(x.exchange, x.late) for x in gone] == [(2, False)]
    assert rows["m03"].late == 1 and rows["m04"].late == 0


def test_only_exchanges_begun_in_the_span_count(world: World) -> None:
    began = sorted({s.time for s in entries_of(world) if s.fact.kind == "instance-open"})
    assert rows_of(world, span=(began[-1] + 1.0, 2.0**48))["m00"].invited == 0
    assert rows_of(world, span=(0.0, began[0] + 0.0))["m00"].invited == 0
    assert rows_of(world, runs=lambda run, _plan: run != world.run) == {}


def test_usage_that_no_commit_names_counts_for_nothing(world: World) -> None:
    """A member cannot declare more later: its commit named the one statement that goes with its upload."""
    node = world.nodes["m00"]
    boast, _ = seal(Usage(world.run, 1, "m00", 10**9, 10**9, 10**9, 10**12, 0, "gpu"), node.site.node_key, Chain(900), world.now)
    stolen, _ = seal(Usage(world.run, 1, "m01", 10**9, 1, 1, 1, 0, "gpu"), node.site.node_key, Chain(901), world.now)
    key = node.site.node_key.public_key().public_bytes_raw()
    more = [*entries_of(world), open_any(boast, [key]), open_any(stolen, [key])]
    assert {r.member: r for r in contributions(more, span=ALWAYS)} == rows_of(world)


def test_what_a_nodes_usage_says_of_its_members_data_is_found_and_stands_in_a_release(world: World) -> None:
    """m01 names m00's data set too, and nobody believes it."""
    order = ("data-commitment", "run-plan", "instance-open", "usage", "instance-commit", "instance-survivors", "instance-aggregate")
    told = [registered(world), *entries_of(world)]
    entries = sorted((s for s in told if s.fact.kind in order), key=lambda s: order.index(s.fact.kind))  # as a log has them, by instance
    counted = {e.number for e in (*world.state.closed, world.state.exchange) if e and e.reply and "m00" in e.reply.survivors}
    found = contains(entries, data="news").exchanges
    assert {e.exchange for e in found} == counted and all(e.members == ("m00",) and len(e.entries) == 4 for e in found)
    facts = {m.member: m.data for m in member_facts(run_in(entries, world.run.hex()), SimpleNamespace(members=()), 3)}  # type: ignore[arg-type]
    digest = registered(world).envelope.payload_sha256.hex()[:16]
    said = f"news: 3 files, 900 bytes, 7 documents; MIT, collected ? to 2026-01-01 (data-commitment {digest})"
    told = compute(run_in(entries, world.run.hex()), 3, About())
    assert told.statements == sum(r.counted for r in rows_of(world).values())
    assert told.tokens * 6 * LAYOUT.parameters == int(told.spent.formula_flop.amount)  # type: ignore[union-attr]
    assert facts["m00"] == said and {v for m, v in facts.items() if m != "m00"} == {None}


def test_a_node_says_what_it_works_in_once_and_before_the_first_usage_that_names_it(world: World) -> None:
    mine = [s for s in entries_of(world) if getattr(s.fact, "member", "") == "m00" and s.fact.kind in ("env-commitment", "usage")]
    assert [s.fact.kind for s in mine] == ["env-commitment", *["usage"] * (len(mine) - 1)]
    assert {s.fact.environment_sha256 for s in mine[1:]} == {mine[0].envelope.sha256} and mine[0].seq < mine[1].seq


def test_another_environment_is_another_statement_and_the_first_one_again_is_none() -> None:
    world = ready_world(3)
    train = world.train

    def elsewhere(member: str, action: Any) -> Any:
        result = train(member, action)
        assert result.environment is not None
        return replace(result, environment=replace(result.environment, lock_sha256=b"l" * 32)) if action.exchange == 2 else result

    world.train = elsewhere  # type: ignore[method-assign]
    weights = world.first_weights()
    for number in (1, 2, 3):
        weights = world.exchange(number, "train", weights).blob
    world.run_until(lambda w: w.idle())
    said = [s for s in entries_of(world) if getattr(s.fact, "member", "") == "m01"]
    first, other = [s.envelope.sha256 for s in said if s.fact.kind == "env-commitment"]
    assert [s.fact.environment_sha256 for s in said if s.fact.kind == "usage"] == [first, other, first]


def test_statements_that_refer_to_nothing_change_nothing(world: World) -> None:
    assert contributions([s for s in entries_of(world) if s.fact.kind != "run-plan"], span=ALWAYS) == ()
    without = [s for s in entries_of(world) if s.fact.kind != "instance-open"]
    assert all(r.invited == 0 for r in contributions(without, span=ALWAYS))
