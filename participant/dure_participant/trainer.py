"""From an instruction to a result that can be summed: app, environment, disk, a turn on this site's accelerator, and the worker.

Whatever is in the way becomes a `TrainResult` with a problem: one member's trouble is that member's, and it is said before the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import structlog

from dure.apps import App, config_of_plan, read_app, unpack_app
from dure.blobs import NO_ROOM, BlobDamaged, BlobId
from dure.errors import Refused
from dure.forecast import exchange_disk
from dure.model.content import flower_node_id, flower_run_id
from dure.statements.kinds import EnvCommitment, RunPlan
from dure.wire.messages import OUT_OF_TIME
from dure_participant.difference import Difference, Pinned
from dure_participant.energy import counters_of, energy_of
from dure_participant.environment import NotPrepared, commitment, env_of, launcher
from dure_participant.exchange import actions as act
from dure_participant.exchange import inputs
from dure_participant.exchange.turn import plan_of
from dure_participant.held import Held
from dure_participant.running import Run, folder_of, local_of
from dure_participant.settings import NodeSettings
from dure_participant.store import NodeStore
from dure_participant.tidy import SPARE
from dure_participant.trained import NotToBeSent, look_at
from dure_participant.turns import Turn, Turns
from dure_participant.worker_host import Task, TaskResult, WorkerHost, WorkerSettings

log = structlog.get_logger()

OVERSLEPT_MS = 2_000
"""How much before the deadline, by this node's clock, a training that is called off counts as one that was too slow."""
SAY_BEFORE_S = 2.0
"""Before an exchange's deadline a node that cannot be ready in time says why it sits out; a twentieth of a time that is short."""
CHATTY = 10
"""Times the size of the log that an app may print before its operator hears of it."""


class NoTurn(Exception):
    """The exchange's time was over before other runs were done here."""


