"""`DureGrid`: the Flower Grid a user's ServerApp runs on; below it a secure sum, above it nothing has changed.

A strategy calls `get_node_ids` and `send_and_receive`. The second returns ONE reply that already is the weighted mean,
with `num-examples` = the sum of the weights (docs/spec/flower.md); or `Error` messages, one per node.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from dure.model.content import ArrayItem, Instruction, Value, content_id
from dure.model.layout import Layout
from dure.recompute import joint_seed
from dure_coordinator.flower import convert, private
from dure_coordinator.flower.backend import Backend, ExchangeReply, ExchangeRequest, GridRefused, QuorumMissing
from dure_coordinator.flower.mapped import is_mapped
from dure_coordinator.flower.strategies import check_no_strategy, check_sampling, check_strategy

DRAWS = 5
"""How often a draw that came to nothing is tried again; one that was opened never is (rule 2)."""
HELD_BACK_S = 10.0
"""An answer that took longer was held back by the coordinator (a paused run, for days): that is not the strategy's waiting."""
ERROR_CODE = 3
"""Flower reads 0 as unknown, 1 and 2 as failures of its own apps; ours is above them."""


@dataclass(frozen=True)
class Given:
    """Arrays the strategy was given, over a file."""

    record: ArrayRecord
    arrays: Mapping[str, Array]
    path: Path
    finite: bool
    """Known to be: the outer step refuses what is not."""

    def is_still(self, record: ArrayRecord) -> bool:
        """Whether this is that record, with nothing put into it since."""
        return record is self.record and list(record) == list(self.arrays) and all(record[name] is a for name, a in self.arrays.items())


