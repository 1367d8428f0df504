"""How often `dure audit similarity` finds what was planted, and how often it finds what is not there; writes docs/similarity.md.

    python bench/similarity_rates.py

Two families of models: small nets trained on handwritten digits in numpy, each from its own seed (input rows mean the same pixel in all of
them: the hard case for false alarms), and GPT-2-shaped ones as drawn. Seeds are fixed; the same machine gives the same table.
"""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from dure.audit.similarity import (
    CKA_FOUND,
    COSINE_FOUND,
    DRAWS,
    PERMUTATIONS,
    PROFILE_FOUND,
    Z_FOUND,
    Pair,
    Prepared,
    Tensor,
    compare,
    prepare,
)
from dure.model.dtypes import bfloat16_of

ROOT = Path(__file__).resolve().parents[1]
Weights = dict[str, np.ndarray]
Ready = dict[str, Prepared]
Plant = Callable[[Weights, Weights, np.random.Generator], Weights]
MODELS = 16
EPOCHS = 40
SIZES = (64, 96, 48, 10)


# -- models --------------------------------------------------------------------------------------------------------------


def draw_net(rng: np.random.Generator) -> Weights:
    return {f"l{i}": rng.standard_normal((a, b)) * np.sqrt(2 / a) for i, (a, b) in enumerate(pairwise(SIZES))}


def train(weights: Weights, seed: int, epochs: int = EPOCHS) -> Weights:
    """SGD with ReLU and cross-entropy, on one half of the data chosen by the seed."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    mine = rng.permutation(len(images))[: len(images) // 2]
    x, y = images[mine] / 16 - 0.3, np.eye(10)[labels[mine]]
    w = [weights[f"l{i}"].copy() for i in range(3)]
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for at in range(0, len(x), 32):
            part = order[at : at + 32]
            step(w, x[part], y[part])
    return {f"l{i}": v for i, v in enumerate(w)}


def step(w: list[np.ndarray], x: np.ndarray, y: np.ndarray, rate: float = 0.05) -> None:
    hidden = [x]
    for v in w[:-1]:
        hidden.append(np.maximum(hidden[-1] @ v, 0))
    logits = hidden[-1] @ w[-1]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    back = (p / p.sum(axis=1, keepdims=True) - y) / len(x)
    for i in reversed(range(len(w))):
        gradient = hidden[i].T @ back
        back = (back @ w[i].T) * (hidden[i] > 0)
        w[i] -= rate * gradient


def nets() -> list[Weights]:
    return [train(draw_net(np.random.default_rng(seed)), 1000 + seed) for seed in range(MODELS)]


def gpts() -> list[Weights]:
    sys.path.insert(0, str(ROOT / "apps" / "pretrain"))
    from pretrain.shape import Shape, initial_weights

    shape = Shape(vocabulary=512, width=64, layers=2, heads=2, sequence=64)
    return [{k: v for k, v in initial_weights(shape, seed).items() if v.ndim == 2} for seed in range(MODELS)]


# -- what is planted -----------------------------------------------------------------------------------------------------


def neurons_permuted(w: Weights, rng: np.random.Generator) -> Weights:
    """Every tensor with its rows and its columns in another order, as a net with renumbered neurons has them."""
    return {k: v[rng.permutation(v.shape[0])][:, rng.permutation(v.shape[1])] for k, v in w.items()}


def mixed(part: float) -> Plant:
    return lambda theirs, own, _rng: {k: part * theirs[k] + (1 - part) * own[k] for k in own}


def noisy(theirs: Weights, _own: Weights, rng: np.random.Generator) -> Weights:
    return {k: v + 0.3 * v.std() * rng.standard_normal(v.shape) for k, v in theirs.items()}


def one_layer(theirs: Weights, own: Weights, _rng: np.random.Generator) -> Weights:
    largest = max(own, key=lambda k: own[k].size)
    return {**own, largest: theirs[largest]}


def one_layer_noisy_permuted(theirs: Weights, own: Weights, rng: np.random.Generator) -> Weights:
    largest = max(own, key=lambda k: own[k].size)
    v = theirs[largest][:, rng.permutation(theirs[largest].shape[1])]
    return {**own, largest: v + 0.05 * v.std() * rng.standard_normal(v.shape)}


PLANTS: dict[str, Plant] = {
    "the whole model": lambda theirs, _own, _rng: theirs,
    "the whole model, in bfloat16": lambda theirs, _own, _rng: theirs,
    "one layer, the largest": one_layer,
    "the whole model, each tensor times its own factor": lambda theirs, _own, rng: {k: v * rng.uniform(0.2, 5) for k, v in theirs.items()},
    "rows permuted": lambda theirs, _own, rng: {k: v[rng.permutation(len(v))] for k, v in theirs.items()},
    "columns permuted": lambda theirs, _own, rng: {k: v[:, rng.permutation(v.shape[1])] for k, v in theirs.items()},
    "rows and columns permuted": lambda theirs, _own, rng: neurons_permuted(theirs, rng),
    "one layer, columns permuted, 5% noise": one_layer_noisy_permuted,
    "30% noise added": noisy,
    "half of it, half of its own": mixed(0.5),
    "a quarter of it": mixed(0.25),
    "a tenth of it": mixed(0.1),
}


# -- measuring -----------------------------------------------------------------------------------------------------------


def ready(weights: Weights, dtype: str = "float32") -> Ready:
    def shown(v: np.ndarray) -> np.ndarray:
        return bfloat16_of(v.astype(np.float32)) if dtype == "bfloat16" else v.astype(np.float32)

    return {k: prepare(Tensor(k, shown(v), dtype)) for k, v in weights.items()}


def pairs(mine: Ready, other: Ready) -> Iterator[Pair]:
    """As the command does it: every tensor against every one of its shape."""
    for b in other.values():
        for a in mine.values():
            if a.tensor.shape == b.tensor.shape and (pair := compare(a, b)) is not None:
                yield pair


def false_alarms(prepared: list[Ready]) -> str:
    """Of every two independent models."""
    found = [list(pairs(a, b)) for a, b in combinations(prepared, 2)]
    flat = [pair for one in found for pair in one]
    alarms, models = sum(bool(p.verdict) for p in flat), sum(any(p.verdict for p in one) for one in found)
    cosine, cka = max(abs(p.cosine.value) for p in flat), max(p.cka.value for p in flat)
    nearest = min(p.profile.value / p.profile.chance for p in flat if p.profile is not None)
    beside = f"largest cosine {cosine:.3f}, largest CKA {cka:.3f}, nearest profile {nearest:.2f} of chance"
    return f"{alarms} of {len(flat)} pairs of tensors, {models} of {len(found)} pairs of models ({beside})"


def planted(what: str, plant: Plant, models: list[Weights], known: list[Ready]) -> str:
    """One row: into each model something of the next one is planted, and it is compared with that."""
    found = touched = tensors = 0
    verdicts: Counter[str] = Counter()
    for n, own in enumerate(models):
        source = (n + 1) % len(models)
        made = plant(models[source], own, np.random.default_rng(n))
        changed = {k for k in own if made[k] is not own[k]}
        mine = ready(made, "bfloat16" if "bfloat16" in what else "float32")
        result = [p for p in pairs(mine, known[source]) if p.name == p.other and p.name in changed]
        hits = [p for p in result if p.verdict]
        found, tensors, touched = found + bool(hits), tensors + len(hits), touched + len(result)
        verdicts.update(p.verdict for p in hits)
    said = ", ".join(v for v, _ in verdicts.most_common())
    return f"| {what} | {found} of {len(models)} | {tensors} of {touched} | {said or '-'} |"


def trained_on(models: list[Weights]) -> str:
    """Each net trained on from another one's final weights, on other data, for as long again."""
    found = tensors = touched = 0
    for n, theirs in enumerate(models):
        result = [p for p in pairs(ready(train(theirs, 2000 + n)), ready(theirs)) if p.name == p.other]
        hits = [p for p in result if p.verdict]
        found, tensors, touched = found + bool(hits), tensors + len(hits), touched + len(result)
    return f"| trained on from it, on other data, as long again | {found} of {len(models)} | {tensors} of {touched} | derived |"


