"""Which model predicts whose text how well: every model on every member's held-out text, outside the protocol.

Bits per byte come first, since they do not depend on how many bytes a token happens to hold; perplexity per token is
beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dure.errors import BadInput
from dure_demo.recipe import Recipe, Say, read_weights
from dure_demo.solo import one_thread_pool, run_solos

INITIAL, JOINT = "initial", "joint"
BATCH = 16


@dataclass(frozen=True)
class Scores:
    """One measure, by member whose held-out text was predicted; lower is better."""

    joint: Mapping[str, float]
    solo: Mapping[str, Mapping[str, float]]
    """By the member whose model it is, then by text."""
    initial: Mapping[str, float]

    def mean(self, scores: Mapping[str, float]) -> float:
        return sum(scores.values()) / len(scores)

    @property
    def best_solo(self) -> tuple[str, float]:
        """The solo model that is best on the mean over members: (whose, mean)."""
        means = {member: self.mean(scores) for member, scores in self.solo.items()}
        best = min(means, key=means.__getitem__)
        return best, means[best]


@dataclass(frozen=True)
class Evaluation:
    """The whole matrix, in both measures; `to_json` is part of what `dure demo --json` prints."""

    bits_per_byte: Scores
    perplexity: Scores

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def joint_wins_on_the_mean(self) -> bool:
        """In both measures."""
        return all(s.mean(s.joint) < s.best_solo[1] for s in (self.bits_per_byte, self.perplexity))

    @property
    def solo_wins_at_home(self) -> list[str]:
        """Members whose own model knows their own text better than the joint one, in bits per byte."""
        scores = self.bits_per_byte
        return [member for member in scores.solo if scores.solo[member][member] < scores.joint[member]]


def evaluate_all(
    recipe: Recipe,
    data_dir: Path,
    *,
    joint: Path,
    solos: Mapping[str, Path],
    initial: Path,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Evaluation:
    """Evaluate all models in two processes; about 10 s for seven models and five texts on two cores.

    Args:
        joint, solos, initial: model files as `recipe.read_weights` takes them; solos by member.

    Raises:
        BadInput: a model or a text is missing, or a text is shorter than one sequence.
    """
    models = {INITIAL: initial, JOINT: joint, **{f"solo {member}": path for member, path in solos.items()}}
    found: dict[str, dict[str, tuple[float, float]]] = {}
    with one_thread_pool() as pool:
        waiting = {pool.submit(evaluate_model, recipe, data_dir, path): name for name, path in models.items()}
        for done in as_completed(waiting):
            found[waiting[done]] = done.result()
            progress(len(found), len(waiting))

    def scores(measure: int) -> Scores:
        def of(name: str) -> dict[str, float]:
            return {member: pair[measure] for member, pair in found[name].items()}

        return Scores(of(JOINT), {member: of(f"solo {member}") for member in solos}, of(INITIAL))

    return Evaluation(bits_per_byte=scores(0), perplexity=scores(1))


def evaluate_model(recipe: Recipe, data_dir: Path, path: Path) -> dict[str, tuple[float, float]]:
    """(bits per byte, perplexity per token) of one model on each member's held-out text, in this process."""
    import torch
    from pretrain import model, shape, text

    torch.set_num_threads(1)
    sizes = shape.Shape.of(recipe.config)
    tokenizer = text.unpack_tokenizer(text.pack_tokenizer(data_dir / "tokenizer.json"), sizes.vocabulary)
    gpt = model.load(sizes, read_weights(path))
    scores = {}
    for member in recipe.members:
        content = text.read_text(data_dir / member, "heldout.txt")
        tokens = text.encode(tokenizer, content)
        if len(tokens) <= sizes.sequence:
            raise BadInput(f"{data_dir / member / 'heldout.txt'}: {len(tokens)} tokens; at least {sizes.sequence + 1} are needed")
        windows = torch.from_numpy(heldout_windows(tokens, sizes.sequence, recipe.windows))
        with torch.no_grad():
            nats = sum(gpt.loss(part).item() * len(part) for part in windows.split(BATCH)) / len(windows)
        scores[member] = (nats / math.log(2) * len(tokens) / len(content), math.exp(nats))
    return scores


def heldout_windows(tokens: np.ndarray, sequence: int, most: int) -> np.ndarray:
    """Windows of `sequence` predicted tokens, int64 [n, sequence + 1], spread evenly over a text."""
    count = min(most, (len(tokens) - 1) // sequence)
    stride = (len(tokens) - 1 - sequence) / max(1, count - 1)
    return np.stack([tokens[int(k * stride) : int(k * stride) + sequence + 1] for k in range(count)]).astype(np.int64)


def compare_models(recipe: Recipe, data_dir: Path, joint: Path, initial: Path, out_dir: Path, say: Say = lambda _line: None) -> Evaluation:
    """Everything after the run: solo models from the run's own first weights (below `out_dir`), evaluation. About a minute on two cores."""
    say(f"{len(recipe.members)} solo models, two at a time")
    solos = run_solos(
        recipe,
        data_dir,
        initial,
        out_dir,
        lambda done, everyone, solo: say(f"{done} of {everyone}: {solo.member} alone, {solo.tokens:,} tokens, loss {solo.loss:.2f}"),
    )
    say(f"{len(solos) + 2} models on {len(recipe.members)} held-out texts")
    return evaluate_all(recipe, data_dir, joint=joint, solos={name: solo.model for name, solo in solos.items()}, initial=initial)
