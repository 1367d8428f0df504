"""One run, durable: load its events, decide, persist, then tell.

The exchange logic (exchange/) is a pure fold; this file gives it a clock, a log and hands. An event that changes anything
is committed *before* the new state is visible and before anybody is answered, so a coordinator killed at any instruction
comes back to a state it may have told someone about, and to no other. Events that come while a commit is on its way are decided one after
the other and committed together: four nodes that answer at once cost one sync of the disk. Duties (sign, sum, step, answer) are owed until
their `Done` is in the log; they run outside the lock and are started again after a crash.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from dure.errors import DureError, Refused, Unavailable
from dure_coordinator.storage.snapshots import SnapshotRow
from dure_coordinator.storage.store import NOTHING, NewEvent, Store, With

log = structlog.get_logger()

MIN_TICK_S = 0.05
"""Shortest wait between two ticks, whatever the logic asks for."""
RETRY_S = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Waits between tries of a duty that has no room or no peer; the last one is repeated for ever."""
SNAPSHOT_EVENTS = 256
"""A settled state is kept after so many events: what a load folds at most, and a little more."""
PAGE_EVENTS = 1000
"""Events a load holds in memory at a time."""
BROKEN_TRIES = 3
"""Tries of a duty that fails for another reason, before the run is aborted with that reason."""


class Decided(Protocol):
    """What `apply` returns; `exchange.decide.Decision` is one."""

    @property
    def state(self) -> Any: ...
    @property
    def reply(self) -> Any: ...
    @property
    def reason(self) -> str: ...
    @property
    def changed(self) -> bool: ...


class Frozen(Protocol):
    """A state as bytes; `exchange.snapshot.Snapshot` is one."""

    @property
    def head(self) -> bytes: ...
    @property
    def past(self) -> tuple[bytes, ...]: ...


@dataclass(frozen=True)
class Snapshots:
    """How a state is kept, so that a load folds the last events only."""

    shape: str
    """Of what is kept: one of another shape is not read."""
    settled: Callable[[Any], bool]
    """Whether this is a state to keep."""
    freeze: Callable[[Any, int], Frozen]
    """Takes how many parts of `past` are kept already."""
    thaw: Callable[[bytes, Sequence[bytes]], Any]
    """Raises Refused: fold the log instead."""


@dataclass(frozen=True)
class Logic:
    """The pure half of a run. `app.exchange_logic` gives the real one; tests give toys."""

    begin: Callable[[float], Any]
    apply: Callable[[Any, Any, float], Decided]
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    duties: Callable[[Any], tuple[Any, ...]]
    """Each has a stable `id`."""
    next_deadline: Callable[[Any], float | None]
    label: Callable[[Any], tuple[str, str]]
    """(open | finished | aborted, reason)."""
    tick: Callable[[], Any]
    done: Callable[[str, Mapping[str, bytes]], Any]
    abort: Callable[[str], Any]
    snapshots: Snapshots | None = None


class Performer(Protocol):
    """Does duties; `duties_done.Duties` is one."""

    async def perform(self, run: RunEngine, duty: Any) -> None:
        """Does it and hands the result to `run.done`. May be called again for the same duty after a crash or failure."""
        ...

    async def restored(self, run: RunEngine, weights: str, keep_s: float = ..., *, check: bool = ...) -> None:
        """Weights of the run that were let go of (blob id text), or, with `check`, damaged, are on the disk again, and stay for so long;
        `Refused` if they cannot be recomputed."""
        ...


@dataclass
class Changes:
    """Wakes whoever waits for something to be different; all of them at once, however many."""

    version: int = 0
    _next: asyncio.Future[None] | None = None

    async def bump(self) -> None:
        self.version += 1
        waking, self._next = self._next, None
        if waking is not None and not waking.done():
            waking.set_result(None)

    async def wait(self, seen: int, timeout_s: float | None = None) -> int:
        """Returns the version as soon as it is not `seen`, or at the timeout."""
        if self.version == seen:
            if self._next is None:
                self._next = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._next}, timeout=timeout_s)
        return self.version


@dataclass
class _Asked:
    """An event that waits to be decided, and who waits for it."""

    event: Any
    also: With | Callable[[Decided], With]
    answer: asyncio.Future[Decided]
    decision: Decided | None = None

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # a caller that went away does not look


