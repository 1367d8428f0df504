"""The model in torch. B = sequences, T = tokens, D = width, V = vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.shape import Shape


class Affine(nn.Module):
    """x·W + b with W [in, out]: the orientation GPT-2 keeps its matrices in."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(into, out))
        self.bias = nn.Parameter(torch.empty(out))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.c_attn = Affine(shape.width, 3 * shape.width)
        self.c_proj = Affine(shape.width, shape.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.c_attn(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(B, T, D))


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.c_fc = Affine(shape.width, 4 * shape.width)
        self.c_proj = Affine(4 * shape.width, shape.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x_BTD), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(shape.width), Attention(shape)
        self.ln_2, self.mlp = nn.LayerNorm(shape.width), Mlp(shape)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.ln_1(x_BTD))
        return x_BTD + self.mlp(self.ln_2(x_BTD))


class Gpt(nn.Module):
    """GPT-2 without dropout; its state dict has the names of `GPT2LMHeadModel`, the output matrix being the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(shape.vocabulary, shape.width),
                "wpe": nn.Embedding(shape.sequence, shape.width),
                "h": nn.ModuleList(Block(shape) for _ in range(shape.layers)),
                "ln_f": nn.LayerNorm(shape.width),
            }
        )

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        parts = self.transformer
        x_BTD = parts["wte"](tokens_BT) + parts["wpe"].weight[: tokens_BT.shape[1]]
        for block in parts["h"]:
            x_BTD = block(x_BTD)
        return parts["ln_f"](x_BTD) @ parts["wte"].weight.t()

    def loss(self, windows_BT: Tensor) -> Tensor:
        """Mean negative log likelihood (nats per token) of each window's tokens but the first."""
        logits = self(windows_BT[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), windows_BT[:, 1:].flatten())


def load(shape: Shape, weights: Mapping[str, np.ndarray]) -> Gpt:
    """A model with these weights (copied).

    Raises:
        ValueError: a tensor is missing, unknown or of another shape; the first is named.
    """
    expected = dict(shape.tensors())
    for name in [*expected, *weights]:
        if name not in weights:
            raise ValueError(f"tensor {name} is missing; was the model made with another app or shape?")
        if name not in expected or weights[name].shape != expected[name]:
            raise ValueError(f"tensor {name} {weights[name].shape}: this shape has {expected.get(name, 'no such tensor')}")
    model = Gpt(shape)
    model.load_state_dict({name: torch.from_numpy(np.array(value, np.float32)) for name, value in weights.items()})
    return model


def weights_of(model: Gpt) -> dict[str, np.ndarray]:
    """The model's weights by name, copied."""
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
