"""A run's own socket: the Grid of its ServerApp and nothing else.

The process at the other end runs the app author's code: what it sends is judged by `flower.codec`, what it may ask is
decided by the run. Answers are journaled before they are given, so a restarted ServerApp is told the same again.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from dure.blobs import BlobId, BlobStore
from dure.errors import DureError, Refused
from dure.failpoints import Point, reach
from dure.model.base import BaseRecord
from dure.model.content import ArrayItem, Instruction, flower_node_id, values_to_json
from dure.model.layout import Layout
from dure.model.weights import NonFinite, check_finite, check_padding, open_flat, weights_id
from dure.statements.kinds import RunPlan
from dure_coordinator.engine import RunEngine
from dure_coordinator.exchange import view
from dure_coordinator.exchange.events import Abort, Asked, Stop
from dure_coordinator.exchange.history import finish_words
from dure_coordinator.exchange.state import EpochPhase, RunPhase, RunState
from dure_coordinator.flower import codec
from dure_coordinator.flower.backend import ExchangeReply, ExchangeRequest, Node
from dure_coordinator.flower.journal import Diverged, already_summed_reason
from dure_coordinator.journals import RunJournal, row_of
from dure_coordinator.rpc.status import answering
from dure_coordinator.storage.store import BlobRow, Store, With
from dure_pb.v1 import serverapp_pb2 as pb
from dure_pb.v1 import serverapp_pb2_grpc as rpc

log = structlog.get_logger()

REPLIES_KEPT = 2
"""Reply files left in the run's folder: the one being read and the one before."""
GATHER_S = 2.0
"""How long `Nodes` waits for more than the quorum, once the quorum is there."""


def no_quorum(state: RunState, eligible: list[str]) -> str:
    """Why no exchange could begin so far, naming whom it waits for."""
    if len(eligible) >= state.facts.u_min:
        return f"{len(eligible)} members are there, but their keys are not agreed: nothing heard from {', '.join(view.waiting_for(state))}"
    missing = [m for m in state.facts.roster if m not in eligible]
    return f"{len(eligible)} of {state.facts.u_min} members needed are there; missing: {', '.join(missing)}"


