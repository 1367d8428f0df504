"""Outer steps: from a base and a mean update to the next base, the same bits on every machine.

Elementwise in float32, every operation rounded on its own, in the order written in docs/spec/formats.md, "Outer
steps". numpy's separate operations do exactly this; torch's fused ones may not, so never rewrite these lines.

w = weights, g = decoded mean update, C = elements of one chunk, D = elements of the flat vector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from dure.errors import Refused
from dure.model.layout import CHUNK_ELEMENTS
from dure.model.mapped import CHUNKS_HELD, let_go

Floats = NDArray[np.float32]
State = tuple[Floats, ...]
Append = Callable[[memoryview], None]

_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,24})?(e-?[0-9]{1,2})?")
MAX_STEPS = 1_000_000
"""Adam's constants are found by repeated multiplication; this bounds the loop."""


class StepRefused(Refused):
    """An outer step's configuration or input cannot be used; `field` names what."""


class OuterStep(Protocol):
    """One elementwise rule. `taken` = steps that made the current base, so the first step sees 0."""

    @property
    def vectors(self) -> int:
        """State vectors it keeps beside the weights; their start is zero."""
        ...

    def config(self) -> dict[str, str]:
        """What the plan says, as `parse_step` takes it."""
        ...

    def step_chunk(self, w_C: Floats, g_C: Floats, state: State, *, taken: int) -> tuple[Floats, State]:
        """New weights and state of one chunk; inputs are left alone."""
        ...


@dataclass(frozen=True)
class Average:
    """w + g: FedAvg."""

    vectors: ClassVar[int] = 0

    def config(self) -> dict[str, str]:
        return {"name": "average"}

    def step_chunk(self, w_C: Floats, g_C: Floats, state: State, *, taken: int) -> tuple[Floats, State]:
        return w_C + g_C, ()


@dataclass(frozen=True)
class Nesterov:
    """v = μ·v + g; w + lr·(g + μ·v): DiLoCo (Douillard et al. 2023, arXiv 2311.08105)."""

    lr: str
    momentum: str
    vectors: ClassVar[int] = 1

    def config(self) -> dict[str, str]:
        return {"name": "nesterov", "lr": self.lr, "momentum": self.momentum}

    def step_chunk(self, w_C: Floats, g_C: Floats, state: State, *, taken: int) -> tuple[Floats, State]:
        lr, mu = np.float32(float(self.lr)), np.float32(float(self.momentum))
        v_C = mu * state[0]
        v_C = v_C + g_C
        step_C = mu * v_C
        step_C = g_C + step_C
        step_C = lr * step_C
        return w_C + step_C, (v_C,)


