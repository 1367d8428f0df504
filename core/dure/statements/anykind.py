"""Reading a statement whose kind is not known beforehand: what a log, its witnesses and its auditors do with every entry."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from dure.errors import Refused
from dure.statements.dsse import Envelope
from dure.statements.kinds import KINDS
from dure.statements.statement import Signed, open_statement

PREFIX, SUFFIX = "urn:dure:", ":v1"


class UnknownKind(Refused):
    """A statement of a kind or version this program does not know: reported, never skipped silently."""

    def __init__(self, predicate_type: str) -> None:
        super().__init__("predicateType", f"{predicate_type[:80]!r} is unknown to this version; a newer one may know it")


def kind_of(payload: bytes) -> str:
    """The name in a statement's predicateType.

    Raises:
        Refused: the payload is no statement.
        UnknownKind: of another version, or a name that is not in our tables.
    """
    try:
        body = json.loads(payload)
        predicate_type = body["predicateType"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise Refused("payload", "is not an in-toto statement") from None
    if not isinstance(predicate_type, str):
        raise Refused("predicateType", "must be a string")
    name = predicate_type.removeprefix(PREFIX).removesuffix(SUFFIX)
    if name not in KINDS or f"{PREFIX}{name}{SUFFIX}" != predicate_type:
        raise UnknownKind(predicate_type)
    return name


def open_any(raw: bytes | Envelope, keys: Iterable[bytes]) -> Signed[Any]:
    """As `open_statement`, for any kind in `KINDS`."""
    envelope = raw if isinstance(raw, Envelope) else Envelope.from_bytes(raw)
    return open_statement(envelope, KINDS[kind_of(envelope.payload)], keys)
