"""What can happen to a run. The engine appends an event (with its time) to the log before anyone hears of its effect.

`encode_event`/`decode_event` are the log's form: canonical JSON, bytes as hex. An event whose decision leaves the state
untouched (`Decision.changed` is False) need not be logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dure.errors import Refused
from dure.wire.messages import Report, ReportKind

__all__ = ["Abort", "Asked", "Done", "Event", "Gone", "Reported", "Seen", "Stop", "Tick", "Uploaded", "decode_event", "encode_event"]


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


Event = Seen | Gone | Reported | Uploaded | Asked | Done | Tick | Stop | Abort
