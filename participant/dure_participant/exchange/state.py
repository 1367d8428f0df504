"""One run as a node remembers it: persisted whole, in one transaction, before any action; secrets in it are erased in place.

Bytes in it: canonical JSON of these dataclasses (`to_bytes`), judged strictly on the way back (`from_bytes`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from dure.errors import Refused
from dure.statements import schema
from dure.statements.dsse import canonical_json
from dure.statements.kinds import Energy, EnvCommitment, FlopCount
from dure.statements.schema import Hex, Items, Pattern, Range

Blob = Annotated[bytes, Hex(most=1 << 24)]
Digest = Annotated[bytes, Hex(32)]
Number = Annotated[int, Range(0, 2**48)]
Note = Annotated[str, Pattern(r"[^\x00-\x1f]{0,1000}")]
VERSION = 1


@dataclass(frozen=True)
class EpochWork:
    """This node's keys of one epoch."""

    number: Number
    members: tuple[str, ...]
    secret: Blob = b""
    """dure.secagg.epoch.EpochSecret; b"" once `keys` are there."""
    keys: Blob = b""
    """dure.secagg.epoch.EpochKeys; b"" until complete."""
    node_keys: Mapping[str, Digest] = field(default_factory=dict)
    """Node key of each member, from its delegation."""
    advert_sha256: Mapping[str, Digest] = field(default_factory=dict)
    """Message hash of each member's advert."""
    advert: Blob = b""
    kem: Blob = b""
    group: Blob = b""
    """Messages as sent; the one that answers the directive followed now is sent again."""


@dataclass(frozen=True)
class InstanceWork:
    """One attempt of one instance."""

    instance: Annotated[bytes, Hex(most=512)]
    purpose: Annotated[str, Pattern("scales|update|scalars")]
    attempt: Number
    cohort: tuple[str, ...]
    secret: Blob = b""
    """dure.secagg.instance.InstanceSecret; b"" before dealing."""
    group_key: Blob = b""
    node_keys: Mapping[str, Digest] = field(default_factory=dict)
    share: Blob = b""
    """Share message, as sent."""
    open_envelope: Blob = b""
    ctx: Annotated[bytes, Hex(most=32)] = b""
    rounding_key: Annotated[bytes, Hex(most=32)] = b""
    metrics: tuple[str, ...] = ()
    """Metric names frozen at open."""
    usage: Blob = b""
    commit: Blob = b""
    signature: Blob = b""
    survivors: tuple[str, ...] = ()
    survivors_envelope: Blob = b""
    reveal: Blob = b""
    aggregate_envelope: Blob = b""
    aggregate_trailer: tuple[Annotated[int, Range(0, 2**64 - 1)], ...] = ()
    sum: Annotated[str, Pattern(r"[0-9a-f:]{0,81}")] = ""
    verified: bool = False
    doubt: Note = ""
    """Why the sum does not verify; it is recomputed, then the run freezes here with what was found."""
    doubt_until_ms: Annotated[int, Range(0, 2**53)] = 0
    """What is not served by then counts as a mismatch."""
    recomputed: Annotated[str, Pattern(r"[a-z]{0,16}")] = ""
    """Kind of the finding (`dure.recompute.sums`); "" before there is one."""
    void: Blob = b""


@dataclass(frozen=True)
class OpenedScales:
    """A verified scales sum that an update may use."""

    instance: Annotated[bytes, Hex(most=512)]
    survivors: tuple[str, ...]
    survivors_sha256: Digest
    aggregate_sha256: Digest
    sum: str
    e_b: str
    e_b_sha256: Digest
    weights_id: Digest
    exchange: Number
    recomputed: bool = False
    """Added up again here, from the committed uploads, before it was used."""


@dataclass(frozen=True)
class TrainedWork:
    """What the worker brought, as far as the protocol needs it."""

    weights_id: Digest
    has_arrays: bool
    update_root: Digest
    weight_int: Annotated[int, Range(0, 2**63 - 1)]
    metrics: tuple[str, ...]
    """Names, sorted."""
    metric_values: tuple[Annotated[str, Pattern(r"-?0x[01]\.[0-9a-f]{1,13}p[+-][0-9]{1,4}")], ...]
    """float.hex() of each, in that order."""
    tokens: Number = 0
    steps: Number = 0
    milliseconds: Number = 0
    device: str = ""
    environment: EnvCommitment | None = None
    formula_flop: FlopCount | None = None
    measured_flop: FlopCount | None = None
    hardware_flop: FlopCount | None = None
    energy: Energy | None = None


