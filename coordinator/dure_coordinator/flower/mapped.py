"""Flower `Array`s over numbers that stay where they are: nothing is read, copied or serialised before somebody asks for it.

Flower's own `Array` holds its numbers as serialised bytes: made of a model, it is two copies of it, and another at each look.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from dure_coordinator.flower import private


class MappedArray(Array):
    """An `Array` of a vector that nobody changes, as a mapped file's; to an app it is like any other.

    Args:
        view: numpy's own dtypes only.
    """

    view: NDArray[Any]
    """The numbers themselves, read-only."""

    def __init__(self, view: NDArray[Any]) -> None:
        shown = view.view()
        shown.flags.writeable = False
        self.__dict__.update(dtype=str(view.dtype), shape=tuple(view.shape), stype=private.NUMPY, view=shown)

    @property
    def data(self) -> bytes:  # type: ignore[override]  # an attribute there, made each time here
        """Serialised as Flower does it."""
        buffer = BytesIO()
        np.save(buffer, self.view, allow_pickle=False)
        return buffer.getvalue()

    def deflate(self) -> bytes:
        """As the plain array's, so that both have one object id."""
        return Array(dtype=self.dtype, shape=self.shape, stype=self.stype, data=self.data).deflate()

    def numpy(self) -> NDArray[Any]:
        """A copy of the caller's own, as Flower gives it."""
        return np.array(self.view)


def numbers(array: Array) -> NDArray[Any]:
    """The numbers of an array, for reading only; a copy where there is no other way."""
    return array.view if isinstance(array, MappedArray) else array.numpy()


def is_mapped(record: ArrayRecord) -> bool:
    """Whether its mean with a factor of one is itself, to the last bit: all mapped, all float32."""
    return bool(record) and all(isinstance(array, MappedArray) and array.dtype == "float32" for array in record.values())
