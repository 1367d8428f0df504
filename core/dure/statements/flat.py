"""Statements read by one expression per kind: what an auditor does a million times.

The expression is made from the dataclass's annotations and matches exactly the canonical text of such a statement, so what it matches need
not be parsed, judged field by field, and written again to be compared. What it does not match is not refused here: the caller takes the
long way (`statement.read_payload`), which says what is wrong, or takes what is rare: an escape in a string, a mapping that is not empty.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from hashlib import sha256
from operator import itemgetter
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from dure.statements.kinds import KINDS
from dure.statements.schema import Hex, Items, Pattern, Range
from dure.statements.statement import SeenHead

_HEAD = re.escape('{"_type":"https://in-toto.io/Statement/v1","predicate":{')
_CHAIN = {
    "checkpoint": r'(?:null|\{"root":"(?P<seen_root>[0-9a-f]{64})","size":(?P<seen_size>[1-9][0-9]{0,13})\})',  # below 2^48
    "prev": '(?:null|"(?P<prev>[0-9a-f]{64})")',
    "seq": "(?P<seq>0|[1-9][0-9]{0,13})",  # below 2^48
    "time": "(?P<time>0|[1-9][0-9]{0,10})",  # below LATEST_S
}
_END = '"}]}'
"""After the statement's kind, which is its last word."""


class Heard(NamedTuple):
    """A statement's content; nothing about who signed it."""

    kind: str
    values: tuple[Any, ...]
    """In the order of the kind's fields; a dataclass among them is the tuple of its own. `fact_of` makes the statement of them."""
    seq: int
    prev: bytes | None
    time: int
    seen: SeenHead | None


class _Otherwise(Exception):
    """The long way is to decide."""


Take = Callable[[Any], Any]
_GROUP = "(?P<>"
"""Where a form's group begins; it gets its name in the kind's expression."""


@dataclass(frozen=True)
class _Form:
    """How one annotation looks in canonical JSON, with one group, and what the group's text stands for; no group stands for null."""

    expression: str
    take: Take
    """From the group's text to plain values: tuples, where there are dataclasses."""
    each: Callable[[str], list[Any]] | None = None
    """The items in the text of a list of such; None where there is no list of it."""
    build: Callable[[Any], Any] | None = None
    """From plain values to what the field holds; None: they are that."""

    @property
    def plain(self) -> str:
        """Without the group."""
        return self.expression.replace(_GROUP, "(?:")


@dataclass(frozen=True)
class _Reader:
    kind: str
    matches: Callable[[str], re.Match[str] | None]
    takes: tuple[Take, ...]
    """Conversions, in the order of the kind's fields."""
    groups: tuple[str, ...]
    """Place in the chain, then the rows that together are the text of the fact alone, then the fields."""
    pick: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    """Those, of all groups in the order of the text."""
    fields_at: int
    """Where among those the fields begin."""


_PLACE = ("seq", "prev", "time", "seen_size", "seen_root", "subject")


def read_flat(payload: bytes) -> Heard | None:
    """The content of a statement in canonical form; None where only the long way can tell."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    kind = text[text.rfind('"', 0, -len(_END)) + 1 : -len(_END)]
    reader = _reader(kind) if kind in KINDS else None
    found = reader.matches(text) if reader is not None else None
    if reader is None or found is None:
        return None
    picked = reader.pick(found.groups())
    seq, prev, time, size, root, subject = picked[: len(_PLACE)]
    fact = "{" + ",".join(picked[len(_PLACE) : reader.fields_at]) + "}"
    if sha256(fact.encode()).hexdigest() != subject:
        return None
    try:
        values = tuple([take(raw) for take, raw in zip(reader.takes, picked[reader.fields_at :], strict=True)])
    except (_Otherwise, ValueError):
        return None
    seen = SeenHead(int(size), bytes.fromhex(root)) if size is not None else None
    return Heard(reader.kind, values, int(seq), bytes.fromhex(prev) if prev is not None else None, int(time), seen)


def fact_of(kind: str, values: tuple[Any, ...]) -> Any:
    """The dataclass with these values, which were judged one by one: its own constructor would only be slower."""
    return _builder(KINDS[kind])(values)


@lru_cache(maxsize=64)
def _builder(form: Any) -> Callable[[tuple[Any, ...]], Any]:
    """What makes such a dataclass of its fields' plain values."""
    names = _names(form)
    within = [(at, field.build) for at, field in enumerate((_forms(form) or {}).values()) if field.build is not None]

    def make(values: tuple[Any, ...]) -> Any:
        fact: Any = object.__new__(form)
        fact.__dict__.update(zip(names, values, strict=True))
        for at, build in within:
            fact.__dict__[names[at]] = build(values[at])
        return fact

    return make


@lru_cache(maxsize=64)
def _names(form: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(form))


@lru_cache(maxsize=64)
def _forms(kind: Any) -> dict[str, _Form] | None:
    """By field; None: one of them is not flat."""
    hints = get_type_hints(kind, include_extras=True)
    forms = {name: form for name in _names(kind) if (form := _form(hints[name])) is not None}
    return forms if len(forms) == len(_names(kind)) else None


@lru_cache(maxsize=64)
def _reader(kind: str) -> _Reader | None:
    """None: there is no such kind, or a field of it is not flat."""
    if kind not in KINDS:
        return None
    forms = _forms(KINDS[kind])
    if forms is None:
        return None
    predicate, rows = _predicate(forms)
    tail = f'"predicateType":"urn:dure:{kind}:v1","subject":[{{"digest":{{"sha256":"'
    end = f'"}},"name":"{kind}"}}]}}'
    expression = re.compile(f"{_HEAD}{predicate}}},{re.escape(tail)}(?P<subject>[0-9a-f]{{64}}){re.escape(end)}")
    groups = (*_PLACE, *rows, *(f"f_{name}" for name in forms))
    pick = itemgetter(*(expression.groupindex[group] - 1 for group in groups))
    return _Reader(kind, expression.fullmatch, tuple(form.take for form in forms.values()), groups, pick, len(_PLACE) + len(rows))


