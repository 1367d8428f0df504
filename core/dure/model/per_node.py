"""Config values that may differ per node: what a plan permits, and what stands in the open for every member to see.

A coordinator that gives one member real work and the others `lr = 0` would read that member in "the sum"; so a value may differ only
where the plan lists its key with the values it may have, and every member sees everybody's. Source: secure-aggregation.md, section 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from dure.errors import Refused
from dure.model.content import ConfigItem, Instruction, InstructionRefused, Value, values_from_json, values_to_json

NodeValues = Mapping[str, Mapping[str, Value]]
"""{config record: {key: value}} of one node."""
Stated = Mapping[str, Mapping[str, str]]
"""The same with values as JSON text, as signed statements have them: `0.1`, `3`, `"left"`, `true`."""
Permitted = Mapping[str, tuple[str, ...]]
"""Key -> the values it may have, as JSON text; the plan's."""
MAX_BYTES = 64 * 1024
"""One node's values, encoded."""


def text_of(key: str, value: Value) -> str:
    """A value as JSON text. `Refused` for what no plan can list: lists, bytes, NaN, infinity."""
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise Refused(f"per-node key {key!r}", f"has the value {value!r}; a number, text, true or false may differ per node")
    return json.dumps(value, ensure_ascii=False)


def permitted_of(config: Mapping[str, tuple[Value, ...]]) -> dict[str, tuple[str, ...]]:
    """`[tool.dure.per-node-config]` as a plan states it."""
    return {key: tuple(text_of(key, value) for value in config[key]) for key in sorted(config)}


def stated(values: NodeValues) -> dict[str, dict[str, str]]:
    """One node's values as the open states them."""
    return {record: {key: text_of(key, values[record][key]) for key in sorted(values[record])} for record in sorted(values)}


def check_stated(instruction: Instruction, values: Stated, permitted: Permitted) -> None:
    """Nothing if these are values for exactly the per-node keys the instruction has, each permitted.

    Raises:
        Refused: naming record and key.
    """
    there = {r.name: set(r.values) & set(permitted) for r in instruction.records if isinstance(r, ConfigItem)}
    wanted = {(record, key) for record, keys in there.items() for key in keys}
    given = {(record, key) for record, keys in values.items() for key in keys}
    if wrong := sorted(wanted ^ given):
        record, key = wrong[0]
        why = "has no value" if wrong[0] in wanted else "is given a value, and the plan lists no such key, or the config record has none"
        raise Refused(f"per-node key {key!r} of {record!r}", why)
    for record, keys in values.items():
        for key, value in keys.items():
            if value not in permitted[key]:
                raise Refused(f"per-node key {key!r} of {record!r}", f"is {value[:64]}; the plan permits {', '.join(permitted[key])[:300]}")


def to_json(values: NodeValues) -> bytes:
    """One node's values as they travel to it; canonical. Nothing for none."""
    if not values:
        return b""
    plain = {record: values_to_json(keys) for record, keys in values.items()}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def from_json(raw: bytes) -> dict[str, dict[str, Value]]:
    """The inverse of `to_json`; `Refused` or `InstructionRefused` for anything else."""
    if not raw:
        return {}
    try:
        found = json.loads(raw) if len(raw) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused("values", f"must be a JSON object of at most {MAX_BYTES} bytes")
    values = {str(record): values_from_json(keys, f"values.{record}") for record, keys in found.items()}
    if to_json(values) != raw:
        raise InstructionRefused("values are not in their canonical form")
    return values
