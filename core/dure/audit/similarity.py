"""Are weights, or a layer of them, another model's? Three measures per pair of tensors, each beside what chance gives.

cosine    of the elements, rows and columns centred: finds copies, scaled copies and mixtures; a permutation destroys it.
CKA       linear, debiased, rows (or columns) as examples. Invariant to rotations and permutations of the other side: finds neurons
          permuted on one side. (Kornblith et al., ICML 2019; U-centring as in Székely and Rizzo, Ann. Stat. 2014.)
profile   distance of the normalised singular values: invariant to permutations, rotations and scale of both sides.

Chance is taken from permutations of the very tensors, and from independently drawn matrices of the same shape. What none of this can show:
that a model was trained on another one's outputs. Memory O(chunk) and O(min(rows, columns)²); tensors are mapped, read in chunks of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dure.errors import BadInput
from dure.model.dtypes import flat_values

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
CHUNK_ELEMENTS = 1 << 20
EXAMPLES = 128
"""Rows and columns that enter permutations and CKA, evenly spread."""
PERMUTATIONS = 100
DRAWS = 8
"""Independent matrices per shape."""
PROFILE_SIDE_MAX = 8192
"""Above it the singular values of a matrix are not computed: minutes each."""
DRAW_SIDE_MAX = 256
"""Independent matrices are drawn no larger; the distance of profiles of larger ones is smaller in proportion."""

Z_FOUND = 8.0
"""Standard deviations of the permutations above which a cosine is none of chance: below 1e-14 for each pair."""
Z_LOOK = 3.0
"""From here on the cosine of a sample is followed by that of all elements."""
COSINE_FOUND = 0.05
"""Smallest cosine that is called derived, however significant."""
COSINE_COPY = 0.999
CKA_FOUND = 0.98
"""Independently trained models agree in CKA up to about 0.9 where rows mean the same (tokens, pixels); permuted copies have 1."""
PROFILE_FOUND = 0.25
"""Of the smallest distance that independent matrices have."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as a matrix [rows, columns], mapped, and its dtype's name."""

    name: str
    values: NDArray[Any]
    dtype: str

    @property
    def shape(self) -> tuple[int, int]:
        rows = self.values.shape[0]
        return rows, self.values.size // max(rows, 1)

    def chunks(self, part: slice | NDArray[np.int64] | None = None) -> Iterator[F64]:
        """Rows in order, or those chosen, in float64."""
        rows, columns = self.shape
        matrix = self.values.reshape(rows, columns)
        chosen = np.arange(rows) if part is None else np.arange(rows)[part]
        step = max(1, CHUNK_ELEMENTS // max(columns, 1))
        for at in range(0, chosen.size, step):
            block = matrix[chosen[at : at + step]]
            yield flat_values(np.ascontiguousarray(block).reshape(-1), self.dtype).astype(np.float64).reshape(block.shape)


@dataclass(frozen=True)
class Prepared:
    """What is kept of a tensor for comparisons: nothing of its size but the mapping."""

    tensor: Tensor
    row_mean: F64
    column_mean: F64
    """Both with half of the grand mean taken off: an element minus the two is centred by row and by column."""
    norm: float
    """Frobenius norm after centring; 0 for a constant tensor."""
    rows_kernel: F32
    """U-centred Gram of the chosen rows."""
    columns_kernel: F32
    sample: F32
    """Chosen rows and columns, centred."""
    profile: F64 | None
    """Singular values over their norm, descending; None where the matrix is too large."""

    def centred(self, part: NDArray[np.int64] | None = None) -> Iterator[F64]:
        """Rows in order, or those chosen, centred by row and by column."""
        means = self.row_mean if part is None else self.row_mean[part]
        at = 0
        for block in self.tensor.chunks(part):
            yield block - means[at : at + len(block), None] - self.column_mean
            at += len(block)


def prepare(tensor: Tensor) -> Prepared:
    """Reads a tensor two or three times, memory O(chunk) and O(min(rows, columns)^2).

    Raises:
        BadInput: it holds NaN or infinity, or numbers whose squares have no sum; of such a tensor no measure says anything.
    """
    rows, columns = tensor.shape
    row_mean, column_mean = _means(tensor)
    empty = np.zeros((0, 0), np.float32)
    bare = Prepared(tensor, row_mean, column_mean, 0.0, empty, empty, empty, None)
    picked_columns = _spread(columns)
    squares, columns_gram = 0.0, np.zeros((picked_columns.size, picked_columns.size))
    for block in bare.centred():
        squares += float((block * block).sum())
        picked = block[:, picked_columns]
        columns_gram += picked.T @ picked
    if not np.isfinite(squares):
        raise BadInput(f"tensor {tensor.name!r}: holds NaN, infinity or numbers too large to compare; look at who made it")
    chosen = np.concatenate(list(bare.centred(_spread(rows))))
    return replace(
        bare,
        norm=float(np.sqrt(squares)),
        rows_kernel=_u_centred(chosen @ chosen.T),
        columns_kernel=_u_centred(columns_gram),
        sample=chosen[:, picked_columns].astype(np.float32),
        profile=_profile(_gram(bare)) if min(rows, columns) <= PROFILE_SIDE_MAX else None,
    )


def _means(tensor: Tensor) -> tuple[F64, F64]:
    rows, columns = tensor.shape
    over_columns, over_rows = [], np.zeros(columns)
    for block in tensor.chunks():
        over_columns.append(block.mean(axis=1))
        over_rows += block.sum(axis=0)
    row_mean, column_mean = np.concatenate(over_columns), over_rows / rows
    half = float(row_mean.mean()) / 2
    return row_mean - half, column_mean - half


def _gram(bare: Prepared) -> F64:
    """X^T X or X X^T of the centred matrix, whichever is smaller."""
    rows, columns = bare.tensor.shape
    if columns <= rows:
        gram = np.zeros((columns, columns))
        for block in bare.centred():
            gram += block.T @ block
        return gram
    gram, matrix = np.zeros((rows, rows)), bare.tensor.values.reshape(rows, columns)
    step = max(1, CHUNK_ELEMENTS // rows)
    for at in range(0, columns, step):
        part = np.ascontiguousarray(matrix[:, at : at + step])
        block = flat_values(part.reshape(-1), bare.tensor.dtype).astype(np.float64).reshape(part.shape)
        block -= bare.row_mean[:, None] + bare.column_mean[at : at + step]
        gram += block @ block.T
    return gram


def _spread(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, EXAMPLES)).astype(np.int64))


