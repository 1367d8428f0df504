"""The demo's recipe outside the platform: joint with Nesterov and one dropout against solo models, on the real texts.

`python tests/unit/demo/test_demo_recipe_holds.py [SEED]` prints the figures; about two minutes on two cores, and it
fetches the texts if they are not in the temporary folder.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dure.errors import Unavailable
from dure.model.layout import Layout
from dure.model.outer import parse_step
from dure.model.weights import flatten, open_flat
from dure_demo.data import prepare
from dure_demo.evaluate import Evaluation, compare_models
from dure_demo.recipe import Recipe, initial_weights, write_model
from dure_demo.solo import one_thread_pool
from dure_demo.table import show_matrix

MEMBERS = ("games", "government", "law", "semiconductor", "telecom")
FOLDER = Path(tempfile.gettempdir()) / "dure-texts"
OUTER = {"name": "nesterov", "lr": "0.8", "momentum": "0.5"}
KILLED, KILLED_IN_ROUND = "semiconductor", 2


def one_round(recipe, texts, member, weights, number, moments):
    """What apps/pretrain's client does in one round."""
    from pretrain import inner, model, shape, text

    sizes, schedule = shape.Shape.of(recipe.config), inner.Schedule.of(recipe.config)
    content = text.read_text(texts / member)
    tokens = text.encode(text.unpack_tokenizer(text.pack_tokenizer(texts / "tokenizer.json"), sizes.vocabulary), content)
    gpt = model.load(sizes, weights)
    first = (number - 1) * schedule.steps
    key = text.text_key(content)
    done = inner.train(gpt, tokens, schedule, text_key=key, first_step=first, steps=schedule.steps, moments=moments)
    return member, model.weights_of(gpt), done


def train_joint(recipe, texts: Path, say) -> dict[str, np.ndarray]:
    """DiLoCo in this process: the outer step is core's, the dropout is the demo's."""
    weights, step = initial_weights(recipe), parse_step(OUTER)
    names = list(weights)
    state = (np.zeros(sum(weights[n].size for n in names), np.float32),)
    moments: dict[str, object] = {}
    with one_thread_pool() as pool:
        for number in range(1, recipe.config["rounds"] + 1):
            here = [m for m in recipe.members if not (m == KILLED and number == KILLED_IN_ROUND)]
            jobs = [pool.submit(one_round, recipe, texts, m, weights, number, moments.get(m)) for m in here]
            results = [job.result() for job in jobs]
            moments = {m: done.moments for m, _, done in results}
            base = np.concatenate([weights[n].ravel() for n in names])
            mean = np.mean([np.concatenate([w[n].ravel() for n in names]) - base for _, w, _ in results], axis=0, dtype=np.float32)
            flat, state = step.step_chunk(base, mean, state, taken=number - 1)
            at = np.cumsum([0, *(weights[n].size for n in names)])
            weights = {n: flat[at[i] : at[i + 1]].reshape(weights[n].shape) for i, n in enumerate(names)}
            say(f"round {number}: {', '.join(here)}; mean loss {np.mean([d.loss for _, _, d in results]):.3f}")
    return weights


def run_recipe(texts: Path, out: Path, say=lambda _line: None, **overrides) -> Evaluation:
    recipe = Recipe.of_app(MEMBERS, **overrides)
    started = time.monotonic()
    joint = write_model(out / "joint", train_joint(recipe, texts, say), recipe, texts / "tokenizer.json")
    say(f"joint {time.monotonic() - started:.0f} s")
    first = write_model(out / "initial", initial_weights(recipe), recipe)
    evaluation = compare_models(recipe, texts, joint, first, out, say)
    say(f"all {time.monotonic() - started:.0f} s")
    return evaluation


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_joint_model_beats_the_best_solo_model_on_the_mean_despite_a_dropout(tmp_path):
    """Bounds are wide around the five seeds measured for the recipe: joint 3.35 to 3.40, best solo 3.74 to 3.81."""
    try:
        texts = prepare(FOLDER / "cache", FOLDER / "texts")
    except Unavailable as error:
        pytest.skip(str(error))
    bits = run_recipe(texts, tmp_path).bits_per_byte
    assert bits.mean(bits.joint) < 3.5
    assert bits.best_solo[1] - bits.mean(bits.joint) > 0.2


def test_flat_vector_with_its_layout_reads_as_the_same_weights(tmp_path):
    from dure_demo.recipe import read_weights

    recipe = Recipe.of_app(("games",), width=32, layers=1, heads=2, vocabulary=300, sequence=16)
    weights = initial_weights(recipe)
    layout = Layout.build([(name, "float32", value.shape) for name, value in weights.items()])
    flatten(weights, layout, tmp_path / "base.f32")
    (tmp_path / "layout.json").write_bytes(layout.to_json())
    assert open_flat(tmp_path / "base.f32", layout).size == layout.elements
    read = read_weights(tmp_path / "base.f32")
    saved = read_weights(write_model(tmp_path / "model", weights, recipe))
    for name, value in weights.items():
        np.testing.assert_array_equal(read[name], value)
        np.testing.assert_array_equal(saved[name], value)


if __name__ == "__main__":
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    found = run_recipe(prepare(FOLDER / "cache", FOLDER / "texts", print), FOLDER / f"seed-{seed}", print, seed=seed)
    show_matrix(Console(width=160), found)
