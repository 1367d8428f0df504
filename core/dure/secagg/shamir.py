"""Shamir's secret sharing over GF(2^8) modulo 0x11b, bytewise on equal-length secrets.

Products with secret operands are branch-free and without tables; look-ups are used on public x only. Source: Shamir 1979; FIPS 197 §4.2
for the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def _multiply(a: U8, b: U8) -> U8:
    wide_a, wide_b = a.astype(np.uint16), b.astype(np.uint16)
    product = np.zeros(np.broadcast(a, b).shape, np.uint16)
    for bit in range(8):
        product ^= (wide_a << bit) * ((wide_b >> bit) & 1)
    for bit in range(14, 7, -1):
        product ^= np.uint16(0x11B << (bit - 8)) * ((product >> bit) & 1)
    return product.astype(np.uint8)


def _public_tables() -> tuple[list[int], list[int]]:
    power, log, x = [0] * 510, [0] * 256, 1
    for i in range(255):
        power[i] = power[i + 255] = x
        log[x] = i
        x ^= (x << 1) ^ (0x11B if x & 0x80 else 0)  # times 3, a generator
    return power, log


_POWER, _LOG = _public_tables()


def lagrange_at_zero(xs: Sequence[int]) -> list[int]:
    """Coefficients l_i with secret = Σ l_i·share_i; xs are public, distinct, non-zero."""
    coefficients = []
    for i in xs:
        exponent = sum(_LOG[j] - _LOG[i ^ j] for j in xs if j != i)
        coefficients.append(_POWER[exponent % 255])
    return coefficients


def split(secret: bytes, *, threshold: int, holders: int, rng: Callable[[int], bytes]) -> list[bytes]:
    """Shares for x = 1…holders, each as long as the secret; any `threshold` of them recover it, fewer say nothing.

    Raises:
        ValueError: not 1 <= threshold <= holders <= 255.
    """
    if not 1 <= threshold <= holders <= 255:
        raise ValueError(f"threshold {threshold} of {holders} holders")
    value = np.frombuffer(secret, np.uint8)
    coefficients = np.frombuffer(rng((threshold - 1) * value.size), np.uint8).reshape(threshold - 1, value.size)
    x = np.arange(1, holders + 1, dtype=np.uint8)[:, None]
    shares = np.zeros((holders, value.size), np.uint8)
    for row in coefficients[::-1]:  # Horner, highest power first
        shares = _multiply(shares ^ row, x)
    return [share.tobytes() for share in shares ^ value]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret from exactly the threshold's number of shares, by x. Wrong shares give a wrong secret: check its commitment."""
    xs = sorted(shares)
    coefficients = np.array(lagrange_at_zero(xs), np.uint8)[:, None]
    rows = np.stack([np.frombuffer(shares[x], np.uint8) for x in xs])
    return bytes(np.bitwise_xor.reduce(_multiply(rows, coefficients), axis=0).tobytes())
