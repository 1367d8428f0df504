"""The coordinator's hands: does what the exchange logic says it owes. Every duty may be done again after a crash.

Signatures are sealed under one chain for all runs; sums and steps are content-addressed, so doing one twice gives the same bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.blobs import BlobDamaged, BlobId, BlobStore
from dure.errors import Refused
from dure.failpoints import Point, reach
from dure.identity.keys import public_bytes
from dure.model.advance import mean_update, next_base, opened_exponents
from dure.model.base import BaseRecord
from dure.model.layout import Layout
from dure.secagg.ids import InstanceId, upload_id
from dure.secagg.masks import MaskSet
from dure.statements.dsse import Envelope, key_id
from dure.statements.kinds import InstanceAggregate, InstanceOpen
from dure.statements.statement import seal
from dure.tlog.merkle import merkle_root
from dure_coordinator.aggregate import Group, sum_spools
from dure_coordinator.engine import Decided, RunEngine
from dure_coordinator.evaluated import eval_of
from dure_coordinator.exchange.duties import Answer, Cosign, Sign, Step, Sum
from dure_coordinator.exchange.retention import keep_after
from dure_coordinator.exchange.thinning import steps_to
from dure_coordinator.exchange.view import upload_slots
from dure_coordinator.journals import Journals, reply_record, row_of
from dure_coordinator.log.publisher import Publisher
from dure_coordinator.spool import Spools
from dure_coordinator.storage.store import BlobRow, StatementRow, Store, With, upload_row

log = structlog.get_logger()

RUNS_AT_WORK = 64
"""Runs whose sums and steps are computed at one time; each has one such duty at most."""
READ_S = 60.0
"""How long weights that were asked for stay, where nothing else is said: they are read, or linked, at once."""


async def nothing_to_add() -> dict[str, bytes]:
    """The sum of an instance without a vector."""
    return {"root": merkle_root([]), "sum": b""}


def rows_of(run: bytes, step: Step, result: Mapping[str, bytes]) -> tuple[BlobRow, ...]:
    """What a step put on the disk."""
    made = BlobRow(run, "model" if step.outer_step else "mean", result["reply"].decode(), step.exchange)
    momenta = BaseRecord.from_json(result["base_record"]).outer_state if step.outer_step else None
    return (made,) if momenta is None else (made, BlobRow(run, "outer-state", str(momenta), step.exchange))


@dataclass
class Duties:
    """The `Performer` of every run."""

    store: Store
    blobs: BlobStore
    spools: Spools
    journals: Journals
    signing_key: Callable[[], Ed25519PrivateKey]
    """The one in force; read under `chain_lock`."""
    publisher: Publisher
    clock: Callable[[], float] = time.time
    chain_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    long: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(RUNS_AT_WORK, thread_name_prefix="duty"))
    """For sums and steps. Those of a large run take minutes; they must not hold a thread that bulk streams and other runs' phases need,
    nor hold up another run's sum. The kernel shares the cores out among them."""

    wanted: dict[str, float] = field(default_factory=dict)
    """Weights that somebody asked for (blob id text), and until when they are not let go of, by `clock`."""
    shelf: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while weights are let go of, and while it is looked whether they are there."""

    async def perform(self, run: RunEngine, duty: Any) -> None:
        """Does one duty and hands its result to the run."""
        if isinstance(duty, Sign):
            await self._sign(run, duty)
        elif isinstance(duty, Cosign):
            proof = await self.publisher.covering(Envelope.from_bytes(duty.envelope).sha256)
            if run.owed(duty.id):  # the deadline may have passed meanwhile
                await run.done(duty, {"proof": proof.to_bytes()})
        elif isinstance(duty, Sum):
            await self._sum(run, duty)
        elif isinstance(duty, Step):
            await self._step(run, duty)
        else:
            assert isinstance(duty, Answer)
            await self._answer(run, duty)

    async def _sign(self, run: RunEngine, duty: Sign) -> None:
        await self.publisher.may_sign()
        async with self.chain_lock:  # one chain, one writer; the chain moves in the transaction that keeps the envelope
            key = self.signing_key()
            party = key_id(public_bytes(key))
            chain = (await self.store.chain_of(party)).having_seen(self.publisher.seen)
            envelope, after = seal(duty.statement, key, chain, self.clock())
            raw, signed = envelope.to_bytes(), [envelope]
            if isinstance(duty.statement, InstanceAggregate):
                measured = await eval_of(self.store, run.state, duty.statement, envelope.payload_sha256)
                if measured is not None:
                    second, after = seal(measured, key, after, self.clock())
                    signed.append(second)
                reach(Point.AGGREGATE_SEALED)

            def also(decision: Decided) -> With:
                slots = upload_slots(decision.state) if isinstance(duty.statement, InstanceOpen) else ()
                uploads = tuple(upload_row(run.run, slot) for slot in slots)
                rows = tuple(StatementRow.of(each.to_bytes(), run.run) for each in signed)
                return With(statements=rows, chain=(party, after), uploads=uploads)

            await run.done(duty, {"envelope": raw}, also)

    async def _sum(self, run: RunEngine, duty: Sum) -> None:
        # An upload outside U is protected by its own mask alone once its pair secrets are public: it goes before the sum is known.
        for row in await self.store.uploads(run.run, duty.instance):
            if row.member not in duty.survivors:
                await asyncio.to_thread(self.spools.remove, row.upload)
                await self.store.upload_removed(row.upload)
        adding = self._apart(self._add, duty) if duty.purpose != "scalars" else nothing_to_add()
        added, put = await asyncio.gather(adding, asyncio.to_thread(self._put, duty))
        result = added | put
        if duty.length:
            reach(Point.SUM_WRITTEN)
        exchange = InstanceId.decode(duty.instance).exchange
        texts = {name: blob.decode() for name, blob in result.items() if name in ("sum", "e_b", "seeds", "evidence") and blob}
        rows = [BlobRow(run.run, name, text, exchange) for name, text in texts.items()]
        # Registered like blobs, so that a run that is over is found by an upload that somebody asks for.
        rows += [BlobRow(run.run, "upload", str(BlobId(root, duty.length)), exchange) for root in duty.roots.values() if duty.length]
        await run.done(duty, result, With(blobs=tuple(rows)))
        await asyncio.to_thread(self._release, duty)

    def _release(self, duty: Sum) -> None:
        for member in duty.survivors:
            self.spools.release(upload_id(duty.instance, member))

    def _put(self, duty: Sum) -> dict[str, bytes]:
        """What was revealed, and what it can be judged by."""
        return {name: str(self.blobs.put_bytes(data)).encode() for name, data in (("seeds", duty.seeds), ("evidence", duty.evidence))}

    async def _apart(self, work: Callable[[Any], dict[str, bytes]], duty: Any) -> dict[str, bytes]:
        return await asyncio.get_running_loop().run_in_executor(self.long, work, duty)

    def _add(self, duty: Sum) -> dict[str, bytes]:
        spools = [self.spools.open(upload_id(duty.instance, m), length=duty.length, chunk_bytes=duty.chunk_bytes) for m in duty.survivors]
        unmask: MaskSet = duty.recovered.unmask
        ring = duty.purpose == "update"
        take_off = unmask.ring_chunk if ring else unmask.field_chunk
        with self.blobs.writer(chunk_bytes=duty.chunk_bytes) as out:
            opened = sum_spools(spools, Group.RING16 if ring else Group.FIELD61, take_off, out).id
        result = {"root": opened.root, "sum": str(opened).encode()}
        if not ring:
            before = BlobId.parse(duty.base_e_b) if duty.base_e_b else None
            e_b, raw, _capped = opened_exponents(self.blobs, opened, before, duty.e_cap)
            result |= {"e_b": str(e_b).encode(), "e_b_sha256": sha256(raw).digest()}
        return result

    async def _step(self, run: RunEngine, duty: Step) -> None:
        result = await self._apart(self._advance, duty)
        reach(Point.STEP_STORED)
        await run.done(duty, result, With(blobs=rows_of(run.run, duty, result)))

    async def restored(self, run: RunEngine, weights: str, keep_s: float = READ_S, *, check: bool = False) -> None:
        """These weights (a blob id text) of a run are on the disk, and stay for so long; where they were let go of, the steps to them are
        taken again.

        Args:
            check: they are read, too, and made anew where they are damaged: a ServerApp has the same file under another name, read-only,
                which root and whoever means harm may write to.

        Raises:
            Refused: they cannot be recomputed.
            BlobDamaged: they are other bytes than their name says, and follow from nothing that is kept.
        """

        def here(blob: str) -> bool:
            return self.blobs.has(BlobId.parse(blob))

        self._want((weights,), keep_s)
        async with self.shelf:  # what is being let go of this moment is not here
            there = await asyncio.to_thread(here, weights)
        if there and not (check and await asyncio.to_thread(self._drop_damaged, run, weights)):
            return
        for step in await asyncio.to_thread(steps_to, run.state, weights, here):
            log.info("weights.recomputed", run=run.run.hex()[:12], exchange=step.exchange)
            result = await self._apart(self._advance, step)
            rows = rows_of(run.run, step, result)
            self._want((row.blob for row in rows), keep_s)  # the next step reads them
            await self.store.write(run.run, With(blobs=rows))

    def _drop_damaged(self, run: RunEngine, weights: str) -> bool:
        """Whether these weights were damaged, and are gone, since they can be made again."""
        blob = BlobId.parse(weights)
        try:
            self.blobs.verify(blob)
            return False
        except BlobDamaged as error:
            try:
                steps_to(run.state, weights, lambda other: other != weights and self.blobs.has(BlobId.parse(other)))
            except Refused:
                raise error from None
            log.error("weights.damaged", run=run.run.hex()[:12], reason=str(error))
            self.blobs.remove(blob)
            return True

    def _want(self, weights: Iterable[str], keep_s: float) -> None:
        now = self.clock()
        self.wanted = {blob: until for blob, until in self.wanted.items() if until > now}
        self.wanted |= {blob: max(now + keep_s, self.wanted.get(blob, 0.0)) for blob in weights}

    def is_wanted(self, weights: str) -> bool:
        """Whether somebody has asked for these weights and may not have read them yet."""
        return self.wanted.get(weights, 0.0) > self.clock()

    def _advance(self, duty: Step) -> dict[str, bytes]:
        shared: dict[str, Any] = {
            "opened": BlobId.parse(duty.sum),
            "e_b": BlobId.parse(duty.e_b),
            "bump": duty.e_bump,
            "cohort_size": duty.cohort_size,
            "weight_sum": duty.weight_sum,
        }
        if not duty.outer_step:
            return {"reply": str(mean_update(self.blobs, **shared)).encode()}
        after = next_base(
            self.blobs,
            base=BaseRecord.from_json(duty.base_record),
            layout=Layout.from_json(duty.layout),
            outer_step=duty.outer_step,
            averaged=duty.averaged,
            exchange=duty.exchange,
            **shared,
        )
        return {"reply": str(after.record.weights).encode(), "base_record": after.record.to_json(), "weights_id": after.weights_id}

    async def _answer(self, run: RunEngine, duty: Answer) -> None:
        journal = await self.journals.of(run.run)
        async with journal.lock:
            record: Mapping[str, Any] = reply_record(duty.reply)
            after = journal.answered(duty.seq, record, summed=duty.reply.status == "ok")
            keep = tuple((k.instance, k.members, k.until, k.pinned) for k in keep_after(run.state, duty.exchange))
            await run.done(duty, {}, With(journal=row_of(after, duty.seq), keep=keep))
            reach(Point.ANSWER_JOURNALED)
            journal.journal = after
        await run.changes.bump()
