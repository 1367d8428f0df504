"""A whole run in one process: a ServerApp or strategy on the real Grid, every member's ClientApp called in turn through the worker's own
code, and their updates added by the real encoders under real masks. What is missing is the wire: no processes, no signatures, no deadlines.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from dure.apps import App, DureTable, read_app, run_config
from dure.blobs import BlobId, BlobStore
from dure.model.advance import exponents, mean_update, next_base, opened_exponents
from dure.model.base import BaseRecord
from dure.model.content import flower_node_id
from dure.model.layout import Layout
from dure.secagg.encode import Weight, decode_trailer, from_words, num_examples, weight_of
from dure.secagg.ids import Purpose
from dure.secagg.kernel import KIND_OF, UploadEncoder
from dure.secagg.masks import MaskSet, MaskStream, pair_sign
from dure.secagg.summing import DTYPE, GROUP_OF, add_chunk, opened_totals, shape_of, unmask_chunk
from dure.secagg.tag import TagKey
from dure_coordinator.flower import private
from dure_coordinator.flower.backend import ExchangeReply, ExchangeRequest, Node
from dure_coordinator.flower.grid import DureGrid
from dure_coordinator.flower.journal import Journal, already_summed_reason
from dure_participant.difference import Difference, Pinned
from dure_participant.trained import look_at
from dure_participant.uploads import Sources, masked_chunk
from dure_participant.worker import private as worker_private
from dure_participant.worker.execute import execute
from dure_participant.worker.protocol import Task, TaskResult

logging.getLogger("flwr").setLevel(logging.CRITICAL)
RUN = 417


@dataclass
class Reply:
    """What one member brought to one exchange."""

    result: TaskResult
    weight: Weight
    update: Difference | None = None
    pinned: Pinned | None = None


@dataclass
class OneProcess:
    """The `Backend` of a Grid. `replies` keeps what each member brought, by exchange; `out` who was left out, and why."""

    folder: Path
    clients: Mapping[str, ClientApp]
    outer_step: Mapping[str, str] | None = None
    quorum: int = 3
    w_max: int = 65_536
    config: Mapping[str, Any] = field(default_factory=dict)
    journal: Journal = field(default_factory=Journal)
    requests: list[ExchangeRequest] = field(default_factory=list)
    replies: dict[int, dict[str, Reply]] = field(default_factory=dict)
    out: dict[int, dict[str, str]] = field(default_factory=dict)
    metric_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    base: BaseRecord | None = None
    result: Any = None

    def __post_init__(self) -> None:
        self.blobs = BlobStore(self.folder / "blobs")
        self.random = random.Random(RUN)
        self.members = {flower_node_id(m): m for m in sorted(self.clients)}

    # -- Backend -----------------------------------------------------------------------------------------------------

    def nodes(self, seq: int, timeout_s: float | None) -> list[Node]:
        return [Node(node, member) for node, member in sorted(self.members.items())]

    def exchange(self, request: ExchangeRequest) -> ExchangeReply:
        self.requests.append(request)
        self.journal, entry = self.journal.ask(request)
        if entry.reply is not None:
            return entry.reply["reply"]
        earlier = self.journal.summed_before(entry)
        reply = ExchangeReply("failed", reason=already_summed_reason(earlier)) if earlier else self._run(request)
        self.journal = self.journal.answered(request.seq, {"reply": reply}, summed=reply.status == "ok")
        private.set_task_identity(RUN)  # the clients' messages set their own
        return reply

    def finish(self, result: Any) -> None:
        self.result = result

    def fail(self, kind: str, message: str) -> None:
        raise AssertionError(f"{kind}: {message}")

    # -- one exchange --------------------------------------------------------------------------------------------------

    def _run(self, request: ExchangeRequest) -> ExchangeReply:
        base = self._base(request)
        out = self.out.setdefault(request.seq, {})
        brought = {}
        for node in request.nodes:
            member = self.members[node]
            try:
                brought[member] = self._member(request, node, base)
            except Exception as error:  # whatever an app raises
                out[member] = f"{type(error).__name__}: {error}"
        brought = self._same_metrics(request, brought)
        if len(brought) < self.quorum:
            return ExchangeReply("failed", errors=self._errors(request.seq), reason=f"{len(brought)} members, {self.quorum} needed")
        self.replies[request.seq] = brought
        return self._summed(request, brought, base)

    def _errors(self, seq: int) -> dict[int, str]:
        return {flower_node_id(m): why for m, why in self.out[seq].items()}

    def _base(self, request: ExchangeRequest) -> BaseRecord | None:
        """The base the members hold: the one the last step made, where the ServerApp handed it on."""
        if request.flat_path is None:
            return None
        if self.base is not None and self.outer_step:
            return self.base
        blob = self.blobs.put_file(request.flat_path)
        step = {**self.outer_step, "t": "0"} if self.outer_step else {}
        return BaseRecord(blob, None, step, self.base.e_b if self.base else None, self.base.exchange if self.base else 0)

    def _member(self, request: ExchangeRequest, node: int, base: BaseRecord | None) -> Reply:
        member = self.members[node]
        instruction = request.instruction.with_node_values(request.node_values.get(node, {}))
        home = self.folder / member
        home.mkdir(exist_ok=True)
        task = Task(
            run_id=RUN,
            node_id=node,
            exchange=request.seq,
            instruction=instruction.to_json(),
            out_path=home / f"local-{request.seq}.f32",
            state_path=home / "context",
            base_path=None if base is None else self.blobs.path(base.weights),
            node_config={"partition-id": sorted(self.clients).index(member), "num-partitions": len(self.clients)},
            run_config=self.config,
        )
        result = execute(self.clients[member], task)
        if result.flat_path is not None:
            assert base is not None and instruction.arrays is not None
            update = Difference(self.blobs.path(base.weights), result.flat_path, instruction.arrays.layout)
            manifest = self.blobs.manifest(base.weights)
            pinned = look_at(update, weight=result.num_examples, w_max=self.w_max, base=manifest)
            return Reply(result, weight_of(result.num_examples, self.w_max), update, pinned)
        return Reply(result, weight_of(result.num_examples, self.w_max))

    def _same_metrics(self, request: ExchangeRequest, brought: dict[str, Reply]) -> dict[str, Reply]:
        if not brought:
            return brought
        category = request.instruction.category
        votes = Counter(tuple(sorted(r.result.metrics)) for r in brought.values())
        wanted = self.metric_names.setdefault(category, votes.most_common(1)[0][0])
        for member, reply in brought.items():
            if tuple(sorted(reply.result.metrics)) != wanted:
                self.out[request.seq][member] = f"brings metrics {', '.join(reply.result.metrics)}"
        return {m: r for m, r in brought.items() if m not in self.out[request.seq]}

    def _summed(self, request: ExchangeRequest, brought: dict[str, Reply], base: BaseRecord | None) -> ExchangeReply:
        item = request.instruction.arrays
        names = next(iter(brought.values())).result.metrics
        pair = item is not None and request.instruction.category == "train"
        e_b, opened = None, None
        if pair:
            assert base is not None
            scales, _ = self._sum(Purpose.SCALES, brought, base, item.layout)
            e_b, _, _ = opened_exponents(self.blobs, scales, base.e_b, 6)
        purpose = Purpose.UPDATE if pair else Purpose.SCALARS
        opened, trailer = self._sum(purpose, brought, base, item.layout if item else None, e_b)
        totals = decode_trailer(trailer, sorted(names))
        assert totals.members == len(brought)
        reply = ExchangeReply(
            "ok",
            metrics=totals.metrics,
            num_examples=float(num_examples(totals.sum_w_int, self.w_max)),
            survivors=tuple(sorted(map(flower_node_id, brought))),
            errors=self._errors(request.seq),
        )
        if not pair:
            return reply
        shared = {"opened": opened, "e_b": e_b, "bump": 0, "cohort_size": len(brought), "weight_sum": totals.sum_w_int}
        if not self.outer_step:
            self.base = replace(base, e_b=e_b, exchange=request.seq)
            return replace(reply, arrays="mean-update", flat_path=self._file(request, mean_update(self.blobs, **shared)))
        after = next_base(
            self.blobs,
            base=base,
            layout=item.layout,
            outer_step=self.outer_step,
            averaged=DureTable.averaged,
            exchange=request.seq,
            **shared,
        )
        self.base = after.record
        return replace(reply, arrays="weights", flat_path=self._file(request, after.record.weights))

    def _file(self, request: ExchangeRequest, blob: BlobId) -> Path:
        path = self.folder / f"reply-{request.seq}.f32"
        path.write_bytes(self.blobs.read_bytes(blob, limit=1 << 30))
        return path

    def _sum(
        self, purpose: Purpose, brought: dict[str, Reply], base: BaseRecord | None, layout: Layout | None, e_b: BlobId | None = None
    ) -> tuple[BlobId, tuple[int, ...]]:
        """(opened sum, opened trailer) of what the members upload, each under its own mask and one with every other member."""
        cohort, ctx, group = tuple(sorted(brought)), self.random.randbytes(32), self.random.randbytes(32)
        own = {m: self.random.randbytes(32) for m in cohort}
        pair = {frozenset((a, b)): self.random.randbytes(32) for a in cohort for b in cohort if a < b}
        elements = layout.elements if layout is not None and purpose is not Purpose.SCALARS else 0
        kind, (_, chunk_bytes) = GROUP_OF[purpose], shape_of(purpose, elements)
        sums: list[np.ndarray[Any, Any]] = []
        trailers, tags = [], []
        for m in cohort:
            streams = [MaskStream.derive(own[m], ctx, "mask/self", 1)]
            streams += [MaskStream.derive(pair[frozenset((m, o))], ctx, "mask/pair", pair_sign(m, o)) for o in cohort if o != m]
            encoder = UploadEncoder(
                kind=KIND_OF[purpose],
                masks=MaskSet(streams),
                tag=TagKey(group, ctx, cohort),
                me=m,
                cohort_size=len(cohort),
                weight=brought[m].weight,
                rounding_key=self.random.randbytes(32),
                elements=elements,
                e_b=None if e_b is None else exponents(self.blobs, e_b, 0),
                metrics=None if purpose is Purpose.SCALES else brought[m].result.metrics,
            )
            if elements:
                sources = Sources(encoder, brought[m].update, brought[m].pinned)
                for k in range(encoder.chunks):
                    masked = masked_chunk(sources, k, brought[m].weight)
                    if k == len(sums):
                        sums.append(np.zeros(len(masked) // DTYPE[kind].itemsize, DTYPE[kind]))
                    add_chunk(kind, sums[k], masked)
            trailer, tag = encoder.finish()
            trailers.append(trailer)
            tags.append(tag)
        unmask = MaskSet([MaskStream.derive(own[m], ctx, "mask/self", -1) for m in cohort])
        with self.blobs.writer(chunk_bytes=chunk_bytes) as out:
            for k, total in enumerate(sums):
                unmask_chunk(kind, unmask, k, total)
                out.append(total.data.cast("B"))
            opened = out.commit().id
        words, _ = opened_totals(trailers, tags, unmask)
        return opened, from_words(np.array(words, np.uint64))


def grid_of(backend: OneProcess, **more: Any) -> DureGrid:
    private.set_task_identity(RUN)
    shared = {"quorum": backend.quorum, "members": len(backend.clients), **more}
    return DureGrid(backend, run_id=RUN, run_dir=backend.folder / "run", **shared)


def run_strategy(backend: OneProcess, strategy: Any, **start: Any) -> Any:
    """`strategy.start(...)` on the Grid, let through and seeded as in the ServerApp process."""
    return _watched(lambda grid: strategy.start(grid=grid, **start), backend)


def run_folder(folder: Path, members: tuple[str, ...], scratch: Path, overrides: tuple[str, ...] = (), **how: Any) -> OneProcess:
    """The app in `folder` as it is, run to its end; `result` is the strategy's, if it used one."""
    app: App = read_app(folder)
    client = worker_private.load_client_app(app.clientapp, folder)
    config = run_config(app, overrides)
    backend = OneProcess(scratch, dict.fromkeys(members, client), config=config, **how)
    context = Context(run_id=RUN, node_id=1, node_config={}, state=RecordDict(), run_config=dict(config))
    server = private.load_server_app(app.serverapp, folder)
    table = app.dure
    declared = {
        "linear_strategy": table.linear_strategy,
        "query_sums": table.query_replies == "sum",
        "per_node_keys": tuple(table.per_node_config),
    }
    _watched(lambda grid: server(grid, context), backend, **declared)
    return backend


def _watched(run: Callable[[DureGrid], Any], backend: OneProcess, **more: Any) -> Any:
    grid = grid_of(backend, **more)
    random.seed(RUN)
    np.random.seed(RUN)
    undo = private.wrap_strategy_start(grid.strategy_starts, lambda _s, result: backend.finish(result))
    try:
        return run(grid)
    finally:
        undo()