class DureGrid(Grid):
    """One run's Grid. Not thread-safe: one exchange at a time, as strategies do.

    Args:
        backend: who carries the exchange.
        run_dir: folder the flat files are written to; the daemon reads them there.
        quorum: u_min; fewer sampled nodes are refused before anything is sent.
        per_node_keys: config keys the plan lists as per-node; all other content must be equal for all nodes.
        linear_strategy: classes the plan declares linear.
        query_sums: the app adds up the replies to its queries: the one reply holds sums instead of means.
        members: of the run; a strategy that would pick fewer of them than the quorum is refused when it starts. 0: not known.
        node_wait_s: how long a strategy may go on asking for more nodes than are connected. Flower's
            `min_available_nodes` would wait for ever, silently.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        run_id: int,
        run_dir: Path,
        quorum: int = 3,
        per_node_keys: Collection[str] = (),
        linear_strategy: Collection[str] = (),
        weight_key: str = "num-examples",
        query_sums: bool = False,
        members: int = 0,
        node_wait_s: float = 300.0,
    ) -> None:
        self._backend, self._run_dir, self._quorum, self._members = backend, run_dir, quorum, members
        self._per_node_keys, self._linear, self._weight_key = tuple(per_node_keys), tuple(linear_strategy), weight_key
        self._query_sums = query_sums
        self._run = private.empty_run(run_id)
        self._seq = 0
        self._strategy: Strategy | None = None
        self._layout: Layout | None = None
        self._given: Given | None = None
        self._node_wait_s = node_wait_s
        self._waiting_since: tuple[int, float] | None = None
        run_dir.mkdir(parents=True, exist_ok=True)

    # -- what strategies call ------------------------------------------------------------------------------------

    def get_node_ids(self) -> Iterable[int]:
        """Blocks until the plan's quorum is connected; QuorumMissing at its deadline, naming who is missing."""
        asked = time.monotonic()
        nodes = [node.node_id for node in self._backend.nodes(self._seq + 1, None)]
        now = time.monotonic()
        if self._waiting_since is None or self._waiting_since[0] != self._seq:
            self._waiting_since = (self._seq, now)
        elif now - asked > HELD_BACK_S:
            self._waiting_since = (self._seq, self._waiting_since[1] + now - asked)
        elif now - self._waiting_since[1] > self._node_wait_s:
            raise QuorumMissing(
                f"{len(nodes)} nodes are connected and the strategy waits for more since {self._node_wait_s:g} s; "
                "lower min_available_nodes, min_train_nodes and min_evaluate_nodes, or connect more members"
            )
        return nodes

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """One exchange.

        Raises:
            GridRefused: the messages differ between nodes, cannot be carried, or come from a strategy that needs
                individual replies. Nothing was sent.
            RunStopped: the coordinator ended the run.
        """
        sent = list(messages)
        if not sent:
            return []
        if self._strategy is None:
            check_no_strategy(self._linear)
        request = self._request(sent, timeout)
        reply = self._backend.exchange(request)
        self._seq = request.seq
        return self._messages(sent, request, reply)

    def push_messages(self, messages: Iterable[Message]) -> NoReturn:
        raise GridRefused(
            "push_messages waits for individual replies, and under secure aggregation only their sum is visible; use send_and_receive"
        )

    def pull_messages(self, message_ids: Iterable[str]) -> NoReturn:
        raise GridRefused(
            "pull_messages reads individual replies, and under secure aggregation only their sum is visible; use send_and_receive"
        )

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run

    # -- what process.py calls -----------------------------------------------------------------------------------

    @property
    def exchanges(self) -> int:
        """Exchanges answered so far, replayed ones included."""
        return self._seq

    @property
    def layout(self) -> Layout | None:
        """Of the first arrays that were sent; None before."""
        return self._layout

    def strategy_starts(self, strategy: Strategy, grid: Grid) -> None:
        """For `private.wrap_strategy_start`: let the strategy through or raise GridRefused."""
        check_strategy(strategy, self._linear)
        if self._members:
            check_sampling(strategy, self._members, self._quorum)
        self._strategy = strategy
        self._weight_key = getattr(strategy, "weighted_by_key", self._weight_key)

    def draw_seed(self) -> bytes:
        """The seed of the first weights, 32 bytes, drawn by the members in an exchange of its own before the strategy's first.

        Raises:
            GridRefused: it could not be drawn, or was opened before and may not be drawn again.
        """
        reasons = []
        for _ in range(DRAWS):
            nodes = tuple(sorted(self.get_node_ids()))
            request = ExchangeRequest(seq=self._seq + 1, instruction=joint_seed.INSTRUCTION, nodes=nodes)
            reply = self._backend.exchange(request)
            self._seq = request.seq
            if reply.status == "ok" and len(reply.seed) == 32:
                return reply.seed
            reasons.append(reply.reason)
        raise GridRefused(f"the seed of the first weights could not be drawn: {'; '.join(dict.fromkeys(reasons))}"[:1000])

    # -- inside --------------------------------------------------------------------------------------------------

    def _request(self, sent: list[Message], timeout: float | None) -> ExchangeRequest:
        nodes = [message.metadata.dst_node_id for message in sent]
        if len(set(nodes)) != len(nodes):
            twice = next(node for node in nodes if nodes.count(node) > 1)
            raise GridRefused(f"node {twice} is sent two messages in one exchange; a member contributes once")
        if len(nodes) < self._quorum:
            raise GridRefused(
                f"the strategy picked {len(nodes)} nodes, the quorum is {self._quorum}: a smaller sum would single members out; "
                "set fraction_train and fraction_evaluate to 1.0 (or fraction_evaluate to 0.0)"
            )
        seq = self._seq + 1
        arrays = self._write_base(sent[0], seq)
        shared = convert.instruction_of(sent[0], arrays)
        node_values = self._compare(sent, shared, arrays)
        return ExchangeRequest(
            seq=seq,
            instruction=shared,
            nodes=tuple(sorted(nodes)),
            node_values=node_values,
            flat_path=None if arrays is None else arrays[1],
            timeout_s=timeout,
        )

    def _write_base(self, message: Message, seq: int) -> tuple[ArrayItem, Path] | None:
        found = convert.the_array_record(message.content)
        if found is None:
            return None
        self._forget("base-*.f32", self._run_dir / f"base-{seq}.f32")
        path = self._run_dir / f"base-{seq}.f32"
        if self._given is not None and self._layout is not None and self._given.is_still(found[1]):
            written = convert.again(found[0], self._given.path, self._layout, path, finite=self._given.finite)
        else:
            written = convert.write_arrays(found[0], found[1], path, self._layout)
        self._layout = self._layout or written[0].layout
        return written

    def _forget(self, pattern: str, but: Path) -> None:
        """Older files of a kind go; whoever has one open or linked keeps it."""
        for old in self._run_dir.glob(pattern):
            if old != but:
                with contextlib.suppress(FileNotFoundError):
                    old.unlink()

    def _compare(
        self, sent: list[Message], shared: Instruction, arrays: tuple[ArrayItem, Path] | None
    ) -> dict[int, Mapping[str, Mapping[str, Value]]]:
        """Per-node values, after checking that the messages differ in nothing else."""
        wanted = content_id(shared, self._per_node_keys)
        values: dict[int, Mapping[str, Mapping[str, Value]]] = {}
        for message in sent:
            if message is sent[0] or (message.content is sent[0].content and _same_head(message, sent[0])):
                own = shared
            else:
                self._compare_arrays(message, sent[0], arrays)
                own = convert.instruction_of(message, arrays)
                if content_id(own, self._per_node_keys) != wanted:
                    raise GridRefused(_difference(shared, own, message.metadata.dst_node_id, self._per_node_keys))
            if node_values := own.node_values(self._per_node_keys):
                values[message.metadata.dst_node_id] = node_values
        return values

    def _compare_arrays(self, message: Message, first: Message, arrays: tuple[ArrayItem, Path] | None) -> None:
        mine, theirs = convert.the_array_record(message.content), convert.the_array_record(first.content)
        if mine is theirs or (mine and theirs and mine[0] == theirs[0] and mine[1] is theirs[1]):
            return
        node = message.metadata.dst_node_id
        if mine is None or theirs is None or mine[0] != theirs[0] or list(mine[1]) != list(theirs[1]):
            raise GridRefused(f"node {node} is sent other arrays than node {first.metadata.dst_node_id}; {_WHY_EQUAL}")
        for name in mine[1]:
            one, other = mine[1][name], theirs[1][name]
            if (one.dtype, one.shape, one.data) != (other.dtype, other.shape, other.data):
                raise GridRefused(
                    f"array {name!r} of record {mine[0]!r} differs between node {node} and node {first.metadata.dst_node_id}; {_WHY_EQUAL}"
                )

    def _messages(self, sent: list[Message], request: ExchangeRequest, reply: ExchangeReply) -> list[Message]:
        if reply.status != "ok":
            return [
                Message(Error(ERROR_CODE, reply.errors.get(message.metadata.dst_node_id, reply.reason)), reply_to=message)
                for message in sent
            ]
        content = RecordDict()
        item = request.instruction.arrays
        if reply.arrays != "none":
            if item is None or request.flat_path is None or reply.flat_path is None:
                raise GridRefused(f"exchange {request.seq} returned arrays, but none were sent; a sum needs a base")
            path = reply.flat_path
            if reply.arrays == "weights":
                arrays = convert.read_arrays(path, item.layout)
            else:
                path = self._run_dir / f"next-{request.seq}.f32"
                arrays = convert.base_plus_mean(request.flat_path, reply.flat_path, item.layout, path)
                self._forget("next-*.f32", path)
            content[item.name] = arrays
            self._given = Given(arrays, dict(arrays), path, reply.arrays == "weights") if is_mapped(arrays) else None
        sums = self._query_sums and request.instruction.category == "query"
        name, metrics = convert.metric_record(reply.metrics, self._weight_key, reply.num_examples, sums=sums)
        content[name] = metrics
        # The reply must come from a node the strategy knows: the first survivor, or the first it asked.
        source = next((m for m in sent if m.metadata.dst_node_id in reply.survivors), sent[0])
        return [Message(content, reply_to=source)]


