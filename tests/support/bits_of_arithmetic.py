"""Prints, as JSON, the SHA-256 of what each piece of arithmetic gives that a recomputation rests on, over fixed values of all magnitudes.

A script of its own that imports nothing but the core: it runs wherever an auditor's `dure` does.
"""

from __future__ import annotations

import json
import platform
import sys
from hashlib import sha256

import numpy as np

from dure.model.initial import initialise
from dure.model.layout import Layout
from dure.model.outer import parse_step
from dure.model.rules import Rule
from dure.secagg import field
from dure.secagg.encode import Weight, decode_mean_chunk, encode_update_chunk, rounding_streams
from dure.secagg.masks import MaskSet, MaskStream
from dure.secagg.scales import block_maxima, combine, encode_levels, level_streams, summed_exponents

STEPS = (
    {"name": "average"},
    {"name": "nesterov", "lr": "0.7", "momentum": "0.9"},
    {"name": "adam", "lr": "0.01", "beta1": "0.9", "beta2": "0.99", "eps": "1e-3"},
)
SIZE = 100_000


def values(label: str, size: int = SIZE) -> np.ndarray:
    """Float32 of all magnitudes a model has, subnormals and both zeros among them; from SHA-256 and exact scaling by powers of two."""
    raw = b"".join(sha256(f"{label} {k}".encode()).digest() for k in range(-(-size // 8)))
    words = np.frombuffer(raw, "<u4")[:size]
    out = np.ldexp((words & 0xFFFFFF).astype(np.float32) - np.float32(2**23), -23 - (words >> 24).astype(np.int32) % 60)
    out[:6] = [0.0, -0.0, 1e-45, -1e-42, 1.17549435e-38, 1.0]
    return out.astype(np.float32)


def first_weights() -> bytes:
    layout = Layout.build([("w", "float32", (300, 300)), ("b", "float32", (300,)), ("h", "bfloat16", (70_000,))])
    parts: list[bytes] = []
    initialise(bytes(range(32)), layout, (Rule("b", "constant", "1"), Rule("*", "normal", "0.02")), lambda part: parts.append(bytes(part)))
    return b"".join(parts)


def stepped(config: dict[str, str]) -> bytes:
    step, w = parse_step(config), values("base")
    state = tuple(np.zeros(SIZE, np.float32) for _ in range(step.vectors))
    for taken in range(4):
        w, state = step.step_chunk(w, values(f"mean {taken}"), state, taken=taken)
    return b"".join(part.tobytes() for part in (w, *state))


def everything() -> dict[str, str]:
    """By name."""
    found = {"first weights": first_weights()} | {f"outer step {s['name']}": stepped(s) for s in STEPS}
    key, weight, delta = sha256(b"rounding").digest(), Weight(123_456_789), np.ldexp(values("update"), -4).astype(np.float32)
    levels = encode_levels(block_maxima(delta, weight.w_hat), level_streams(key), 0)
    e_b = combine(summed_exponents(levels), None).e_b
    q, clipped = encode_update_chunk(delta, weight.w_hat, e_b, 5, rounding_streams(key), 0)
    found |= {"scales": levels.tobytes() + e_b.tobytes(), "encoded update": q.tobytes() + bytes([clipped % 256])}
    found["decoded mean"] = decode_mean_chunk(q, e_b, 5, weight.w_int).tobytes()
    masks = MaskSet([MaskStream.derive(bytes([i]) * 32, b"ctx", "mask/pair", sign) for i, sign in ((1, 1), (2, -1))])
    masks.ring_chunk(0, q)
    masks.field_chunk(0, levels)
    trailer = masks.trailer(np.arange(9, dtype=np.uint64)).tobytes()
    found["masks"] = q.tobytes() + levels.tobytes() + trailer + (masks.tag(5) % field.P).to_bytes(8, "big")
    return {name: sha256(raw).hexdigest() for name, raw in found.items()}


if __name__ == "__main__":
    json.dump({"machine": platform.machine(), "byteorder": sys.byteorder, **everything()}, sys.stdout)
