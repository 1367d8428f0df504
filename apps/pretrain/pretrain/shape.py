"""What the model is made of: names, shapes and first weights, in plain numpy, so that a coordinator needs no torch.

The names and shapes are those of `transformers.GPT2LMHeadModel` (matrices of a block are [in, out] there), so the
weights of a run are a model that `from_pretrained` loads, with nothing to convert.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

INIT_STD = 0.02
RESIDUAL = ("attn.c_proj.weight", "mlp.c_proj.weight")
"""Matrices that write into the residual stream: their first weights are smaller by √(2·layers)."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a GPT-2-shaped model: learned positions, tied embeddings, GELU MLP four times as wide."""

    vocabulary: int = 2048
    width: int = 128
    layers: int = 4
    heads: int = 4
    sequence: int = 128

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} is not a multiple of heads = {self.heads}")
        if self.vocabulary > 1 << 16:
            raise ValueError(f"vocabulary = {self.vocabulary}: at most 65536, tokens are kept in 16 bits")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """The shape a run config names."""
        return cls(**{name: int(config[name]) for name in cls.__dataclass_fields__})

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every tensor, in the order the first weights are drawn."""
        d = self.width
        yield "transformer.wte.weight", (self.vocabulary, d)
        yield "transformer.wpe.weight", (self.sequence, d)
        for layer in range(self.layers):
            at = f"transformer.h.{layer}."
            yield at + "ln_1.weight", (d,)
            yield at + "ln_1.bias", (d,)
            yield at + "attn.c_attn.weight", (d, 3 * d)
            yield at + "attn.c_attn.bias", (3 * d,)
            yield at + "attn.c_proj.weight", (d, d)
            yield at + "attn.c_proj.bias", (d,)
            yield at + "ln_2.weight", (d,)
            yield at + "ln_2.bias", (d,)
            yield at + "mlp.c_fc.weight", (d, 4 * d)
            yield at + "mlp.c_fc.bias", (4 * d,)
            yield at + "mlp.c_proj.weight", (4 * d, d)
            yield at + "mlp.c_proj.bias", (d,)
        yield "transformer.ln_f.weight", (d,)
        yield "transformer.ln_f.bias", (d,)

    def gpt2_config(self) -> dict[str, Any]:
        """`config.json` for transformers."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocabulary,
            "n_positions": self.sequence,
            "n_embd": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-05,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "initializer_range": INIT_STD,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": None,
            "dtype": "float32",
        }


def initial_weights(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """First weights, float32 by name, the same on every machine: normal, 0.02; gains one, biases zero."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, sizes in shape.tensors():
        if len(sizes) == 2:
            std = INIT_STD / (math.sqrt(2 * shape.layers) if name.endswith(RESIDUAL) else 1)
            weights[name] = rng.standard_normal(sizes, dtype=np.float32) * np.float32(std)
        else:
            weights[name] = np.full(sizes, 0 if name.endswith("bias") else 1, np.float32)
    return weights
