"""apps/pretrain's server: stock FedAvg, weights from the seed, the tokenizer in every round; loads without torch."""

from __future__ import annotations

import subprocess
import sys
import zlib

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from dure.apps import read_app, run_config
from dure.model.content import MAX_VALUE_BYTES
from dure_coordinator.flower import private
from dure_coordinator.planning import outer_step
from dure_demo.recipe import APP, Recipe, initial_weights

SMALL = {"vocabulary": 300, "width": 32, "layers": 1, "heads": 2, "sequence": 16, "rounds": 3, "seed": 5}


class EchoGrid(Grid):
    """Two nodes that send back what they got; keeps what was asked."""

    def __init__(self):
        self.asked = []

    def get_node_ids(self):
        return [11, 12]

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        self.asked += messages[:1]  # FedAvg sends an empty list where it has nothing to ask
        metrics = MetricRecord({"loss": 1.0, "num-examples": 1})
        return [Message(RecordDict({"arrays": m.content["arrays"], "metrics": metrics}), reply_to=m) for m in messages]

    def set_run(self, run): ...
    def run(self): ...
    def create_message(self, *args, **kwargs): ...
    def push_messages(self, messages): ...
    def pull_messages(self, message_ids): ...


def serve(**config):
    private.set_task_identity(417)
    grid = EchoGrid()
    app = private.load_server_app(read_app(APP).serverapp, APP)
    app(grid, Context(run_id=417, node_id=1, node_config={}, state=RecordDict(), run_config={**run_config(read_app(APP)), **config}))
    return grid.asked


def test_every_round_carries_the_tokenizer_and_the_first_starts_from_the_seed(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"any": "thing"}')
    asked = serve(**SMALL, tokenizer=str(path))
    assert [m.metadata.message_type for m in asked] == ["train"] * 3
    assert all(zlib.decompress(m.content["config"]["tokenizer"]) == path.read_bytes() for m in asked)
    expected = initial_weights(Recipe.of_app(("games",), **SMALL))
    sent = {name: array.numpy() for name, array in asked[0].content["arrays"].items()}
    assert list(sent) == list(expected)
    assert all(np.array_equal(sent[name], expected[name]) and sent[name].dtype == np.float32 for name in sent)


def test_no_tokenizer_is_one_line_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer at .*; train one and name it with --set tokenizer="):
        serve(**SMALL, tokenizer=str(tmp_path / "none.json"))


def test_a_tokenizer_too_large_to_carry_is_refused_with_both_sizes(tmp_path):
    from pretrain.text import MAX_PACKED_BYTES

    assert MAX_PACKED_BYTES == MAX_VALUE_BYTES
    path = tmp_path / "tokenizer.json"
    path.write_bytes(np.random.default_rng(1).bytes(70_000))
    with pytest.raises(ValueError, match=r"takes 7\d{4} bytes compressed; at most 65536"):
        serve(**SMALL, tokenizer=str(path))


def test_the_plan_names_the_recipes_outer_step():
    step = outer_step(read_app(APP), None)
    assert (step.name, dict(step.settings)) == ("nesterov", {"lr": "0.8", "momentum": "0.5"})


def test_a_coordinator_needs_neither_torch_nor_tokenizers():
    code = (
        "import sys; sys.modules.update(torch=None, tokenizers=None, transformers=None, safetensors=None); "
        f"sys.path.insert(0, {str(APP)!r}); import pretrain.server_app"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("change", [{"heads": 3}, {"vocabulary": 70_000}, {"layers": 0}])
def test_a_shape_that_cannot_be_is_refused_by_name(change):
    from pretrain.shape import Shape

    with pytest.raises(ValueError, match=next(iter(change))):
        Shape.of({**run_config(read_app(APP)), **change})


def test_the_first_weights_have_the_recipes_size_and_spread():
    weights = initial_weights(Recipe.of_app(("games",)))
    assert sum(value.size for value in weights.values()) == 1_071_872
    assert weights["transformer.wte.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert weights["transformer.h.0.mlp.c_proj.weight"].std() == pytest.approx(0.02 / 8**0.5, rel=0.02)
    other = initial_weights(Recipe.of_app(("games",), seed=8))
    assert not np.array_equal(weights["transformer.wpe.weight"], other["transformer.wpe.weight"])
