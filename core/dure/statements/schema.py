"""Frozen dataclasses <-> JSON values, judged field by field.

A field's annotation says everything: `Annotated[bytes, Hex(32)]`, `Annotated[int, Range(0, 9)]`, `Annotated[str, Pattern(...)]`,
`T | None`, `tuple[T, ...]` (with `Items`), `Mapping[str, T]` (with `Items`), or another such dataclass. Absent is not zero: every field
must be there, and nothing else may be. A refusal names the field by its path.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from dure.errors import Refused

T = TypeVar("T")


@dataclass(frozen=True)
class Hex:
    """bytes as lower-case hex; exactly `length` bytes, or at most `most`."""

    length: int | None = None
    most: int = 1 << 20


@dataclass(frozen=True)
class Range:
    """An integer in [low, high]."""

    low: int
    high: int


@dataclass(frozen=True)
class Pattern:
    """Text that matches the whole expression."""

    expression: str


@dataclass(frozen=True)
class Items:
    """How many items a list or mapping may have."""

    low: int
    high: int


@lru_cache(maxsize=256)
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def encode(value: Any) -> dict[str, Any]:
    """A dataclass as a JSON object."""
    kind: Any = type(value)
    hints = _hints(kind)
    return {f.name: _encode(getattr(value, f.name), hints[f.name]) for f in fields(value)}


def _encode(value: Any, hint: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, bytes):
        return value.hex()
    if is_dataclass(value):
        return encode(value)
    if isinstance(value, Mapping):
        return {k: _encode(v, None) for k, v in value.items()}
    if isinstance(value, tuple):
        return [_encode(v, None) for v in value]
    return value


def decode(kind: type[T], value: object, path: str = "") -> T:
    """A JSON object as a dataclass.

    Raises:
        Refused: a field is absent, unknown, or out of form; names it by path.
    """
    if not isinstance(value, dict):
        raise Refused(path or kind.__name__, "must be an object")
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]  # a dataclass; TypeVar cannot say so
    for name in names:
        if name not in value:
            raise Refused(_join(path, name), "is absent")
    for name in value:
        if name not in names:
            raise Refused(_join(path, str(name)[:64]), "is unknown")
    anything: Any = kind
    hints = _hints(anything)
    decoded = kind(**{name: _decode(hints[name], value[name], _join(path, name)) for name in names})
    return decoded


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _decode(hint: Any, value: object, path: str) -> Any:
    rules: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        rules = tuple(rest)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _decode_union([a for a in arguments if a is not type(None)], rules, value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise Refused(path, "must be a list")
        _check_count(rules, len(value), path)
        return tuple(_decode(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise Refused(path, "must be an object")
        _check_count(rules, len(value), path)
        return {str(k): _decode(arguments[1], v, _join(path, str(k)[:64])) for k, v in value.items()}
    if is_dataclass(hint):
        record: Any = hint
        return decode(record, value, path)
    return _decode_leaf(hint, rules, value, path)


def _decode_union(kinds: list[Any], rules: tuple[Any, ...], value: object, path: str) -> Any:
    if len(kinds) == 1:
        return _decode(Annotated[(kinds[0], *rules)] if rules else kinds[0], value, path)
    for kind in kinds:
        if type(value) is kind:
            return _decode_leaf(kind, rules, value, path)
    raise Refused(path, f"must be one of {', '.join(getattr(k, '__name__', str(k)) for k in kinds)}")


def _check_count(rules: tuple[Any, ...], count: int, path: str) -> None:
    low, high = next(((r.low, r.high) for r in rules if isinstance(r, Items)), (0, 4096))
    if not low <= count <= high:
        raise Refused(path, f"must have {low} to {high} items, has {count}")


def _decode_leaf(kind: Any, rules: tuple[Any, ...], value: object, path: str) -> Any:
    if kind is bytes:
        return _decode_hex(next((r for r in rules if isinstance(r, Hex)), Hex()), value, path)
    if kind is bool:
        if not isinstance(value, bool):
            raise Refused(path, "must be true or false")
        return value
    if kind is int:
        bound = next((r for r in rules if isinstance(r, Range)), Range(0, 2**63 - 1))
        if not isinstance(value, int) or isinstance(value, bool):
            raise Refused(path, "must be an integer")
        if not bound.low <= value <= bound.high:
            raise Refused(path, f"must be in {bound.low}..{bound.high}")
        return value
    if kind is str:
        if not isinstance(value, str) or len(value) > 16_384:
            raise Refused(path, "must be text of at most 16384 characters")
        pattern = next((r for r in rules if isinstance(r, Pattern)), None)
        if pattern and not re.fullmatch(pattern.expression, value):
            raise Refused(path, f"must match {pattern.expression}")
        return value
    raise TypeError(f"no decoding for {kind!r} at {path}")


def _decode_hex(rule: Hex, value: object, path: str) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(r"([0-9a-f]{2})*", value):
        raise Refused(path, "must be lower-case hex")
    raw = bytes.fromhex(value)
    if rule.length is not None and len(raw) != rule.length:
        raise Refused(path, f"must have {rule.length} bytes, has {len(raw)}")
    if len(raw) > rule.most:
        raise Refused(path, f"must have at most {rule.most} bytes, has {len(raw)}")
    return raw
