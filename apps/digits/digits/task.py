"""Model and data: a network with one hidden layer in plain numpy, and scikit-learn's 1,797 digits of 8x8 pixels."""

from functools import lru_cache

import numpy as np
from sklearn.datasets import load_digits

PIXELS, CLASSES = 64, 10


def initial_weights(seed: int, hidden: int) -> dict[str, np.ndarray]:
    """Weights drawn from the seed: float32, by name."""
    rng = np.random.default_rng(seed)
    return {
        "hidden.weight": (rng.standard_normal((PIXELS, hidden)) * np.sqrt(2 / PIXELS)).astype(np.float32),
        "hidden.bias": np.zeros(hidden, dtype=np.float32),
        "output.weight": (rng.standard_normal((hidden, CLASSES)) * np.sqrt(1 / hidden)).astype(np.float32),
        "output.bias": np.zeros(CLASSES, dtype=np.float32),
    }


@lru_cache(maxsize=4)
def load_partition(partition: int, partitions: int):
    """(train pixels, train digits, test pixels, test digits) of one partition; the split is the same everywhere."""
    digits = load_digits()
    order = np.random.default_rng(417).permutation(len(digits.target))
    mine = order[partition % partitions :: partitions]
    pixels = (digits.data[mine] / 16).astype(np.float32)
    labels = digits.target[mine]
    cut = len(mine) * 4 // 5
    return pixels[:cut], labels[:cut], pixels[cut:], labels[cut:]


def forward(weights, pixels):
    hidden = np.maximum(pixels @ weights["hidden.weight"] + weights["hidden.bias"], 0)
    scores = hidden @ weights["output.weight"] + weights["output.bias"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, scores / scores.sum(axis=1, keepdims=True)


def train(weights, pixels, labels, *, epochs: int, learning_rate: float, batch_size: int, seed: int) -> float:
    """Plain SGD in place; returns the mean loss of the last epoch."""
    rng = np.random.default_rng(seed)
    step = np.float32(learning_rate)
    loss = 0.0
    for _ in range(epochs):
        order, losses = rng.permutation(len(labels)), []
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            x, y = pixels[batch], labels[batch]
            hidden, probs = forward(weights, x)
            losses.append(-np.log(probs[np.arange(len(y)), y] + 1e-9).mean())
            probs[np.arange(len(y)), y] -= 1
            slope = probs / np.float32(len(y))
            back = (slope @ weights["output.weight"].T) * (hidden > 0)
            weights["output.weight"] -= step * (hidden.T @ slope)
            weights["output.bias"] -= step * slope.sum(axis=0)
            weights["hidden.weight"] -= step * (x.T @ back)
            weights["hidden.bias"] -= step * back.sum(axis=0)
        loss = float(np.mean(losses))
    return loss


def evaluate(weights, pixels, labels) -> tuple[float, float]:
    """(loss, accuracy)"""
    _, probs = forward(weights, pixels)
    loss = -np.log(probs[np.arange(len(labels)), labels] + 1e-9).mean()
    return float(loss), float((probs.argmax(axis=1) == labels).mean())