def _profile(gram: F64) -> F64:
    values: F64 = np.sqrt(np.clip(np.linalg.eigvalsh(gram)[::-1], 0, None))
    norm = float(np.linalg.norm(values))
    return values / norm if norm else values


def _u_centred(gram: F64) -> F32:
    """Without its diagonal, so that independent matrices have CKA 0 on average, whatever their width."""
    n = gram.shape[0]
    if n < 4:
        return np.zeros(gram.shape, np.float32)
    bare = gram.copy()
    np.fill_diagonal(bare, 0)
    sums = bare.sum(axis=0)
    centred = bare - sums[:, None] / (n - 2) - sums[None, :] / (n - 2) + bare.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0)
    return np.asarray(centred, np.float32)


@dataclass(frozen=True)
class Measure:
    """A number, and what chance gives."""

    value: float
    chance: float
    """The most extreme of the permutations and independent draws: the largest cosine or CKA, the smallest distance."""
    z: float
    """Standard deviations of the permutations from their mean; 0 for the profile."""
    null: tuple[float, ...] = ()
    """All that chance gave, cosines without their sign: what `chance` is the most extreme of."""


@dataclass(frozen=True)
class Pair:
    """Two tensors compared."""

    name: str
    other: str
    cosine: Measure
    cka: Measure
    """The larger of rows and columns as examples."""
    profile: Measure | None

    @property
    def verdict(self) -> str:
        """copied | derived | permuted | "" (nothing beyond chance)."""
        size = abs(self.cosine.value)
        if size > COSINE_COPY:
            return "copied"
        if abs(self.cosine.z) >= Z_FOUND and size >= COSINE_FOUND:
            return "derived"
        if self.cka.value >= CKA_FOUND and self.cka.z >= Z_FOUND:
            return "permuted"
        if self.profile is not None and self.profile.value < PROFILE_FOUND * self.profile.chance:
            return "permuted"
        return ""


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


