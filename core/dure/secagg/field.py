"""Arithmetic in F_p, p = 2^61 − 1, on numpy uint64 arrays with entries in [0, p)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

P = (1 << 61) - 1
U64 = NDArray[np.uint64]
_P = np.uint64(P)
_LOW32 = np.uint64(0xFFFFFFFF)


def reduce_once(x: U64) -> U64:
    """x mod p for x < 2^64, in place: fold the top three bits down, then one subtraction."""
    high = x >> np.uint64(61)
    np.bitwise_and(x, _P, out=x)
    np.add(x, high, out=x)
    np.minimum(x, x - _P, out=x)  # below p the subtraction wraps to something huge: no branch on a value
    return x


def add_into(total: U64, x: U64) -> None:
    """total += x mod p, in place."""
    np.add(total, x, out=total)
    np.minimum(total, total - _P, out=total)


def add_words_into(total: U64, words: U64) -> None:
    """total += words mod p, in place; total in [0, p), words any 64 bits (a peer's: read modulo p)."""
    # 2^61 ≡ 1: the high three bits are added to the low 61. words become < 2^61 + 7, the sum < 2^62 + 7: no overflow.
    np.add(total, words & _P, out=total)
    np.add(total, words >> np.uint64(61), out=total)
    reduce_once(total)


def subtract_into(total: U64, x: U64) -> None:
    """total −= x mod p, in place."""
    np.subtract(total, x, out=total)
    np.minimum(total, total + _P, out=total)  # wraps back exactly where it was negative


def add(a: U64, b: U64) -> U64:
    """a + b mod p."""
    out = a.copy()
    add_into(out, b)
    return out


def negate(x: U64) -> U64:
    """−x mod p."""
    out = np.zeros_like(x)
    subtract_into(out, x)
    return out


def multiply(a: U64, b: U64) -> U64:
    """a·b mod p, elementwise (with broadcasting), in 64-bit arithmetic.

    a = a1·2^32 + a0 and likewise b: a1, b1 < 2^29. With 2^61 ≡ 1: a1·b1·2^64 ≡ 8·a1·b1, and the middle sum m < 2^62 splits at bit 29,
    since 2^32·2^29 = 2^61.
    """
    a0, a1, b0, b1 = a & _LOW32, a >> np.uint64(32), b & _LOW32, b >> np.uint64(32)
    low = a0 * b0
    middle = a0 * b1 + a1 * b0
    total = reduce_once((a1 * b1) << np.uint64(3))
    total = total + (middle >> np.uint64(29)) + ((middle & np.uint64((1 << 29) - 1)) << np.uint64(32))
    total = reduce_once(total)
    total = total + reduce_once(low)
    return reduce_once(total)


def total(x: U64) -> int:
    """Sum of all entries mod p. Splitting at bit 32 keeps each partial sum below 2^64 for up to 2^32 entries."""
    low, high = int((x & _LOW32).sum(dtype=np.uint64)), int((x >> np.uint64(32)).sum(dtype=np.uint64))
    return (low + (high << 32)) % P


def from_stream(words: U64) -> U64:
    """Uniform 64-bit words to F_p, in place: the low 61 bits, p ↦ 0. Source: secure-aggregation.md §2."""
    np.bitwise_and(words, _P, out=words)
    np.minimum(words, words - _P, out=words)
    return words
