"""Outer steps: the same bits as a plain-Python reference that rounds after every operation."""

import struct
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from dure.blobs import BlobStore
from dure.model.layout import CHUNK_ELEMENTS
from dure.model.outer import Adam, Average, Nesterov, StepRefused, parse_step, step_model, steps_taken


def f32(x: float) -> float:
    """Nearest float32, ties to even. Products, sums and quotients of two float32 and square roots of one are
    rounded correctly this way, because float64 has more than 2·24+2 bits (Figueroa 1995)."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def reference(config, w, g, state, t):
    """One element, step number t (from 1), in Python floats."""
    if config["name"] == "average":
        return f32(w + g), []
    lr = f32(float(config["lr"]))
    if config["name"] == "nesterov":
        mu = f32(float(config["momentum"]))
        v = f32(f32(mu * state[0]) + g)
        return f32(w + f32(lr * f32(g + f32(mu * v)))), [v]
    b1, b2, p1, p2 = float(config["beta1"]), float(config["beta2"]), 1.0, 1.0
    for _ in range(t):
        p1, p2 = p1 * b1, p2 * b2
    c1, c2 = f32(1.0 - p1), f32(1.0 - p2)
    m = f32(f32(f32(b1) * state[0]) + f32(f32(1.0 - b1) * g))
    v = f32(f32(f32(b2) * state[1]) + f32(f32(1.0 - b2) * f32(g * g)))
    root = f32(f32(f32(v / c2) ** 0.5) + f32(float(config["eps"])))
    return f32(w + f32(lr * f32(f32(m / c1) / root))), [m, v]


CONFIGS = [
    {"name": "average"},
    {"name": "nesterov", "lr": "0.8", "momentum": "0.5"},
    {"name": "nesterov", "lr": "0.7", "momentum": "0.9"},
    {"name": "adam", "lr": "0.01", "beta1": "0.9", "beta2": "0.99", "eps": "1e-3"},
    {"name": "adam", "lr": "0.3", "beta1": "0", "beta2": "0.999", "eps": "0.00000001"},
]


def values(n: int, seed: int) -> np.ndarray:
    """All magnitudes a model has, with denormals and both zeros among them."""
    rng = np.random.default_rng(seed)
    out = (rng.standard_normal(n) * 2.0 ** rng.integers(-60, 3, n)).astype(np.float32)
    out[:6] = [0.0, -0.0, 1e-45, -1e-42, 1.17549435e-38, 1.0]
    return out


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c['name']}-{c.get('lr')}")
def test_four_steps_have_the_bits_of_the_reference(config):
    step = parse_step(config)
    assert step.config() == config
    w = values(400, 1)
    want_w, want_s = [float(x) for x in w], [[0.0] * step.vectors for _ in w]
    state = tuple(np.zeros(400, np.float32) for _ in range(step.vectors))
    for taken in range(4):
        g = values(400, 10 + taken)
        w, state = step.step_chunk(w, g, state, taken=taken)
        for i in range(400):
            want_w[i], want_s[i] = reference(config, want_w[i], float(g[i]), want_s[i], taken + 1)
        assert w.dtype == np.float32
        assert w.tobytes() == np.array(want_w, np.float32).tobytes()
        for j, s in enumerate(state):
            assert s.tobytes() == np.array([x[j] for x in want_s], np.float32).tobytes()


def test_reference_rounding_is_exact_on_products():
    """The reference's one assumption, checked with rationals."""
    for a, b in zip(values(300, 3)[6:], values(300, 4)[6:], strict=True):
        near = f32(float(a) * float(b))
        exact = Fraction(float(a)) * Fraction(float(b))
        for other in (np.nextafter(np.float32(near), np.float32(np.inf)), np.nextafter(np.float32(near), np.float32(-1e9))):
            assert abs(Fraction(near) - exact) <= abs(Fraction(float(other)) - exact)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "name"),
        ({"name": "sgd"}, "name"),
        ({"name": 3}, "name"),
        ({"name": "average", "lr": "1"}, "lr"),
        ({"name": "nesterov", "lr": "0.8"}, "momentum"),
        ({"name": "nesterov", "lr": 0.8, "momentum": "0.5"}, "lr"),
        ({"name": "nesterov", "lr": "nan", "momentum": "0.5"}, "lr"),
        ({"name": "nesterov", "lr": "-1", "momentum": "0.5"}, "lr"),
        ({"name": "nesterov", "lr": "0.0", "momentum": "0.5"}, "lr"),
        ({"name": "nesterov", "lr": "1e7", "momentum": "0.5"}, "lr"),
        ({"name": "nesterov", "lr": "1e99", "momentum": "0.5"}, "lr"),
        ({"name": "nesterov", "lr": "0.8", "momentum": "1"}, "momentum"),
        ({"name": "nesterov", "lr": "0.8", "momentum": "0.999999999999"}, "momentum"),
        ({"name": "nesterov", "lr": "0.8\n", "momentum": "0.5"}, "lr"),
        ({"name": "adam", "lr": "1", "beta1": "0.9", "beta2": "0.9", "eps": "1e-99"}, "eps"),
    ],
)
def test_step_that_cannot_be_taken_is_refused_and_the_key_named(config, field):
    with pytest.raises(StepRefused) as e:
        parse_step(config)
    assert e.value.field == field


