"""The model's shape, its first values, and noise that differs per node, round and tensor. Free of flwr: the FLARE peer uses it, too."""

from functools import lru_cache

import numpy as np

TENSORS = 16
TILE = 1 << 18


def shapes(params: int) -> dict[str, tuple[int, ...]]:
    """`TENSORS` matrices of about equal size, `params` elements in all; names sort in order."""
    columns = max(1, min(4096, int((params / TENSORS) ** 0.5)))
    rows = params // TENSORS // columns
    found: dict[str, tuple[int, ...]] = {f"layer{i:02d}.weight": (rows, columns) for i in range(TENSORS)}
    rest = params - TENSORS * rows * columns
    return {**found, "rest": (rest,)} if rest else found


def initial(params: int) -> dict[str, np.ndarray]:
    """First weights, the same everywhere: float32 by name."""
    rng = np.random.default_rng(417)
    return {name: 0.02 * rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes(params).items()}


@lru_cache(maxsize=1)
def _tile() -> np.ndarray:
    return np.random.default_rng(7).standard_normal(2 * TILE, dtype=np.float32)


def noisy(base: np.ndarray, node: int, number: int, tensor: int) -> np.ndarray:
    """base + noise of scale 1e-3. One tile of normal numbers, shifted and scaled by node, round and tensor: distinct, and cheap to make."""
    out = np.empty_like(base)
    flat, noise = base.reshape(-1), out.reshape(-1)
    shift = np.random.default_rng((node, number, tensor)).integers(0, TILE)
    for k, at in enumerate(range(0, flat.size, TILE)):
        part = slice(at, min(at + TILE, flat.size))
        scale = np.float32(1e-3 * (1 + (node % 97) / 100 + tensor / 1000 + k / 100_000))
        np.multiply(_tile()[shift : shift + part.stop - at], scale, out=noise[part])
        np.add(flat[part], noise[part], out=noise[part])
    return out
