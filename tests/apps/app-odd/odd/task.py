"""bfloat16 in Flower's records: numpy has no such type, so the bit patterns as int16 in an `Array` that says what they are."""

import numpy as np
from flwr.app import Array


def bits_of(values: np.ndarray) -> Array:
    """Values that bfloat16 holds exactly."""
    plain = Array((values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.int16))
    return Array("bfloat16", plain.shape, plain.stype, plain.data)


def values_of(array: Array) -> np.ndarray:
    if array.dtype != "bfloat16":
        return array.numpy()
    return (array.numpy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)
