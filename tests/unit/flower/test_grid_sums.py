"""DureGrid against an in-process backend: one mean reply gives what N replies gave; refusals come before anything is sent."""

from __future__ import annotations

import logging
import random
import re
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from dure.errors import DureError
from dure.model.content import category, flower_node_id
from dure.model.weights import flatten, open_flat, unflatten, weights_id
from dure_coordinator.flower import private
from dure_coordinator.flower.backend import ExchangeReply, GridRefused, Node, QuorumMissing
from dure_coordinator.flower.grid import DureGrid
from dure_coordinator.flower.journal import Journal, already_summed_reason
from dure_coordinator.flower.strategies import check_sampling, check_strategy

logging.getLogger("flwr").setLevel(logging.CRITICAL)
NODES = sorted(flower_node_id(name) for name in ("alpha", "beta", "gamma", "delta"))
SHAPES = {"w": (5, 3), "b": (3,)}


@pytest.fixture(autouse=True)
def _identity():
    private.set_task_identity(417)


def start_arrays() -> ArrayRecord:
    rng = np.random.default_rng(1)
    return ArrayRecord({name: Array(rng.standard_normal(shape).astype(np.float32)) for name, shape in SHAPES.items()})


def trained(node: int, weights: dict[str, np.ndarray], round_: int) -> tuple[dict[str, np.ndarray], float, int]:
    """(local weights, loss, examples) of one member: distinct per node and round."""
    rng = np.random.default_rng([node % 997, round_])
    new = {name: (value + 0.1 * rng.standard_normal(value.shape)).astype(np.float32) for name, value in weights.items()}
    return new, float(rng.random()), int(rng.integers(1, 100))


class PlainGrid(Grid):
    """N individual replies, as Flower's own network gives."""

    def get_node_ids(self):
        return NODES

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            weights = {name: array.numpy() for name, array in message.content["arrays"].items()}
            round_ = int(message.content["config"]["server-round"])
            new, loss, examples = trained(message.metadata.dst_node_id, weights, round_)
            content = RecordDict({"metrics": MetricRecord({"loss": loss, "num-examples": examples})})
            if message.metadata.message_type == "train":
                content["arrays"] = ArrayRecord({name: Array(value) for name, value in new.items()})
            replies.append(Message(content, reply_to=message))
        return replies

    def set_run(self, run): ...
    def run(self): ...
    def create_message(self, *args, **kwargs): ...
    def push_messages(self, messages): ...
    def pull_messages(self, message_ids): ...


class FakeBackend:
    """Members and secure sum in one place; keeps what it was asked, and a journal as the daemon would."""

    def __init__(self, folder: Path, *, arrays="mean-update", journal=None, fail=()):
        self.folder, self.kind, self.journal, self.fail_seqs = folder, arrays, journal or Journal(), set(fail)
        self.requests, self.live = [], 0

    def nodes(self, seq, timeout_s):
        return [Node(node, str(node)) for node in NODES]

    def exchange(self, request):
        self.requests.append(request)
        self.journal, entry = self.journal.ask(request)
        if entry.reply is not None:
            reply = entry.reply["reply"]
            return reply
        if earlier := self.journal.summed_before(entry):
            reply = ExchangeReply("failed", reason=already_summed_reason(earlier))
        elif request.seq in self.fail_seqs:
            reply = ExchangeReply("failed", reason="too few survivors", errors={NODES[0]: "lost the connection"})
        else:
            reply = self.sum(request)
            self.live += 1
        self.journal = self.journal.answered(request.seq, {"reply": reply}, summed=reply.status == "ok")
        return reply

    def sum(self, request):
        item = request.instruction.arrays
        round_ = request.instruction.records[-1].values["server-round"]
        base = unflatten(open_flat(request.flat_path, item.layout), item.layout)
        results = [trained(node, base, round_) for node in request.nodes]
        total = sum(examples for _, _, examples in results)
        loss = sum(loss * examples for _, loss, examples in results) / total
        common = {"metrics": {"loss": loss}, "num_examples": float(total), "survivors": request.nodes}
        if category(request.instruction.message_type) != "train":
            return ExchangeReply("ok", **common)
        mean = {
            name: np.sum([new[name].astype(np.float64) * n / total for new, _, n in results], axis=0).astype(np.float32) for name in base
        }
        out = self.folder / f"mean-{request.seq}.f32"
        values = mean if self.kind == "weights" else {name: mean[name] - base[name] for name in base}
        flatten(values, item.layout, out)
        return ExchangeReply("ok", arrays=self.kind, flat_path=out, **common)

    def finish(self, result): ...
    def fail(self, kind, message): ...


