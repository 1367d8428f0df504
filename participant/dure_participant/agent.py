"""The node agent: directives in, `exchange.step` decides, the store remembers, actions follow. Level-triggered and crash-safe.

Order, always: input → step → one transaction → actions (hands.py). An action is a task with a stable id; what the state no longer owes is
cancelled, what it owes and nobody does is started, after every step and after every restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import structlog

from dure.blobs import NO_ROOM, BlobStore, DiskFull
from dure.errors import DureError, NotAuthorised, Unavailable
from dure.failpoints import Point, reach
from dure.identity.node import NodeIdentity
from dure.secagg.ids import InstanceId
from dure.statements.statement import Chain
from dure.wire.messages import Directive, DirectiveKind, ReportKind
from dure_participant.exchange import actions as act
from dure_participant.exchange import inputs
from dure_participant.exchange.site import History, Site
from dure_participant.exchange.state import NodeRunState
from dure_participant.exchange.step import Step, begin, owed, step
from dure_participant.hands import Hands
from dure_participant.log.courier import Courier
from dure_participant.log.mirror import carried
from dure_participant.log.newest import Newest
from dure_participant.recompute import Progress
from dure_participant.running import Run
from dure_participant.settings import NodeSettings
from dure_participant.standing import Standing, mirror_of
from dure_participant.store import NodeStore, Recomputation
from dure_participant.tidy import tidy
from dure_participant.transport import Line, pause

log = structlog.get_logger()

CLOCK_LIMIT_S = 300.0
MAX_WAITING = 64
"""Plans that wait for the operator at a time; a coordinator that offers more is asked to come again."""
AGAIN_S = 1.0
"""Before an action that could not be done now is tried again."""
NO_ROOM_S = 60.0
"""How long a node without room for the base holds up an exchange before it sits out."""
BROKEN_TRIES = 3
"""Tries of an action that fails in a way nobody foresaw, before the exchange logic is told."""
LEARN_S = 2.0
"""How often this node keeps the newest head that the quorum cosigned, at most."""
POINTS = {
    ReportKind.KEM: Point.KEM_PERSISTED,
    ReportKind.SHARE: Point.SHARE_PERSISTED,
    ReportKind.SIGNATURE: Point.SIGNATURE_PERSISTED,
    ReportKind.REVEAL: Point.REVEAL_PERSISTED,
    ReportKind.ACCEPT: Point.ACCEPT_PERSISTED,
}


class Halted(NotAuthorised):
    """Rule 7: this node's key has signed what its store does not remember. It does nothing any more, in no run."""


class ClocksApart(Unavailable):
    """One of two clocks is wrong. A node that starts so says it and leaves; one that was connected before waits."""


