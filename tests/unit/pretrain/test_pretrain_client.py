"""apps/pretrain's client through the worker's own door: deterministic, resumable, and clear about what it lacks."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from dure.apps import read_app, run_config
from dure.model.content import ArrayItem, ConfigItem, Instruction
from dure.model.layout import Layout
from dure.model.weights import flatten, open_flat, unflatten, weights_id
from dure_demo.recipe import APP
from dure_demo.text import train_tokenizer
from dure_participant.worker import private
from dure_participant.worker.execute import execute
from dure_participant.worker.protocol import Task

SMALL = ["vocabulary=300", "width=32", "layers=1", "heads=2", "sequence=16", "steps=3", "rounds=3", "warmup=2"]
CONFIG = run_config(read_app(APP), SMALL)
TEXT = " ".join(f"word{k % 37} follows {k * 7919 % 101}" for k in range(400))


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A node with a text, a tokenizer and a scratch folder of its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").write_text(TEXT)
    train_tokenizer([TEXT], 300, tmp_path / "tokenizer.json")
    return tmp_path


def first_weights():
    from pretrain.shape import Shape, initial_weights

    return initial_weights(Shape.of(CONFIG), 7)


def train(node: Path, number: int, weights=None, *, tokenizer=None, state="state", node_config=None, config=CONFIG):
    """One round at the node; returns (weights by name, result)."""
    weights = weights or first_weights()
    layout = Layout.build([(name, "float32", value.shape) for name, value in weights.items()])
    flatten(weights, layout, node / "base.f32")
    packed = tokenizer if tokenizer is not None else zlib.compress((node / "tokenizer.json").read_bytes(), 9)
    arrays = ArrayItem("arrays", layout, weights_id(open_flat(node / "base.f32", layout), layout))
    sent = ConfigItem("config", {"server-round": number, "tokenizer": packed})
    task = Task(
        run_id=1,
        node_id=2,
        exchange=number,
        instruction=Instruction("train", "g", 60.0, (arrays, sent)).to_json(),
        out_path=node / "out.f32",
        state_path=node / state,
        base_path=node / "base.f32",
        node_config={"data": str(node / "data")} if node_config is None else node_config,
        run_config=config,
    )
    result = execute(private.load_client_app(read_app(APP).clientapp, APP), task)
    return {k: np.array(v) for k, v in unflatten(open_flat(node / "out.f32", layout), layout).items()}, result


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_two_rounds_of_a_lone_node_are_one_training_of_twice_the_steps(node):
    """State of the optimiser, schedule and data position go on from round to round, bit for bit."""
    after_one, _ = train(node, 1)
    after_two, _ = train(node, 2, after_one)
    from pretrain import inner, model, shape, text

    tokens, key = text.own_tokens(node / "data", zlib.compress((node / "tokenizer.json").read_bytes(), 9), 300)
    gpt = model.load(shape.Shape.of(CONFIG), first_weights())
    inner.train(gpt, tokens, inner.Schedule.of(CONFIG), text_key=key, first_step=0, steps=6, moments=None)
    assert same(after_two, model.weights_of(gpt))


def test_a_round_asked_again_gives_the_same_bytes_and_says_what_it_used(node):
    one, first = train(node, 1)
    again, second = train(node, 1)
    assert same(one, again)
    assert first.metrics == second.metrics
    assert set(first.metrics) == set(read_app(APP).dure.metrics) == {"loss"}
    assert first.num_examples == read_app(APP).dure.w_max == 1
    assert (first.usage.tokens, first.usage.steps) == (3 * 4 * 16, 3)
    parameters = sum(value.size for value in one.values())
    assert 0.5 < first.usage.flop / (6 * parameters * first.usage.tokens) < 1.5 and first.usage.flop == second.usage.flop
    assert not same(one, first_weights())


def test_a_node_that_was_away_for_a_round_starts_its_optimiser_afresh(node):
    base, _ = train(node, 1)
    kept_but_old, _ = train(node, 3, base)
    lost, _ = train(node, 3, base, state="lost")
    assert same(kept_but_old, lost)


def test_two_texts_give_two_data_orders_from_one_seed(node):
    from pretrain import inner, text

    tokens, schedule = np.arange(1000, dtype=np.uint16), inner.Schedule.of(CONFIG)
    one, other = (inner.windows_at(tokens, schedule, text.text_key(t), 0) for t in (b"one", b"other"))
    assert not np.array_equal(one, other)
    assert one.shape == (4, 17)


def test_a_token_cache_cut_short_by_a_crash_is_made_again(node):
    from pretrain import text

    good, _ = train(node, 1)
    (kept,) = node.glob("tokens-*.npy")
    kept.write_bytes(kept.read_bytes()[:50])
    text._encoded.cache_clear()
    again, _ = train(node, 1)
    assert same(good, again)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"node_config": {}}, "dure node config set data=FOLDER"),
        ({"node_config": {"data": "/nowhere"}}, "no text at /nowhere/train.txt"),
        ({"tokenizer": b"nonsense"}, "damaged"),
        ({"tokenizer": zlib.compress(b"{}")[:-5]}, "cut off"),
        ({"tokenizer": zlib.compress(bytes(2 << 20))}, "larger than 1048576 bytes"),
        ({"tokenizer": zlib.compress(b"{}")}, "cannot be read"),
        ({"config": {**CONFIG, "vocabulary": 301}}, "has 300 tokens, the run's model 301"),
        ({"config": {**CONFIG, "layers": 2}}, "transformer.h.1.ln_1.weight is missing"),
        ({"config": {**CONFIG, "sequence": 5000}}, "at least 5001 are needed"),
    ],
)
def test_what_a_round_lacks_is_named_in_one_line(node, change, says):
    with pytest.raises(Exception, match=re.escape(says)) as raised:
        train(node, 1, **change)
    assert "\n" not in str(raised.value)


def test_a_text_without_a_sequence_is_refused(node):
    (node / "data" / "train.txt").write_text("short")
    with pytest.raises(ValueError, match="at least 17 are needed"):
        train(node, 1)


def test_the_rate_warms_up_and_falls_to_a_tenth():
    from pretrain import inner

    schedule = inner.Schedule.of(run_config(read_app(APP)))
    rates = [schedule.lr_at(step) for step in range(schedule.total + 1)]
    assert rates[0] == pytest.approx(0.0015 / 20, rel=1e-3)
    assert max(rates) == pytest.approx(0.0015, rel=0.03)
    assert rates[-1] == pytest.approx(0.00015)
