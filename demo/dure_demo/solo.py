"""Each member alone: the same first weights, data order, schedule and steps as in the run, but nobody else's text."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dure_demo.recipe import Recipe, read_weights, write_model

PROCESSES = 2
"""One thread each: the demo is made for two cores."""

Progress = Callable[[int, int, "Solo"], None]
"""Told (models done, models in all, the one that is done)."""


@dataclass(frozen=True)
class Solo:
    """A member's own model."""

    member: str
    model: Path
    loss: float
    """Nats per token on its own training text, mean of the last steps."""
    tokens: int


@contextmanager
def one_thread_pool() -> Iterator[ProcessPoolExecutor]:
    """Two fresh processes with one thread each. Left by an exception, what has not begun is not begun."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when the processes start
    pool = ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def run_solos(
    recipe: Recipe,
    data_dir: Path,
    initial: Path,
    out_dir: Path,
    progress: Progress = lambda _done, _all, _solo: None,
) -> dict[str, Solo]:
    """Train every member's solo model; writes `out_dir/MEMBER/model.safetensors` and config.json. About 45 s on two cores.

    Args:
        data_dir: as `data.prepare` leaves it: MEMBER/train.txt and tokenizer.json.
        initial: the run's first weights, model.safetensors or a flat vector with layout.json.
    """
    found: dict[str, Solo] = {}
    with one_thread_pool() as pool:
        waiting = [pool.submit(train_solo, recipe, data_dir, member, initial, out_dir / member) for member in recipe.members]
        for done in as_completed(waiting):
            solo = done.result()
            found[solo.member] = solo
            progress(len(found), len(waiting), solo)
    return dict(sorted(found.items()))


def train_solo(recipe: Recipe, data_dir: Path, member: str, initial: Path, out_dir: Path) -> Solo:
    """One member's model, in this process."""
    from pretrain import inner, model, shape, text

    sizes, schedule = shape.Shape.of(recipe.config), inner.Schedule.of(recipe.config)
    content = text.read_text(data_dir / member)
    tokenizer = text.unpack_tokenizer(text.pack_tokenizer(data_dir / "tokenizer.json"), sizes.vocabulary)
    gpt = model.load(sizes, read_weights(initial))
    done = inner.train(
        gpt,
        text.encode(tokenizer, content),
        schedule,
        text_key=text.text_key(content),
        first_step=0,
        steps=schedule.total,
        moments=None,
    )
    return Solo(member, write_model(out_dir, model.weights_of(gpt), recipe), done.loss, done.tokens)