@dataclass(frozen=True)
class ExchangeWork:
    """One exchange of this run."""

    number: Number
    epoch: Number
    category: Annotated[str, Pattern("train|evaluate|query")]
    instruction: Blob
    weights: str
    layout: Blob
    base_record: Blob
    weights_id: Digest
    content_id: Digest
    deadline_ms: Annotated[int, Range(0, 2**53)] = 0
    values: Blob = b""
    """This node's own values of per-node keys (dure.model.per_node); b"" for none."""
    trained: TrainedWork | None = None
    ready: Blob = b""
    sat_out: Blob = b""
    """Body of the sit-out report; b"" while the node takes part."""
    why_out: Note = ""
    instances: Annotated[tuple[InstanceWork, ...], Items(0, 128)] = ()
    accept: Blob = b""
    """Body of the accept report: TLV(exchange-accept, usage)."""
    scales: OpenedScales | None = None
    """The opened scales this exchange's update uses."""


@dataclass(frozen=True)
class OwnDispute:
    """What this node signed against one opened sum."""

    instance: Annotated[bytes, Hex(most=512)]
    envelope: Blob


@dataclass(frozen=True)
class SeenDispute:
    """Another member's dispute: rechecked here, believed by nobody."""

    sha256: Digest
    """Of the envelope."""
    member: Annotated[str, Pattern(r"[a-z0-9-]{1,32}")]
    exchange: Number
    instance: Annotated[bytes, Hex(most=512)]
    aggregate_sha256: Digest
    finding: Annotated[str, Pattern(r"[a-z]{1,16}")]
    chunk: Number | None
    result: Note = ""
    """What this node found; "" while it looks."""


@dataclass(frozen=True)
class NodeRunState:
    """Everything this node knows of one run."""

    run: Digest
    plan_envelope: Blob = b""
    app_blob: str = ""
    decision: Annotated[str, Pattern("ask|allowed|refused")] = "ask"
    refusal: Note = ""
    approval: Blob = b""
    consented: Annotated[tuple[Annotated[bytes, Hex(most=512)], ...], Items(0, 256)] = ()
    """Instances on the plan's base that the operator has seen and consented to."""
    kind: Annotated[str, Pattern(r"[a-z-]{0,16}")] = ""
    """The directive followed now; what `owed` answers depends on it."""
    epoch: EpochWork | None = None
    """The newest epoch, complete or not."""
    old_epoch: EpochWork | None = None
    """The complete epoch before it, while an exchange still runs under it."""
    last_epoch: Number = 0
    """Highest epoch number begun; none is begun twice and no lower one is gone back to."""
    lost: Blob = b""
    """Body of the lost report; b"" when nothing was lost."""
    lost_epoch: Number = 0
    exchange: ExchangeWork | None = None
    past: Annotated[tuple[InstanceWork, ...], Items(0, 256)] = ()
    """Instances of earlier exchanges this node sent bytes in and does not know the end of; their secrets are erased. Once the run is over,
    of its last exchange too: each with this node's void, unless it had revealed."""
    last_closed: Number = 0
    """Highest exchange closed for this node."""
    last_accepted: Number = 0
    """Highest exchange this node accepted; goes into its adverts."""
    base_record: Blob = b""
    """The base this node computed, or took with u_min acceptances; b"" before the first."""
    base_weights_id: Digest = bytes(32)
    """Zeros: not known yet."""
    scales: OpenedScales | None = None
    """Verified scales whose update was not opened yet."""
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Metric names seen frozen per category."""
    seqs: Mapping[str, Number] = field(default_factory=dict)
    """Highest number of a commit judged, per node key (hex): rule 7."""
    latest: Mapping[str, Digest] = field(default_factory=dict)
    """Payload digest of that commit: another one of the same number is a second history."""
    doubted: Mapping[str, Number] = field(default_factory=dict)
    """Per member the epoch for which it is refused: its key signed two histories (rule 7)."""
    above: Number | None = None
    """This node's key is younger than the run: it contributes only on bases made by an exchange above this one (rule 7)."""
    generations: Mapping[str, Number] = field(default_factory=dict)
    """Highest generation seen per member; a lower one is refused (rule 7)."""
    frozen: Note = ""
    """Why this node takes no further part in the run: a sum that does not verify, or does not hold."""
    own_disputes: Annotated[tuple[OwnDispute, ...], Items(0, 256)] = ()
    """One per instance; sent whenever the coordinator is there, also when the run is over."""
    disputes: Annotated[tuple[SeenDispute, ...], Items(0, 64)] = ()
    stopped: Note = ""
    """Why this node does nothing any more in any run: its own key was ahead of its memory (rule 7)."""
    finished: bool = False
    status: Note = ""
    """Last words of the coordinator about the run."""

    def to_bytes(self) -> bytes:
        """For the node's store (0600); holds secrets."""
        return canonical_json({"v": VERSION, "state": schema.encode(self)})

    @staticmethod
    def from_bytes(data: bytes) -> NodeRunState:
        """The state these bytes are of; `Refused` naming the field when the store was damaged."""
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            raise Refused("state", "is not JSON") from None
        if not isinstance(body, dict) or set(body) != {"v", "state"} or body["v"] != VERSION:
            raise Refused("state", f"is not version {VERSION}")
        return schema.decode(NodeRunState, body["state"])
