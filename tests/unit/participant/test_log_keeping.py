"""A node stays its member's witness, and learns of heads, as long as its line lives: nothing in its way ends either without a word."""

from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace

import pytest

from dure.errors import Unavailable
from dure_participant import agent
from dure_participant.agent import Agent


@pytest.mark.parametrize("what", [OSError(errno.ENOSPC, "No space left on device"), ValueError("our own mistake"), Unavailable("later")])
async def test_what_stands_in_the_way_of_one_head_does_not_end_the_witness_or_the_learning(what, monkeypatch):
    monkeypatch.setattr(agent, "AGAIN_S", 0.001)
    monkeypatch.setattr(agent, "LEARN_S", 0.0)
    asked, learned, enough = [], [], asyncio.Event()

    async def add_checkpoint(request, _fetch):
        asked.append(request)
        raise what

    async def learn(head, _fetch):
        learned.append(head)
        if len(learned) >= 2:
            enough.set()
        raise what

    async def witness(answer, told):
        told(b"head")
        await asyncio.sleep(0.01)
        await answer(b"request", ())

    async def flush():
        pass

    node = SimpleNamespace(_mirror=SimpleNamespace(add_checkpoint=add_checkpoint, learn=learn), _courier=SimpleNamespace(flush=flush))
    keeping = asyncio.create_task(Agent._keep_log(node, SimpleNamespace(witness=witness, entries=None)))
    try:
        async with asyncio.timeout(5):
            await asyncio.wait({keeping, waiting := asyncio.ensure_future(enough.wait())}, return_when=asyncio.FIRST_COMPLETED)
        assert waiting.done() and not keeping.done()
        assert len(asked) >= 1
    finally:
        waiting.cancel()
        keeping.cancel()