def grid(tmp_path, backend=None, **more) -> DureGrid:
    made = DureGrid(backend or FakeBackend(tmp_path), run_id=417, run_dir=tmp_path, **more)
    return made


def start(strategy, on: Grid, rounds=3):
    random.seed(417)
    undo = private.wrap_strategy_start(lambda s, g: g.strategy_starts(s, g) if isinstance(g, DureGrid) else None, lambda s, r: None)
    try:
        return strategy.start(grid=on, initial_arrays=start_arrays(), num_rounds=rounds)
    finally:
        undo()


def make(name):
    extra = {"FedProx": {"proximal_mu": 0.1}}.get(name, {})
    return getattr(flower, name)(min_train_nodes=4, min_evaluate_nodes=4, min_available_nodes=4, **extra)


@pytest.mark.parametrize("kind", ["mean-update", "weights"])
@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "FedProx"])
def test_one_mean_reply_gives_what_individual_replies_gave(tmp_path, name, kind):
    plain = start(make(name), PlainGrid())
    ours = start(make(name), grid(tmp_path, FakeBackend(tmp_path, arrays=kind)))
    for tensor in SHAPES:
        assert np.allclose(ours.arrays[tensor].numpy(), plain.arrays[tensor].numpy(), atol=2e-5)
    for kind in ("train", "evaluate"):
        mine, theirs = (getattr(result, f"{kind}_metrics_clientapp") for result in (ours, plain))
        assert list(mine) == list(theirs) == [1, 2, 3]
        for round_ in mine:
            assert mine[round_]["loss"] == pytest.approx(theirs[round_]["loss"])


def test_stepped_base_passes_through_fedavg_bit_for_bit_and_is_sent_again_under_the_same_id(tmp_path):
    backend = FakeBackend(tmp_path, arrays="weights")
    result = start(make("FedAvg"), grid(tmp_path, backend), rounds=2)
    layout = backend.requests[0].instruction.arrays.layout
    last = unflatten(open_flat(tmp_path / "mean-3.f32", layout), layout)
    for name in SHAPES:
        assert result.arrays[name].numpy().dtype == np.float32
        assert np.array_equal(result.arrays[name].numpy(), last[name])
    train1, evaluate1, train2, _ = [request.instruction.arrays.weights_id for request in backend.requests]
    assert evaluate1 == train2 != train1


def test_failed_exchange_is_one_error_per_node_and_training_goes_on_from_the_same_base(tmp_path):
    backend = FakeBackend(tmp_path, fail=[1])
    result = start(make("FedAvg"), grid(tmp_path, backend), rounds=2)
    assert sorted(result.train_metrics_clientapp) == [2]
    ids = [request.instruction.arrays.weights_id for request in backend.requests]
    assert ids[0] == ids[1] == ids[2] != ids[3]


def test_error_messages_carry_the_nodes_own_reason_or_the_common_one(tmp_path):
    made = grid(tmp_path, FakeBackend(tmp_path, fail=[1]), linear_strategy=["none"])
    replies = made.send_and_receive(broadcast())
    assert {m.metadata.src_node_id: m.error.reason for m in replies} == {
        node: "lost the connection" if node == NODES[0] else "too few survivors" for node in NODES
    }


def test_second_sum_on_the_same_weights_is_answered_at_once_naming_the_first(tmp_path):
    backend = FakeBackend(tmp_path)
    made = grid(tmp_path, backend, linear_strategy=["none"])
    assert not made.send_and_receive(broadcast())[0].has_error()
    again = made.send_and_receive(broadcast())
    assert all(m.has_error() and "train exchange 1" in m.error.reason for m in again)
    assert not made.send_and_receive(broadcast(kind="evaluate"))[0].has_error()
    assert backend.live == 2


