"""The exported folder is a model others can use: transformers loads it and says the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dure_demo.recipe import Recipe, initial_weights, write_model
from dure_demo.text import train_tokenizer


def test_transformers_loads_the_export_and_gives_the_same_logits(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from pretrain import model, shape

    text = " ".join(f"word{k % 37} follows {k * 7919 % 101}" for k in range(400))
    train_tokenizer([text], 300, tmp_path / "tokenizer.json")
    recipe = Recipe.of_app(("games",), vocabulary=300)
    rng = np.random.default_rng(3)  # biases and gains away from zero and one, or a mixed-up name would not show
    weights = {n: v + rng.normal(0, 0.1, v.shape).astype(np.float32) for n, v in initial_weights(recipe).items()}
    write_model(tmp_path / "model", weights, recipe, tmp_path / "tokenizer.json")

    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    tokens = torch.from_numpy(rng.integers(0, 300, (2, 128)))
    with torch.no_grad():
        ours = model.load(shape.Shape.of(recipe.config), weights)(tokens)
        torch.testing.assert_close(theirs.eval()(tokens).logits, ours, rtol=1e-4, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.decode(tokenizer.encode("word3 follows 한국")) == "word3 follows 한국"
