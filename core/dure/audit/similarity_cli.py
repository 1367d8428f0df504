"""`dure audit similarity`: whether weights, or layers of them, are another model's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dure.audit.similarity import Measure, Pair, Prepared, Tensor, compare, prepare
from dure.console import AsJson, draw, err, one_line_errors, out, say, show_json
from dure.errors import BadInput
from dure.provenance.errors import OtherShape
from dure.provenance.weight_files import WeightFiles

MEANS = {
    "copied": "the same, or the same times a factor",
    "derived": "a mixture with it, or trained on from it",
    "permuted": "the same with its neurons in another order",
}


@dataclass(frozen=True)
class Compared:
    """A model against one reference."""

    reference: str
    tensors: int
    """Matrices of the model that the reference has a tensor of the same shape for."""
    matrices: int
    """Matrices of the model."""
    pairs: tuple[Pair, ...]
    """Those of one name, and every other that is beyond chance."""

    @property
    def found(self) -> tuple[Pair, ...]:
        return tuple(p for p in self.pairs if p.verdict)


def matrices(weights: WeightFiles) -> Iterator[Tensor]:
    """Float tensors of two dimensions or more; of vectors nothing can be said."""
    for e in weights.layout.entries:
        if len(e.shape) >= 2 and not e.integer and e.count:
            yield Tensor(e.name, weights[e.name], e.dtype)


def against(mine: dict[str, Prepared], weights: WeightFiles, reference: str) -> Compared:
    """Every tensor of the reference against every one of the model of its shape, the reference's read one after the other.

    Raises:
        OtherShape: no tensor has a shape that the model has.
    """
    pairs: list[Pair] = []
    matched: set[str] = set()
    for tensor in matrices(weights):
        same = [p for p in mine.values() if p.tensor.shape == tensor.shape]
        if not same:
            continue
        err.print(f"{reference}: {tensor.name}", markup=False, end="\r") if out.is_terminal else None
        other = prepare(tensor)
        matched |= {p.tensor.name for p in same}
        found = [pair for p in same if (pair := compare(p, other)) is not None]
        pairs += [pair for pair in found if pair.name == pair.other or pair.verdict]
    if not matched:
        raise OtherShape(f"{reference}: no matrix in it has a shape that the model has: another architecture, nothing to compare")
    return Compared(reference, len(matched), len(mine), tuple(sorted(pairs, key=lambda p: (not p.verdict, p.name, p.other))))


@one_line_errors
def similarity(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors file, or a folder of them.")],
    references: Annotated[list[Path], typer.Argument(metavar="REFERENCE...", help="Models it might have been taken from.")],
    as_json: AsJson = False,
) -> None:
    """Foreign-weights report: is a layer of MODEL a copy of one of REFERENCE, a permuted, scaled or mixed one?

    Per pair of matrices of one shape: cosine, CKA and the distance of singular values, each beside what chance gives: permutations, and
    independently drawn matrices. docs/similarity.md has the rates of detection and of false alarms. It cannot see distillation.

    Exit codes: 0 nothing beyond chance, 1 something is, 2 a file is missing, 11 weights in a dtype that cannot be read, 12 a reference of
    another architecture.

    Example: dure audit similarity titan-1.0 other/model.safetensors
    """
    for path in (model, *references):
        if not path.exists():
            raise BadInput(f"{path} is not there; give a .safetensors file or a folder of them")
    mine = {t.name: prepare(t) for t in matrices(WeightFiles.open(model))}
    if not mine:
        raise OtherShape(f"{model}: has no float matrix; of vectors and integers nothing can be said")
    compared = [against(mine, WeightFiles.open(path), str(path)) for path in references]
    if as_json:
        show_json({"model": str(model), "references": [_as_json(c) for c in compared], "found": any(c.found for c in compared)})
    else:
        for one in compared:
            _tell(one)
    if any(c.found for c in compared):
        raise typer.Exit(1)


def _as_json(compared: Compared) -> dict[str, Any]:
    pairs = [
        {
            "tensor": p.name,
            "reference_tensor": p.other,
            "verdict": p.verdict,
            "cosine": vars(p.cosine),
            "cka": vars(p.cka),
            "profile": None if p.profile is None else vars(p.profile),
        }
        for p in compared.pairs
    ]
    return {"reference": compared.reference, "compared": compared.tensors, "matrices": compared.matrices, "pairs": pairs}


def _tell(compared: Compared) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("tensor", "in the reference", "cosine (chance)", "CKA (chance)", "profile (chance)", "beyond chance"):
        table.add_column(name, no_wrap=True)
    for pair in compared.pairs:
        where = "same name" if pair.other == pair.name else pair.other
        table.add_row(pair.name, where, *map(_cell, (pair.cosine, pair.cka, pair.profile)), pair.verdict)
    draw(table)
    count = f"{compared.tensors} of {compared.matrices} matrices could be compared"
    say(f"{compared.reference}: {count}, {len(compared.found)} are beyond chance")
    for verdict in sorted({p.verdict for p in compared.found}):
        say(f"  {verdict}: {MEANS[verdict]}")


def _cell(measure: Measure | None) -> str:
    return "-" if measure is None else f"{measure.value:.3g} ({measure.chance:.3g})"