def broadcast(change=None, kind="train", arrays=None):
    shared = arrays or start_arrays()
    messages = []
    for node in NODES:
        content = RecordDict({"arrays": shared, "config": ConfigRecord({"lr": 0.1, "server-round": 1})})
        message = Message(content, node, kind)
        if change and node == NODES[2]:
            message = change(message) or message
        messages.append(message)
    return messages


def _config(**values):
    def change(message):
        message.content["config"].update(values)

    return change


def _nudge(message):
    nudged = {name: array.numpy().copy() for name, array in message.content["arrays"].items()}
    nudged["b"][0] += 1e-6
    message.content["arrays"] = ArrayRecord({name: Array(value) for name, value in nudged.items()})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_config(lr=0.0), "key 'lr' of record 'config'"),
        (_config(extra=1), "key 'extra'"),
        (_nudge, "array 'b' of record 'arrays'"),
        (lambda m: Message(m.content, m.metadata.dst_node_id, "train.other"), "message_type"),
        (lambda m: Message(m.content, m.metadata.dst_node_id, "train", ttl=5.0), "ttl_s"),
        (lambda m: Message(m.content, m.metadata.dst_node_id, "train", group_id="x"), "group_id"),
        (lambda m: m.content.pop("arrays") and None, "arrays"),
        (lambda m: Message(m.content, NODES[0], "train"), "two messages"),
    ],
)
def test_personalised_broadcast_is_refused_by_name_and_nothing_is_sent(tmp_path, change, named):
    backend = FakeBackend(tmp_path)
    made = grid(tmp_path, backend, linear_strategy=["none"])
    with pytest.raises(GridRefused, match=re.escape(named)):
        made.send_and_receive(broadcast(change))
    assert not backend.requests


def test_equal_content_in_different_objects_is_one_broadcast(tmp_path):
    def copy(message):
        message.content["arrays"] = ArrayRecord({k: Array(v.numpy().copy()) for k, v in message.content["arrays"].items()})

    assert not grid(tmp_path, linear_strategy=["none"]).send_and_receive(broadcast(copy))[0].has_error()


def test_per_node_keys_travel_in_the_open(tmp_path):
    backend = FakeBackend(tmp_path)
    made = grid(tmp_path, backend, linear_strategy=["none"], per_node_keys=["lr"])
    made.send_and_receive(broadcast(_config(lr=0.0)))
    values = backend.requests[0].node_values
    assert values[NODES[2]] == {"config": {"lr": 0.0}} and values[NODES[0]] == {"config": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (Array(np.zeros(3, np.complex64)), "complex64"),
        (Array(np.array(["a", "b"])), "cannot be summed"),
        (Array(np.array([1, 1 << 24, (1 << 24) + 1])), "element 2 holds 16777217"),
        (Array(np.array([1.0, 1e300])), "element 1 holds 1e[+]300; does not fit float32"),
        (Array(np.array([1.0, np.nan], np.float32)), "holds nan"),
        (Array("float32", (2,), "torch.save", b"xx"), "torch.save"),
    ],
)
def test_arrays_that_cannot_be_summed_are_refused_by_name_and_nothing_is_sent(tmp_path, array, why):
    backend = FakeBackend(tmp_path)
    with pytest.raises(DureError, match=f"'steps'.*{why}"):
        grid(tmp_path, backend, linear_strategy=["none"]).send_and_receive(broadcast(arrays=ArrayRecord({"steps": array})))
    assert not backend.requests


def test_two_array_records_are_refused_by_name(tmp_path):
    messages = broadcast()
    messages[0].content["more"] = start_arrays()
    with pytest.raises(GridRefused, match="'arrays', 'more': one array record per message"):
        grid(tmp_path, linear_strategy=["none"]).send_and_receive(messages)


MIXED = {
    "w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "wide": np.linspace(0, 1, 5),
    "half": np.linspace(-2, 2, 7, dtype=np.float16),
    "tracked": np.array(41),
    "mask": np.array([True, False, True]),
    "none": np.zeros((0, 3), np.float32),
}
BF16 = np.array([0x3F80, 0x4000, -0x4080], np.int16)
"""1, 2 and -1 as bfloat16."""


