"""DiLoCo's inner loop: some steps of AdamW on a member's own text, its state kept from round to round.

Everything a step does follows from (weights, optimiser state, text, seed, number of the step): there is no other
memory, so a node that was away, or a repeated exchange, cannot get out of step. One thread: bit-identical on a machine.
Source of the method: Douillard et al. 2023, arXiv 2311.08105.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.model import Gpt

BETAS = (0.9, 0.95)
LOSS_STEPS = 20
"""The loss a round reports is the mean of its last so many steps."""


@dataclass(frozen=True)
class Schedule:
    """The inner loop's settings; field names are the run config's, `-` for `_`."""

    rounds: int
    steps: int
    batch: int
    lr: float
    lr_end: float
    warmup: int
    weight_decay: float
    clip: float
    sequence: int
    seed: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Schedule:
        return cls(**{name: config[name.replace("_", "-")] for name in cls.__dataclass_fields__})

    @property
    def total(self) -> int:
        return self.rounds * self.steps

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then one cosine over all rounds down to `lr_end` of the peak; steps count from 0."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * min(step, self.total) / self.total))
        return self.lr * warm * (self.lr_end + (1 - self.lr_end) * cosine)


@dataclass(frozen=True)
class Moments:
    """AdamW's state, flat in the order of the model's parameters."""

    first_P: np.ndarray
    second_P: np.ndarray
    steps: int


@dataclass(frozen=True)
class Trained:
    """What some steps came to."""

    loss: float
    """Nats per token, mean over the last steps."""
    tokens: int
    flop: int
    """Forward and backward, as torch counts them: matrix products and attention, nothing elementwise."""
    moments: Moments


def windows_at(tokens: np.ndarray, schedule: Schedule, text_key: int, step: int) -> torch.Tensor:
    """The sequences of one step, int64 [batch, sequence + 1], drawn from (seed, text, step)."""
    rng = np.random.default_rng([schedule.seed, text_key, step])
    starts = rng.integers(0, len(tokens) - schedule.sequence, schedule.batch)
    return torch.from_numpy(np.stack([tokens[s : s + schedule.sequence + 1] for s in starts]).astype(np.int64))


def train(
    model: Gpt,
    tokens: np.ndarray,
    schedule: Schedule,
    *,
    text_key: int,
    first_step: int,
    steps: int,
    moments: Moments | None,
    each_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Trained:
    """Train the model in place from `first_step` on.

    Args:
        tokens: the member's text; longer than one sequence.
        text_key: makes two members' data orders differ; the same for one text everywhere.
        moments: where the steps before left AdamW; None starts it afresh.
        each_step: told (step, loss) after every step.
    """
    torch.set_num_threads(1)
    optimiser = _optimiser(model, schedule, moments)
    counter, losses = FlopCounterMode(display=False), list[float]()
    for step in range(first_step, first_step + steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.lr_at(step)
        optimiser.zero_grad()
        with counter if step == first_step else nullcontext():  # every step is of the same shapes, so one is counted for all
            loss = model.loss(windows_at(tokens, schedule, text_key, step))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimiser.step()
        losses.append(loss.item())
        each_step(step, losses[-1])
    taken = steps + (0 if moments is None else moments.steps)
    kept = _moments(model, optimiser, taken)
    flop = counter.get_total_flops() * steps
    return Trained(float(np.mean(losses[-LOSS_STEPS:])), steps * schedule.batch * schedule.sequence, flop, kept)


def _optimiser(model: Gpt, schedule: Schedule, moments: Moments | None) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() == 2], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.dim() != 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=schedule.lr, betas=BETAS, fused=True)
    if moments is not None:
        at = 0
        for p in parameters:
            part = slice(at, at + p.numel())
            optimiser.state[p] = {
                "step": torch.tensor(float(moments.steps)),
                "exp_avg": torch.from_numpy(moments.first_P[part].reshape(p.shape).copy()),
                "exp_avg_sq": torch.from_numpy(moments.second_P[part].reshape(p.shape).copy()),
            }
            at += p.numel()
    return optimiser


def _moments(model: Gpt, optimiser: torch.optim.AdamW, taken: int) -> Moments:
    def flat(name: str) -> np.ndarray:
        return np.concatenate([optimiser.state[p][name].numpy().ravel() for p in model.parameters()])

    return Moments(flat("exp_avg"), flat("exp_avg_sq"), taken)
