"""What one exchange tells a node to do, and the digest (`content_id`) every member compares before it trains.

An `Instruction` is Flower's message without Flower: records in the order the app made them, one of them possibly the
model, which travels beside it as a flat file. `content_id` follows secure-aggregation.md, section 2: a coordinator that
sends one member real work and the others `lr = 0` would read that member in "the sum", so all of them must have
executed the same content. Pure: no flwr, no I/O. The format is docs/spec/flower.md, "Content".
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dure.errors import DureError
from dure.model.layout import Layout

CATEGORIES = ("train", "evaluate", "query")
MAX_RECORDS = 16
MAX_KEYS = 256
"""Keys in one config or metric record."""
MAX_NAME_BYTES = 256
MAX_VALUE_BYTES = 64 * 1024
"""One str, bytes or list value; Flower never chunks these, so neither do we."""
MAX_RECORD_BYTES = 256 * 1024
"""One config or metric record, encoded."""
MAX_TTL_S = 366 * 24 * 3600.0

CONTENT_LABEL = b"dure content 1\n"
_MESSAGE_TYPE = re.compile(r"[a-z]+(\.[A-Za-z_][A-Za-z0-9_]{0,63})?")
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1

Scalar = int | float | str | bool | bytes
Value = Scalar | tuple[int, ...] | tuple[float, ...] | tuple[str, ...] | tuple[bool, ...] | tuple[bytes, ...]


class InstructionRefused(DureError):
    """An instruction that cannot be carried, or arrived damaged; the message names the record and the field."""


@dataclass(frozen=True)
class ArrayItem:
    """The model in an instruction: its layout and its weights id; the values are in the flat file."""

    name: str
    layout: Layout
    weights_id: bytes


@dataclass(frozen=True)
class ConfigItem:
    """A Flower ConfigRecord. Lists are tuples; keys are sorted."""

    name: str
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricItem:
    """A Flower MetricRecord: int, float, or lists of them."""

    name: str
    values: Mapping[str, Value] = field(default_factory=dict)


Item = ArrayItem | ConfigItem | MetricItem


@dataclass(frozen=True)
class Instruction:
    """One exchange's message. Everything in it but per-node config keys is bound by `content_id`.

    Raises (on construction):
        InstructionRefused: unknown or `system` message type, two array records, a record or value over its cap,
            or a value Flower could not have held.
    """

    message_type: str
    """Full Flower type, e.g. `train` or `train.warmup`."""
    group_id: str
    ttl_s: float
    """How long the instruction and its reply are valid, in seconds; exact in the digest."""
    records: tuple[Item, ...]
    """In the order the app made them; an app may look at the first, so the order is bound too."""

    def __post_init__(self) -> None:
        category(self.message_type)
        _check_name("group id", self.group_id, empty=True)
        if not isinstance(self.ttl_s, float) or not math.isfinite(self.ttl_s) or not 0 < self.ttl_s <= MAX_TTL_S:
            raise InstructionRefused(f"ttl {self.ttl_s!r} is not a number of seconds in (0, {MAX_TTL_S:.0f}]")
        if len(self.records) > MAX_RECORDS:
            raise InstructionRefused(f"{len(self.records)} records in one message; at most {MAX_RECORDS} are carried")
        names = [record.name for record in self.records]
        for name in names:
            _check_name("record name", name)
            if names.count(name) > 1:
                raise InstructionRefused(f"record {name!r} appears twice")
        arrays = [record.name for record in self.records if isinstance(record, ArrayItem)]
        if len(arrays) > 1:
            raise InstructionRefused(
                f"array records {', '.join(map(repr, arrays))}: one array record per message can be summed; merge them into {arrays[0]!r}"
            )
        object.__setattr__(self, "records", tuple(_checked(record) for record in self.records))

    @property
    def category(self) -> str:
        return category(self.message_type)

    @property
    def arrays(self) -> ArrayItem | None:
        """The one array record, or None when the message carries no model."""
        return next((record for record in self.records if isinstance(record, ArrayItem)), None)

    def with_node_values(self, values: Mapping[str, Mapping[str, Value]]) -> Instruction:
        """This instruction as one node gets it: `values` is {config record: {key: value}}.

        Raises:
            InstructionRefused: a record or key that the shared instruction does not have.
        """
        wanted = {name: dict(keys) for name, keys in values.items()}
        records: list[Item] = []
        for record in self.records:
            own = wanted.pop(record.name, None) if isinstance(record, ConfigItem) else None
            if own is None or not isinstance(record, ConfigItem):
                records.append(record)
                continue
            for key in own:
                if key not in record.values:
                    raise InstructionRefused(f"per-node key {key!r} is not in config record {record.name!r}")
            records.append(ConfigItem(record.name, {**record.values, **own}))
        if wanted:
            raise InstructionRefused(f"per-node values for {sorted(wanted)[0]!r}, which is no config record")
        return replace(self, records=tuple(records))

    def node_values(self, per_node_keys: Collection[str]) -> dict[str, dict[str, Value]]:
        """The values of per-node keys, {record: {key: value}}: what stands in the open for every member to see."""
        found: dict[str, dict[str, Value]] = {}
        for record in self.records:
            if isinstance(record, ConfigItem):
                own = {key: value for key, value in record.values.items() if key in per_node_keys}
                if own:
                    found[record.name] = own
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON without floats; `from_json` takes exactly this."""
        return {
            "message_type": self.message_type,
            "group_id": self.group_id,
            "ttl_s": _float_hex(self.ttl_s),
            "records": [_record_json(record) for record in self.records],
        }

    @classmethod
    def from_json(cls, data: object) -> Instruction:
        """Judge an instruction that came from outside.

        Raises:
            InstructionRefused: naming the field that is missing, unknown, out of range or of another type.
        """
        fields = _fields(data, "instruction", ("message_type", "group_id", "ttl_s", "records"))
        records = fields["records"]
        if not isinstance(records, list) or len(records) > MAX_RECORDS:
            raise InstructionRefused(f"instruction.records is not a list of at most {MAX_RECORDS}")
        if not isinstance(fields["message_type"], str) or not isinstance(fields["group_id"], str):
            raise InstructionRefused("instruction.message_type and instruction.group_id must be strings")
        return cls(
            message_type=fields["message_type"],
            group_id=fields["group_id"],
            ttl_s=_float_from_hex(fields["ttl_s"], "instruction.ttl_s"),
            records=tuple(_record_from_json(record, f"instruction.records[{i}]") for i, record in enumerate(records)),
        )


