"""The queue for a site's accelerator: first come, first served, one place per run, and no run may hold it for nothing twice."""

from __future__ import annotations

import asyncio

import pytest

from dure.wire.messages import OUT_OF_TIME
from dure_coordinator.exchange.common import NOT_READY, is_late
from dure_participant.settings import NodeSettings
from dure_participant.trainer import gave_way
from dure_participant.turns import Turns


class Site:
    """Runs by one letter; `log` is who began and ended, in order."""

    def __init__(self, places):
        self.turns = Turns(places)
        self.log = []
        self.work = {}
        self.turned_out = {}

    def comes(self, run):
        self.work[run] = asyncio.Event()
        return asyncio.create_task(self._train(run))

    async def _train(self, run):
        async with self.turns.take(run.encode(), self.work[run].set) as turn:
            self.log.append(f"{run} begins")
            await self.work[run].wait()
            self.log.append(f"{run} ends")
            self.turned_out[run] = turn.taken_for

    async def ends(self, *runs):
        for run in runs:
            self.work[run].set()
            await asyncio.sleep(0.01)


@pytest.fixture
def quiet():
    return asyncio.sleep(0.01)


async def test_with_one_place_runs_train_one_after_the_other_in_the_order_they_came(quiet):
    site = Site(1)
    tasks = [site.comes(run) for run in "abc"]
    await quiet
    assert site.log == ["a begins"] and site.turns.full()
    await site.ends("a", "b", "c")
    await asyncio.gather(*tasks)
    assert site.log == ["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]
    assert not site.turns.full()


async def test_who_was_just_served_waits_behind_who_waited_already(quiet):
    """A run that trains a second at a time, and asks again at once, does not get between."""
    site = Site(1)
    tasks = [site.comes(run) for run in "ab"]
    await quiet
    site.work["a"].set()
    await asyncio.sleep(0)
    tasks.append(site.comes("a"))
    await asyncio.sleep(0.01)
    assert site.log == ["a begins", "a ends", "b begins"]
    await site.ends("b", "a")
    await asyncio.gather(*tasks)
    assert site.log[-2:] == ["a begins", "a ends"]


async def test_two_places_serve_two_and_none_means_any_number(quiet):
    for places, begun in ((2, 2), (0, 3)):
        site = Site(places)
        tasks = [site.comes(run) for run in "abc"]
        await asyncio.sleep(0.01)
        assert len(site.log) == begun
        await site.ends("a", "b", "c")
        await asyncio.gather(*tasks)
    await quiet


async def test_who_is_called_off_leaves_queue_and_place(quiet):
    site = Site(1)
    a, b, c = (site.comes(run) for run in "abc")
    await quiet
    b.cancel()
    a.cancel()
    await asyncio.gather(a, b, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert site.log == ["a begins", "c begins"]
    await site.ends("c")
    await c
    assert site.turns.holders() == ()


async def test_a_run_that_used_up_a_deadline_for_nothing_gives_way_as_soon_as_another_comes(quiet):
    site = Site(1)
    site.turns.wasted(b"a")
    a = site.comes("a")
    await quiet
    assert site.log == ["a begins"], "alone it may go on"
    b = site.comes("b")
    await a
    assert site.turned_out["a"] == b"b"
    await site.ends("b")
    await b
    assert site.turned_out["b"] is None


async def test_a_run_that_was_in_time_again_keeps_its_turns(quiet):
    site = Site(1)
    site.turns.wasted(b"a")
    site.turns.used(b"a")
    a, b = site.comes("a"), site.comes("b")
    await quiet
    assert site.log == ["a begins"]
    await site.ends("a", "b")
    await asyncio.gather(a, b)
    assert site.turned_out == {"a": None, "b": None}


@pytest.mark.parametrize(("device", "chosen", "places"), [("cpu", 0, 0), ("cuda", 0, 1), ("npu:0", 0, 1), ("cuda", 3, 3), ("cpu", 1, 1)])
def test_an_accelerator_is_for_one_run_at_a_time_unless_the_site_says_otherwise(device, chosen, places):
    assert NodeSettings(device=device, train_at_once=chosen).places == places


def test_a_node_that_says_itself_that_it_is_too_slow_counts_as_late():
    """It speaks just before the deadline; contributions count it like one whom the deadline found silent."""
    told = gave_way(b"r" * 32).told
    assert [is_late(f"app: {words}") for words in (told, OUT_OF_TIME, "ValueError; this node's operator sees the rest")] == [
        True,
        True,
        False,
    ]
    assert is_late(NOT_READY)