class Trainer:
    """Made once per agent. `pull` brings a blob to this disk."""

    def __init__(
        self,
        *,
        member: str,
        directory: Path,
        settings: NodeSettings,
        store: NodeStore,
        held: Held,
        clock: Callable[[], float],
        pull: Callable[[Run, BlobId], Awaitable[None]],
    ) -> None:
        self._member, self._dir, self._settings, self._store, self._held = member, directory, settings, store, held
        self._clock, self._pull, self._blobs = clock, pull, held.store
        self._turns, self._counters = Turns(settings.places), counters_of(settings)
        self._warm: dict[bytes, Run] = {}
        """Runs that have a worker, or had one."""

    async def execute(self, run: Run, action: act.Train) -> inputs.TrainResult:
        """Does the instruction.

        Raises:
            Unavailable: not now; try again. Cancelling it ends the worker.
        """
        plan = plan_of(run.state.plan_envelope)
        try:
            app, worker = await self._worker(run, plan)
        except NotPrepared as error:
            return await self._unprepared(run, action, error)
        arrays, base, found = action.instruction.arrays, None, bytes(32)
        if arrays is not None:
            if short := await asyncio.to_thread(self.no_room, plan, action):
                return inputs.TrainResult(problem=short, told=NO_ROOM)
            blob = BlobId.parse(action.weights)
            await self._pull(run, blob)
            base = self._blobs.path(blob)
            found = await asyncio.to_thread(self._held.weights_id, blob, arrays.layout)
            if action.instruction.category != "train":  # otherwise in one pass with what the worker brings
                await asyncio.to_thread(self._held.check, blob)
            if found != arrays.weights_id:
                wrong = "the base's weights are not those the instruction names"
                return inputs.TrainResult(problem=wrong, told=wrong)
        task = self._task(run, action, app, plan, base)
        try:
            async with self._turn(run, plan, action, worker) as turn:
                before, began = await self._counters.read(), time.monotonic()
                result = await self._worked(run, plan, action, worker, task, turn)
                spent_ms = int((time.monotonic() - began) * 1000)
                energy = energy_of(self._settings, spent_ms, before, await self._counters.read())
        except NoTurn:
            return self._crowded_out(run, action)
        if turn.taken_for is not None:
            return gave_way(turn.taken_for)
        log.info("train.ended", run=run.label, exchange=action.exchange, status=result.status, milliseconds=spent_ms)
        judged = await self._judged(run, action, result, found, spent_ms)
        return judged if judged.problem else replace(judged, environment=await self._environment(run, plan), energy=energy)

    async def _environment(self, run: Run, plan: RunPlan) -> EnvCommitment:
        decision = await asyncio.to_thread(self._store.decision, run.run)
        return await asyncio.to_thread(commitment, self._member, self._settings, plan, env_of(plan, decision))

    def _task(self, run: Run, action: act.Train, app: App, plan: RunPlan, base: Path | None) -> Task:
        out = local_of(self._dir, run, action.exchange)
        out.parent.mkdir(parents=True, exist_ok=True)
        return Task(
            run_id=flower_run_id(run.run),
            node_id=flower_node_id(self._member),
            exchange=action.exchange,
            instruction=action.instruction.to_json(),
            out_path=out.resolve(),
            state_path=(folder_of(self._dir, run) / "context").resolve(),
            base_path=None if base is None else base.resolve(),
            node_config={**self._settings.node_config, "device": self._settings.device},
            run_config=config_of_plan(app, plan.settings),
            weight_key=app.dure.weight_key,
        )

    # -- a turn ----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _turn(self, run: Run, plan: RunPlan, action: act.Train, worker: WorkerHost) -> AsyncIterator[Turn]:
        """Waits for this run's turn, as long as the exchange lasts; inside, the run has it. `NoTurn` when time was over first."""
        killing: list[asyncio.Task[None]] = []
        if self._turns.full():
            log.info("train.waits", run=run.label, exchange=action.exchange, behind=[r.hex()[:12] for r in self._turns.holders()])
        try:
            async with asyncio.timeout(self._left_s(plan, action)) as limit:
                async with self._turns.take(run.run, lambda: killing.append(asyncio.create_task(worker.kill()))) as turn:
                    limit.reschedule(None)
                    await self._let_idle_workers_go()
                    yield turn
        except TimeoutError:
            if limit.expired():
                raise NoTurn from None
            raise
        finally:
            await asyncio.gather(*killing, return_exceptions=True)

    async def _let_idle_workers_go(self) -> None:
        """A worker stays warm between rounds and keeps its model on the accelerator. Where places are counted, it goes once another run
        needs its place; what it knew is in its state."""
        training = set(self._turns.holders())
        idle = [r.worker for r in self._warm.values() if r.run not in training and r.worker is not None and r.worker.pid]
        if self._turns.places:
            await asyncio.gather(*(w.kill() for w in idle[: max(0, len(training) + len(idle) - self._turns.places)]))

    async def _worked(self, run: Run, plan: RunPlan, action: act.Train, worker: WorkerHost, task: Task, turn: Turn) -> TaskResult:
        began = self._clock()
        log.info("train.begins", run=run.label, exchange=action.exchange, kind=action.instruction.message_type)
        try:
            result = await worker.run(task, timeout_s=self._left_s(plan, action), over=folder_of(self._dir, run) / SPARE)
            if result.killed and turn.taken_for is None:  # it starts from the same state, so a second try is the same training
                log.warning("train.again", run=run.label, exchange=action.exchange, reason=result.error)
                result = await worker.run(task, timeout_s=self._left_s(plan, action))
        except asyncio.CancelledError:
            self._overslept(run, plan, action, began)
            raise
        if result.late:
            self._wasted(run, plan, began)
        elif turn.taken_for is None:
            self._turns.used(run.run)
        self._say_chatty(run, worker)
        return result

    def _overslept(self, run: Run, plan: RunPlan, action: act.Train, began: float) -> None:
        """The exchange went on while the app was still at work; its operator hears why nothing was counted."""
        if action.deadline_ms and self._clock() * 1000 > action.deadline_ms - OVERSLEPT_MS:
            self._wasted(run, plan, began)
            log.warning("train.overslept", run=run.label, exchange=action.exchange)
            self._store.note(f"exchange {action.exchange} went on without this node: its app was still at work at the deadline", run.run)

    def _wasted(self, run: Run, plan: RunPlan, began: float) -> None:
        """Only a run that had its turn for most of the exchange has nobody else to blame."""
        if self._clock() - began > plan.deadlines.execute / 2:
            self._turns.wasted(run.run)

    def _crowded_out(self, run: Run, action: act.Train) -> inputs.TrainResult:
        others = ", ".join(r.hex()[:12] for r in self._turns.holders() if r != run.run)
        problem = f"its turn did not come before the deadline: run {others} had it; `dure node config set train_at_once=N` lets N at once"
        log.warning("train.no_turn", run=run.label, exchange=action.exchange, behind=others)
        return inputs.TrainResult(problem=problem, told=f"another run had the accelerator: {OUT_OF_TIME}")

    def _left_s(self, plan: RunPlan, action: act.Train) -> float | None:
        """Until this node says that it is not ready, so that it is heard before the deadline; None: the site's own limit."""
        if not action.deadline_ms:
            return None
        sooner = min(SAY_BEFORE_S, plan.deadlines.execute / 20)
        return max(1.0, action.deadline_ms / 1000 - sooner - self._clock())

    def _say_chatty(self, run: Run, worker: WorkerHost) -> None:
        kept = self._settings.worker_log_bytes
        if worker.printed_bytes > CHATTY * kept and not run.told_of_output:
            run.told_of_output = True
            printed = f"{worker.printed_bytes / 1e6:,.0f} MB so far"
            self._store.note(f"its app prints a lot, {printed}; the last {kept / 1e6:.3g} MB are kept in {worker.log_path}", run.run)

    # -- what comes back -------------------------------------------------------------------------------------------

    async def _judged(self, run: Run, action: act.Train, result: TaskResult, found: bytes, spent_ms: int) -> inputs.TrainResult:
        """The worker's answer as the exchange logic takes it; whatever cannot be sent is a `problem`."""
        if result.status != "ok":
            return inputs.TrainResult(problem=result.error[:400], told=OUT_OF_TIME if result.late else result.told[:400])
        update = bytes(32)
        if result.flat_path is not None:
            try:
                run.pinned = await asyncio.to_thread(self._look_at, action, result)
            except NotToBeSent as error:
                return inputs.TrainResult(problem=str(error)[:400], told=f"{error.what[:200]}: cannot be summed; its operator sees why")
            update = run.pinned.root
        return inputs.TrainResult(
            weights_id=found,
            has_arrays=result.flat_path is not None,
            update_root=update,
            weight=result.num_examples,
            metrics=dict(result.metrics),
            tokens=result.usage.tokens,
            steps=result.usage.steps,
            milliseconds=spent_ms,
            device=self._settings.device,
            measured_flop=result.usage.flop,
            hardware_flop=int(self._settings.peak_flops * spent_ms) // 1000,
        )

    def _look_at(self, action: act.Train, result: TaskResult) -> Pinned:
        """What the worker brought, judged and pinned. Raises `NotToBeSent`; `Unavailable` where the disk has changed the base."""
        arrays, blob = action.instruction.arrays, BlobId.parse(action.weights)
        assert arrays is not None and result.flat_path is not None
        with contextlib.closing(Difference(self._blobs.path(blob), result.flat_path, arrays.layout)) as update:
            try:
                return look_at(update, weight=result.num_examples, w_max=action.w_max, base=self._blobs.manifest(blob))
            except BlobDamaged as error:
                raise self._held.damaged(blob, error) from error

    # -- what it takes ----------------------------------------------------------------------------------------------

    def no_room(self, plan: RunPlan, action: act.Train) -> str:
        """Why this exchange is not begun here: the disk would be full before its end; "" where it fits."""
        arrays = action.instruction.arrays
        assert arrays is not None
        there = self._blobs.has(BlobId.parse(action.weights))
        train = action.instruction.category == "train"
        needed, free = exchange_disk(plan, arrays.layout.elements, train=train, base_is_there=there), shutil.disk_usage(self._dir).free
        if needed <= free:
            return ""
        return f"disk: this exchange takes {needed / 1e9:.2f} GB at this node and {free / 1e9:.2f} GB are free; make room"

    async def _unprepared(self, run: Run, action: act.Train, why: NotPrepared) -> inputs.TrainResult:
        """Waits through one exchange for the operator, and says so before its deadline; later ones go on without this node at once."""
        if not await asyncio.to_thread(self._store.has_note, str(why), run.run):
            await asyncio.to_thread(self._store.note, str(why), run.run)
        if not run.waited and (not action.deadline_ms or self._clock() < action.deadline_ms / 1000 - SAY_BEFORE_S):
            raise why
        run.waited = True
        return inputs.TrainResult(problem=str(why)[:400], told=why.told)

    async def app(self, run: Run, plan: RunPlan) -> Path:
        """The folder of the plan's app, fetched and unpacked once."""
        app_dir = folder_of(self._dir, run) / "app"
        if not app_dir.exists():
            blob = BlobId.parse(plan.app_blob)
            await self._pull(run, blob)
            archive = await asyncio.to_thread(self._blobs.read_bytes, blob, limit=1 << 30)
            fresh = app_dir.with_name("app.new")
            shutil.rmtree(fresh, ignore_errors=True)
            await asyncio.to_thread(unpack_app, archive, fresh, digest=plan.app_sha256)
            fresh.rename(app_dir)  # whole or not at all
        return app_dir

    async def _worker(self, run: Run, plan: RunPlan) -> tuple[App, WorkerHost]:
        app_dir = await self.app(run, plan)
        if run.app is None:
            run.app = await asyncio.to_thread(read_app, app_dir)
        if run.app.env_sha256 != plan.env_sha256:
            raise Refused("env_sha256", "is not the lock in the plan's app")
        if run.worker is None:
            decision = await asyncio.to_thread(self._store.decision, run.run)
            start = await asyncio.to_thread(launcher, self._dir, env_of(plan, decision), run.run)
            site = self._settings
            limits = WorkerSettings(
                timeout_s=site.task_timeout_s,
                threads=site.threads,
                max_log_bytes=site.worker_log_bytes,
                max_scratch_bytes=site.worker_disk_bytes,
            )
            run.worker = WorkerHost(app_dir, folder_of(self._dir, run) / "scratch", launcher=start, settings=limits)
            self._warm[run.run] = run
        return run.app, run.worker


def gave_way(other: bytes) -> inputs.TrainResult:
    """For a run whose turn was taken away."""
    problem = f"it gave its turn up to run {other.hex()[:12]}: its app was not done at the deadline the last time it had one"
    return inputs.TrainResult(problem=problem, told=f"another run wanted the accelerator: {OUT_OF_TIME}")
