"""What can happen to a run. The engine appends an event (with its time) to the log before anyone hears of its effect.

`encode_event`/`decode_event` are the log's form: canonical JSON, bytes as hex. An event whose decision leaves the state
untouched (`Decision.changed` is False) need not be logged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dure.errors import Refused
from dure.statements.dsse import canonical_json
from dure.wire.messages import Report, ReportKind

__all__ = [
    "Abort",
    "Asked",
    "Dismissed",
    "Done",
    "Event",
    "GoOn",
    "Gone",
    "Halt",
    "Pause",
    "Reported",
    "Seen",
    "Stop",
    "TakenUp",
    "Tick",
    "Uploaded",
    "decode_event",
    "encode_event",
]


@dataclass(frozen=True)
class Seen:
    """A roster member's node connected; the RPC edge already compared its certificate with the charter."""

    member: str
    node_key: bytes
    """32 bytes, Ed25519."""
    generation: int
    delegation: bytes
    """DSSE bytes of the node-delegation; verified again here, under the member's signing key."""


@dataclass(frozen=True)
class Gone:
    """That node's connection ended."""

    member: str


@dataclass(frozen=True)
class Dismissed:
    """That node may take no part any more: it was revoked, or its member left or has other keys. Nobody waits for it."""

    member: str
    reason: str


@dataclass(frozen=True)
class TakenUp:
    """A coordinator process took the run up: when it was started, and after every restart. Nobody is connected to it yet.

    Its settings are part of the event, not of the facts: an operator may change them between two restarts of one run, and the log
    before must fold to the same state.
    """

    gone_grace_ms: int
    """How long a member that lost its connection still holds up a phase others have finished."""
    return_grace_ms: int
    """The same after a restart of the coordinator, when everybody has to come back."""
    join_grace_ms: int
    """How long the first epoch waits for further members once the quorum approved and is connected."""


@dataclass(frozen=True)
class Reported:
    """A node's report. `member` is who the TLS certificate says, never who the body says."""

    member: str
    report: Report


@dataclass(frozen=True)
class Uploaded:
    """A commit whose chunks and bytes are durable and whose Merkle root the spool has confirmed."""

    member: str
    instance: bytes
    """TLV of the instance id."""
    commit: bytes
    """DSSE bytes of the instance-commit, as sent."""


@dataclass(frozen=True)
class Asked:
    """The ServerApp wants an exchange. The same seq with the same digest is answered once; with another, the run aborts."""

    seq: int
    digest: bytes
    """32 bytes over the whole request, `members` excepted."""
    instruction: bytes
    """Canonical JSON of `Instruction.to_json()`, the shared part."""
    weights: str = ""
    """Blob id text of the flat vector; "" when the instruction has no arrays."""
    members: tuple[str, ...] = ()
    """Members the strategy chose, bytewise; empty: every member that joined."""
    node_values: bytes = b""
    """Canonical JSON {member: {config record: {key: typed value}}} for keys the plan lists as per-node; b"" for none."""


@dataclass(frozen=True)
class Done:
    """A duty was fulfilled; `result` is what duties.py promises for its kind."""

    duty: str
    result: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Tick:
    """Time passed: `next_deadline(state)` was reached."""


@dataclass(frozen=True)
class Stop:
    """The ServerApp returned: the run is finished as soon as nothing is in flight."""

    reason: str = ""


@dataclass(frozen=True)
class Abort:
    """An administrator, or the ServerApp's failure, ends the run now."""

    reason: str


@dataclass(frozen=True)
class Pause:
    """An administrator: begin no further exchange until `GoOn`."""

    reason: str


@dataclass(frozen=True)
class GoOn:
    """An administrator lifts the pause."""


@dataclass(frozen=True)
class Halt:
    """An administrator: end the run after the round in flight and keep its model."""

    reason: str


Event = Seen | Gone | Dismissed | TakenUp | Reported | Uploaded | Asked | Done | Tick | Stop | Abort | Pause | GoOn | Halt
_HEX_FIELDS: dict[type, tuple[str, ...]] = {
    Seen: ("node_key", "delegation"),
    Uploaded: ("instance", "commit"),
    Asked: ("digest", "instruction", "node_values"),
}
_KINDS: dict[str, type] = {
    kind.__name__.lower(): kind
    for kind in (Seen, Gone, Dismissed, TakenUp, Reported, Uploaded, Asked, Done, Tick, Stop, Abort, Pause, GoOn, Halt)
}


def encode_event(event: Event) -> bytes:
    """The event for the log; one event has one encoding."""
    kind = type(event)
    body: dict[str, Any] = dict(event.__dict__)
    for name in _HEX_FIELDS.get(kind, ()):
        body[name] = body[name].hex()
    if isinstance(event, Asked):
        body["members"] = list(event.members)
    elif isinstance(event, Reported):
        report = event.report
        body["report"] = {
            "run": report.run.hex(),
            "kind": report.kind.value,
            "exchange": report.exchange,
            "instance": report.instance.hex(),
            "epoch": report.epoch,
            "body": report.body.hex(),
        }
    elif isinstance(event, Done):
        body["result"] = {name: value.hex() for name, value in event.result.items()}
    return canonical_json({"event": kind.__name__.lower(), **body})


def decode_event(data: bytes) -> Event:
    """The event these bytes are of.

    Raises:
        Refused: the log was damaged, or written by a newer version; names the field.
    """
    try:
        body = json.loads(data)
        kind = _KINDS[body.pop("event")]
        for name in _HEX_FIELDS.get(kind, ()):
            body[name] = bytes.fromhex(body[name])
        if kind is Asked:
            body["members"] = tuple(body["members"])
        elif kind is Reported:
            body["report"] = _report(body["report"])
        elif kind is Done:
            body["result"] = {name: bytes.fromhex(value) for name, value in body["result"].items()}
        event: Event = kind(**body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise Refused("event", f"cannot be read from the log: {e}") from None
    return event


def _report(body: dict[str, Any]) -> Report:
    return Report(
        run=bytes.fromhex(body["run"]),
        kind=ReportKind(body["kind"]),
        exchange=body["exchange"],
        instance=bytes.fromhex(body["instance"]),
        epoch=body["epoch"],
        body=bytes.fromhex(body["body"]),
    )