def category(message_type: str) -> Literal["train", "evaluate", "query"]:
    """Flower's message type up to its first dot.

    Raises:
        InstructionRefused: `system`, or a type Flower does not have.
    """
    head = message_type.split(".", 1)[0] if isinstance(message_type, str) else ""
    if head not in CATEGORIES or not _MESSAGE_TYPE.fullmatch(message_type):
        raise InstructionRefused(f"message type {message_type!r} is refused: use train, evaluate or query, optionally .name")
    return head  # type: ignore[return-value]


def content_id(instruction: Instruction, per_node_keys: Collection[str] = ()) -> bytes:
    """32 bytes that are equal for two nodes exactly when they were told the same.

    Args:
        instruction: as this node executed it.
        per_node_keys: config keys the plan lists as per-node. That such a key is there is bound; its value is not
            (it stands per member in `instance-open`, and each node checks its own).
    """
    return hashlib.sha256(CONTENT_LABEL + canonical_bytes(instruction, per_node_keys)).digest()


def canonical_bytes(instruction: Instruction, per_node_keys: Collection[str] = ()) -> bytes:
    """What `content_id` hashes: sorted, compact JSON; records in order of name, each with its position."""
    records: list[dict[str, Any]] = []
    for position, record in sorted(enumerate(instruction.records), key=lambda pair: pair[1].name.encode()):
        if isinstance(record, ArrayItem):
            body: dict[str, Any] = {"kind": "array", "weights_id": record.weights_id.hex()}
        else:
            hidden = per_node_keys if isinstance(record, ConfigItem) else ()
            values = {key: {"per-node": 1} if key in hidden else _value_json(value) for key, value in record.values.items()}
            body = {"kind": "config" if isinstance(record, ConfigItem) else "metric", "values": values}
        records.append({"name": record.name, "position": position, **body})
    whole = {
        "message_type": instruction.message_type,
        "group_id": instruction.group_id,
        "ttl_s": _float_hex(instruction.ttl_s),
        "records": records,
    }
    return _compact(whole)


