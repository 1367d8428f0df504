"""First weights from a seed: the same bits on every machine, whatever made its numpy.

A Gaussian is the sum of twelve 16-bit integers of a key stream: mean 393,210, standard deviation 65,536 (to 2^-33), cut at six of them.
Integers, one conversion and one product in float32: no logarithm or cosine, in which two machines' libraries differ.

    key of a tensor  = HKDF-SHA256(seed, "initial", name, dtype, shape)
    stream of chunk k (2^18 elements of the tensor) = AES-256-CTR from block (u64 LE k ‖ 0)
    block of n ≤ 16,384 elements = twelve runs of n uint16 LE; S_i = Σ of the i-th of each run
    w_i = float32(S_i − 393,210) · (float32(σ) · 2^-16), then as the tensor's dtype shows it

Source: ledger.md, section 5. Format: docs/spec/formats.md, "First weights".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dure.errors import Refused
from dure.model.dtypes import settled
from dure.model.layout import CHUNK_ELEMENTS, Entry, Layout, named
from dure.model.rules import Rule
from dure.secagg.kdf import hkdf
from dure.secagg.streams import ChunkStream

SCHEME = "dure-initial-1"
TERMS = 12
BLOCK = 1 << 14
"""Elements drawn at once; their key stream is 384 KiB."""
MEAN = TERMS * 65_535 // 2
Floats = NDArray[np.float32]


def rule_of(entry: Entry, rules: Sequence[Rule]) -> Rule:
    """The first rule whose pattern names the tensor.

    Raises:
        Refused: none does; or it draws integers.
    """
    found = next((rule for rule in rules if rule.tensors == "*" or named(entry.name, rule.tensors)), None)
    if found is None:
        raise Refused(f"tensor {entry.name!r}", "begins as nothing: no rule names it; end the rules with one for *")
    if entry.integer and found.kind != "constant":
        raise Refused(f"tensor {entry.name!r}", f"holds {entry.dtype}; give it a constant in a rule before {found.tensors!r}")
    return found


def check_rules(layout: Layout, rules: Sequence[Rule]) -> None:
    """Raises Refused, naming the tensor, where `initialise` would."""
    for entry in layout.entries:
        rule_of(entry, rules)


def initialise(seed: bytes, layout: Layout, rules: Sequence[Rule], append: Callable[[memoryview], object]) -> None:
    """Hands the flat vector to `append`, in order, padding included; memory: one chunk.

    Args:
        seed: 32 bytes.

    Raises:
        Refused: as `rule_of`.
    """
    end = 0
    for entry in layout.entries:
        if entry.offset > end:
            append(memoryview(bytes(4 * (entry.offset - end))))
        for part in _parts(seed, entry, rule_of(entry, rules)):
            append(np.ascontiguousarray(settled(part, entry.dtype), "<f4").data.cast("B"))
        end = entry.offset + entry.count


def _parts(seed: bytes, entry: Entry, rule: Rule) -> Any:
    for at in range(0, entry.count, CHUNK_ELEMENTS):
        size = min(CHUNK_ELEMENTS, entry.count - at)
        if rule.kind == "constant":
            yield np.full(size, np.float32(float(rule.value)), np.float32)
        else:
            yield normal_chunk(tensor_key(seed, entry), at // CHUNK_ELEMENTS, size, rule.value)


def tensor_key(seed: bytes, entry: Entry) -> bytes:
    """32 bytes: the key of this tensor's stream."""
    return hkdf(seed, "initial", SCHEME, entry.name, entry.dtype, tuple(entry.shape))


def normal_chunk(key: bytes, k: int, size: int, sigma: str) -> Floats:
    """Elements [k·2^18, k·2^18 + size) of a tensor, float32 [size]."""
    stream, out = ChunkStream(key, k), np.empty(size, np.float32)
    noise = np.empty(2 * TERMS * min(BLOCK, size), np.uint8)
    scale = np.float32(float(sigma)) * np.float32(2.0**-16)
    for at in range(0, size, BLOCK):
        n = min(BLOCK, size - at)
        drawn = noise[: 2 * TERMS * n]
        stream.fill(drawn)
        runs = drawn.view("<u2").reshape(TERMS, n)
        total = runs[0].astype(np.int32)
        for run in runs[1:]:
            np.add(total, run, out=total)
        total -= MEAN
        np.multiply(total.astype(np.float32), scale, out=out[at : at + n])
    return out
