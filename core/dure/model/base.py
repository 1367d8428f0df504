"""The base record: everything the next exchange starts from, in one digest that members sign."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

from dure.blobs import BlobId, BlobRefused
from dure.errors import Refused

MAX_BASE_BYTES = 8192
MAX_STEP_KEYS = 16
_KEY = re.compile(r"[a-z0-9_]{1,32}")
_VALUE = re.compile(r"[\x20-\x7e]{0,128}")
_FIELDS = {"e_b", "exchange", "outer_state", "step", "v", "weights"}


class BaseRefused(Refused):
    """A base record does not have the form it must have; `field` names where."""


@dataclass(frozen=True)
class BaseRecord:
    """Where an exchange starts. Its digest is the base id."""

    weights: BlobId
    """Flat float32 vector, little-endian."""
    outer_state: BlobId | None
    """The outer step's vectors, interleaved by chunk (`outer.step_model`); None means zeros."""
    step: Mapping[str, str]
    """The plan's outer step and `t`, how many of them made this base; decimals as text. Empty: not plan-named."""
    e_b: BlobId | None
    """Scales, after caps, of the exchange that made this base; None before the first."""
    exchange: int
    """Number of the exchange that made it; 0 for the initial weights."""

    def __post_init__(self) -> None:
        if type(self.exchange) is not int or not 0 <= self.exchange < 2**48:
            raise BaseRefused("exchange", "must be an integer in 0…2^48 - 1")
        if len(self.step) > MAX_STEP_KEYS:
            raise BaseRefused("step", f"at most {MAX_STEP_KEYS} keys")
        for key, value in self.step.items():
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise BaseRefused("step", "keys must match [a-z0-9_]{1,32}")
            if not isinstance(value, str) or not _VALUE.fullmatch(value):
                raise BaseRefused(f"step.{key}", "must be at most 128 printable ASCII characters of text")

    @classmethod
    def first(cls, weights: BlobId, config: Mapping[str, str]) -> BaseRecord:
        """Of a run's first weights.

        Args:
            config: the plan's outer step (`statements.kinds.OuterStep.config`); empty where it names none.
        """
        return cls(weights, None, {**config, "t": "0"} if config else {}, None, 0)

    def to_json(self) -> bytes:
        """Canonical JSON: one record has one encoding."""
        record = {
            "e_b": _text(self.e_b),
            "exchange": self.exchange,
            "outer_state": _text(self.outer_state),
            "step": dict(self.step),
            "v": 1,
            "weights": str(self.weights),
        }
        return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def id(self) -> bytes:
        """The base id: SHA-256 of the canonical JSON."""
        return sha256(self.to_json()).digest()

    @classmethod
    def from_json(cls, data: bytes) -> BaseRecord:
        """The record these bytes are the canonical JSON of; anything else is `BaseRefused` naming the field."""
        if len(data) > MAX_BASE_BYTES:
            raise BaseRefused("size", f"at most {MAX_BASE_BYTES} bytes, has {len(data)}")
        try:
            record: Any = json.loads(data)
        except (ValueError, RecursionError) as e:
            raise BaseRefused("json", "cannot be read") from e
        if not isinstance(record, dict) or set(record) != _FIELDS or record["v"] != 1:
            raise BaseRefused("json", f"must be an object with v = 1 and exactly {sorted(_FIELDS)}")
        if not isinstance(record["step"], dict):
            raise BaseRefused("step", "must be an object")
        weights = _blob("weights", record["weights"])
        if weights is None:
            raise BaseRefused("weights", "must not be null")
        base = cls(
            weights,
            _blob("outer_state", record["outer_state"]),
            record["step"],
            _blob("e_b", record["e_b"]),
            record["exchange"],
        )
        if base.to_json() != data:
            raise BaseRefused("json", "is not the canonical encoding (key order, spaces or spelling)")
        return base


def _text(blob: BlobId | None) -> str | None:
    return None if blob is None else str(blob)


def _blob(field: str, value: object) -> BlobId | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise BaseRefused(field, "must be the text of a blob id or null")
    try:
        return BlobId.parse(value)
    except BlobRefused as e:
        raise BaseRefused(field, e.why) from e
