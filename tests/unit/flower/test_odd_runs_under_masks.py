"""What stock strategies do besides training: evaluation alone, failed rounds, half precision; on real masks in one process."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from support.one_process import OneProcess, run_strategy

from dure.model.dtypes import bfloat16_of, flat_values

MEMBERS = ("alpha", "beta", "delta", "gamma")
ULP = np.float32(2**-7)
"""Of bfloat16 between 1 and 2."""


def brain(values: np.ndarray) -> Array:
    plain = Array(bfloat16_of(values))
    return Array("bfloat16", plain.shape, plain.stype, plain.data)


def values_of(array: Array) -> np.ndarray:
    return flat_values(array.numpy().reshape(-1), "bfloat16").reshape(array.shape) if array.dtype == "bfloat16" else array.numpy()


def client_of(moves: tuple[float, ...]) -> ClientApp:
    """Node i adds moves[i] last digits to every weight, a hundred to a count, and says what it was shown."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context) -> Message:
        arrays, me = message.content["arrays"], context.node_config["partition-id"]
        if moves[me] != moves[me]:
            raise RuntimeError("no data")
        shown = values_of(arrays["w"])
        reply = {"w": brain(shown + np.float32(moves[me] * ULP)), "n": Array(np.asarray(arrays["n"].numpy() + 100 * me))}
        metrics = MetricRecord({"shown": float(shown.mean()), "num-examples": 8})
        return Message(RecordDict({"arrays": ArrayRecord(reply), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context) -> Message:
        metrics = MetricRecord({"shown": float(values_of(message.content["arrays"]["w"]).mean()), "num-examples": 8})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def play(tmp_path, moves, strategy, rounds=2, outer_step=None):
    backend = OneProcess(tmp_path, dict.fromkeys(MEMBERS, client_of(moves)), outer_step=outer_step)
    start = ArrayRecord({"w": brain(np.ones((3, 5), np.float32)), "n": Array(np.array(7))})
    return backend, run_strategy(backend, strategy, initial_arrays=start, num_rounds=rounds)


def test_steps_below_the_last_digit_of_a_bfloat16_model_add_up_where_the_plan_names_the_step(tmp_path):
    """Three quarters of a digit per round on average: rounded each time it would be a whole one; all of five rounds are 3.75."""
    backend, result = play(tmp_path, (0, 1, 1, 1), flower.FedAvg(fraction_evaluate=0.0), rounds=5, outer_step={"name": "average"})
    shown = [result.train_metrics_clientapp[n]["shown"] for n in range(1, 6)]
    assert [round((s - 1) / ULP, 3) for s in shown] == [0, 1, 2, 2, 3]
    assert np.allclose(result.arrays["w"].numpy(), 1 + 3.75 * ULP, atol=ULP / 100)
    assert result.arrays["n"].numpy() == 7 + 5 * 150 and not any(backend.out.values())


def test_a_bfloat16_model_without_a_named_step_is_what_the_strategy_sends_rounded(tmp_path):
    _, result = play(tmp_path, (0, 1, 1, 1), flower.FedAvg(), rounds=2)
    assert [round((result.train_metrics_clientapp[n]["shown"] - 1) / ULP, 3) for n in (1, 2)] == [0, 1]
    assert round((result.evaluate_metrics_clientapp[2]["shown"] - 1) / ULP, 3) == 2


def test_evaluation_alone_is_one_exchange_per_weights_and_the_next_is_answered_at_once(tmp_path):
    backend, result = play(tmp_path, (0, 0, 0, 0), flower.FedAvg(fraction_train=0.0), rounds=3)
    assert [r.instruction.category for r in backend.requests] == ["evaluate"] * 3
    assert list(result.evaluate_metrics_clientapp) == [1] and result.evaluate_metrics_clientapp[1]["shown"] == 1.0
    assert list(backend.replies) == [1], "the second and third evaluation of the same weights asked nobody"


@pytest.mark.parametrize("outer_step", [None, {"name": "average"}])
def test_after_a_round_in_which_too_many_fail_the_strategy_goes_on_from_the_same_weights(tmp_path, outer_step):
    nan = float("nan")
    backend, result = play(tmp_path, (1, 1, nan, nan), flower.FedAvg(), rounds=2, outer_step=outer_step)
    kinds = [(r.instruction.category, r.seq in backend.replies) for r in backend.requests]
    assert kinds == [("train", False), ("evaluate", True), ("train", False), ("evaluate", False)]
    assert not result.train_metrics_clientapp and list(result.evaluate_metrics_clientapp) == [1]
    assert all("no data" in why for out in backend.out.values() for why in out.values())


def test_one_failing_client_leaves_the_sum_to_the_others(tmp_path):
    backend, result = play(tmp_path, (1, 1, 1, float("nan")), flower.FedAvg(fraction_evaluate=0.0), rounds=1)
    assert list(backend.out[1]) == ["gamma"] and "no data" in backend.out[1]["gamma"]
    assert np.allclose(result.arrays["w"].numpy(), 1 + ULP, atol=ULP / 100)