def compare(mine: Prepared, other: Prepared) -> Pair | None:
    """The measures of two tensors of the same shape; None where one is constant, or has too few elements to say anything."""
    if mine.tensor.shape != other.tensor.shape or not (mine.norm and other.norm) or min(mine.tensor.shape) < 4:
        return None
    chance = independent(*mine.tensor.shape)
    profile = None
    if mine.profile is not None and other.profile is not None:
        profile = Measure(float(np.linalg.norm(mine.profile - other.profile)), min(chance.profile), 0.0, chance.profile)
    kernels = ((mine.rows_kernel, other.rows_kernel), (mine.columns_kernel, other.columns_kernel))
    cka = max((_cka(a, b, chance.cka) for a, b in kernels), key=lambda m: m.value)
    return Pair(mine.tensor.name, other.tensor.name, _cosine(mine, other, chance.cosine), cka, profile)


def _cosine(mine: Prepared, other: Prepared, chance: tuple[float, ...]) -> Measure:
    """Of all elements where they have one name or the sample says so; else of the sample."""
    cross = mine.sample @ other.sample.T
    norm = float(np.linalg.norm(mine.sample) * np.linalg.norm(other.sample)) or 1.0
    null = np.array([cross[np.arange(p.size), p].sum() for p in _permutations(cross.shape[0])]) / norm
    value = float(np.trace(cross)) / norm
    if mine.tensor.name == other.tensor.name or abs(_z(value, null)) > Z_LOOK:
        pairs = zip(mine.centred(), other.centred(), strict=True)
        value = sum(float((a * b).sum()) for a, b in pairs) / (mine.norm * other.norm)
    return _above(value, np.abs(null), chance, _z(value, null))


def _cka(a: F32, b: F32, chance: tuple[float, ...]) -> Measure:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not norm:
        return Measure(0.0, max(chance), 0.0, chance)
    null = np.array([(a * b[np.ix_(p, p)]).sum() for p in _permutations(a.shape[0])]) / norm
    value = float((a * b).sum()) / norm
    return _above(value, null, chance, _z(value, null))


def _above(value: float, null: F64, chance: tuple[float, ...], z: float) -> Measure:
    """Of a measure that is large where matrices are alike."""
    every = (*map(float, null), *chance)
    return Measure(value, max(every), z, every)


def _z(value: float, null: F64) -> float:
    spread = float(null.std())
    return (value - float(null.mean())) / spread if spread else 0.0


@lru_cache(maxsize=8)
def _permutations(count: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(count)
    return np.stack([rng.permutation(count) for _ in range(PERMUTATIONS)])


@dataclass(frozen=True)
class Chance:
    """What every pair of independently drawn Gaussian matrices of one shape gives."""

    cosine: tuple[float, ...]
    cka: tuple[float, ...]
    profile: tuple[float, ...]


@lru_cache(maxsize=64)
def independent(rows: int, columns: int) -> Chance:
    """Of every pair of `DRAWS` matrices; large shapes are drawn smaller, in proportion."""
    shrink = max(1.0, min(rows, columns) / DRAW_SIDE_MAX)
    small = (max(4, min(int(rows / shrink), 4096)), max(4, min(int(columns / shrink), 4096)))
    rng = np.random.default_rng(rows * 1_000_003 + columns)
    drawn = [prepare(Tensor(str(n), rng.standard_normal(small), "float64")) for n in range(DRAWS)]
    pairs = [(a, b) for i, a in enumerate(drawn) for b in drawn[:i]]
    cosines = [abs(float((a.sample * b.sample).sum()) / (np.linalg.norm(a.sample) * np.linalg.norm(b.sample))) for a, b in pairs]
    ckas = [_bare_cka(a.rows_kernel, b.rows_kernel) for a, b in pairs] + [_bare_cka(a.columns_kernel, b.columns_kernel) for a, b in pairs]
    profiles = [float(np.linalg.norm(_of(a) - _of(b))) for a, b in pairs]
    return Chance(tuple(map(float, cosines)), tuple(ckas), tuple(p / shrink for p in profiles))


def _bare_cka(a: F32, b: F32) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / norm if norm else 0.0


def _of(prepared: Prepared) -> F64:
    assert prepared.profile is not None
    return prepared.profile