def mixed_arrays() -> ArrayRecord:
    plain = Array(BF16)
    record = ArrayRecord({name: Array(value) for name, value in MIXED.items()})
    record["brain"] = Array("bfloat16", plain.shape, plain.stype, plain.data)
    return record


class Mixed(FakeBackend):
    """Every member moves every tensor by the same amount, integers by three."""

    def sum(self, request):
        item = request.instruction.arrays
        base = np.array(open_flat(request.flat_path, item.layout))
        mean = np.zeros_like(base)
        for entry in item.layout.entries:
            moved = 3 * 2.0**-20 if entry.integer and entry.dtype != "bool" else 0.0 if entry.integer else 0.25
            mean[entry.offset : entry.offset + entry.count] = moved
        out = self.folder / f"reply-{request.seq}.f32"
        (base + mean if self.kind == "weights" else mean).tofile(out)
        return ExchangeReply("ok", arrays=self.kind, flat_path=out, num_examples=4.0, survivors=request.nodes)


@pytest.mark.parametrize("kind", ["mean-update", "weights"])
def test_every_dtype_goes_out_and_comes_back_as_the_strategy_sent_it(tmp_path, kind):
    backend = Mixed(tmp_path, arrays=kind)
    made = grid(tmp_path, backend, linear_strategy=["none"])
    reply = made.send_and_receive(broadcast(arrays=mixed_arrays()))[0].content["arrays"]
    for name, sent in MIXED.items():
        got = reply[name].numpy()
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape), name
        want = sent if sent.dtype == bool else sent + 3 if sent.dtype.kind == "i" else sent + sent.dtype.type(0.25)
        assert np.allclose(got, want, rtol=1e-3 if name == "half" else 1e-7)
    assert np.array_equal(reply["brain"].numpy(), np.array([1.25, 2.25, -0.75], np.float32))
    dtypes = {e.name: e.dtype for e in backend.requests[0].instruction.arrays.layout.entries}
    assert dtypes == {**{name: value.dtype.name for name, value in MIXED.items()}, "brain": "bfloat16"}


def test_what_a_strategy_widens_goes_out_again_in_the_runs_dtypes_under_the_same_id(tmp_path):
    """FedAvg makes float64 of an integer and of a bool, and is given float32 for bfloat16."""
    backend = Mixed(tmp_path, arrays="weights")
    made = grid(tmp_path, backend, linear_strategy=["none"])
    reply = made.send_and_receive(broadcast(arrays=mixed_arrays()))[0].content["arrays"]
    widened = ArrayRecord({name: Array(np.asarray(array.numpy() * 1.0)) for name, array in reply.items()})
    made.send_and_receive(broadcast(arrays=widened))
    first, second = (request.instruction.arrays for request in backend.requests)
    assert first.layout == second.layout
    flat = np.array(open_flat(tmp_path / "reply-1.f32", first.layout))
    assert second.weights_id == weights_id(flat, first.layout)


@pytest.mark.parametrize(
    ("strategy", "members", "quorum", "why"),
    [
        (
            lambda: flower.FedAvg(fraction_evaluate=0.5),
            4,
            3,
            "fraction_evaluate = 0.5 of 4 members picks 2, and 3 .* set it to 0.75 or more",
        ),
        (lambda: flower.FedAvg(fraction_train=0.3), 10, 7, "fraction_train = 0.3 of 10 members picks 3, and 7 .* 0.7 or more"),
        (lambda: Saves(fraction_train=0.59), 5, 4, "picks 2"),
    ],
)
def test_a_fraction_that_would_pick_too_few_is_refused_with_the_arithmetic_before_anything_is_sent(
    tmp_path, strategy, members, quorum, why
):
    backend = FakeBackend(tmp_path)
    with pytest.raises(GridRefused, match=why):
        start(strategy(), grid(tmp_path, backend, members=members, quorum=quorum))
    assert not backend.requests