def flower_node_id(member: str) -> int:
    """The number Flower knows a member by: 63 bits of SHA-256 of its id, never 0; the same in every run."""
    return int.from_bytes(hashlib.sha256(b"dure node\n" + member.encode()).digest()[:8], "little") >> 1 or 1


def flower_run_id(run: bytes) -> int:
    """The number an app sees as `context.run_id`: 63 bits of the run's digest, never 0."""
    return int.from_bytes(run[:8], "little") >> 1 or 1


# -- values ------------------------------------------------------------------------------------------------------


def values_to_json(values: Mapping[str, Value]) -> dict[str, Any]:
    """Typed JSON of a config: {key: {type letter: value}}; i int, f float (hex), s str, b bool, x bytes (hex)."""
    return {key: _value_json(values[key]) for key in sorted(values)}


def values_from_json(data: object, where: str) -> dict[str, Value]:
    """The inverse of `values_to_json`; raises InstructionRefused naming `where`."""
    if not isinstance(data, dict) or len(data) > MAX_KEYS:
        raise InstructionRefused(f"{where} is not a table of at most {MAX_KEYS} keys")
    values: dict[str, Value] = {}
    for key, value in data.items():
        _check_name(f"{where} key", key)
        values[key] = _value_from_json(value, f"{where}.{key}")
    return {key: values[key] for key in sorted(values)}


def _checked(record: Item) -> Item:
    if isinstance(record, ArrayItem):
        if not isinstance(record.weights_id, bytes) or len(record.weights_id) != 32:
            raise InstructionRefused(f"array record {record.name!r}: weights id is not 32 bytes")
        return record
    kind = "config" if isinstance(record, ConfigItem) else "metric"
    where = f"{kind} record {record.name!r}"
    if len(record.values) > MAX_KEYS:
        raise InstructionRefused(f"{where} has {len(record.values)} keys; at most {MAX_KEYS} are carried")
    values: dict[str, Value] = {}
    for key in sorted(record.values):
        _check_name(f"{where} key", key)
        values[key] = _check_value(record.values[key], f"{where} key {key!r}", numbers_only=kind == "metric")
    size = len(_compact(values_to_json(values)))
    if size > MAX_RECORD_BYTES:
        raise InstructionRefused(f"{where} takes {size} bytes encoded; at most {MAX_RECORD_BYTES} are carried")
    return type(record)(record.name, values)


def _check_name(what: str, name: object, *, empty: bool = False) -> None:
    if not isinstance(name, str) or (not name and not empty):
        raise InstructionRefused(f"{what} {name!r} is not a non-empty string")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InstructionRefused(f"{what} {name!r} is not valid Unicode") from None
    if size > MAX_NAME_BYTES or any(ord(char) < 32 for char in name):
        raise InstructionRefused(f"{what} {name[:40]!r} is over {MAX_NAME_BYTES} bytes or has control characters")


def _check_value(value: object, where: str, *, numbers_only: bool) -> Value:
    if isinstance(value, list | tuple):
        kinds = {type(element) for element in value}
        if len(kinds) > 1:
            raise InstructionRefused(f"{where} mixes types in a list")
        if len(value) * 8 > MAX_VALUE_BYTES:
            raise InstructionRefused(f"{where} has {len(value)} elements; at most {MAX_VALUE_BYTES // 8} are carried")
        checked = tuple(_check_scalar(element, where, numbers_only=numbers_only) for element in value)
        if sum(_size(element) for element in checked) > MAX_VALUE_BYTES:
            raise InstructionRefused(f"{where} is over {MAX_VALUE_BYTES} bytes")
        return checked  # type: ignore[return-value]
    return _check_scalar(value, where, numbers_only=numbers_only)


def _check_scalar(value: object, where: str, *, numbers_only: bool) -> Scalar:
    allowed: tuple[type, ...] = (int, float) if numbers_only else (int, float, str, bool, bytes)
    if type(value) not in allowed:
        raise InstructionRefused(f"{where} has type {type(value).__name__}; carried are {_names(allowed)} and lists of one of them")
    if type(value) is int and not _INT_MIN <= value <= _INT_MAX:
        raise InstructionRefused(f"{where} does not fit 64 bits")
    if isinstance(value, str | bytes):
        try:
            size = _size(value)
        except UnicodeEncodeError:
            raise InstructionRefused(f"{where} is not valid Unicode") from None
        if size > MAX_VALUE_BYTES:
            raise InstructionRefused(f"{where} has {size} bytes; at most {MAX_VALUE_BYTES} are carried")
    return value  # type: ignore[return-value]


