"""Joint against solo: computed by the demo, outside the protocol, from the exported model and the members' texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from dure_demo.evaluate import compare_models
from dure_demo.recipe import Recipe, Say
from dure_demo.table import show_matrix


def compare(
    members: tuple[str, ...], rounds: int, seed: int, *, texts: Path, model: Path, initial: Path, work: Path, console: Console, say: Say
) -> dict[str, Any]:
    """Train each member's solo model, and show and return the matrix."""
    recipe = Recipe.of_app(members, rounds=rounds, seed=seed)
    found = compare_models(recipe, texts, model, initial, work, say)
    show_matrix(console, found)
    return found.to_json()
