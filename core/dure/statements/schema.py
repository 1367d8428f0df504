"""Frozen dataclasses <-> JSON values, judged field by field.

A field's annotation says everything: `Annotated[bytes, Hex(32)]`, `Annotated[int, Range(0, 9)]`, `Annotated[str, Pattern(...)]`,
`T | None`, `tuple[T, ...]` (with `Items`), `Mapping[str, T]` (with `Items`), or another such dataclass. Absent is not zero: every field
must be there, and nothing else may be. A refusal names the field by its path.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
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


@lru_cache(maxsize=256)
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


def encode(value: Any) -> dict[str, Any]:
    """A dataclass as a JSON object."""
    kind: Any = type(value)
    return {name: _encode(getattr(value, name)) for name in _names(kind)}


def _encode(value: Any) -> Any:
    kind = type(value)
    if kind is bytes:
        return value.hex()
    if value is None or kind in (str, int, bool):
        return value
    if kind is tuple:
        return [_encode(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _encode(v) for k, v in value.items()}
    return encode(value) if is_dataclass(value) else value


def decode(kind: type[T], value: object, path: str = "") -> T:
    """A JSON object as a dataclass.

    Raises:
        Refused: a field is absent, unknown, or out of form; names it by path.
    """
    record: Any = kind
    try:
        decoded: T = _reader(record)(value)
    except _BadValue as bad:
        raise Refused(_join(path, bad.path) or kind.__name__, bad.why) from None
    return decoded


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name and not name.startswith("[") else path + name


class _BadValue(Exception):
    """What is wrong, and where below the value being read; the path is put together only on the way out."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.path, self.why = "", why

    def below(self, name: str) -> _BadValue:
        self.path = _join(name, self.path)
        return self


Reader = Callable[[Any], Any]
"""A JSON value in, what it stands for out; raises _BadValue. Made once per annotation."""


@lru_cache(maxsize=1024)
def _reader(hint: Any) -> Reader:
    rules: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        rules = tuple(rest)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _union_reader(arguments, rules)
    if origin is tuple:
        return _list_reader(_reader(arguments[0]), rules)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping_reader(_reader(arguments[1]), rules)
    if is_dataclass(hint):
        return _record_reader(hint)
    leaf = {bytes: _hex_reader, bool: _bool_reader, int: _int_reader, str: _text_reader}.get(hint)
    if leaf is None:
        raise TypeError(f"no decoding for {hint!r}")
    return leaf(rules)


def _record_reader(kind: Any) -> Reader:
    hints = _hints(kind)
    readers = tuple((f.name, _reader(hints[f.name])) for f in fields(kind))
    names = {name for name, _ in readers}

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _BadValue("must be an object")
        if value.keys() != names:
            absent = next((name for name, _ in readers if name not in value), None)
            if absent is not None:
                raise _BadValue("is absent").below(absent)
            raise _BadValue("is unknown").below(next(str(name)[:64] for name in value if name not in names))
        decoded = {}
        for name, reader in readers:
            try:
                decoded[name] = reader(value[name])
            except _BadValue as bad:
                raise bad.below(name) from None
        return kind(**decoded)

    return read


def _union_reader(arguments: tuple[Any, ...], rules: tuple[Any, ...]) -> Reader:
    kinds = [a for a in arguments if a is not type(None)]
    optional = len(kinds) < len(arguments)
    readers = {kind: _reader(Annotated[(kind, *rules)] if rules else kind) for kind in kinds}
    only = readers[kinds[0]] if len(kinds) == 1 else None

    def read(value: Any) -> Any:
        if value is None and optional:
            return None
        if only is not None:
            return only(value)
        if type(value) not in readers:
            raise _BadValue(f"must be one of {', '.join(getattr(k, '__name__', str(k)) for k in kinds)}")
        return readers[type(value)](value)

    return read


def _counter(rules: tuple[Any, ...]) -> Callable[[int], None]:
    low, high = next(((r.low, r.high) for r in rules if isinstance(r, Items)), (0, 4096))

    def check(count: int) -> None:
        if not low <= count <= high:
            raise _BadValue(f"must have {low} to {high} items, has {count}")

    return check


def _list_reader(item: Reader, rules: tuple[Any, ...]) -> Reader:
    check = _counter(rules)

    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise _BadValue("must be a list")
        check(len(value))
        decoded = []
        for i, each in enumerate(value):
            try:
                decoded.append(item(each))
            except _BadValue as bad:
                raise bad.below(f"[{i}]") from None
        return tuple(decoded)

    return read


def _mapping_reader(item: Reader, rules: tuple[Any, ...]) -> Reader:
    check = _counter(rules)

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _BadValue("must be an object")
        check(len(value))
        decoded = {}
        for name, each in value.items():
            try:
                decoded[str(name)] = item(each)
            except _BadValue as bad:
                raise bad.below(str(name)[:64]) from None
        return decoded

    return read


def _hex_reader(rules: tuple[Any, ...]) -> Reader:
    rule = next((r for r in rules if isinstance(r, Hex)), Hex())

    def read(value: Any) -> bytes:
        try:
            raw = bytes.fromhex(value) if isinstance(value, str) else None
        except ValueError:
            raw = None
        if raw is None or raw.hex() != value:  # fromhex alone would take capitals and spaces
            raise _BadValue("must be lower-case hex")
        if rule.length is not None and len(raw) != rule.length:
            raise _BadValue(f"must have {rule.length} bytes, has {len(raw)}")
        if len(raw) > rule.most:
            raise _BadValue(f"must have at most {rule.most} bytes, has {len(raw)}")
        return raw

    return read


def _bool_reader(_rules: tuple[Any, ...]) -> Reader:
    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise _BadValue("must be true or false")
        return value

    return read


def _int_reader(rules: tuple[Any, ...]) -> Reader:
    bound = next((r for r in rules if isinstance(r, Range)), Range(0, 2**63 - 1))

    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _BadValue("must be an integer")
        if not bound.low <= value <= bound.high:
            raise _BadValue(f"must be in {bound.low}..{bound.high}")
        return value

    return read


def _text_reader(rules: tuple[Any, ...]) -> Reader:
    pattern = next((r for r in rules if isinstance(r, Pattern)), None)
    matches = re.compile(pattern.expression).fullmatch if pattern else None

    def read(value: Any) -> str:
        if not isinstance(value, str) or len(value) > 16_384:
            raise _BadValue("must be text of at most 16384 characters")
        if matches is not None and not matches(value):
            raise _BadValue(f"must match {pattern.expression if pattern else ''}")
        return value

    return read


def decode_digest(value: object, path: str) -> bytes:
    """32 bytes in hex. Raises Refused naming `path`."""
    try:
        found: bytes = _hex_reader((Hex(32),))(value)
    except _BadValue as bad:
        raise Refused(path, bad.why) from None
    return found
