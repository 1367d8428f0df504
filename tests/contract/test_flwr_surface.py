"""What we use of flwr and flwr does not promise. A failure here means: flwr moved; mend the two `private.py`."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.server import LegacyContext
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from dure_coordinator.flower import private as server_side
from dure_participant.worker import private as worker_side


def test_grid_has_exactly_the_abstract_members_dure_grid_implements():
    assert Grid.__abstractmethods__ == {
        "set_run",
        "run",
        "create_message",
        "get_node_ids",
        "push_messages",
        "pull_messages",
        "send_and_receive",
    }


def test_message_needs_a_task_identity_and_takes_ours():
    server_side.set_task_identity(417)
    message = Message(RecordDict(), 5, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (417, server_side.SERVER_NODE_ID)


def test_message_id_can_be_set():
    server_side.set_task_identity(1)
    message = Message(RecordDict(), 5, "train")
    server_side.set_message_id(message, "ab")
    assert message.metadata.message_id == "ab"


def test_worker_message_reaches_a_client_app_and_its_reply_names_the_sender():
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"m": MetricRecord({"n": 1})}), reply_to=message)

    message = worker_side.make_message(RecordDict(), run_id=7, node_id=9, message_type="train", group_id="g", ttl_s=60.0, message_id="id")
    reply = app(message, Context(7, 9, {}, RecordDict(), {}))
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (9, worker_side.SERVER_NODE_ID)
    assert reply.metadata.reply_to_message_id == "id"


def test_a_server_app_without_a_main_of_its_own_is_told_apart():
    modern, old = ServerApp(), ServerApp(server_fn=lambda context: None)
    modern.main()(lambda grid, context: None)
    assert server_side.has_main(modern) and not server_side.has_main(old)


def test_state_survives_a_round_trip():
    state = RecordDict({"a": ArrayRecord({"w": Array(np.arange(3.0))}), "m": MetricRecord({"n": 4})})
    again = worker_side.state_from_bytes(worker_side.state_bytes(state))
    assert again["m"]["n"] == 4
    assert np.array_equal(again["a"]["w"].numpy(), np.arange(3.0))


def test_workflows_take_a_legacy_context_that_we_refuse():
    undo = server_side.refuse_older_workflows(ValueError("older"))
    try:
        with pytest.raises(ValueError, match="older"):
            LegacyContext(context=None)  # type: ignore[arg-type]
    finally:
        undo()


def test_strategy_start_is_one_inherited_method_with_the_grid_first():
    assert list(inspect.signature(Strategy.start).parameters)[:2] == ["self", "grid"]
    for name in ("FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "FedProx"):
        assert getattr(flower, name).start is Strategy.start


@pytest.mark.parametrize("field", ["arrays", "train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"])
def test_result_has_the_fields_we_report(field):
    assert field in flower.Result.__dataclass_fields__


def test_every_stock_strategy_is_known_to_us():
    """A new stock strategy must be put on one of the two lists by hand."""
    from dure_coordinator.flower.strategies import ALLOWED, REASONS

    known = {kind.__name__ for kind in ALLOWED} | set(REASONS) | {"Strategy", "Result"}
    assert set(flower.__all__) == known


def test_numpy_arrays_are_stored_under_the_type_we_look_for():
    from dure_coordinator.flower import private

    assert Array(np.zeros(1)).stype == private.NUMPY


def test_fedavg_takes_its_mean_from_the_one_function_we_let_a_single_record_pass_through():
    from flwr.serverapp.strategy import fedavg

    assert list(inspect.signature(fedavg.aggregate_arrayrecords).parameters) == ["records", "weighting_metric_name"]
    assert "aggregate_arrayrecords(" in inspect.getsource(flower.FedAvg.aggregate_train)


def test_error_reply_carries_our_reason():
    server_side.set_task_identity(1)
    reply = Message(Error(3, "why"), reply_to=Message(RecordDict(), 5, "train"))
    assert reply.has_error() and reply.error.reason == "why" and reply.metadata.src_node_id == 5


def test_daemon_side_modules_import_no_flwr():
    """Ours, not flwr's: the daemon must be able to import these."""
    import subprocess
    import sys

    code = (
        "import sys, dure_coordinator.flower.journal, dure_coordinator.flower.launch, dure_coordinator.flower.codec,"
        " dure_participant.worker_host, dure.apps, dure.model.content;"
        "print([m for m in sys.modules if m.split('.')[0] in ('flwr', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_our_example_app_is_a_valid_flower_app():
    from pathlib import Path

    from flwr.common.config import get_project_config, validate_config

    folder = Path(__file__).parents[2] / "apps" / "digits"
    valid, errors, _ = validate_config(get_project_config(folder), check_module=True, project_dir=folder)
    assert valid, errors


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(10, dtype=np.int64)[::2],
        np.zeros((0, 3), np.float32),
        np.full((), 2.5),
        np.array([True, False]),
        np.arange(4, dtype=">f4"),
    ],
    ids=["plain", "fortran", "strided", "empty", "scalar", "bool", "big-endian"],
)
def test_quick_arrays_have_flowers_bytes_and_values(array, monkeypatch):
    flowers = Array(array)
    monkeypatch.setattr(Array, "from_numpy_ndarray", Array.from_numpy_ndarray)
    worker_side.quicken_arrays()
    ours = Array(array)
    assert ours == flowers and ours.object_id == flowers.object_id
    assert ArrayRecord([array])["0"] == flowers
    back = worker_side.values_of(ours)
    assert back.dtype == flowers.numpy().dtype and np.array_equal(back, array)


def test_a_lent_array_is_flowers_array_and_survives_its_file():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    flowers, lent = Array(values.copy()), worker_side.Lent()
    array, kept, gone = (lent.lend(values, "float32") for _ in range(3))
    record = ArrayRecord({"w": array})
    assert (record["w"], record["w"].object_id) == (flowers, flowers.object_id)
    mine = kept.numpy()
    mine[0] = -1
    assert np.array_equal(kept.numpy(), values) and np.array_equal(worker_side.values_of(kept), values), (
        "every caller has a copy of its own"
    )
    assert (kept.dtype, kept.shape, kept.stype) == (flowers.dtype, flowers.shape, flowers.stype)
    del gone
    lent.call_in()
    values[:] = 99  # the next base is written over it
    assert np.array_equal(kept.numpy(), flowers.numpy()) and kept.data == flowers.data
    kept.data = b"other"
    assert kept.data == b"other"
