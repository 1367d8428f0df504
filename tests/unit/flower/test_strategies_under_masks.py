"""Flower's own strategies on what comes out of a masked sum, against the same strategies on every member's own reply.

Two claims. The mean that comes out differs from the exact weighted mean by less than the quantisation's stated bound. And with N single
replies that have that very mean, a strategy gives what it gives on our one reply, to 1e-6 of the step it takes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from support.one_process import RUN, OneProcess, run_strategy

from dure.model.content import flower_node_id
from dure.model.layout import Layout
from dure.model.weights import unflatten
from dure.secagg.encode import scale_exponents
from dure_coordinator.flower import private
from dure_coordinator.flower.backend import GridRefused

MEMBERS = ("alpha", "beta", "delta", "eps", "gamma")
SHAPES = {"w": (40, 120), "b": (40,), "s": ()}
NODES = [flower_node_id(m) for m in sorted(MEMBERS)]
ROUNDS = 3


def initial() -> ArrayRecord:
    rng = np.random.default_rng(1)
    return ArrayRecord({name: Array(np.asarray(0.05 * rng.standard_normal(shape), np.float32)) for name, shape in SHAPES.items()})


def moved(node: int, server_round: int) -> dict[str, np.ndarray]:
    """How far a member moves each tensor: by amounts of its own, none of them near zero, where FedAdagrad divides by what is left of it."""
    rng = np.random.default_rng([node % 9973, server_round])
    return {name: 0.05 + 0.02 * rng.random(shape) for name, shape in SHAPES.items()}


def examples(node: int, server_round: int) -> int:
    return int(np.random.default_rng([node % 997, server_round]).integers(20, 60_000))


client = ClientApp()


@client.train()
def train(message: Message, context) -> Message:
    number = int(message.content["config"]["server-round"])
    change = moved(context.node_id, number)
    arrays = {n: Array(np.asarray(a.numpy() + change[n], np.float32)) for n, a in message.content["arrays"].items()}
    metrics = MetricRecord({"loss": float(change["w"].mean()), "num-examples": examples(context.node_id, number)})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


class EachReplies(Grid):
    """Flower as it is: N replies. Each is moved by the same small amount, so that their weighted mean is the one given."""

    def __init__(self, means: list[Mapping[str, np.ndarray]]) -> None:
        self.means = means

    def get_node_ids(self):
        return NODES

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        if not messages:
            return []
        number = int(messages[0].content["config"]["server-round"])
        total = sum(examples(node, number) for node in NODES)
        exact = {n: sum(moved(node, number)[n] * (examples(node, number) / total) for node in NODES) for n in SHAPES}
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            weights = {n: a.numpy().astype(np.float64) for n, a in message.content["arrays"].items()}
            arrays = {n: Array(np.asarray(weights[n] + moved(node, number)[n] + (self.means[number - 1][n] - exact[n]))) for n in SHAPES}
            metrics = MetricRecord({"num-examples": examples(node, number)})
            replies.append(Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message))
        return replies

    def set_run(self, run): ...
    def run(self): ...
    def create_message(self, *args, **kwargs): ...
    def push_messages(self, messages): ...
    def pull_messages(self, message_ids): ...


def make(name: str):
    extra = {"FedProx": {"proximal_mu": 0.1}, "FedAvgM": {"server_momentum": 0.9, "server_learning_rate": 0.7}}.get(name, {})
    return getattr(flower, name)(fraction_evaluate=0.0, min_train_nodes=5, min_available_nodes=5, **extra)


def decoded_means(backend: OneProcess) -> list[dict[str, np.ndarray]]:
    """What came out of each masked sum, by tensor."""
    layout = backend.requests[0].instruction.arrays.layout
    flats = [np.fromfile(backend.folder / f"reply-{r.seq}.f32", "<f4") for r in backend.requests]
    return [unflatten(flat, layout) for flat in flats]


@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "FedProx"])
def test_a_strategy_gives_under_masks_what_it_gives_on_single_replies(tmp_path, name):
    backend = OneProcess(tmp_path, dict.fromkeys(MEMBERS, client), quorum=4)
    ours = run_strategy(backend, make(name), initial_arrays=initial(), num_rounds=ROUNDS, train_config=ConfigRecord())
    means = decoded_means(backend)
    private.set_task_identity(RUN)
    theirs = make(name).start(grid=EachReplies(means), initial_arrays=initial(), num_rounds=ROUNDS, train_config=ConfigRecord())
    start = initial()
    for tensor in SHAPES:
        mine, wanted = (np.asarray(result.arrays[tensor].numpy(), np.float64) for result in (ours, theirs))
        step = np.abs(wanted - start[tensor].numpy()).max()
        assert np.abs(mine - wanted).max() <= 1e-6 * step, (tensor, np.abs(mine - wanted).max(), step)
        assert mine.shape == SHAPES[tensor]
    for number in range(1, ROUNDS + 1):
        losses = {node: float(moved(node, number)["w"].mean()) for node in NODES}
        total = sum(examples(node, number) for node in NODES)
        want = sum(losses[n] * examples(n, number) for n in NODES) / total
        assert ours.train_metrics_clientapp[number]["loss"] == pytest.approx(want, abs=5 * 2.0**-31 * 65_536 / (total / 5))


def test_the_mean_that_comes_out_is_the_exact_one_within_the_stated_bound(tmp_path):
    """|error| < s_b per member and element, so n·s_b/Σŵ in the mean (secure-aggregation.md §6), and float32's own digits."""
    backend = OneProcess(tmp_path, dict.fromkeys(MEMBERS, client), quorum=4)
    run_strategy(backend, make("FedAvg"), initial_arrays=initial(), num_rounds=1, train_config=ConfigRecord())
    layout: Layout = backend.requests[0].instruction.arrays.layout
    e_b = np.frombuffer(backend.blobs.read_bytes(backend.base.e_b, limit=1 << 20), np.int8)
    weights = {m: r.weight.w_int * 2.0**-40 for m, r in backend.replies[1].items()}
    bound = len(MEMBERS) * 2.0 ** scale_exponents(e_b, len(MEMBERS)) / sum(weights.values())
    base = np.fromfile(backend.requests[0].flat_path, "<f4").astype(np.float64)
    locals_ = {m: np.fromfile(r.result.flat_path, "<f4").astype(np.float64) for m, r in backend.replies[1].items()}
    exact = sum(weights[m] * (locals_[m] - base) for m in weights) / sum(weights.values())
    error = np.abs(np.fromfile(backend.folder / "reply-1.f32", "<f4") - exact)
    within = np.repeat(bound, 4096)[: layout.elements] + 1e-6 * np.abs(exact).max()
    assert (error <= within).all()
    assert error.max() > 0 and bound.max() < 1e-3


@pytest.mark.parametrize("name", ["FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan", "QFedAvg"])
def test_a_strategy_that_needs_single_replies_is_refused_before_anything_is_sent_saying_why(tmp_path, name):
    backend = OneProcess(tmp_path, dict.fromkeys(MEMBERS, client), quorum=4)
    strategy = getattr(flower, name)(**({"client_learning_rate": 0.1} if name == "QFedAvg" else {}))
    with pytest.raises(GridRefused, match=f"{name} cannot run under secure aggregation: it (needs every member's|weighs each)"):
        run_strategy(backend, strategy, initial_arrays=initial(), num_rounds=1)
    assert not backend.requests