def _predicate(flat: dict[str, _Form]) -> tuple[str, tuple[str, ...]]:
    """The expression of all members in order of their names; each unbroken row of the fact's own members is a group."""
    written: list[str] = []
    rows: list[str] = []
    row: list[str] = []

    def close() -> None:
        if row:
            rows.append(f"r_{len(rows)}")
            written.append(f"(?P<{rows[-1]}>{','.join(row)})")
            row.clear()

    for name in sorted([*flat, *_CHAIN]):
        if name in _CHAIN:
            close()
            written.append(f'"{name}":{_CHAIN[name]}')
        else:
            row.append(f'"{name}":{flat[name].expression.replace(_GROUP, f"(?P<f_{name}>")}')
    close()
    return ",".join(written), tuple(rows)


def _form(hint: Any) -> _Form | None:
    rules: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        rules = tuple(rest)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [a for a in arguments if a is not types.NoneType]
        inner = _form(Annotated[(kinds[0], *rules)] if rules else kinds[0]) if len(kinds) == 1 else None
        return _optional(inner) if inner and len(kinds) < len(arguments) else inner
    if origin is tuple:
        return _list(_form(arguments[0]), next((r for r in rules if isinstance(r, Items)), Items(0, 4096)))
    if origin is not None and issubclass(origin, Mapping):
        return _Form(rf"{_GROUP}\{{\}})", lambda _text: {}) if all(r.low == 0 for r in rules if isinstance(r, Items)) else None
    if is_dataclass(hint):
        return _record(hint)
    made = {bytes: _hex, bool: _bool, int: _int, str: _text}.get(hint)
    return made(rules) if made is not None else None


def _optional(inner: _Form) -> _Form:
    take, build = inner.take, inner.build
    built = None if build is None else lambda value: None if value is None else build(value)
    return _Form(f"(?:null|{inner.expression})", lambda text: None if text is None else take(text), build=built)


def _record(kind: Any) -> _Form | None:
    forms = _forms(kind)
    if forms is None:
        return None
    names, written = list(forms), sorted(forms)
    body = ",".join(f'"{name}":{forms[name].expression.replace(_GROUP, f"(?P<f_{name}>")}' for name in written)
    plain = ",".join(f'"{name}":{forms[name].plain}' for name in written)
    grouped = re.compile(rf"\{{{body}\}}")
    takes, order = [forms[name].take for name in written], [written.index(name) for name in names]

    def each(text: str) -> list[Any]:
        """Field by field rather than item by item: each is then one call."""
        columns = zip(*map(re.Match.groups, grouped.finditer(text)), strict=True)
        taken = [list(map(take, column)) for take, column in zip(takes, columns, strict=True)]
        return list(zip(*[taken[at] for at in order], strict=True))

    def take(text: str) -> Any:
        if grouped.fullmatch(text) is None:
            raise _Otherwise
        return each(text)[0]

    return _Form(rf"{_GROUP}\{{{plain}\}})", take, each, _builder(kind))


def _hex(rules: tuple[Any, ...]) -> _Form:
    rule = next((r for r in rules if isinstance(r, Hex)), Hex())
    digits = f"{{{2 * rule.length}}}" if rule.length is not None else f"{{0,{2 * rule.most}}}"

    def each(text: str) -> list[bytes]:
        return [bytes.fromhex(part[1:-1]) for part in text.split(",")]

    return _Form(f'"{_GROUP}[0-9a-f]{digits})"', bytes.fromhex, each)  # which refuses an odd number of digits


def _bool(_rules: tuple[Any, ...]) -> _Form:
    return _Form(f"{_GROUP}true|false)", "true".__eq__)


def _int(rules: tuple[Any, ...]) -> _Form:
    bound = next((r for r in rules if isinstance(r, Range)), Range(0, 2**63 - 1))

    def take(text: str) -> int:
        number = int(text)
        if not bound.low <= number <= bound.high:
            raise _Otherwise
        return number

    return _Form(f"{_GROUP}0|-?[1-9][0-9]{{0,19}})", take, lambda text: [take(part) for part in text.split(",")])


def _text(rules: tuple[Any, ...]) -> _Form:
    pattern = next((r for r in rules if isinstance(r, Pattern)), None)
    matches = re.compile(pattern.expression).fullmatch if pattern else None

    @lru_cache(maxsize=1024)
    def take(text: str) -> str:
        if len(text) > 16_384 or (matches is not None and not matches(text)):
            raise _Otherwise
        return text

    one = re.compile(r'"([^"\\\x00-\x1f]*)"')  # which ends at the first quote: there is none within
    return _Form(rf'"{_GROUP}[^"\\\x00-\x1f]*)"', take, lambda text: [take(found) for found in one.findall(text)])


def _list(item: _Form | None, count: Items) -> _Form | None:
    if item is None or item.each is None:
        return None
    each, one, inner = item.each, item.plain, item.build

    def take(text: str) -> tuple[Any, ...]:
        items = tuple(each(text)) if text else ()
        if not count.low <= len(items) <= count.high:
            raise _Otherwise
        return items

    built = None if inner is None else lambda items: tuple(map(inner, items))
    return _Form(rf"\[{_GROUP}(?:{one}(?:,{one})*)?)\]", take, build=built)
