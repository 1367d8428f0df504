"""What the demo trains, read from the app itself, so that joint and solo models cannot be trained differently.

This module makes the app's package `pretrain` importable; import it before anything from there.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dure.errors import BadInput
from dure.model.layout import Layout
from dure.model.weights import open_flat, unflatten

APP = Path(__file__).resolve().parents[2] / "apps" / "pretrain"
if str(APP) not in sys.path:
    sys.path.append(str(APP))

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """One comparison: the app's run config with the run's own values, and who takes part."""

    members: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    """The whole run config, keys as in apps/pretrain/pyproject.toml."""
    windows: int = 64
    """Windows of one sequence each per held-out text."""

    @classmethod
    def of_app(cls, members: tuple[str, ...], **overrides: Any) -> Recipe:
        """The app's config with some values changed; `_` in a name stands for `-`."""
        path = APP / "pyproject.toml"
        if not path.is_file():
            raise BadInput(f"{path}: not there; the comparison runs from a checkout of the repository")
        config = tomllib.loads(path.read_text())["tool"]["flwr"]["app"]["config"]
        for name, value in overrides.items():
            key = name.replace("_", "-")
            if key not in config:
                raise BadInput(f"{key}: apps/pretrain has no such config key")
            config[key] = value
        return cls(tuple(sorted(members)), config)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Weights by name from model.safetensors, or from a flat vector `*.f32` with its layout beside it (`layout.json`).

    Raises:
        BadInput: no such file, or not a model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise BadInput(f"{path}: no model there")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        layout = Layout.from_json((path.parent / "layout.json").read_bytes())
        return {name: np.array(view) for name, view in unflatten(open_flat(path, layout), layout).items()}
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: cannot be read as a model: {error}") from None


def initial_weights(recipe: Recipe) -> dict[str, np.ndarray]:
    """The weights the run starts from: the ServerApp draws the same ones from the same seed."""
    from pretrain import shape

    return shape.initial_weights(shape.Shape.of(recipe.config), int(recipe.config["seed"]))


def complete_export(folder: Path, recipe: Recipe, tokenizer: Path) -> None:
    """Add config.json and the tokenizer to what `dure run export` wrote: then transformers loads the folder."""
    from pretrain import export, shape

    export.write_config(folder, shape.Shape.of(recipe.config), tokenizer)


def write_model(folder: Path, weights: Weights, recipe: Recipe, tokenizer: Path | None = None) -> Path:
    """A folder that transformers loads, from weights by name; returns the path of its model.safetensors."""
    from pretrain import export, shape

    return export.write_model(folder, weights, shape.Shape.of(recipe.config), tokenizer)


Say = Callable[[str], None]