def test_count_of_steps_is_read_from_the_base_record():
    assert steps_taken({}) == 0 and steps_taken({"name": "adam", "t": "12"}) == 12
    assert parse_step({"name": "average", "t": "12"}) == Average()
    for bad in ("-1", "01", "x", "1000001"):
        with pytest.raises(StepRefused):
            steps_taken({"t": bad})


@pytest.mark.parametrize("step", [Average(), Nesterov("0.8", "0.5"), Adam("0.01", "0.9", "0.99", "1e-3")], ids=str)
def test_model_stepped_by_chunks_has_the_bits_of_one_stepped_whole(tmp_path, step):
    D = 2 * CHUNK_ELEMENTS + 1000
    store, base, means = BlobStore(tmp_path), values(D, 5), [values(D, 6), values(D, 7)]
    whole, whole_state = base, tuple(np.zeros(D, np.float32) for _ in range(step.vectors))
    flat, state = base, None
    for taken, g in enumerate(means):
        whole, whole_state = step.step_chunk(whole, g, whole_state, taken=taken)
        with store.writer() as w_out, store.writer() as s_out:
            step_model(
                step,
                taken=taken,
                base_D=flat,
                state=state,
                mean_chunks=(g[i : i + CHUNK_ELEMENTS] for i in range(0, D, CHUNK_ELEMENTS)),
                weights_out=w_out.append,
                state_out=s_out.append if step.vectors else None,
            )
            w_blob, s_blob = w_out.commit().id, s_out.commit().id
        flat = np.frombuffer(store.map(w_blob), np.float32)
        state = np.frombuffer(store.map(s_blob), np.float32) if step.vectors else None
        assert flat.tobytes() == whole.tobytes()


def run(step, base, chunks, *, state=None, state_out=None):
    out = bytearray()
    step_model(step, taken=0, base_D=base, state=state, mean_chunks=chunks, weights_out=out.extend, state_out=state_out)


@pytest.mark.parametrize("chunks", [[], [np.zeros(9, np.float32)], [np.zeros(10, np.float64)], [np.zeros(10, np.float32)] * 2])
def test_mean_that_does_not_fit_the_base_is_refused(chunks):
    with pytest.raises(StepRefused, match="mean"):
        run(Average(), np.zeros(10, np.float32), chunks)


def test_state_of_another_length_is_refused():
    with pytest.raises(StepRefused, match="state"):
        run(Nesterov("1", "0"), np.zeros(10, np.float32), [np.zeros(10, np.float32)], state=np.zeros(9, np.float32),
            state_out=lambda part: None)  # fmt: skip


def test_step_to_weights_that_are_not_finite_is_refused_naming_the_chunk():
    with pytest.raises(StepRefused, match="chunk 0"):
        run(Average(), np.full(10, 3e38, np.float32), [np.full(10, 3e38, np.float32)])


def test_stepping_a_model_needs_memory_of_a_few_chunks():
    D = 12 * CHUNK_ELEMENTS
    base = np.zeros(D, np.float32)
    tracemalloc.start()
    step_model(
        Adam("0.01", "0.9", "0.99", "1e-3"),
        taken=0,
        base_D=base,
        state=None,
        mean_chunks=(np.ones(CHUNK_ELEMENTS, np.float32) for _ in range(12)),
        weights_out=lambda part: None,
        state_out=lambda part: None,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 14 * 4 * CHUNK_ELEMENTS