@dataclass(frozen=True)
class Adam:
    """FedAdam (Reddi et al. 2021) with bias correction; constants in float64, then rounded once to float32."""

    lr: str
    beta1: str
    beta2: str
    eps: str
    vectors: ClassVar[int] = 2

    def config(self) -> dict[str, str]:
        return {"name": "adam", "lr": self.lr, "beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}

    def step_chunk(self, w_C: Floats, g_C: Floats, state: State, *, taken: int) -> tuple[Floats, State]:
        b1, b2 = float(self.beta1), float(self.beta2)
        c1, c2 = np.float32(1.0 - _power(b1, taken + 1)), np.float32(1.0 - _power(b2, taken + 1))
        m_C = np.float32(b1) * state[0]
        m_C = m_C + np.float32(1.0 - b1) * g_C
        square_C = g_C * g_C
        v_C = np.float32(b2) * state[1]
        v_C = v_C + np.float32(1.0 - b2) * square_C
        root_C = np.sqrt(v_C / c2)
        root_C = root_C + np.float32(float(self.eps))
        step_C = m_C / c1
        step_C = step_C / root_C
        step_C = np.float32(float(self.lr)) * step_C
        return w_C + step_C, (m_C, v_C)


def parse_step(config: Mapping[str, object]) -> OuterStep:
    """The outer step a plan (or a base record) names; decimals are text. Key `t` is the base record's and ignored.

    Raises:
        StepRefused: naming the key that is unknown, missing or out of range.
    """
    given = {k: v for k, v in config.items() if k != "t"}
    name = given.pop("name", None)
    wanted = {"average": (), "nesterov": ("lr", "momentum"), "adam": ("lr", "beta1", "beta2", "eps")}
    if not isinstance(name, str) or name not in wanted:
        raise StepRefused("name", f"must be one of {', '.join(wanted)}")
    if unknown := sorted(set(given) - set(wanted[name])):
        raise StepRefused(unknown[0], f"{name} takes no such key")
    values = {key: _decimal(key, given.get(key)) for key in wanted[name]}
    if name == "nesterov":
        return Nesterov(values["lr"], values["momentum"])
    if name == "adam":
        return Adam(values["lr"], values["beta1"], values["beta2"], values["eps"])
    return Average()


def steps_taken(step: Mapping[str, str]) -> int:
    """`t` of a base record's step: how many outer steps made it; absent is 0."""
    text = step.get("t", "0")
    if not re.fullmatch(r"0|[1-9][0-9]{0,6}", text) or int(text) > MAX_STEPS:
        raise StepRefused("t", f"must be an integer in 0…{MAX_STEPS} as text")
    return int(text)


def step_model(
    step: OuterStep,
    *,
    taken: int,
    base_D: Floats,
    state: Floats | None,
    mean_chunks: Iterable[Floats],
    weights_out: Append,
    state_out: Append | None,
    averaged: Sequence[tuple[int, int]] = (),
) -> None:
    """The next base, chunk by chunk, memory O(chunk): `weights_out` and `state_out` take its bytes in order.

    Args:
        taken: outer steps that made `base_D` (`steps_taken`).
        base_D: float32 [D], usually mapped.
        state: float32 [vectors·D] as `state_out` got it one step ago: per chunk of 2^18 elements first all of the
            first vector's, then the second's; None for zeros.
        mean_chunks: decoded mean update, float32, chunk by chunk.
        averaged: elements [first, last) that take the mean under every rule (`Layout.averaged`); their state stays zero.

    Raises:
        StepRefused: too few, too many or misshapen mean chunks, a state of another length, or a next base that is
            not finite (naming the chunk). Throw away what was written.
    """
    D = len(base_D)
    if state is not None and state.shape != (step.vectors * D,):
        raise StepRefused("state", f"must have {step.vectors * D} elements, has shape {list(state.shape)}")
    if (state_out is None) != (step.vectors == 0):
        raise StepRefused("state_out", f"{step.vectors} state vectors to write")
    if not 0 <= taken < MAX_STEPS:
        raise StepRefused("t", f"at most {MAX_STEPS} steps")
    first = 0
    for g_C in mean_chunks:
        w_C = base_D[first : first + CHUNK_ELEMENTS]
        if g_C.dtype != np.float32 or g_C.shape != w_C.shape or not len(w_C):
            raise StepRefused("mean", f"chunk {first // CHUNK_ELEMENTS} must be float32[{len(w_C)}]")
        with np.errstate(all="ignore"):
            next_C, next_state = step.step_chunk(w_C, g_C, _state_of(state, step.vectors, first, len(w_C)), taken=taken)
            for at in _within(averaged, first, first + len(w_C)):
                next_C[at] = w_C[at] + g_C[at]
                for v_C in next_state:
                    v_C[at] = 0
        if not np.isfinite(next_C).all() or not all(np.isfinite(v).all() for v in next_state):
            raise StepRefused("mean", f"chunk {first // CHUNK_ELEMENTS} leads to weights that are not finite")
        weights_out(_bytes(next_C))
        for v_C in next_state:
            assert state_out is not None
            state_out(_bytes(v_C))
        first += len(w_C)
        if first % (CHUNKS_HELD * CHUNK_ELEMENTS) == 0:
            let_go(base_D, state)
    if first != D:
        raise StepRefused("mean", f"ends after {first} of {D} elements")


def _within(ranges: Sequence[tuple[int, int]], first: int, last: int) -> list[slice]:
    """The parts of these ranges that lie in [first, last), counted from `first`."""
    return [slice(max(a, first) - first, min(b, last) - first) for a, b in ranges if a < last and b > first]


def _state_of(state: Floats | None, vectors: int, first: int, count: int) -> State:
    if state is None:
        return tuple(np.zeros(count, np.float32) for _ in range(vectors))
    at = vectors * first
    return tuple(state[at + j * count : at + (j + 1) * count] for j in range(vectors))


def _bytes(part: Floats) -> memoryview:
    return np.ascontiguousarray(part, dtype="<f4").data.cast("B")


def _power(base: float, t: int) -> float:
    """base^t in float64 by repeated multiplication: libm's pow differs between machines."""
    out = 1.0
    for _ in range(t):
        out *= base
    return out


def _decimal(key: str, value: object) -> str:
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
        raise StepRefused(key, 'must be a decimal as text, such as "0.8"')
    number = float(value)
    if key.startswith("beta") or key == "momentum":
        if not (0.0 <= number < 1.0 and np.float32(number) < 1):
            raise StepRefused(key, f"must be at least 0 and below 1, is {value}")
    elif not (number <= 1e6 and np.float32(number) > 0):
        raise StepRefused(key, f"must be above 0 and at most 1e6, is {value}")
    return value