@dataclass
class RunEngine:
    """One run. `load`, then `start`; `submit` from anywhere on the event loop."""

    run: bytes
    created: float
    logic: Logic
    store: Store
    performer: Performer
    changes: Changes = field(default_factory=Changes)
    clock: Callable[[], float] = time.time
    on_ended: Callable[[RunEngine], Awaitable[None]] | None = None
    state: Any = None
    position: int = 0
    """Events in the log."""
    label: tuple[str, str] = ("open", "")
    trouble: str = ""
    """What a duty waits for, in words; "" while nothing is in the way."""
    _last: float = 0.0
    _stale: bool = True
    """The log may hold more than the state: fold it again before anything is decided."""
    _asked: list[_Asked] = field(default_factory=list)
    _deciding: asyncio.Task[None] | None = None
    _owing: tuple[Any, tuple[Any, ...]] | None = None
    """(a state, its duties)."""
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _keeper: asyncio.Task[None] | None = None
    _frozen: int = 0
    """Events in the last snapshot."""
    _past: int = 0
    """Parts of its `past`."""
    _freezing: asyncio.Task[None] | None = None
    _closing: bool = False

    # -- life ------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Folds the log, from the last snapshot on. The same log gives the same state, always.

        Raises:
            Refused: the log cannot be read, or gives another state than when it was written; names the event.
        """
        state, last, position = await self._thawed() or (self.logic.begin(self.created), self.created, 0)
        self._frozen = position
        while rows := await self.store.events(self.run, position, PAGE_EVENTS):
            for row in rows:
                decision = self.logic.apply(state, self.logic.decode(row.body), row.time)
                if not decision.changed:
                    raise Refused(f"event {row.position}", "changed something when it was logged; use the version of Dure that wrote it")
                state, last = decision.state, row.time
            position += len(rows)
        self.state, self._last, self.position = state, last, position
        self.label = self.logic.label(state)
        self._stale = False

    async def _thawed(self) -> tuple[Any, float, int] | None:
        """(state, time and number of its last event) of the snapshot; None without one that can be read."""
        self._past = 0
        found = await self.store.snapshot(self.run) if self.logic.snapshots is not None else None
        if found is None or self.logic.snapshots is None or found[0].shape != self.logic.snapshots.shape:
            return None
        row, past = found
        try:
            state = await asyncio.to_thread(self.logic.snapshots.thaw, row.head, past)
        except Refused as e:
            log.warning("snapshot.unreadable", run=self.run.hex()[:12], reason=str(e))
            return None
        self._past = len(past)
        return state, row.time, row.position

    def _freeze_soon(self) -> None:
        """Keeps the state in the background, if it is worth keeping and time for it."""
        how = self.logic.snapshots
        due = self.position - self._frozen >= SNAPSHOT_EVENTS or (self.ended and self.position > self._frozen)
        if how is not None and due and self._freezing is None and not self._closing and how.settled(self.state):
            self._freezing = asyncio.create_task(self._freeze(how, self.state, self.position, self._last))

    async def _freeze(self, how: Snapshots, state: Any, position: int, last: float) -> None:
        first = self._past
        try:
            frozen = await asyncio.to_thread(how.freeze, state, first)
            await self.store.put_snapshot(SnapshotRow(self.run, position, last, how.shape, frozen.head), first, frozen.past)
            self._frozen, self._past = position, first + len(frozen.past)
        except Exception as e:  # the log has everything: a run does not end because a snapshot cannot be kept
            log.error("snapshot.not_kept", run=self.run.hex()[:12], reason=str(e), exc_info=not isinstance(e, DureError))
        finally:
            self._freezing = None

    async def refit(self, logic: Logic) -> None:
        """Goes on with this logic, whose facts have something added: the log is folded again before anything is decided."""
        while (deciding := self._deciding) is not None:
            await asyncio.wait({deciding})
        self.logic, self._stale = logic, True

    async def start(self) -> None:
        """Owes what is owed and keeps deadlines from now on."""
        self._keeper = asyncio.create_task(self._keep(), name=f"run-{self.run.hex()[:8]}")
        self._start_duties()

    async def close(self) -> None:
        """Stops without deciding anything; what was owed is owed at the next start."""
        self._closing = True
        tasks = [t for t in (self._keeper, *self._tasks.values()) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while (deciding := self._deciding or self._freezing) is not None:  # whoever was in the middle of a commit finishes it
            await asyncio.wait({deciding})

    @property
    def ended(self) -> bool:
        return self.label[0] != "open"

    # -- deciding --------------------------------------------------------------------------------------------------

    async def submit(self, event: Any, also: With | Callable[[Decided], With] = NOTHING) -> Decided:
        """Decides one event. When this returns, its effect is durable.

        Args:
            also: what is committed with the event, if it changes anything.

        Raises:
            StoreUnusable: nothing was decided; the same event may be submitted again.
        """
        # A caller that is cancelled (its connection broke) must not tear a commit from its state.
        asked = _Asked(event, also, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._deciding is None:
            self._deciding = asyncio.create_task(self._decide_all(), name=f"decide-{self.run.hex()[:8]}")
        return await asyncio.shield(asked.answer)

    async def done(self, duty: Any, result: Mapping[str, bytes], also: With | Callable[[Decided], With] = NOTHING) -> Decided:
        """A duty's result; committed once, whoever does the duty how often."""
        return await self.submit(self.logic.done(duty.id, result), also)

    async def _decide_all(self) -> None:
        """Decides whatever was submitted, in order; what came while a commit was on its way goes into the next one together."""
        try:
            while self._asked:
                batch, self._asked = self._asked, []
                try:
                    await self._decide(batch)
                except BaseException as e:
                    for asked in batch:
                        asked.fail(e)
                    if not isinstance(e, Exception):
                        raise
        finally:
            self._deciding = None

    async def _decide(self, batch: list[_Asked]) -> None:
        if self._stale:
            await self.load()
        state, label, last, position = self.state, self.label, self._last, self.position
        events: list[NewEvent] = []
        for asked in batch:
            now = max(self.clock(), last)
            try:
                decision = self.logic.apply(state, asked.event, now)
                also = asked.also(decision) if callable(asked.also) else asked.also
            except Exception as e:  # the others of this batch are none the worse
                asked.fail(e)
                continue
            asked.decision = decision
            if not decision.changed:
                continue
            was, label = label, self.logic.label(decision.state)
            events.append(NewEvent(position, now, self.logic.encode(asked.event), also if label == was else replace(also, label=label)))
            state, last, position = decision.state, now, position + 1
        if events:
            self._stale = True  # until we know that the log has them
            await self.store.append(self.run, *events)
            self._stale = False
        was_open = not self.ended
        self.state, self.label, self._last, self.position = state, label, last, position
        await self._tell(batch, changed=bool(events), ended_now=was_open and self.ended)

    async def _tell(self, batch: list[_Asked], *, changed: bool, ended_now: bool) -> None:
        """After the commit: callers get their decisions, everyone else hears that something changed."""
        for asked in batch:
            if asked.decision is not None:
                if asked.decision.reason:
                    log.info("run.step", run=self.run.hex()[:12], input=type(asked.event).__name__.lower(), reason=asked.decision.reason)
                asked.answer.set_result(asked.decision)
        if changed:
            await self.changes.bump()
            self._start_duties()
            self._freeze_soon()
        if ended_now and self.on_ended is not None:
            await self.on_ended(self)

    # -- clock -----------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while not self.ended:
            seen = self.changes.version
            deadline = self.logic.next_deadline(self.state)
            wait = None if deadline is None else max(MIN_TICK_S, deadline - self.clock())
            if await self.changes.wait(seen, wait) != seen and (deadline is None or self.clock() < deadline):
                continue
            try:
                await self.submit(self.logic.tick())
            except DureError as e:
                log.warning("run.tick_failed", run=self.run.hex()[:12], reason=str(e))
                await asyncio.sleep(RETRY_S[0])

    # -- duties ----------------------------------------------------------------------------------------------------

    def owed(self, duty_id: str) -> bool:
        return any(d.id == duty_id for d in self._duties())

    def _duties(self) -> tuple[Any, ...]:
        """What the state owes; worked out once per state, since everybody asks."""
        if self._owing is None or self._owing[0] is not self.state:
            self._owing = (self.state, self.logic.duties(self.state))
        return self._owing[1]

    def _start_duties(self) -> None:
        if self._closing or self._keeper is None:
            return
        for duty in self._duties():
            if duty.id not in self._tasks:
                task = asyncio.create_task(self._fulfil(duty), name=f"duty-{duty.id}")
                self._tasks[duty.id] = task
                task.add_done_callback(lambda _t, id=duty.id: self._tasks.pop(id, None))

    async def _fulfil(self, duty: Any) -> None:
        tries = broken = 0
        while self.owed(duty.id):
            try:
                await self.performer.perform(self, duty)
                self.trouble = ""
                if not self.owed(duty.id):
                    return
                raise AssertionError(f"duty {duty.id} was done and is owed still")
            except Unavailable as e:
                why = self.trouble = str(e)
            except Exception as e:
                broken += 1
                why = str(e) if isinstance(e, DureError) else f"{type(e).__name__}: {e}"
                log.warning("duty.failed", run=self.run.hex()[:12], duty=duty.id, reason=why, exc_info=not isinstance(e, DureError))
            if broken >= BROKEN_TRIES:
                await self.submit(self.logic.abort(f"{duty.id}: {' '.join(why.split())}"[:500]))
                return
            wait_s = RETRY_S[min(tries, len(RETRY_S) - 1)]
            tries += 1
            log.warning("duty.waits", run=self.run.hex()[:12], duty=duty.id, reason=why, again_s=wait_s)
            await asyncio.sleep(wait_s)
