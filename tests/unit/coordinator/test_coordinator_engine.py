"""The engine under a toy logic: what it told survives any crash, and what it owes is done."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace

import pytest

from dure.errors import Unavailable
from dure_coordinator import engine as engine_module
from dure_coordinator.engine import Logic, RunEngine
from dure_coordinator.storage.store import BlobRow, RunRow, Store, StoreUnusable, With

RUN = bytes(32)


@dataclass(frozen=True)
class Toy:
    """Adds numbers; owes a signature for every multiple of ten; ends at a negative one."""

    total: int = 0
    signed: tuple[str, ...] = ()
    ticks: int = 0
    deadline: float | None = None
    ended: str = ""


@dataclass(frozen=True)
class ToyDuty:
    id: str


@dataclass(frozen=True)
class ToyDecision:
    state: Toy
    reply: object
    reason: str
    changed: bool


def toy_duties(state: Toy) -> tuple[ToyDuty, ...]:
    if state.ended:
        return ()
    return tuple(ToyDuty(f"sign-{n}") for n in range(10, state.total + 1, 10) if f"sign-{n}" not in state.signed)


def toy_apply(state: Toy, event: dict, now: float) -> ToyDecision:
    after = state
    if "add" in event:
        after = replace(state, total=state.total + event["add"])
    elif "done" in event and any(d.id == event["done"] for d in toy_duties(state)):
        after = replace(state, signed=(*state.signed, event["done"]))
    elif "deadline" in event:
        after = replace(state, deadline=event["deadline"])
    elif "tick" in event and state.deadline is not None and now >= state.deadline:
        after = replace(state, ticks=state.ticks + 1, deadline=None)
    elif "abort" in event:
        after = replace(state, ended=event["abort"])
    return ToyDecision(after, after.total, "", after != state)


TOY = Logic(
    begin=lambda now: Toy(),
    apply=toy_apply,
    encode=lambda e: json.dumps(e).encode(),
    decode=json.loads,
    duties=toy_duties,
    next_deadline=lambda s: s.deadline,
    label=lambda s: ("aborted", s.ended) if s.ended else ("open", ""),
    tick=lambda: {"tick": 1},
    done=lambda id, result: {"done": id},
    abort=lambda reason: {"abort": reason},
)
EVENTS = [{"add": 3}, {"add": 0}, {"add": 7}, {"done": "sign-10"}, {"add": 15}, {"done": "sign-20"}, {"add": -5}]


class Hands:
    def __init__(self, fail: list[Exception] | None = None) -> None:
        self.fail, self.did = fail or [], []

    async def perform(self, run, duty):
        if self.fail:
            raise self.fail.pop(0)
        self.did.append(duty.id)
        await run.done(duty, {})


class Killed(BaseException):
    """The process died here."""


class DyingStore(Store):
    """Dies before or after the n-th commit."""

    def __init__(self, inner: Store, die_at: int, after: bool) -> None:
        super().__init__(inner.engine)
        self.left, self.after = die_at, after

    async def append(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        await super().append(*args, **kwargs)
        if self.left == 0:
            raise Killed


@pytest.fixture
async def store(tmp_path):
    store = await Store.open(f"sqlite:///{tmp_path}/c.db")
    await store.add_run(RunRow(RUN, "toy", b"", bytes(32)))
    yield store
    await store.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(engine_module, "RETRY_S", (0.01,))


async def toy_engine(store: Store, hands: Hands | None = None) -> RunEngine:
    engine = RunEngine(RUN, 0.0, TOY, store, hands or Hands())
    await engine.load()
    return engine


async def until(condition, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (a test looks from outside)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(1, 7))
async def test_killed_around_any_commit_a_reload_gives_what_was_told_or_one_step_more(store, step, after):
    told = Toy()
    dying = RunEngine(RUN, 0.0, TOY, DyingStore(store, step, after), Hands())
    await dying.load()
    with pytest.raises(Killed):
        for event in EVENTS:
            told = (await dying.submit(event)).state
    again = await toy_engine(store)
    assert again.state == (told if not after else toy_apply(told, json.loads((await store.events(RUN))[-1].body), 0.0).state)
    for event in EVENTS:  # whoever got no answer repeats; here all of it is idempotent per position
        if again.position < 6 and event == json.loads(json.dumps(EVENTS_CHANGING[again.position])):
            await again.submit(event)
    assert again.state == Toy(total=20, signed=("sign-10", "sign-20"))


EVENTS_CHANGING = [e for e in EVENTS if e != {"add": 0}]


async def test_an_event_that_changes_nothing_is_not_logged_and_still_answered(store):
    engine = await toy_engine(store)
    assert (await engine.submit({"add": 4})).reply == 4
    assert (await engine.submit({"add": 0})).reply == 4
    assert len(await store.events(RUN)) == 1


async def test_a_failed_commit_decides_nothing_and_the_event_may_come_again(store, monkeypatch):
    engine = await toy_engine(store)
    real = store.append

    async def full(*args, **kwargs):
        raise StoreUnusable("database: disk is full")

    monkeypatch.setattr(store, "append", full)
    with pytest.raises(StoreUnusable):
        await engine.submit({"add": 4})
    assert engine.state == Toy()
    monkeypatch.setattr(store, "append", real)
    assert (await engine.submit({"add": 4})).state.total == 4


async def test_a_commit_whose_answer_was_lost_is_found_before_the_next_decision(store, monkeypatch):
    engine = await toy_engine(store)
    real = store.append

    async def lost(*args, **kwargs):
        await real(*args, **kwargs)
        raise StoreUnusable("database: connection lost")

    monkeypatch.setattr(store, "append", lost)
    with pytest.raises(StoreUnusable):
        await engine.submit({"add": 4})
    monkeypatch.setattr(store, "append", real)
    assert (await engine.submit({"add": 1})).state.total == 5


async def test_a_caller_that_goes_away_leaves_commit_and_state_together(store):
    engine = await toy_engine(store)
    for _ in range(5):
        task = asyncio.create_task(engine.submit({"add": 1}))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await engine.close()
    assert engine.state.total == len(await store.events(RUN))


async def test_duties_are_done_once_and_owed_again_after_a_restart(store):
    hands = Hands()
    engine = await toy_engine(store, hands)
    await engine.submit({"add": 10})
    assert hands.did == []  # not started yet: as if killed here
    await engine.close()
    engine = await toy_engine(store, hands)
    await engine.start()
    await until(lambda: engine.state.signed == ("sign-10",))
    await engine.submit({"add": 10})
    await until(lambda: engine.state.signed == ("sign-10", "sign-20"))
    assert hands.did == ["sign-10", "sign-20"]
    await engine.close()


async def test_a_duty_without_room_is_tried_until_there_is(store):
    engine = await toy_engine(store, Hands([Unavailable("disk full")] * 6))
    await engine.start()
    await engine.submit({"add": 10})
    await until(lambda: engine.state.signed == ("sign-10",))
    await engine.close()


async def test_a_duty_that_cannot_be_done_aborts_the_run_with_the_reason(store):
    engine = await toy_engine(store, Hands([ValueError("the blob\nis gone")] * 9))
    await engine.start()
    await engine.submit({"add": 10})
    await until(lambda: engine.ended)
    assert engine.label == ("aborted", "sign-10: ValueError: the blob is gone")
    assert (await store.runs())[0].label == "aborted"
    await engine.close()


async def test_deadlines_become_ticks(store):
    engine = await toy_engine(store)
    await engine.start()
    await engine.submit({"deadline": engine.clock() + 0.1})
    await until(lambda: engine.state.ticks == 1)
    await engine.close()
    assert (await toy_engine(store)).state == engine.state


async def test_followers_are_woken_after_the_commit(store):
    engine = await toy_engine(store)
    seen = engine.changes.version
    waiting = asyncio.create_task(engine.changes.wait(seen))
    await asyncio.sleep(0)
    await engine.submit({"add": 1}, With(blobs=(BlobRow(RUN, "app", "ab:1"),)))
    assert await asyncio.wait_for(waiting, 1) != seen
    assert await store.runs_of_blob("ab:1") == [(RUN, "app")]


async def test_events_that_come_during_a_commit_are_committed_together_each_with_its_own_answer(store, monkeypatch):
    engine = await toy_engine(store)
    real, commits = store.append, []

    async def counted(run, *events):
        commits.append(len(events))
        await real(run, *events)

    monkeypatch.setattr(store, "append", counted)
    first = asyncio.create_task(engine.submit({"add": 1}))
    await asyncio.sleep(0)
    rest = [asyncio.create_task(engine.submit({"add": n})) for n in (2, 0, 3)]
    assert [d.reply for d in await asyncio.gather(first, *rest)] == [1, 3, 3, 6]
    assert commits in ([1, 2], [3])
    assert (await toy_engine(store)).state.total == 6


async def test_an_event_that_cannot_be_applied_fails_alone(store):
    engine = await toy_engine(store)

    def broken(_decision):
        raise ValueError("not an envelope")

    bad, good = await asyncio.gather(engine.submit({"add": 1}, broken), engine.submit({"add": 2}), return_exceptions=True)
    assert isinstance(bad, ValueError)
    assert good.reply == 2
    assert len(await store.events(RUN)) == 1