def table(models: list[Weights], *more: str) -> str:
    known = [ready(m) for m in models]
    rows = [planted(what, plant, models, known) for what, plant in PLANTS.items()]
    head = ["| planted | found in models | in tensors | called |", "| --- | --- | --- | --- |"]
    return f"False alarms: {false_alarms(known)}.\n\n" + "\n".join([*head, *rows, *more])


LIMITS = """## What it cannot say

Vectors (biases, gains) and integers are not compared. Tensors of a few hundred elements hide a mixture: see "a tenth of it" above.
A model trained on another one's outputs shares no weights with it and is not found. A model that began from the same first weights as
the reference is called *derived*: it is, from those. A layer moved by a rotation that is no permutation keeps its singular values and
is called *permuted*. Large models that were trained far apart were not tried here: the sizes above are what two cores train in a minute.
"""


def main() -> None:
    digits, drawn = nets(), gpts()
    made = f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}"
    text = f"""# How far `dure audit similarity` can be trusted

Made by `python bench/similarity_rates.py` ({made}); seeds are fixed.

A pair of tensors is called *copied* or *derived* by its cosine (at least {COSINE_FOUND}, and {Z_FOUND:g} standard deviations from what
permuted rows give), *permuted* by a CKA of {CKA_FOUND} or more, or by singular values nearer than {PROFILE_FOUND} of the nearest of
independently drawn matrices.

`--html FILE` writes a page in Korean and English that prints on A4: the files by SHA-256, the numbers of each pair with
their range of chance, and for each measure a histogram of all that chance gave ({PERMUTATIONS} permutations of the very tensors,
{DRAWS * (DRAWS - 1) // 2} pairs of independent draws), with the pairs marked on it.

## Nets trained on digits ({"-".join(map(str, SIZES))}), {MODELS} seeds, each on its own half of the data

{table(digits, trained_on(digits))}

## GPT-2-shaped models as drawn (width 64, 2 layers), {MODELS} seeds

{table(drawn)}

{LIMITS}"""
    (ROOT / "docs" / "similarity.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
