"""The node agent: directives in, `exchange.step` decides, the store remembers, actions follow. Level-triggered and crash-safe.

Order, always: input → step → one transaction → actions. An action is a task with a stable id; what the state no longer owes is cancelled,
what it owes and nobody does is started, after every step and after every restart.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from dure.apps import config_of_plan, read_app, unpack_app
from dure.blobs import BlobId, BlobStore
from dure.errors import DureError, Refused, Unavailable
from dure.identity.node import NodeIdentity
from dure.model.content import flower_node_id, flower_run_id
from dure.model.layout import Layout
from dure.model.weights import open_flat, weights_id
from dure.statements.kinds import RunPlan
from dure.statements.statement import Chain, open_statement
from dure.wire.messages import Directive, DirectiveKind
from dure_participant import policy, work
from dure_participant.bulk import BulkRefused, pull_blob, push_upload
from dure_participant.exchange import actions as act
from dure_participant.exchange import inputs
from dure_participant.exchange.site import History, Site
from dure_participant.exchange.state import NodeRunState
from dure_participant.exchange.step import begin, owed, step
from dure_participant.settings import NodeSettings
from dure_participant.store import NodeStore
from dure_participant.transport import Line, pause
from dure_participant.worker_host import Task, WorkerHost, WorkerSettings

log = structlog.get_logger()

DECISION_POLL_S = 0.5
"""How often the agent looks whether the operator has decided; the command line writes into the same store."""
CLOCK_LIMIT_S = 300.0


@dataclass
class Run:
    """One run in this process: its state and what is being done for it."""

    run: bytes
    state: NodeRunState
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    """Ids of actions that ended and are owed only because the state has not moved on; not started again until it does."""
    worker: WorkerHost | None = None
    directive: Directive | None = None


class Agent:
    """One node. `run` returns when cancelled; everything it knew is in the store."""

    def __init__(self, identity: NodeIdentity, settings: NodeSettings, store: NodeStore, clock: Callable[[], float] = time.time) -> None:
        self._identity, self._settings, self._store, self._clock = identity, settings, store, clock
        self._dir = identity.directory
        self._blobs = BlobStore(self._dir / "blobs")
        self._blobs.sweep()
        terms = identity.charter.terms
        self._site = Site(
            consortium=terms.consortium_id,
            member=identity.member,
            node=identity.node,
            node_key=identity.key,
            generation=identity.delegated.generation,
            delegation=identity.delegation,
            charter_version=identity.charter.version,
            charter_sha256=identity.charter.digest,
            colluders=terms.colluders,
            members={m.id: m.signing_key for m in terms.members},
            coordinator_key=terms.coordinator.signing_key,
            allow_unrecomputed_bases=terms.allow_unrecomputed_bases,
            software="dure",
        )
        self._turn = asyncio.Lock()
        self._pulls: dict[str, asyncio.Lock] = {}
        self._line: Line | None = None
        self._runs = {run: Run(run, NodeRunState.from_bytes(raw)) for run, raw in store.states().items()}
        self._chain: Chain = store.chain()
        self._history: History = store.history()

    # -- the line to the coordinator -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Dial, follow, reconnect, for ever."""
        attempt = 0
        try:
            while True:
                self._line = Line(self._identity)
                try:
                    reply = await self._line.hello()
                    self._check_clock(reply.time_ms / 1000)
                    self._store.set_fact("connection", {"state": "connected", "since": self._clock()})
                    log.info("coordinator.connected", address=self._identity.address)
                    attempt = 0
                    for run in self._runs.values():
                        run.done.clear()
                    async for directive in self._line.follow():
                        await self._directed(directive)
                    raise Unavailable("the coordinator ended the stream")
                except DureError as error:
                    self._store.set_fact("connection", {"state": "away", "since": self._clock(), "reason": str(error)[:300]})
                    (log.warning if attempt < 3 else log.debug)("coordinator.away", reason=str(error)[:300], attempt=attempt)
                finally:
                    await self._line.close()
                await pause(attempt)
                attempt += 1
        finally:
            await self._stop()

    def _check_clock(self, theirs: float) -> None:
        apart = abs(theirs - self._clock())
        if apart > CLOCK_LIMIT_S:
            raise Unavailable(f"this clock and the coordinator's are {apart:.0f} s apart; set the one that is wrong (NTP), then it goes on")

    async def _stop(self) -> None:
        for run in self._runs.values():
            for task in run.tasks.values():
                task.cancel()
            await asyncio.gather(*run.tasks.values(), return_exceptions=True)
            if run.worker is not None:
                await run.worker.kill()

    async def _directed(self, directive: Directive) -> None:
        run = self._runs.get(directive.run)
        if run is None:
            if directive.kind is not DirectiveKind.APPROVE and directive.kind is not DirectiveKind.WAIT:
                log.info("run.unknown", run=directive.run.hex()[:12], kind=directive.kind.value)
            run = self._runs[directive.run] = Run(directive.run, begin(directive.run))
        run.directive = directive
        await self.feed(run, inputs.Directed(directive))

    # -- one step --------------------------------------------------------------------------------------------------

    async def feed(self, run: Run, given: inputs.Input) -> None:
        """Decide, persist, act. Runs take turns: they share the node key's chain.

        Shielded: a step may make the very action that fed it obsolete, and its cancellation must not part memory from store.
        """
        await asyncio.shield(asyncio.ensure_future(self._feed(run, given)))

    async def _feed(self, run: Run, given: inputs.Input) -> None:
        async with self._turn:
            before = run.state
            result = await asyncio.to_thread(step, self._site, self._history, self._chain, run.state, given, self._clock(), os.urandom)
            await asyncio.to_thread(self._store.commit, run.run, result.state.to_bytes(), result.chain, result.records, result.note)
            run.state, self._chain = result.state, result.chain
            self._history = self._history.with_records(result.records)
            if result.note:
                log.info("step", run=run.run.hex()[:12], note=result.note)
            if run.state != before:
                run.done.clear()
            self._arrange(run, result.actions)

    def _arrange(self, run: Run, fresh: tuple[act.Action, ...]) -> None:
        """Start what is owed, cancel what is not."""
        wanted = {a.id: a for a in (*owed(self._site, run.state), *fresh) if not isinstance(a, act.Note)}
        for name, task in list(run.tasks.items()):
            if name not in wanted:
                task.cancel()
                run.tasks.pop(name, None)
        for name, action in wanted.items():
            if name in run.tasks or name in run.done:
                continue
            run.tasks[name] = asyncio.create_task(self._perform(run, action, name))

    async def _perform(self, run: Run, action: act.Action, name: str) -> None:
        try:
            await self._do(run, action)
            run.done.add(name)
        except asyncio.CancelledError:
            raise
        except Unavailable as error:
            log.warning("action.waits", run=run.run.hex()[:12], action=type(action).__name__, reason=str(error)[:300])
            await asyncio.sleep(1.0)
        except DureError as error:
            log.error("action.failed", run=run.run.hex()[:12], action=type(action).__name__, reason=str(error)[:300])
            run.done.add(name)
            await self.feed(run, inputs.Failed(name, str(error)[:400]))
        finally:
            if run.tasks.get(name) is asyncio.current_task():
                del run.tasks[name]
        if name not in run.done:
            self._arrange(run, ())

    async def _do(self, run: Run, action: act.Action) -> None:
        doers: dict[type, Callable[[Run, object], Awaitable[None]]] = {
            act.Send: self._send,
            act.AskOperator: self._ask,
            act.Train: self._train,
            act.Upload: self._upload,
            act.Commit: self._commit,
            act.Verify: self._verify,
        }  # type: ignore[dict-item]  # each takes its own action
        await doers[type(action)](run, action)

    # -- actions ---------------------------------------------------------------------------------------------------

    async def _send(self, run: Run, action: act.Send) -> None:
        line = self._connected()
        reply = await line.report(action.report)
        if not reply.accepted:
            text = f"the coordinator refused {action.report.kind.value}: {reply.field}: {reply.reason}"
            log.warning("report.refused", run=run.run.hex()[:12], kind=action.report.kind.value, field=reply.field, reason=reply.reason)
            await asyncio.to_thread(self._store.note, text, run.run)

    def _connected(self) -> Line:
        if self._line is None:
            raise Unavailable("not connected")
        return self._line

    async def _ask(self, run: Run, action: act.AskOperator) -> None:
        await asyncio.to_thread(self._store.offer, run.run, action.plan_envelope, action.app_blob)
        plan = self._plan(action.plan_envelope)
        if self._store.decision(run.run) is None and policy.allows(policy.load(self._dir), plan, self._history):
            self._store.decide(run.run, allowed=True, reason="", how="site-policy.toml")
        if self._store.decision(run.run) is None:
            log.info("plan.waits", plan=run.run.hex(), next=f"dure node allow {run.run.hex()[:16]}")
        # The operator's command is another process; it writes into the same store.
        while (decision := await asyncio.to_thread(self._store.decision, run.run)) is None:  # noqa: ASYNC110
            await asyncio.sleep(DECISION_POLL_S)
        await self.feed(run, inputs.Allowed(run.run, decision.allowed, decision.reason))

    def _plan(self, envelope: bytes) -> RunPlan:
        return open_statement(envelope, RunPlan, [self._site.coordinator_key]).fact

    async def _pull(self, blob: BlobId) -> None:
        lock = self._pulls.setdefault(str(blob), asyncio.Lock())
        async with lock:
            if not await asyncio.to_thread(self._blobs.has, blob):
                await pull_blob(self._connected().channel, blob, self._blobs)

    def _folder(self, run: Run) -> Path:
        return self._dir / "runs" / run.run.hex()[:16]

    def _local(self, run: Run, exchange: int) -> Path:
        return self._folder(run) / f"local-{exchange:06d}.f32"

    async def _worker(self, run: Run) -> WorkerHost:
        if run.worker is None:
            plan = self._plan(run.state.plan_envelope)
            app_dir = self._folder(run) / "app"
            if not (app_dir / "pyproject.toml").exists():
                blob = BlobId.parse(plan.app_blob)
                await self._pull(blob)
                archive = await asyncio.to_thread(self._blobs.read_bytes, blob, limit=1 << 30)
                fresh = app_dir.with_name("app.new")
                shutil.rmtree(fresh, ignore_errors=True)
                await asyncio.to_thread(unpack_app, archive, fresh, digest=plan.app_sha256)
                shutil.rmtree(app_dir, ignore_errors=True)
                fresh.rename(app_dir)
            settings = WorkerSettings(
                timeout_s=self._settings.task_timeout_s, threads=self._settings.threads, max_log_bytes=self._settings.worker_log_bytes
            )
            run.worker = WorkerHost(app_dir, self._folder(run) / "scratch", settings=settings)
        return run.worker

    async def _train(self, run: Run, action: act.Train) -> None:
        await self.feed(run, inputs.Trained(action.exchange, await self._execute(run, action)))

    async def _execute(self, run: Run, action: act.Train) -> inputs.TrainResult:
        layout, base, found = None, None, bytes(32)
        worker = await self._worker(run)
        arrays = action.instruction.arrays
        if arrays is not None:
            layout = arrays.layout
            blob = BlobId.parse(action.weights)
            await self._pull(blob)
            base = self._blobs.path(blob)
            found = await asyncio.to_thread(lambda: weights_id(open_flat(base, layout), layout))
            if found != arrays.weights_id:
                return inputs.TrainResult(problem="the base's weights are not those the instruction names")
        plan = self._plan(run.state.plan_envelope)
        out = self._local(run, action.exchange)
        out.parent.mkdir(parents=True, exist_ok=True)
        task = Task(
            run_id=flower_run_id(run.run),
            node_id=flower_node_id(self._site.member),
            exchange=action.exchange,
            instruction=action.instruction.to_json(),
            out_path=out.resolve(),
            state_path=(self._folder(run) / "context").resolve(),
            base_path=base.resolve() if base is not None else None,
            node_config={**self._settings.node_config, "device": self._settings.device},
            run_config=config_of_plan(read_app(self._folder(run) / "app"), plan.settings),
        )
        limit = max(1.0, action.deadline_ms / 1000 - self._clock()) if action.deadline_ms else None
        started = time.monotonic()
        result = await worker.run(task, timeout_s=limit)
        spent_ms = int((time.monotonic() - started) * 1000)
        if result.status != "ok":
            return inputs.TrainResult(problem=f"app: {result.error}"[:400])
        update = bytes(32)
        if result.flat_path is not None:
            assert base is not None and layout is not None
            local = result.flat_path
            if problem := await asyncio.to_thread(work.check_update, base, local, layout):
                return inputs.TrainResult(problem=problem)
            update = await asyncio.to_thread(work.file_sha256, local)
        return inputs.TrainResult(
            weights_id=found,
            has_arrays=result.flat_path is not None,
            update_sha256=update,
            weight=result.num_examples,
            metrics=dict(result.metrics),
            tokens=result.usage.tokens,
            steps=result.usage.steps,
            milliseconds=spent_ms,
            device=self._settings.device,
        )

    def _masked(self, run: Run, instance: bytes) -> Path:
        return self._folder(run) / "uploads" / f"{work.instance_name(instance)}.masked"

    async def _upload(self, run: Run, action: act.Upload) -> None:
        base = layout = local = None
        if action.purpose != "scalars":
            exchange = run.state.exchange
            assert exchange is not None
            layout, base = Layout.from_json(exchange.layout), self._blobs.path(BlobId.parse(exchange.weights))
            local = self._local(run, action.exchange)
        out = self._masked(run, action.instance)
        ready = await asyncio.to_thread(work.encode, action, out=out, base=base, local=local, layout=layout, store=self._blobs)
        await self.feed(run, ready)

    async def _commit(self, run: Run, action: act.Commit) -> None:
        path = self._masked(run, action.instance)
        encoded = await asyncio.to_thread(work.Encoded.of, path, action.length, action.chunk_bytes)
        try:
            await push_upload(self._connected().channel, action.upload, encoded.chunk, len(encoded.leaves), lambda: action.envelope)
        except BulkRefused as error:
            await asyncio.to_thread(self._store.note, f"the coordinator refused this node's upload: {error}", run.run)
            log.warning("upload.refused", run=run.run.hex()[:12], reason=str(error))
            return
        exchange = run.state.exchange
        if exchange is not None:
            name = f"bytes_{work.instance_name(action.instance).split('-')[1]}"
            facts = {name: action.length, "member": self._site.member}
            await asyncio.to_thread(self._store.give, run.run, exchange.number, facts)

    async def _verify(self, run: Run, action: act.Verify) -> None:
        if action.sum:
            try:
                await self._pull(BlobId.parse(action.sum))
            except BulkRefused as error:
                raise Refused("sum", str(error)) from None
        facts = await asyncio.to_thread(work.verify, action, self._blobs)
        await self.feed(run, inputs.Verified(action.instance, facts))
        if action.purpose != "scales":
            await asyncio.to_thread(self._tidy, run, action.exchange)

    def _tidy(self, run: Run, exchange: int) -> None:
        """What only earlier exchanges needed."""
        for number in range(max(0, exchange - 8), exchange):
            self._local(run, number).unlink(missing_ok=True)
            for path in (self._folder(run) / "uploads").glob(f"{number:06d}-*.masked"):
                path.unlink(missing_ok=True)
