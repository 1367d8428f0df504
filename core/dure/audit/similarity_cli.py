"""`dure audit similarity`: whether weights, or layers of them, are another model's."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dure.audit.similarity import Compared, Measure, Pair, Prepared, Tensor, compare, prepare
from dure.audit.similarity_html import MEANS, SimilarityPage, similarity_page
from dure.console import AsJson, draw, err, one_line_errors, out, say, show_json
from dure.errors import BadInput
from dure.identity.files import write_atomic
from dure.provenance.errors import OtherShape
from dure.provenance.weight_files import WeightFiles


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
    html: Annotated[Path | None, typer.Option(help="Write the report here: one file in Korean and English, prints on A4.")] = None,
    as_json: AsJson = False,
) -> None:
    """Foreign-weights report: is a layer of MODEL a copy of one of REFERENCE, a permuted, scaled or mixed one?

    Per pair of matrices of one shape: cosine, CKA and the distance of singular values, each beside what chance gives: permutations, and
    independently drawn matrices. docs/similarity.md has the rates of detection and of false alarms. It cannot see distillation.

    Exit codes: 0 nothing beyond chance, 1 something is, 2 a file is missing, 11 weights in a dtype that cannot be read, 12 a reference of
    another architecture.

    Example: dure audit similarity titan-1.0 other/model.safetensors --html similarity.html
    """
    for path in (model, *references):
        if not path.exists():
            raise BadInput(f"{path} is not there; give a .safetensors file or a folder of them")
    mine = {t.name: prepare(t) for t in matrices(WeightFiles.open(model))}
    if not mine:
        raise OtherShape(f"{model}: has no float matrix; of vectors and integers nothing can be said")
    compared = [against(mine, WeightFiles.open(path), str(path)) for path in references]
    if html is not None:
        write_atomic(html, _page(model, references, compared).encode())
    if as_json:
        show_json({"model": str(model), "references": [_as_json(c) for c in compared], "found": any(c.found for c in compared)})
    else:
        for one in compared:
            _tell(one)
    if any(c.found for c in compared):
        raise typer.Exit(1)


def _page(model: Path, references: list[Path], compared: list[Compared]) -> str:
    files = [(str(file), _sha256(file)) for path in (model, *references) for file in _files(path)]
    command = f"dure audit similarity {shlex.join(map(str, (model, *references)))} --html FILE"
    return similarity_page(SimilarityPage(str(model), files, compared, command))


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [path / name for name, _ in WeightFiles.open(path).files]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_json(compared: Compared) -> dict[str, Any]:
    pairs = [
        {
            "tensor": p.name,
            "reference_tensor": p.other,
            "verdict": p.verdict,
            "cosine": _measure(p.cosine),
            "cka": _measure(p.cka),
            "profile": None if p.profile is None else _measure(p.profile),
        }
        for p in compared.pairs
    ]
    return {"reference": compared.reference, "compared": compared.tensors, "matrices": compared.matrices, "pairs": pairs}


def _measure(measure: Measure) -> dict[str, float]:
    return {"value": measure.value, "chance": measure.chance, "z": measure.z}


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
        say(f"  {verdict}: {MEANS[verdict][0]}")


def _cell(measure: Measure | None) -> str:
    return "-" if measure is None else f"{measure.value:.3g} ({measure.chance:.3g})"
