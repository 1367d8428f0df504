"""The agent's hands: one method per action of `exchange/actions.py`. What takes long runs in a thread or in the worker.

Every method may be cancelled at any await and called again later: what is on disk, at the coordinator and in the store decides how far it
came. A job that was started goes on when its action is cancelled (a directive may change for a moment) and is met again by the next call.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from dure.blobs import NO_ROOM, BlobId, BlobStore
from dure.errors import BadInput, DureError, Refused, Unavailable
from dure.failpoints import Point, reach
from dure.model.base import BaseRecord
from dure.model.layout import Layout
from dure.recompute.evidence import Trust
from dure.recompute.joint_seed import MESSAGE_TYPE
from dure.recompute.sums import Finding
from dure.secagg import thresholds, tlv
from dure.statements.kinds import RunPlan
from dure.statements.statement import read_verified
from dure.tlog.merkle import merkle_root
from dure.wire.messages import Report, ReportKind
from dure_participant import policy
from dure_participant.bulk import BulkRefused, pull_through, push_upload
from dure_participant.difference import GONE, Difference
from dure_participant.exchange import actions as act
from dure_participant.exchange import inputs
from dure_participant.exchange.again import needs_consent
from dure_participant.exchange.site import Site
from dure_participant.exchange.state import ExchangeWork
from dure_participant.exchange.turn import known_instances, plan_of
from dure_participant.first import make_first
from dure_participant.held import Held
from dure_participant.log.courier import Courier
from dure_participant.named_data import of_run
from dure_participant.piped import through_thread
from dure_participant.recompute import Progress, Recomputer
from dure_participant.running import Run, Shelf, local_of
from dure_participant.settings import NodeSettings
from dure_participant.store import Accepted, Decision, NodeStore
from dure_participant.trained import look_again
from dure_participant.trainer import Trainer
from dure_participant.transport import Line
from dure_participant.uploads import CommitOf, MaskedUpload, Sources, open_stream
from dure_participant.verify import opened_sum, verify

log = structlog.get_logger()

DECISION_POLL_S = 0.5
"""How often the agent looks whether the operator has decided; the command line, another process, writes into the same store."""
STATEMENTS = {ReportKind.APPROVAL, ReportKind.ACCEPT, ReportKind.VOID, ReportKind.DISPUTE}
"""Reports that bring signed statements, which become entries with them; what was signed before is in the log first."""
E_B_LIMIT_BYTES = 1 << 28


def statements_in(report: Report) -> tuple[bytes, ...]:
    """The signed statements that a report brings, which become entries of the log with it."""
    if report.kind not in STATEMENTS:
        return ()
    parts = tlv.decode(report.body, max_bytes=len(report.body)) if report.kind is ReportKind.ACCEPT else (report.body,)
    return tuple(part for part in parts if isinstance(part, bytes) and part)


class Hands:
    """Made once per agent. `feed` hands a result to the exchange logic, `line` is the connection or raises `Unavailable`."""

    def __init__(
        self,
        *,
        member: str,
        site: Callable[[Run], Site],
        directory: Path,
        settings: NodeSettings,
        store: NodeStore,
        blobs: BlobStore,
        clock: Callable[[], float],
        line: Callable[[], Line],
        courier: Courier,
        registered: Callable[[], Mapping[bytes, str]],
        feed: Callable[[Run, inputs.Input], Awaitable[None]],
    ) -> None:
        self._site, self._dir, self._settings, self._store, self._blobs = site, directory, settings, store, blobs
        self._clock, self._line, self._courier, self._registered, self._feed = clock, line, courier, registered, feed
        self._held = Held(blobs, line)
        self.trainer = Trainer(
            member=member, directory=directory, settings=settings, store=store, held=self._held, clock=clock, pull=self._pull
        )
        self.recomputer = Recomputer(blobs, line, clock)
        self.shelf = Shelf()

    async def do(self, run: Run, action: act.Action) -> None:
        """Perform one action to its end.

        Raises:
            Unavailable: not now; try again.
            DureError: never; the exchange logic must hear of it.
        """
        match action:
            case act.Send():
                await self._send(run, action)
            case act.AskOperator():
                await self._ask(run, action)
            case act.Train():
                await self._train(run, action)
            case act.Upload():
                await self._upload(run, action)
            case act.Commit():
                await self._commit(run, action)
            case act.Verify():
                await self._verify(run, action)
            case act.Recompute():
                await self._recompute(run, action)

    # -- reports and consent ---------------------------------------------------------------------------------------

    async def _send(self, run: Run, action: act.Send) -> None:
        brought = statements_in(action.report)
        if brought:
            await self._courier.flush(brought)
        reply = await self._line().report(action.report)
        if brought:  # a refused one is in the log all the same: it says what this node signed
            await (self._courier.taken(brought) if reply.accepted else self._courier.flush())
        if not reply.accepted:
            kind = action.report.kind.value
            log.warning("report.refused", run=run.label, kind=kind, field=reply.field, reason=reply.reason)
            await asyncio.to_thread(self._store.note, f"the coordinator refused {kind}: {reply.field}: {reply.reason}", run.run)

    async def _ask(self, run: Run, action: act.AskOperator) -> None:
        await asyncio.to_thread(self._store.offer, run.run, action.plan_envelope, action.app_blob)
        plan = read_verified(action.plan_envelope, RunPlan)
        await self._show_code(run, plan)
        decision = await asyncio.to_thread(self._store.decision, run.run)
        if decision is None:
            rule = await asyncio.to_thread(self._rule, run, plan)
            if rule is not None:
                env = bytes.fromhex(rule.env_sha256) if rule.env_sha256 else None
                await asyncio.to_thread(self._store.decide, run.run, allowed=True, reason="", how=rule.named, env_sha256=env)
            else:
                log.info("plan.waits", run=run.label, plan=run.run.hex(), next=f"dure node allow {run.run.hex()[:16]}")
        decision = await self._decided(run, needs_consent(plan))
        await self._feed(run, inputs.Allowed(run.run, decision.allowed, decision.reason, decision.consented))

    async def _decided(self, run: Run, needed: frozenset[bytes]) -> Decision:
        """The operator's word, once there is one; a yes counts with consent to every earlier sum on the plan's weights."""
        told = False
        while True:
            decision = await asyncio.to_thread(self._store.decision, run.run)
            if decision is not None and (not decision.allowed or needed <= set(decision.consented)):
                return decision
            if decision is not None and not told:
                told = True
                text = "allowed ahead, and it uses weights again on which sums were opened: look at it with `dure node allow` to consent"
                await asyncio.to_thread(self._store.note, text, run.run)
                log.info("plan.needs_consent", run=run.label, next=f"dure node allow {run.run.hex()[:16]}")
            await asyncio.sleep(DECISION_POLL_S)

    async def _show_code(self, run: Run, plan: RunPlan) -> None:
        """The app's code on this disk: it can be read, and its environment prepared, before anybody allows it."""
        try:
            await self.trainer.app(run, plan)
        except Unavailable:
            raise
        except DureError as error:
            await asyncio.to_thread(self._store.note, f"the plan's code cannot be shown: {error}", run.run)

    def _rule(self, run: Run, plan: RunPlan) -> policy.Rule | None:
        """The site rule that consents; a file that does not parse allows nothing, and the operator hears of it."""
        try:
            return policy.consent(policy.load(self._dir), plan, self._store.history(), self._settings)
        except BadInput as error:
            log.warning("policy.unreadable", reason=str(error))
            self._store.note(str(error), run.run)
            return None

    # -- training --------------------------------------------------------------------------------------------------

    async def _train(self, run: Run, action: act.Train) -> None:
        result = await self._without_app(run, action) or await self.trainer.execute(run, action)
        reach(Point.TRAINING_ENDED)
        await self._feed(run, inputs.Trained(action.exchange, result))

    async def _without_app(self, run: Run, action: act.Train) -> inputs.TrainResult | None:
        """The answer to a draw; or why no app is shown first weights that are not those which the members drew. None: the app's affair."""
        plan = plan_of(run.state.plan_envelope)
        if plan.initial is None:
            return None
        if action.instruction.message_type == MESSAGE_TYPE:
            return inputs.TrainResult(weight=1.0)  # only the opened seeds are wanted
        arrays = action.instruction.arrays
        if arrays is None or run.drawn == action.weights or BaseRecord.from_json(action.base_record).exchange:
            return None
        if short := await asyncio.to_thread(self.trainer.no_room, plan, action):
            return inputs.TrainResult(problem=short, told=NO_ROOM)
        async with self.shelf.making():
            offered = BlobId.parse(action.weights)
            wrong = await make_first(self._line, self._blobs, self._trust(run), plan, arrays.layout, offered, action.exchange)
        run.drawn = "" if wrong else action.weights
        return inputs.TrainResult(problem=wrong, told=wrong) if wrong else None

    async def _pull(self, run: Run, blob: BlobId) -> None:
        run.pulled_bytes += await self._held.pull(blob)

    # -- uploading -------------------------------------------------------------------------------------------------

    async def _upload(self, run: Run, action: act.Upload) -> None:
        """Make and send every chunk; the commit follows on the same stream once the exchange logic has signed it."""
        stream = run.streams.get(action.upload)
        if stream is None or stream.sending.done():
            for old in [u for u in run.streams if u != action.upload]:
                run.streams.pop(old).cancel()
            self._give(run, action)
            upload = stream.upload if stream is not None else self._masked(run, action)
            stream = run.streams[action.upload] = open_stream(upload, self._send_upload)
        started = time.monotonic()
        ready = await stream.made()
        spent_ms = int((time.monotonic() - started) * 1000)
        log.info("upload.made", run=run.label, exchange=action.exchange, purpose=action.purpose, bytes=action.length, milliseconds=spent_ms)
        told = run.pulled_bytes
        if action.purpose != "scales":  # only a usage statement says it
            run.pulled_bytes = 0
        data = await asyncio.to_thread(self._data_of, run)
        await self._feed(run, replace(ready, bytes_down=told, data=data))

    def _data_of(self, run: Run) -> tuple[bytes, ...]:
        """What this run's usage statements name. What the log does not have of this member is said to the operator, and named by nobody."""
        data, unknown = of_run(self._store.decision(run.run), self._settings, self._registered())
        for digest in unknown:
            words = f"data {digest.hex()[:16]}… is not in the log as this member's; this run's usage does not name it"
            if not self._store.has_note(words, run.run):
                self._store.note(words, run.run)
        return data

    def _masked(self, run: Run, action: act.Upload) -> MaskedUpload:
        exchange = run.state.exchange
        assert exchange is not None
        return MaskedUpload(action, lambda: self._sources(run, action, exchange))

    def _sources(self, run: Run, action: act.Upload, exchange: ExchangeWork) -> Sources:
        """What an upload is made from; in a thread. After a restart the update is read once more, to know that it is the promised one."""
        if action.purpose == "scalars":
            return Sources(action.encoder())
        base, local = self._blobs.path(BlobId.parse(exchange.weights)), local_of(self._dir, run, action.exchange)
        update, pinned = Difference(base, local, Layout.from_json(exchange.layout)), run.pinned
        if pinned is None or pinned.root != action.update_root:
            pinned = look_again(update)
        if pinned.root != action.update_root:
            raise Refused("update", GONE)
        if action.purpose == "scales":
            return Sources(action.encoder(), pinned=pinned)
        e_b = np.frombuffer(self._blobs.read_bytes(BlobId.parse(action.e_b), limit=E_B_LIMIT_BYTES), np.int8)
        return Sources(action.encoder(e_b), update, pinned)

    async def _send_upload(self, upload: MaskedUpload, commit_of: CommitOf) -> bytes:
        return await push_upload(self._line().channel, upload.action.upload, upload.chunk, upload.chunks, commit_of)

    async def _commit(self, run: Run, action: act.Commit) -> None:
        """End the stream with the signed commit; where it broke, or is of before a restart, what the coordinator lacks is made again."""
        name = action.upload.upload
        stream = run.streams.get(name)
        if stream is None or stream.sending.done():
            upload = stream.upload if stream is not None else self._masked(run, action.upload)
            stream = run.streams[name] = open_stream(upload, self._send_upload, action.envelope)
        await self._courier.flush((action.envelope,))
        if not stream.envelope.done():
            stream.envelope.set_result(action.envelope)
        try:
            await asyncio.shield(stream.sending)
            await self._courier.taken((action.envelope,))
        except BulkRefused as error:
            await self._courier.flush()
            log.warning("upload.refused", run=run.label, reason=str(error))
            await asyncio.to_thread(self._store.note, f"the coordinator refused this node's upload: {error}", run.run)
        except asyncio.CancelledError:
            if stream.sending.cancelled():
                raise Unavailable("the upload's stream was cut; it is taken up again") from None
            raise

    def _give(self, run: Run, action: act.Upload) -> None:
        """What leaves is written down before its first byte does."""
        fact = {
            "member": self._site(run).member,
            "cohort": list(action.cohort),
            f"bytes_{action.purpose}": action.length,
            "time": self._clock(),
        }
        self._store.give(run.run, action.exchange, fact)

    # -- verifying -------------------------------------------------------------------------------------------------

    async def _verify(self, run: Run, action: act.Verify) -> None:
        async with self.shelf.making():
            facts = await self._job(run, action.id, lambda: self._verified(run, action))
            reach(Point.SUM_VERIFIED)
            await self._feed(run, inputs.Verified(action.instance, facts))

    async def _verified(self, run: Run, action: act.Verify) -> inputs.VerifyFacts:
        async with self.shelf.making():  # also where nobody waits for it any more: the base it reads must stay
            return await self._arriving(run, action)

    async def _arriving(self, run: Run, action: act.Verify) -> inputs.VerifyFacts:
        if action.base_record:
            base = BaseRecord.from_json(action.base_record)
            # A node that made this base itself has its scales and momentum; one that took it from its peers' word fetches them.
            for blob in (base.e_b, base.outer_state if action.purpose == "update" else None):
                if blob is not None:
                    await self._pull(run, blob)
            if action.purpose == "update" and action.outer_step:
                # A node that trained has the base; one that was shown it only now computes from it, too.
                await self._pull(run, base.weights)
        if not action.sum:
            return inputs.VerifyFacts(root=merkle_root([]), length=0, tag=0)
        opened = opened_sum(action)
        try:
            async with contextlib.aclosing(pull_through(self._line().channel, opened)) as chunks:
                facts = await through_thread(chunks, lambda taken: verify(action, self._blobs, taken))
        except BulkRefused as error:
            raise Refused("sum", str(error)) from None
        run.pulled_bytes += opened.length
        if facts.next_base:
            self._held.know(BaseRecord.from_json(facts.next_base).weights, Layout.from_json(action.layout), facts.next_weights_id)
        return facts

    # -- recomputing -----------------------------------------------------------------------------------------------

    async def _recompute(self, run: Run, action: act.Recompute) -> None:
        finding = await self._job(run, action.id, lambda: self._found(run, action))
        await self._feed(run, inputs.Recomputed(action.instance, action.aggregate_sha256, finding, action.dispute))

    async def _found(self, run: Run, action: act.Recompute) -> Finding:
        digest, by_exchange = action.aggregate_sha256, await asyncio.to_thread(self._store.accepted, run.run)
        accepted = next((a for a in by_exchange.values() if digest in a.aggregates), None)
        shown = any(w.instance == action.instance and w.aggregate_envelope for w in known_instances(run.state))
        if accepted is None and not shown:
            return Finding("gone", why="it is of no sum this node accepted")
        kept_until = self._kept_until(run, accepted) if accepted is not None else None
        try:
            return await self.recomputer.find(self._trust(run), action.exchange, digest, chunks=action.chunks, kept_until=kept_until)
        except Unavailable as error:
            if action.until_ms and self._clock() * 1000 > action.until_ms:
                return Finding("withheld", why=str(error))
            raise

    async def recompute_accepted(self, run: Run, accepted: Accepted, progress: Progress) -> list[inputs.Recomputed]:
        """Everything this node accepted in an exchange, up to the first sum that does not hold.

        Raises:
            Unavailable: not now; called again, it goes on where it was.
        """
        found: list[inputs.Recomputed] = []
        for digest, instance in zip(accepted.aggregates, self._instances(run, accepted), strict=True):
            finding = await self.recomputer.find(
                self._trust(run), accepted.exchange, digest, kept_until=self._kept_until(run, accepted), progress=progress
            )
            found.append(inputs.Recomputed(instance, digest, finding))
            if finding.kind != "agrees":
                break
        return found

    def _instances(self, run: Run, accepted: Accepted) -> list[bytes]:
        """Instances of the aggregates of an exchange, by this node's own record of where it sent bytes: the last one's purpose and weights
        say which scales were its own, perhaps those of an earlier exchange."""
        mine = [s for s in reversed(self._store.history().sent) if s.run == run.run and s.outcome != "void"]
        last = next(s for s in mine if s.exchange == accepted.exchange and s.purpose != "scales")
        if len(accepted.aggregates) == 1:
            return [last.instance]
        same = (s for s in mine if s.exchange <= accepted.exchange and s.purpose == "scales" and s.weights_id == last.weights_id)
        return [next(same).instance, last.instance]

    def _trust(self, run: Run) -> Trust:
        """What this node judges a run's sums by."""
        site, plan = self._site(run), plan_of(run.state.plan_envelope)
        needed = thresholds.u_min(len(plan.roster), site.colluders)
        return Trust(site.consortium, run.run, site.coordinator_keys, site.delegators, site.colluders, needed)

    def _kept_until(self, run: Run, accepted: Accepted) -> float | None:
        """Until when the coordinator must have the uploads of what was accepted; None for ever."""
        forever = plan_of(run.state.plan_envelope).keep_uploads == "all"
        return None if forever else accepted.time + self._site(run).challenge_window_s

    # -- places ----------------------------------------------------------------------------------------------------

    async def _job(self, run: Run, name: str, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Await the job of this name, started once; cancelling the waiter leaves it running."""
        job = run.jobs.get(name)
        if job is None:
            job = run.jobs[name] = asyncio.ensure_future(make())

            def ended(task: asyncio.Task[Any]) -> None:
                run.jobs.pop(name, None)
                if not task.cancelled():
                    task.exception()

            job.add_done_callback(ended)
        return await asyncio.shield(job)

    async def let_go(self, run: Run) -> None:
        """Stop everything that goes on for a run, its worker included; all of it can be taken up again."""
        for stream in run.streams.values():
            stream.cancel()
        tasks = [*run.tasks.values(), *run.jobs.values(), *(s.sending for s in run.streams.values()), *([run.saving] if run.saving else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if run.worker is not None:
            worker, run.worker = run.worker, None
            with contextlib.suppress(ProcessLookupError):
                await worker.kill()
