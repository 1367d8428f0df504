"""A member is dismissed at any point of an exchange (removed, replaced, revoked): it finishes without it or is voided, and nobody waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sim.exchange_world import World
from sim.test_exchange_sim import ready_world

from dure_coordinator.exchange.events import Dismissed
from dure_coordinator.exchange.state import RunPhase

OUT = "m03"


def dismiss(world: World) -> None:
    """As the coordinator does it; then every other node hears, by the charter or the log."""
    world.apply(Dismissed(OUT, "left"))
    node = world.nodes[OUT]
    node.connected = False
    node.alive = False
    world.bag = [b for b in world.bag if b[1] != OUT]
    for name, other in world.nodes.items():
        if name != OUT:
            members = {m: key for m, key in other.site.members.items() if m != OUT}
            other.site = replace(other.site, members=members, former=frozenset({OUT}))


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(n, marks=pytest.mark.deep) for n in range(5, 60))])
def test_an_exchange_goes_on_without_whoever_is_dismissed_in_it_and_so_does_the_next(seed: int) -> None:
    world = ready_world(5, seed=seed, duplicate=0.0)
    at, steps = world.rng.randint(1, 110), [0]
    began = world.now

    def hook(w: World) -> None:
        steps[0] += 1
        if steps[0] == at:
            dismiss(w)

    reply = world.exchange(1, "train", world.first_weights(), hook=hook)
    assert reply.status == "ok", reply
    if steps[0] < at:
        dismiss(world)
    second = world.exchange(2, "evaluate", reply.blob)
    assert second.status == "ok" and OUT not in second.survivors
    assert world.now - began < 60, "no deadline and no grace was waited out"
    world.refold()


def test_a_run_the_newest_charter_does_not_allow_is_sat_out_by_every_node() -> None:
    """A coordinator that ignores the newer version gets no exchange: the nodes go by it themselves."""
    world = ready_world(4)
    for node in world.nodes.values():
        node.site = replace(node.site, barred="charter version 2 assumes 2 colluders, the run was approved for 1")
    reply = world.exchange(1, "train", world.first_weights())
    assert reply.status != "ok"
    assert any("assumes 2 colluders" in e for e in reply.errors.values()), reply.errors
    assert not any(world.plain), "nobody uploaded anything"


def test_a_node_key_that_ended_is_dealt_nothing() -> None:
    """A coordinator that goes on with a revoked node finds that nobody shares with it: its instance is never opened."""
    world = ready_world(4)
    ended = world.nodes[OUT].site.node_key.public_key().public_bytes_raw()
    for name, node in world.nodes.items():
        if name != OUT:
            node.site = replace(node.site, ended_keys=frozenset({ended}))
    world.ask(1, "train", world.first_weights())
    world.run_until(lambda w: not w.bag)
    assert any("may take no part any more" in note for node in world.nodes.values() for note in node.notes)
    assert world.state.phase is not RunPhase.FINISHED and not world.plain
