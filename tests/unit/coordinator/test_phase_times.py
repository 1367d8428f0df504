"""Where an exchange's time went, from the run's own events."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from sim.exchange_world import World

from dure_coordinator.exchange.timing import BETWEEN, phase_table, seconds_of
from dure_coordinator.watch import phases_table


def test_the_phases_of_an_exchange_are_timed_in_order_and_add_up_to_its_length():
    world = World(4, 1, seed=5)
    world.start()
    world.run_until(lambda w: w.idle())
    assert phase_table(world.state) == {}
    weights = world.exchange(1, "train", world.first_weights()).blob
    world.exchange(2, "train", weights)
    for exchange in (*world.state.closed, world.state.exchange):
        seconds = seconds_of(exchange)
        names = list(seconds)
        assert names[0] == "execute" and names[1:3] == ["scales: share", "scales: open"] and names[-1] == "step"
        assert names.index("scales: reveal") < names.index("update: share") < names.index("update: cosign")
        assert sum(seconds.values()) == pytest.approx(exchange.ended - exchange.started)
    shown = phase_table(world.state)
    assert (shown["exchange"], shown["of"]) == (2, 2) and next(iter(shown["seconds"])) == BETWEEN
    drawn = io.StringIO()
    Console(file=drawn, width=110).print(phases_table(shown))
    assert "update: cosign" in drawn.getvalue() and "median of 2" in drawn.getvalue()