class ServerAppGrid(rpc.ServerAppGridServiceServicer):
    """One run's Grid."""

    def __init__(
        self,
        engine: RunEngine,
        journal: RunJournal,
        run_dir: Path,
        blobs: BlobStore,
        store: Store,
        here: Callable[[], Mapping[str, object]],
        no_room: Callable[[RunPlan, Layout], str] = lambda _plan, _layout: "",
    ) -> None:
        self._no_room = no_room
        self._engine, self._journal, self._dir, self._blobs, self._store, self._here = engine, journal, run_dir, blobs, store, here
        self._layout_kept = False

    # -- nodes -----------------------------------------------------------------------------------------------------

    async def Nodes(self, request: pb.ServerAppGridServiceNodesRequest, context: Any) -> pb.ServerAppGridServiceNodesResponse:
        async with answering(context, outside=False):
            known = self._journal.journal.nodes_for(request.seq)
            if known is None:
                found = await self._quorum(request.timeout_s or float(self._engine.state.facts.plan.deadlines.execute))
                if isinstance(found, str):
                    return codec.missing_to_pb(found)
                known = await self._journal.keep_nodes(request.seq, tuple(sorted(flower_node_id(m) for m in found)))
            names = {flower_node_id(m): m for m in self._engine.state.facts.roster}
            return codec.nodes_to_pb([Node(node, names[node]) for node in known])

    async def _quorum(self, timeout_s: float) -> list[str] | str:
        """Members an exchange can start with, at least u_min; or who is missing, at the deadline."""
        loop = asyncio.get_running_loop()
        deadline, enough_since = loop.time() + timeout_s, None
        while not self._engine.ended:
            seen, now = self._engine.changes.version, loop.time()
            state = self._engine.state
            if state.halting:  # whoever is there: the run hears what comes next, and ends instead of asking them
                return list(state.facts.roster)
            if state.paused:
                deadline = now + timeout_s
                await self._engine.changes.wait(seen, 5.0)
                continue
            eligible, settled = self._eligible()
            if len(eligible) >= state.facts.u_min:
                enough_since = now if enough_since is None else enough_since
                everybody = set(eligible) == set(state.facts.roster)
                if settled and (everybody or now >= enough_since + GATHER_S):
                    return eligible
            else:
                enough_since = None
            if now >= deadline:
                return no_quorum(state, eligible)
            await self._engine.changes.wait(seen, min(0.5, deadline - now))
        return f"the run is over: {self._engine.label[1] or self._engine.label[0]}"

    def _eligible(self) -> tuple[list[str], bool]:
        """(members that could take part now, whether keys are agreed so that no wait would change it)."""
        state = self._engine.state
        approved = [m for m in state.facts.roster if m in state.approvals and m not in state.convicted]
        there = [m for m in approved if (p := state.present.get(m)) is not None and p.connected]
        if state.phase is RunPhase.APPROVING:
            return [], False
        epoch = state.epoch
        if epoch is not None and epoch.phase is EpochPhase.READY and not state.renew:
            return [m for m in there if m in epoch.joined], True
        return there, epoch is None or state.renew

    # -- exchange --------------------------------------------------------------------------------------------------

    async def Exchange(self, request: pb.ServerAppGridServiceExchangeRequest, context: Any) -> pb.ServerAppGridServiceExchangeResponse:
        async with answering(context, outside=False):
            try:
                asked = codec.request_from_pb(request, self._dir)
                entry = await self._journal.ask(asked)
                reach(Point.REQUEST_JOURNALED)
            except Diverged as e:
                await self._engine.submit(Abort(str(e)[:500]))
                return codec.stopped_to_pb(str(e))
            if entry.reply is None:
                stopped = await self._start(asked)
                if stopped:
                    return codec.stopped_to_pb(stopped)
            return await self._answer(asked.seq)

    async def _start(self, asked: ExchangeRequest) -> str:
        """Puts the request to the run, once; returns why the run cannot go on, or ""."""
        entry = self._journal.journal.entries[asked.seq - 1]
        earlier = self._journal.journal.summed_before(entry)
        if earlier is not None:
            await self._refuse(asked.seq, already_summed_reason(earlier))
            return ""
        weights = ""
        if asked.instruction.arrays is not None and asked.flat_path is not None:
            state = self._engine.state  # before the first arrays, which a draw of the first weights may precede
            if not state.base_record and (why := self._no_room(state.facts.plan, asked.instruction.arrays.layout)):
                await self._engine.submit(Abort(why))
                return why
            weights = current_base(self._engine.state, asked.instruction.arrays) or str(
                await asyncio.to_thread(_take_arrays, self._blobs, asked.flat_path, asked.instruction.arrays)
            )
        rows = (BlobRow(self._engine.run, "base", weights, asked.seq),) if weights else ()
        if asked.instruction.arrays is not None and not self._layout_kept:  # the log names it by its digest; auditors want the bytes
            shape = await asyncio.to_thread(self._blobs.put_bytes, asked.instruction.arrays.layout.to_json())
            rows = (*rows, BlobRow(self._engine.run, "layout", str(shape)))
            self._layout_kept = True
        event = Asked(
            seq=asked.seq,
            digest=entry.digest,
            instruction=_canonical(asked.instruction.to_json()),
            weights=weights,
            members=self._chosen(asked),
            node_values=self._node_values(asked),
        )
        reply = (await self._engine.submit(event, With(blobs=rows))).reply
        reach(Point.REQUEST_DURABLE)
        return "" if reply.accepted else f"{reply.field}: {reply.reason}" if reply.field else reply.reason

    def _chosen(self, asked: ExchangeRequest) -> tuple[str, ...]:
        """Members the strategy picked; () if it took all it was offered, so that one that comes back in time counts."""
        offered = self._journal.journal.nodes_for(asked.seq)
        if offered is not None and set(offered) <= set(asked.nodes):
            return ()
        names = self._names()
        if unknown := [n for n in asked.nodes if n not in names]:
            raise Refused("nodes", f"{unknown[0]} is no node of this run")
        return tuple(sorted(names[n] for n in asked.nodes))

    def _node_values(self, asked: ExchangeRequest) -> bytes:
        if not asked.node_values:
            return b""
        names = self._names()
        return _canonical(
            {names[n]: {record: values_to_json(keys) for record, keys in records.items()} for n, records in asked.node_values.items()}
        )

    def _names(self) -> dict[int, str]:
        return {flower_node_id(m): m for m in self._engine.state.facts.roster}

    async def _refuse(self, seq: int, reason: str) -> None:
        record = {"status": "failed", "arrays": "none", "blob": "", "metrics": {}, "num_examples": 0.0, "survivors": [], "errors": {}}
        async with self._journal.lock:
            after = self._journal.answered(seq, {**record, "reason": reason}, summed=False)
            await self._store.write(self._engine.run, With(journal=row_of(after, seq)))
            self._journal.journal = after

    async def _answer(self, seq: int) -> pb.ServerAppGridServiceExchangeResponse:
        """Waits for the journaled answer."""
        while True:
            seen = self._engine.changes.version
            record = self._journal.reply(seq)
            if record is not None:
                if record["blob"]:  # a ServerApp that is started anew hears every answer again
                    await self._engine.performer.restored(self._engine, record["blob"])
                return codec.reply_to_pb(await asyncio.to_thread(_reply_of, record, seq, self._dir, self._blobs))
            if self._engine.ended:
                return codec.stopped_to_pb(self._engine.label[1] or f"the run is {self._engine.label[0]}")
            await self._engine.changes.wait(seen, 5.0)

    # -- the end ---------------------------------------------------------------------------------------------------

    async def Finish(self, request: pb.ServerAppGridServiceFinishRequest, context: Any) -> pb.ServerAppGridServiceFinishResponse:
        async with answering(context, outside=False):
            result = codec.result_from_pb(request, self._dir)
            rows: tuple[BlobRow, ...] = ()
            if result.flat_path is not None and result.layout_json:
                layout = Layout.from_json(result.layout_json.encode())
                blob, shape = await asyncio.to_thread(_keep_final, self._blobs, result.flat_path, layout)
                rows = (BlobRow(self._engine.run, "final", str(blob)), BlobRow(self._engine.run, "final-layout", str(shape)))
            summary = json.dumps({"rounds": result.rounds, "metrics": result.metrics}, sort_keys=True).encode()
            kept = await asyncio.to_thread(self._blobs.put_bytes, summary)
            await self._store.write(self._engine.run, With(blobs=(*rows, BlobRow(self._engine.run, "result", str(kept)))))
            reach(Point.RESULT_KEPT)
            await self._engine.submit(Stop(finish_words(self._engine.state, result.rounds)))
            return pb.ServerAppGridServiceFinishResponse()

    async def Fail(self, request: pb.ServerAppGridServiceFailRequest, context: Any) -> pb.ServerAppGridServiceFailResponse:
        async with answering(context, outside=False):
            reason = "".join(c if c.isprintable() else " " for c in f"{request.kind}: {request.message}")[:500]
            await self._engine.submit(Abort(reason))
            return pb.ServerAppGridServiceFailResponse()


