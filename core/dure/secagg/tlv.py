"""Injective type-length-value encoding of tuples: what is signed, hashed and used as HKDF info.

item = type (1 byte: b bytes, s UTF-8 text, i integer, t tuple) ‖ length (u32 little-endian) ‖ value. Integers are unsigned, little-endian,
shortest form (0 is empty). Decoding accepts the canonical form only, so one value has one encoding.
"""

from __future__ import annotations

from typing import TypeAlias

from dure.errors import Refused

Value: TypeAlias = "bytes | str | int | tuple[Value, ...]"
MAX_DEPTH = 8
MAX_ITEMS = 1 << 16


def encode(*parts: Value | list[Value]) -> bytes:
    """The encoding of a tuple's items, one after the other.

    Raises:
        Refused: a negative integer; our own mistake.
        TypeError: a value of another type; likewise.
    """
    return b"".join([_item(part) for part in parts])


def _item(part: Value | list[Value]) -> bytes:
    if isinstance(part, bytes):
        return b"b" + len(part).to_bytes(4, "little") + part
    if isinstance(part, str):
        raw = part.encode()
        return b"s" + len(raw).to_bytes(4, "little") + raw
    if isinstance(part, tuple | list):
        raw = encode(*part)
        return b"t" + len(raw).to_bytes(4, "little") + raw
    if isinstance(part, bytearray | memoryview):
        return _item(bytes(part))
    if isinstance(part, bool) or not isinstance(part, int):
        raise TypeError(f"{type(part).__name__} has no encoding")
    number = part
    if number < 0:
        raise Refused("tlv", "integers are unsigned")
    length = (number.bit_length() + 7) // 8
    return b"i" + length.to_bytes(4, "little") + number.to_bytes(length, "little")


def decode(raw: bytes, *, max_bytes: int = 1 << 24) -> tuple[Value, ...]:
    """The tuple whose encoding `raw` is.

    Raises:
        Refused: not the canonical encoding of a tuple, too deep or too large.
    """
    if len(raw) > max_bytes:
        raise Refused("tlv", f"larger than {max_bytes} bytes")
    return _decode(memoryview(raw), 0)


def _decode(raw: memoryview, depth: int) -> tuple[Value, ...]:
    if depth > MAX_DEPTH:
        raise Refused("tlv", f"nested deeper than {MAX_DEPTH}")
    items: list[Value] = []
    at = 0
    while at < len(raw):
        if len(raw) - at < 5:
            raise Refused("tlv", "ends in the middle of an item")
        kind, length = raw[at], int.from_bytes(raw[at + 1 : at + 5], "little")
        body = raw[at + 5 : at + 5 + length]
        if len(body) != length:
            raise Refused("tlv", "ends in the middle of an item")
        if len(items) >= MAX_ITEMS:
            raise Refused("tlv", f"more than {MAX_ITEMS} items in a tuple")
        items.append(_value(kind, body, depth))
        at += 5 + length
    return tuple(items)


def _value(kind: int, body: memoryview, depth: int) -> Value:
    if kind == ord("b"):
        return bytes(body)
    if kind == ord("t"):
        return _decode(body, depth + 1)
    if kind == ord("s"):
        try:
            return bytes(body).decode()
        except UnicodeDecodeError:
            raise Refused("tlv", "text is not UTF-8") from None
    if kind == ord("i"):
        if len(body) and body[-1] == 0:
            raise Refused("tlv", "integer is not in its shortest form")
        return int.from_bytes(body, "little")
    raise Refused("tlv", f"unknown type {kind}")
