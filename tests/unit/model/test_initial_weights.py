"""First weights from a seed: one set of bits, however they are computed; and the rules that say which tensor begins as what."""

from __future__ import annotations

import struct
from hashlib import sha256

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from dure.errors import Refused
from dure.model.initial import BLOCK, MEAN, TERMS, check_rules, initialise, normal_chunk, tensor_key
from dure.model.layout import CHUNK_ELEMENTS, Layout
from dure.model.rules import Rule

SEED = bytes(range(32))
RULES = (Rule("*.bias", "constant", "0"), Rule("norm*", "constant", "1"), Rule("*", "normal", "0.02"))


def made(layout: Layout, rules=RULES, seed: bytes = SEED) -> np.ndarray:
    parts: list[bytes] = []
    initialise(seed, layout, rules, lambda part: parts.append(bytes(part)))
    return np.frombuffer(b"".join(parts), "<f4")


def stream(key: bytes, k: int, size: int) -> bytes:
    """AES-256-CTR by the specification, in one piece."""
    return Cipher(algorithms.AES(key), modes.CTR(struct.pack("<QQ", k, 0))).encryptor().update(bytes(2 * TERMS * size))


def by_hand(key: bytes, k: int, size: int, sigma: float) -> list[float]:
    """Element by element, in Python integers; each product rounded once to float32 by struct."""

    def f32(x: float) -> float:
        return float(struct.unpack("<f", struct.pack("<f", x))[0])

    raw, out, at = stream(key, k, size), [], 0
    for first in range(0, size, BLOCK):
        n = min(BLOCK, size - first)
        for i in range(n):
            total = sum(int.from_bytes(raw[at + 2 * (run * n + i) : at + 2 * (run * n + i) + 2], "little") for run in range(TERMS))
            out.append(f32((total - MEAN) * (f32(sigma) * 2.0**-16)))  # 20 bits times 24 bits: exact in a double, rounded once
        at += 2 * TERMS * n
    return out


def by_torch(key: bytes, k: int, size: int, sigma: float) -> torch.Tensor:
    raw, parts, at = np.frombuffer(stream(key, k, size), "<u2").astype(np.int32), [], 0
    for first in range(0, size, BLOCK):
        n = min(BLOCK, size - first)
        runs = torch.from_numpy(raw[at : at + TERMS * n].reshape(TERMS, n))
        scale = torch.tensor(sigma, dtype=torch.float32) * torch.tensor(2.0**-16, dtype=torch.float32)
        parts.append((runs.sum(0, dtype=torch.int32) - MEAN).to(torch.float32) * scale)
        at += TERMS * n
    return torch.cat(parts)


@pytest.mark.parametrize(("k", "size"), [(0, 1), (0, 63), (3, BLOCK), (1, BLOCK + 1), (2**40, 3 * BLOCK - 5)])
def test_numpy_torch_and_plain_python_draw_the_same_bits(k, size):
    key = sha256(b"a tensor").digest()
    found = normal_chunk(key, k, size, "0.02")
    assert found.tobytes() == np.array(by_hand(key, k, size, 0.02), np.float32).tobytes()
    assert found.tobytes() == by_torch(key, k, size, 0.02).numpy().tobytes()


def test_the_vector_of_the_specification():
    """docs/spec/formats.md, "First weights": on any machine, these very bits."""
    layout = Layout.build([("a.weight", "float32", (3, 5)), ("a.bias", "float32", (5,)), ("b.weight", "bfloat16", (70_000,))])
    assert sha256(made(layout).tobytes()).hexdigest() == "84ccfc3e82a15bd1e8178e704d2cd2e6a641aded65d4d83e095c0ca36cb7dfbf"


def test_the_distribution_is_a_gaussian_with_the_asked_deviation():
    layout = Layout.build([("w", "float32", (CHUNK_ELEMENTS + 1000,))])
    flat = made(layout)
    assert abs(float(flat.mean())) < 0.02 * 4 / np.sqrt(flat.size)
    assert abs(float(flat.std()) / 0.02 - 1) < 0.005
    within = [float((np.abs(flat) < k * 0.02).mean()) for k in (1, 2, 3)]
    assert np.allclose(within, [0.683, 0.954, 0.997], atol=0.006)


def test_each_tensor_has_a_stream_of_its_own_and_padding_is_zero():
    layout = Layout.build([("a", "float32", (100,)), ("b", "float32", (100,)), ("norm", "float32", (3,)), ("c.bias", "float32", (3,))])
    flat = made(layout)
    a, b, norm, bias = (flat[e.offset : e.offset + e.count] for e in layout.entries)
    assert not np.array_equal(a, b) and (norm == 1).all() and (bias == 0).all()
    assert all(not flat[first:last].any() for first, last in layout.gaps())
    renamed = Layout.build([("a", "float32", (10, 10)), ("b", "float32", (100,))])
    assert tensor_key(SEED, renamed.entries[0]) != tensor_key(SEED, layout.entries[0])
    assert not np.array_equal(made(layout, seed=sha256(SEED).digest()), flat)


def test_a_tensor_of_another_dtype_begins_as_its_dtype_shows_it():
    layout = Layout.build([("a", "bfloat16", (5000,)), ("b", "float16", (5000,))])
    flat = made(layout)
    a, b = (flat[e.offset : e.offset + e.count] for e in layout.entries)
    assert not (a.view(np.uint32) & 0xFFFF).any()
    assert np.array_equal(b, b.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ((Rule("*.bias", "constant", "0"),), "tensor 'a.weight': begins as nothing"),
        ((Rule("*", "normal", "0.02"),), "tensor 'seen': holds int64"),
    ],
)
def test_a_tensor_without_a_rule_and_drawn_integers_are_refused_by_name(rules, named):
    layout = Layout.build([("a.bias", "float32", (5,)), ("a.weight", "float32", (5,)), ("seen", "int64", ())])
    with pytest.raises(Refused, match=named):
        check_rules(layout, rules)
    with pytest.raises(Refused, match=named):
        made(layout, rules)
