"""A hostile coordinator against the node's process: it neither dies nor bloats, halts when it must, and says no word of its site."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from attacks.hostile import at
from attacks.ports import found
from sim.exchange_world import make_plan

from dure.statements.statement import Chain, seal
from dure.wire.messages import Directive, DirectiveKind, ReportKind
from dure_participant import agent as agents
from dure_participant.agent import MAX_WAITING, Agent, Halted
from dure_participant.exchange import inputs as inp
from dure_participant.exchange.state import NodeRunState
from dure_participant.settings import NodeSettings
from dure_participant.store import NodeStore


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return found(tmp_path_factory.mktemp("consortium"))


@pytest.fixture
def agent(consortium, tmp_path):
    store = NodeStore(tmp_path / "node.sqlite")
    made = Agent(consortium.nodes["ara"], NodeSettings(), store)
    made._hands.do = lambda _run, _action: _never()  # type: ignore[method-assign]
    yield made
    store.close()


async def _never() -> None:
    return None


def offer(consortium, nonce: int, **changes) -> Directive:
    """A plan as the real coordinator signs it."""
    charter = consortium.nodes["ara"].charter
    named = {"consortium": charter.terms.consortium_id, "charter_sha256": charter.digest, "w_max": 1000, "nonce": bytes([nonce]) * 16}
    plan = make_plan(tuple(consortium.nodes), charter.colluders, "average", **named, **changes)
    envelope, _ = seal(plan, consortium.hub.signing_key, Chain(), 1e9)
    documents = {"plan": envelope.to_bytes(), "app": plan.app_blob.encode()}
    return Directive(envelope.payload_sha256, DirectiveKind.APPROVE, documents=documents)


async def test_directives_of_runs_never_offered_leave_nothing_behind(agent, consortium):
    """Without `_offered` each made-up run id would be a row in the store and a run in memory, for ever."""
    for kind in DirectiveKind:
        for i in range(5):
            await agent._directed(Directive(bytes([i]) * 32, kind, documents={"plan": b"{}", "app": b"x"}))
    stolen = replace(offer(consortium, 1), run=b"z" * 32)
    await agent._directed(stolen)
    assert not agent._runs and not agent._store.states()


async def test_only_so_many_plans_wait_for_the_operator(agent, consortium):
    """Without MAX_WAITING a coordinator could offer plans without end, each with a task that asks."""
    for i in range(MAX_WAITING + 20):
        await agent._directed(offer(consortium, i))
    assert len(agent._runs) == len(agent._store.states()) == MAX_WAITING


async def test_what_our_own_mistake_makes_of_a_directive_does_not_end_the_node(agent, consortium, monkeypatch):
    """Without the last `except` in `_directed` one directive that trips an assertion would stop the process, again and again."""
    monkeypatch.setattr(agents, "step", lambda *_: 1 / 0)
    await agent._directed(offer(consortium, 1))
    monkeypatch.undo()
    await agent._directed(offer(consortium, 1))
    assert len(agent._store.states()) == 1


async def test_a_node_that_was_restored_halts_as_a_whole_and_does_not_start_again(agent, consortium):
    """Rule 7: without `_check_halted` it would go on in its other runs, with the history it has forgotten."""
    shown = offer(consortium, 1)
    await agent._directed(shown)
    run = agent._runs[shown.run]
    run.state = replace(run.state, stopped="this node was restored from an older copy")
    with pytest.raises(Halted, match="older copy"):
        await agent._directed(offer(consortium, 2))
    with pytest.raises(Halted, match="older copy"):
        await agent.run()


async def test_generations_seen_in_one_run_are_remembered_in_the_next(agent, consortium):
    """Without `seen` in `_offered` a key that was replaced could be brought back with every new run."""
    first = offer(consortium, 1)
    await agent._directed(first)
    run = agent._runs[first.run]
    run.state = replace(run.state, generations={"bora": 3})
    second = offer(consortium, 2)
    await agent._directed(second)
    assert agent._runs[second.run].state.generations == {"bora": 3}


def test_what_the_coordinator_hears_of_a_failure_is_no_word_of_the_apps_and_no_path():
    """Without `told` 400 characters of an exception, which may quote data, would leave beside every masked sum."""
    world = at("execute")
    world.show("m00", world.directive("m00"))
    result = inp.TrainResult(
        problem="KeyError: 'patient 4711' in /srv/data/secret.csv", told="KeyError; this node's operator sees the rest"
    )
    answer = world.feed("m00", inp.Trained(1, result))
    said = answer.sent(ReportKind.SIT_OUT)
    assert b"KeyError" in said and b"4711" not in said and b"/srv" not in said and "4711" in answer.note
    world.show("m01", world.directive("m01"))
    answer = world.feed("m01", inp.Failed("train/x/1", "FileNotFoundError: /srv/data/secret.csv"))
    assert b"/srv" not in answer.sent(ReportKind.SIT_OUT) and "/srv" in answer.note
    world.show("m02", world.directive("m02"))
    answer = world.feed("m02", inp.Trained(1, inp.TrainResult(problem="3.14159 is what it lost")))
    assert answer.sent(ReportKind.SIT_OUT) and b"3.14" not in answer.sent(ReportKind.SIT_OUT)


def test_a_state_grown_as_large_as_peers_can_make_it_is_read_again():
    """Every attempt of both instances, the longest names: what a coordinator can fill must stay within what the reader takes."""
    world = at("share", "scales")
    world.bag = [b for b in world.bag if b[1] != "m00"]
    for attempt in range(200):
        shown = world.directive("m00", instance=world.another(world.now_at.instance, attempt=attempt))
        world.show("m00", shown)
    state = NodeRunState.from_bytes(world.nodes["m00"].state)
    assert len(state.exchange.instances) == 32  # type: ignore[union-attr]


async def test_a_mistake_while_recomputations_are_looked_for_does_not_end_them_in_silence(agent, monkeypatch):
    """Without the last `except` in `_recomputations` the first one would, while the node looks well."""
    monkeypatch.setattr(agents, "AGAIN_S", 0.0)
    looks = iter([lambda: 1 / 0, list, list])
    again = asyncio.Event()

    def look(*, waiting: bool) -> list[object]:
        found = next(looks)()
        loop.call_soon_threadsafe(again.set)
        return found

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(agent._store, "recomputations", look)
    task = asyncio.create_task(agent._recomputations())
    await asyncio.wait_for(again.wait(), 5)
    task.cancel()