def test_a_fraction_that_picks_the_quorum_may_run(tmp_path):
    for strategy in (
        flower.FedAvg(fraction_train=0.75, fraction_evaluate=0.0, min_train_nodes=1),
        flower.FedAvg(fraction_train=0.1, fraction_evaluate=0.1, min_train_nodes=3, min_evaluate_nodes=3),
    ):
        check_sampling(strategy, 4, 3)
    backend = FakeBackend(tmp_path)
    start(flower.FedAvg(fraction_train=0.75, fraction_evaluate=0.0), grid(tmp_path, backend, members=4, quorum=3), rounds=2)
    assert [len(request.nodes) for request in backend.requests] == [3, 3]


def test_too_small_a_sample_is_refused_with_the_remedy(tmp_path):
    backend = FakeBackend(tmp_path)
    with pytest.raises(GridRefused, match="fraction_train"):
        start(flower.FedAvg(fraction_train=0.5, min_train_nodes=2), grid(tmp_path, backend))
    assert not backend.requests


def test_strategy_that_waits_for_more_nodes_than_there_are_is_stopped(tmp_path):
    with pytest.raises(QuorumMissing, match="min_available_nodes"):
        start(flower.FedAvg(min_available_nodes=5), grid(tmp_path, node_wait_s=0.5))


def test_individual_replies_are_refused_with_the_reason(tmp_path):
    for call in (grid(tmp_path).push_messages, grid(tmp_path).pull_messages):
        with pytest.raises(GridRefused, match="only their sum is visible"):
            call([])


@pytest.mark.parametrize("name", ["FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan", "QFedAvg", "FedXgbBagging", "FedXgbCyclic"])
def test_strategies_that_need_each_update_are_refused_before_anything_is_sent(tmp_path, name):
    backend = FakeBackend(tmp_path)
    extra = {"QFedAvg": {"client_learning_rate": 0.1}}.get(name, {})
    strategy = getattr(flower, name)(**extra)
    with pytest.raises(GridRefused, match=f"{name} cannot run under secure aggregation"):
        start(strategy, grid(tmp_path, backend, linear_strategy=[name]))
    assert not backend.requests


def test_dp_wrapper_is_refused_with_its_reason():
    wrapped = flower.DifferentialPrivacyClientSideFixedClipping(flower.FedAvg(), 1.0, 1.0, 4)
    with pytest.raises(GridRefused, match="privacy section"):
        check_strategy(wrapped)


class Saves(flower.FedAvg):
    def summary(self): ...


class Aggregates(flower.FedAvg):
    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, replies)


class OwnStart(flower.FedAvg):
    def start(self, grid, **kwargs):
        return grid.send_and_receive(broadcast())


def test_subclass_is_judged_by_what_it_overrides_and_may_be_declared():
    check_strategy(Saves())
    with pytest.raises(GridRefused, match="overrides aggregate_train"):
        check_strategy(Aggregates())
    check_strategy(Aggregates(), ["Aggregates"])


def test_serverapp_that_goes_round_the_strategy_check_is_stopped_at_the_grid(tmp_path):
    backend = FakeBackend(tmp_path)
    with pytest.raises(GridRefused, match="without a Flower strategy"):
        OwnStart().start(grid(tmp_path, backend))
    assert not backend.requests


def test_replayed_serverapp_gets_the_journaled_replies_and_ends_bit_identically(tmp_path):
    whole = FakeBackend(tmp_path / "a")
    (tmp_path / "a").mkdir()
    reference = start(make("FedAdam"), grid(tmp_path / "a", whole), rounds=4)
    half = FakeBackend(tmp_path / "b")
    (tmp_path / "b").mkdir()
    start(make("FedAdam"), grid(tmp_path / "b", half), rounds=2)
    resumed = FakeBackend(tmp_path / "b", journal=half.journal)
    result = start(make("FedAdam"), grid(tmp_path / "b", resumed), rounds=4)
    assert resumed.live == 4
    for name in SHAPES:
        assert np.array_equal(result.arrays[name].numpy(), reference.arrays[name].numpy())


def test_error_code_is_ours():
    assert Error(3, "x").code == 3
