"""Make a folder that `transformers.AutoModelForCausalLM.from_pretrained` loads. Imports no torch, no transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pretrain.shape import Shape


def write_config(folder: Path, shape: Shape, tokenizer: Path | None = None) -> None:
    """config.json, and the tokenizer if given, beside a model.safetensors that is there already (`dure run export`)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.gpt2_config(), indent=2) + "\n")
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
        described = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.sequence}
        (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")


def write_model(folder: Path, weights: Mapping[str, np.ndarray], shape: Shape, tokenizer: Path | None = None) -> Path:
    """The whole folder from weights by name; returns the path of model.safetensors."""
    write_config(folder, shape, tokenizer)
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder / "model.safetensors"