_WHY_EQUAL = "personalised broadcasts cannot be summed and would single a member out: send every node the same"


def _same_head(one: Message, other: Message) -> bool:
    a, b = one.metadata, other.metadata
    return (a.message_type, a.group_id, a.ttl) == (b.message_type, b.group_id, b.ttl)


def _difference(shared: Instruction, own: Instruction, node: int, per_node_keys: Collection[str]) -> str:
    """One line naming the first thing in which a node's message differs."""
    where = f"the message to node {node} differs"
    for name in ("message_type", "group_id", "ttl_s"):
        if getattr(shared, name) != getattr(own, name):
            return f"{where} in {name}; {_WHY_EQUAL}"
    if [record.name for record in shared.records] != [record.name for record in own.records]:
        return f"{where} in its records; {_WHY_EQUAL}"
    for mine, theirs in zip(shared.records, own.records, strict=True):
        if isinstance(mine, ArrayItem) or isinstance(theirs, ArrayItem):
            continue
        for key in sorted(set(mine.values) | set(theirs.values)):
            if key not in per_node_keys and mine.values.get(key) != theirs.values.get(key):
                return (
                    f"{where} in key {key!r} of record {mine.name!r}; {_WHY_EQUAL}, "
                    f"or list the key in [tool.dure.per-node-config] with its permitted values"
                )
    return f"{where}; {_WHY_EQUAL}"