def _size(value: Scalar) -> int:
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8


def _names(types: tuple[type, ...]) -> str:
    return ", ".join(kind.__name__ for kind in types)


_LETTER = {int: "i", float: "f", str: "s", bool: "b", bytes: "x"}


def _value_json(value: Value) -> dict[str, Any]:
    if isinstance(value, tuple):
        letter = _LETTER[type(value[0])] if value else "s"
        return {letter + "[]": [_scalar_json(element) for element in value]}
    return {_LETTER[type(value)]: _scalar_json(value)}


def _scalar_json(value: Scalar) -> Any:
    if type(value) is float:
        return _float_hex(value)
    return value.hex() if isinstance(value, bytes) else value


def _value_from_json(data: object, where: str) -> Value:
    if not isinstance(data, dict) or len(data) != 1:
        raise InstructionRefused(f"{where} is not one typed value")
    ((letter, raw),) = data.items()
    if isinstance(letter, str) and letter.endswith("[]"):
        if not isinstance(raw, list) or len(raw) * 8 > MAX_VALUE_BYTES or (not raw and letter != "s[]"):
            raise InstructionRefused(f"{where} is not a list of at most {MAX_VALUE_BYTES // 8} elements")
        return tuple(_scalar_from_json(letter[:-2], element, where) for element in raw)  # type: ignore[return-value]
    return _scalar_from_json(letter, raw, where)


def _scalar_from_json(letter: object, raw: object, where: str) -> Scalar:
    if letter == "f":
        return _float_from_hex(raw, where)
    if letter == "x" and isinstance(raw, str) and len(raw) <= 2 * MAX_VALUE_BYTES:
        if re.fullmatch(r"([0-9a-f]{2})*", raw):
            return bytes.fromhex(raw)
    elif isinstance(raw, int | str) and (letter, type(raw)) in (("i", int), ("b", bool), ("s", str)):
        return raw
    raise InstructionRefused(f"{where} is not a typed value (i, f, s, b or x)")


def _float_hex(value: float) -> str:
    return struct.pack("<d", value).hex()


def _float_from_hex(raw: object, where: str) -> float:
    if not isinstance(raw, str) or not re.fullmatch(r"[0-9a-f]{16}", raw):
        raise InstructionRefused(f"{where} is not a float64 as 16 hex digits")
    value: float = struct.unpack("<d", bytes.fromhex(raw))[0]
    return value


def _record_json(record: Item) -> dict[str, Any]:
    if isinstance(record, ArrayItem):
        return {
            "kind": "array",
            "name": record.name,
            "layout": json.loads(record.layout.to_json()),
            "weights_id": record.weights_id.hex(),
        }
    kind = "config" if isinstance(record, ConfigItem) else "metric"
    return {"kind": kind, "name": record.name, "values": values_to_json(record.values)}


def _record_from_json(data: object, where: str) -> Item:
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "array":
        fields = _fields(data, where, ("kind", "name", "layout", "weights_id"))
        weights = fields["weights_id"]
        if not isinstance(weights, str) or not re.fullmatch(r"[0-9a-f]{64}", weights):
            raise InstructionRefused(f"{where}.weights_id is not 64 hex digits")
        return ArrayItem(fields["name"], _layout(fields["layout"]), bytes.fromhex(weights))
    if kind not in ("config", "metric"):
        raise InstructionRefused(f"{where}.kind is not array, config or metric")
    fields = _fields(data, where, ("kind", "name", "values"))
    values = values_from_json(fields["values"], f"{where}.values")
    return ConfigItem(fields["name"], values) if kind == "config" else MetricItem(fields["name"], values)


def _layout(data: object) -> Layout:
    try:
        return Layout.from_json(_compact(data))
    except (ValueError, RecursionError):
        raise InstructionRefused("layout is not plain JSON") from None


def _fields(data: object, where: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InstructionRefused(f"{where} is not an object")
    for name in names:
        if name not in data:
            raise InstructionRefused(f"{where}.{name} is missing")
    for name in data:
        if name not in names:
            raise InstructionRefused(f"{where}.{name} is not known")
    return data


def _compact(data: object) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