class Agent:
    """One node. `run` returns when cancelled, or when `drain` was called and nothing is under way; what it knew is in the store."""

    def __init__(self, identity: NodeIdentity, settings: NodeSettings, store: NodeStore, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock
        self._blobs = BlobStore(identity.directory / "blobs")
        self._blobs.sweep()
        self._turn = asyncio.Lock()
        self._line: Line | None = None
        self._draining = self._connected_once = False
        self._runs = {run: Run(run, NodeRunState.from_bytes(raw)) for run, raw in store.states().items()}
        self._chain: Chain = store.chain()
        self._history: History = store.history()
        self._tidying: asyncio.Task[None] | None = None
        self._courier = Courier(store, identity.member_statements, self._connected)
        self._mirror = mirror_of(identity, settings, store, clock)
        self._standing = Standing(identity, settings, self._mirror)
        self._hands = Hands(
            member=identity.member,
            site=self._site,
            directory=identity.directory,
            settings=settings,
            store=store,
            blobs=self._blobs,
            clock=clock,
            line=self._connected,
            courier=self._courier,
            registered=lambda: self._mirror.followed.data,
            feed=self.feed,
        )

    # -- the line to the coordinator -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Dial, follow, reconnect, for ever.

        Raises:
            ClocksApart: at the first connection of this process: whoever started it is looking.
            Halted: this node was restored from an older copy of itself and must not go on.
        """
        attempt = 0
        asked = asyncio.create_task(self._recomputations(), name="recomputations")
        try:
            while True:
                try:
                    self._check_halted()
                    attempt = await self._follow(attempt)
                except Halted:
                    raise
                except DureError as error:
                    self._say_away(str(error)[:300], attempt)
                    if isinstance(error, ClocksApart) and not self._connected_once:
                        raise
                await pause(attempt)
                attempt += 1
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await asyncio.gather(*(self._hands.let_go(run) for run in self._runs.values()))

    async def _follow(self, attempt: int) -> int:
        """One connection, from Hello to its end. Returns the attempts to count from after it; raises if Hello fails."""
        self._line = line = Line(self._standing.identity)
        try:
            reply = await line.hello()
            self._check_clock(reply.time_ms / 1000)
            ca = self._standing.identity.coordinator_ca_pem
            await asyncio.to_thread(self._obey, reply.charter_roots)
            if ca != self._standing.identity.coordinator_ca_pem:  # this line was made on the word of one that no longer counts
                return 0
            await asyncio.to_thread(self._store.set_fact, "connection", {"state": "connected", "since": self._clock()})
            self._connected_once = True
            log.info("coordinator.connected", address=self._standing.identity.address, attempt=attempt)
            for run in self._runs.values():
                run.done.clear()
            logging = asyncio.create_task(self._keep_log(line))
            try:
                async for directive in line.follow():
                    await self._directed(directive)
                reason = "the coordinator ended the stream"
            except Unavailable as error:
                reason = str(error)[:300]
            finally:
                logging.cancel()
            self._say_away(reason, 0)
            return 0
        finally:
            self._line = None  # whoever sends meanwhile waits for the next one
            await line.close()

    async def _keep_log(self, line: Line) -> None:
        """While connected: bring the log what it lacks of this node's, and be this member's witness."""

        async def answer(request: bytes, entries: tuple[bytes, ...]) -> tuple[int, bytes]:
            return await self._mirror.add_checkpoint(request, carried(entries, line.entries))

        cosigned = Newest()

        async def learn() -> None:
            while True:
                head = await cosigned.get(LEARN_S)
                with _goes_on("log.no_head"):
                    await self._mirror.learn(head, line.entries)
                    await self._courier.flush()  # what was signed for a message that nobody waited for in the end

        learning = asyncio.create_task(learn())
        try:
            while True:
                with _goes_on("log.waits"):
                    await self._courier.flush()
                    await line.witness(answer, cosigned.put)
                await asyncio.sleep(AGAIN_S)
        finally:
            learning.cancel()

    def _site(self, run: Run) -> Site:
        return self._standing.site(run.run, run.state)

    def _obey(self, roots: Sequence[bytes]) -> None:
        for words in self._standing.obey(roots):
            self._store.note(words)
            log.info("charter.version", note=words)
        if self._standing.identity.ended:
            raise NotAuthorised(self._standing.identity.ended)

    def _say_away(self, reason: str, attempt: int) -> None:
        with contextlib.suppress(Unavailable):  # a full disk is no reason to end: the log has it
            self._store.set_fact("connection", {"state": "away", "since": self._clock(), "reason": reason})
        (log.warning if attempt < 3 else log.debug)("coordinator.away", reason=reason, attempt=attempt)

    def _check_clock(self, theirs: float) -> None:
        apart = abs(theirs - self._clock())
        if apart > CLOCK_LIMIT_S:
            raise ClocksApart(f"this clock and the coordinator's are {apart:.0f} s apart; set the one that is wrong (NTP), then it goes on")

    def _connected(self) -> Line:
        if self._line is None:
            raise Unavailable("not connected")
        return self._line

    def _check_halted(self) -> None:
        if why := next((run.state.stopped for run in self._runs.values() if run.state.stopped), ""):
            for task in [task for run in self._runs.values() for task in run.tasks.values()]:
                task.cancel()
            raise Halted(why)

    async def _directed(self, directive: Directive) -> None:
        run = self._runs.get(directive.run) or self._offered(directive)
        if run is None:
            return
        try:
            await self.feed(run, inputs.Directed(directive))
        except DureError:
            raise
        except Exception as error:  # our own mistake, which a peer found: nothing was decided or stored, the node goes on
            log.error("directive.broke", run=run.label, kind=directive.kind.value, reason=f"{type(error).__name__}: {error}"[:300])
        self._check_halted()
        if not run.state.plan_envelope:
            self._runs.pop(directive.run, None)

    def _offered(self, directive: Directive) -> Run | None:
        """A run this node has not heard of: it begins with its plan, and only so many wait for the operator at a time."""
        waiting = sum(run.state.decision == "ask" and not run.state.finished for run in self._runs.values())
        if directive.kind is not DirectiveKind.APPROVE or waiting >= MAX_WAITING:
            if directive.kind is not DirectiveKind.FINISHED:
                log.warning("directive.ignored", run=directive.run.hex()[:12], kind=directive.kind.value, waiting=waiting)
            return None
        seen: dict[str, int] = {}
        for run in self._runs.values():
            for member, generation in run.state.generations.items():
                seen[member] = max(generation, seen.get(member, 0))
        run = self._runs[directive.run] = Run(directive.run, begin(directive.run, seen))
        return run

    # -- leaving ---------------------------------------------------------------------------------------------------

    async def drain(self, limit_s: float) -> None:
        """Begin nothing new; return once no exchange is between dealing and acceptance here, or after `limit_s`."""
        self._draining = True
        until = time.monotonic() + limit_s
        while time.monotonic() < until and (busy := [run.label for run in self._runs.values() if in_exchange(run.state)]):
            log.info("drain.waits", runs=busy)
            await asyncio.sleep(AGAIN_S)

    # -- what the operator asks for --------------------------------------------------------------------------------

    async def _recomputations(self) -> None:
        """Does what `dure node recompute`, another process, writes into the store; one after the other, whatever else goes on."""
        while True:
            try:
                for asked in await asyncio.to_thread(self._store.recomputations, waiting=True):
                    try:
                        await self._recompute(asked)
                    except DureError:
                        raise
                    except Exception as error:  # our own mistake; neither the end of the node nor asked for ever
                        log.exception("recompute.broke")
                        words = f"it could not be recomputed here: {type(error).__name__}: {error}"
                        result = [{"purpose": "", "finding": "failed", "words": words[:300]}]
                        await asyncio.to_thread(self._store.end_recomputation, asked.number, result)
            except DureError as error:
                log.warning("recompute.waits", reason=str(error)[:300])
            except Exception as error:  # our own mistake, or the disk's
                log.exception("recompute.broke", reason=f"{type(error).__name__}: {error}"[:300])
            await asyncio.sleep(AGAIN_S)

    async def _recompute(self, asked: Recomputation) -> None:
        run = self._runs.get(asked.run)
        accepted = (await asyncio.to_thread(self._store.accepted, asked.run)).get(asked.exchange)
        if run is None or accepted is None:
            await asyncio.to_thread(self._store.end_recomputation, asked.number, [])
            return
        try:
            found = await self._hands.recompute_accepted(run, accepted, self._progress(asked.number))
        except Unavailable as error:
            await asyncio.to_thread(self._store.recomputation_moved, asked.number, asked.done, asked.total, str(error)[:300])
            return
        for given in found:
            await self.feed(run, given)
        words = "; ".join(sorted({given.finding.words for given in found}))
        await asyncio.to_thread(self._store.give, run.run, asked.exchange, {"recomputed": words})
        await asyncio.to_thread(self._store.end_recomputation, asked.number, [in_json(given) for given in found])
        log.info("recompute.ended", run=run.label, exchange=asked.exchange, found=words)

    def _progress(self, number: int) -> Progress:
        """Writes how far a recomputation is, twice a second at most; each write is a transaction."""
        loop, last = asyncio.get_running_loop(), 0.0

        def moved(done: int, total: int) -> None:
            nonlocal last
            if done == total or loop.time() > last + 0.5:
                last = loop.time()
                loop.run_in_executor(None, self._store.recomputation_moved, number, done, total)

        return moved

    # -- one step --------------------------------------------------------------------------------------------------

    async def feed(self, run: Run, given: inputs.Input) -> None:
        """Decide, persist, act. Runs take turns: they share the node key's chain.

        Shielded: a step may make the very action that fed it obsolete, and its cancellation must not part memory from store.
        """
        await asyncio.shield(asyncio.ensure_future(self._feed(run, given)))

    async def _feed(self, run: Run, given: inputs.Input) -> None:
        async with self._turn:
            before = run.state
            result, due = await asyncio.to_thread(self._decide, run, given)
            run.state, self._chain = result.state, result.chain
            self._history = self._history.with_records(result.records).with_committed(result.committed)
            if result.note:
                log.info("step", run=run.label, note=result.note)
            if run.state != before:
                run.done.clear()
            if run.state.finished and run.worker is not None:
                await self._hands.let_go(run)
            self._arrange(run, due, result.actions)
        if run.unsaved and (run.saving is None or run.saving.done()):
            run.saving = asyncio.create_task(self._save_soon(run))
        if run.state.finished or number_of(run.state) != number_of(before) or run.state.last_closed != before.last_closed:
            await self._closed(run)

    def _decide(self, run: Run, given: inputs.Input) -> tuple[Step, tuple[act.Action, ...]]:
        """The step and what is owed after it, persisted. One visit to a thread: the way there costs more than most steps."""
        chain = self._chain.having_seen(self._mirror.known)
        result = step(self._site(run), self._history, chain, run.state, given, self._clock(), os.urandom)
        due = owed(self._site(run), result.state)
        if result.state != run.state or result.chain != chain or result.records or (result.note and run.state.plan_envelope):
            if only_told(run.state, result) and result.chain == chain:
                run.unsaved = True
                return result, due
            self._commit(run, result)
            reach_persisted(due)
        return result, due

    def _commit(self, run: Run, result: Step) -> None:
        run.unsaved = False
        self._store.commit(run.run, result.state.to_bytes(), result.chain, result.records, result.note, result.statements, result.committed)

    async def _save_soon(self, run: Run) -> None:
        """A wait that lasts is for the operator to see: `dure node status` reads the store."""
        await asyncio.sleep(AGAIN_S)
        async with self._turn:
            if run.unsaved:
                await asyncio.to_thread(self._commit, run, Step(run.state, self._chain, (), (), ""))

    def _arrange(self, run: Run, due: tuple[act.Action, ...], fresh: tuple[act.Action, ...] = ()) -> None:
        """Start what is owed, cancel what is not."""
        wanted = {a.id: a for a in (*due, *fresh) if not isinstance(a, act.Note)}
        for name, task in list(run.tasks.items()):
            if name not in wanted:
                task.cancel()
                run.tasks.pop(name, None)
        for name, action in wanted.items():
            if name in run.tasks or name in run.done or (self._draining and isinstance(action, act.Train)):
                continue
            run.tasks[name] = asyncio.create_task(self._perform(run, action, name))

    async def _perform(self, run: Run, action: act.Action, name: str) -> None:
        """Do one action, again and again while it cannot be done *now*; what can never be done is told to the exchange logic."""
        broken, waits, began = 0, "", time.monotonic()
        try:
            while True:
                try:
                    await self._hands.do(run, action)
                    run.done.add(name)
                    return
                except Unavailable as error:
                    why = NO_ROOM if isinstance(error, DiskFull) else str(error)  # its path may be another one every time
                    if why != waits:
                        await self._say_waiting(run, action, error)
                    waits = why
                    if isinstance(error, DiskFull) and isinstance(action, act.Train) and time.monotonic() - began > NO_ROOM_S:
                        await self._fail(run, action, name, NO_ROOM)
                        return
                except DureError as error:
                    await self._fail(run, action, name, str(error))
                    return
                except Exception as error:  # our own mistake or the machine's; never the end of the node
                    broken += 1
                    reason = f"{type(error).__name__}: {error}"
                    log.error("action.broke", run=run.label, action=type(action).__name__, reason=reason[:300], exc_info=broken == 1)
                    if broken >= BROKEN_TRIES:
                        await self._fail(run, action, name, reason)
                        return
                await asyncio.sleep(AGAIN_S)
        finally:
            if run.tasks.get(name) is asyncio.current_task():
                del run.tasks[name]

    async def _say_waiting(self, run: Run, action: act.Action, error: Unavailable) -> None:
        log.info("action.waits", run=run.label, action=type(action).__name__, reason=str(error)[:300])
        if isinstance(error, DiskFull):
            with contextlib.suppress(Unavailable):  # the store may be on the same disk
                await asyncio.to_thread(self._store.note, f"waits for room: {error}", run.run)

    async def _fail(self, run: Run, action: act.Action, name: str, reason: str) -> None:
        log.error("action.failed", run=run.label, action=type(action).__name__, reason=reason[:300])
        run.done.add(name)
        await self.feed(run, inputs.Failed(name, " ".join(reason.split())[:400]))

    async def _closed(self, run: Run) -> None:
        """An exchange, or the whole run, is over: what only it needed goes, in the background."""
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._tidy())

    async def _tidy(self) -> None:
        async with self._hands.shelf.clearing():
            states = [run.state for run in self._runs.values()]
            await asyncio.to_thread(tidy, self._standing.identity.directory, self._blobs, states)


def in_json(given: inputs.Recomputed) -> dict[str, Any]:
    """A finding for people and scripts."""
    finding = given.finding
    return {
        "purpose": InstanceId.decode(given.instance).purpose.value,
        "finding": finding.kind,
        "chunk": finding.chunk,
        "member": finding.member or None,
        "leaf": finding.leaf.hex() if finding.leaf else None,
        "recomputed_leaf": finding.recomputed.hex() if finding.recomputed else None,
        "words": finding.words,
    }


@contextlib.contextmanager
def _goes_on(event: str) -> Iterator[None]:
    """Around one turn of a loop that must not end while the line lives: a full disk, or our own mistake, would end this member's witness
    without a word, and its quorum with it."""
    try:
        yield
    except DureError as error:
        log.info(event, reason=str(error)[:300])
    except Exception as error:
        log.exception(event, reason=f"{type(error).__name__}: {error}"[:300])


def only_told(before: NodeRunState, result: Step) -> bool:
    """Whether nothing changed but what the coordinator asks or says now. After a restart it says that again: it need not be durable."""
    return not result.records and not result.note and before == replace(result.state, kind=before.kind, status=before.status)


def number_of(state: NodeRunState) -> int:
    """The exchange this run is in; -1 before the first."""
    return -1 if state.exchange is None else state.exchange.number


def in_exchange(state: NodeRunState) -> bool:
    """Whether others count on this node in an exchange: it has dealt, and neither accepted nor left."""
    exchange = state.exchange
    if state.finished or exchange is None or exchange.accept or exchange.sat_out:
        return False
    return any(work.share and not work.void for work in exchange.instances)


def reach_persisted(actions: tuple[act.Action, ...]) -> None:
    """Fail points between a step's transaction and its actions."""
    for action in actions:
        if isinstance(action, act.Send) and action.report.kind in POINTS:
            reach(POINTS[action.report.kind])
        elif isinstance(action, act.Upload):
            reach(Point.UPLOAD_PROMISED)
