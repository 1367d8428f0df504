"""The foreign-weights report finds what was planted and nothing else. Rates over many models: docs/similarity.md."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from support.commands import dure

from dure.audit.similarity import Tensor, compare, prepare

RNG = np.random.default_rng(3)
OWN = RNG.standard_normal((96, 64)).astype("<f4")
THEIRS = RNG.standard_normal((96, 64)).astype("<f4")
ROWS, COLUMNS = RNG.permutation(96), RNG.permutation(64)


def verdict(a: np.ndarray, b: np.ndarray, dtype: str = "float32") -> str:
    pair = compare(prepare(Tensor("w", a, dtype)), prepare(Tensor("w", b, "float32")))
    assert pair is not None
    return pair.verdict


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (OWN, ""),
        (THEIRS, "copied"),
        (-3 * THEIRS, "copied"),
        (THEIRS[ROWS], "permuted"),
        (THEIRS[:, COLUMNS], "permuted"),
        (THEIRS[ROWS][:, COLUMNS] * 0.1, "permuted"),
        (0.5 * THEIRS + 0.5 * OWN, "derived"),
        (0.25 * THEIRS + 0.75 * OWN, "derived"),
    ],
    ids=["independent", "copy", "scaled", "rows", "columns", "both, scaled", "half", "quarter"],
)
def test_what_is_planted_is_found_and_what_is_not_is_not(made, expected):
    assert verdict(made.astype("<f4"), THEIRS) == expected


def test_half_precision_is_compared_as_what_it_holds():
    assert verdict(THEIRS.astype("<f2"), THEIRS, "float16") == "copied"
    bits = torch.tensor(THEIRS).to(torch.bfloat16).view(torch.int16).numpy()
    assert verdict(bits, THEIRS, "bfloat16") == "copied"


def test_columns_and_rows_that_all_models_share_are_no_likeness():
    """A mean row and a mean column, as embeddings have, are taken out before anything is compared."""
    common = 5 * np.outer(np.ones(96), np.linspace(-1, 1, 64)) + 5 * np.outer(np.linspace(-1, 1, 96), np.ones(64))
    assert verdict((OWN + common).astype("<f4"), (THEIRS + common).astype("<f4")) == ""


def test_a_constant_or_tiny_tensor_says_nothing():
    ones = prepare(Tensor("w", np.ones((96, 64), "<f4"), "float32"))
    assert compare(ones, ones) is None
    tiny = prepare(Tensor("w", OWN[:3], "float32"))
    assert compare(tiny, tiny) is None


def test_memory_stays_far_below_the_tensors_size():
    """A wide and a tall matrix of 32 MB each, as mapped files are, in float64 chunks of 8 MB."""
    for shape in ((64, 131_072), (131_072, 64)):
        values = RNG.standard_normal(shape, dtype=np.float32)
        tracemalloc.start()
        prepare(Tensor("w", values, "float32"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 150e6, peak


def model(folder, name: str, **tensors) -> str:
    save_file(tensors, folder / name)
    return str(folder / name)


def test_the_command_names_the_layer_and_each_bad_input_has_its_exit_code(tmp_path):
    mine = model(tmp_path, "mine.safetensors", first=OWN, second=THEIRS[:, COLUMNS].copy(), bias=np.ones(4, "<f4"))
    theirs = model(tmp_path, "theirs.safetensors", layer=THEIRS)
    found = dure("audit", "similarity", mine, theirs, "--json")
    (pair,) = json.loads(found.out)["references"][0]["pairs"]
    assert found.code == 1 and (pair["tensor"], pair["reference_tensor"], pair["verdict"]) == ("second", "layer", "permuted")
    clean = dure("audit", "similarity", mine, model(tmp_path, "other.safetensors", first=RNG.standard_normal((96, 64)).astype("<f4")))
    assert clean.code == 0 and "0 are beyond chance" in clean.out
    other = dure("audit", "similarity", mine, model(tmp_path, "small.safetensors", first=OWN[:8]))
    assert other.code == 12 and "small.safetensors: no matrix in it has a shape that the model has" in other.err
    save_torch({"w": torch.zeros(8, 8).to(torch.float8_e4m3fn)}, tmp_path / "eight.safetensors")
    eight = dure("audit", "similarity", mine, tmp_path / "eight.safetensors")
    assert eight.code == 11 and "eight.safetensors: tensor 'w' is F8_E4M3" in eight.err
    assert dure("audit", "similarity", mine, tmp_path / "none").code == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_that_holds_no_numbers_is_named(tmp_path, value):
    save_file({"good": OWN, "broken": np.full((8, 8), value, "<f4")}, tmp_path / "model.safetensors")
    ran = dure("audit", "similarity", tmp_path, tmp_path / "model.safetensors")
    assert ran.code == 2 and "tensor 'broken': holds NaN" in ran.err