UNKNOWN = bytes(32)
"""Id of weights that the ServerApp has yet to send."""


def current_base(state: RunState, item: ArrayItem) -> str:
    """Blob id text of the run's own base, where these are its weights: nothing of the ServerApp's file is needed then; "" for others."""
    last, known = state.exchange, state.base_weights_id
    if last is None or not state.base_record or known == UNKNOWN or item.weights_id != known or item.layout.to_json() != last.layout:
        return ""
    return str(BaseRecord.from_json(state.base_record).weights)


def _take_arrays(blobs: BlobStore, path: Path, item: ArrayItem) -> BlobId:
    """The flat file as a blob, after checking that it holds the weights the instruction names."""
    flat = open_flat(path, item.layout)
    check_padding(flat, item.layout)
    if weights_id(flat, item.layout) != item.weights_id:
        raise Refused("flat_file", "does not hold the weights the instruction names")
    return blobs.put_file(path)


def _keep_final(blobs: BlobStore, path: Path, layout: Layout) -> tuple[BlobId, BlobId]:
    try:
        check_finite(open_flat(path, layout), layout)
    except NonFinite as error:
        raise Refused("flat_file", f"the final arrays: {error}") from None
    return blobs.put_file(path), blobs.put_bytes(layout.to_json())


def _reply_of(record: Mapping[str, Any], seq: int, run_dir: Path, blobs: BlobStore) -> ExchangeReply:
    """A journaled answer with its arrays as a file in the run's folder."""
    path = None
    if record["blob"]:
        path = run_dir / f"reply-{seq}.f32"
        scratch = run_dir / f".reply-{seq}.tmp"
        link_or_copy(blobs.path(BlobId.parse(record["blob"])), scratch)
        os.replace(scratch, path)
        old = run_dir / f"reply-{seq - REPLIES_KEPT}.f32"
        old.unlink(missing_ok=True)
    return ExchangeReply(
        status=record["status"],
        arrays=record["arrays"],
        flat_path=path,
        metrics=record["metrics"],
        num_examples=record["num_examples"],
        survivors=tuple(record["survivors"]),
        errors={int(node): why for node, why in record["errors"].items()},
        reason=record["reason"],
        seed=bytes.fromhex(record.get("seed", "")),
    )


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes under another name. A blob is never written to again; its file is made read-only, so that an app's code that takes
    what it is given for its own cannot either, without meaning to."""
    target.unlink(missing_ok=True)
    try:
        source.chmod(0o400)
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


__all__ = ["DureError", "Instruction", "ServerAppGrid"]
