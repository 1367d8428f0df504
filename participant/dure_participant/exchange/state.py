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
from dure.statements.schema import Hex, Items, Pattern, Range

Blob = Annotated[bytes, Hex(most=1 << 24)]
Digest = Annotated[bytes, Hex(32)]
Number = Annotated[int, Range(0, 2**48)]
VERSION = 1


@dataclass(frozen=True)
class EpochWork:
    """This node's keys of one epoch."""

    number: Number
    advert: Blob
    """Signed advert, as sent."""
    secret: Blob
    """Secret state of dure.secagg.epoch; b"" once agreed."""
    members: tuple[str, ...] = ()
    kem: Blob = b""
    kem_digest: Annotated[bytes, Hex(most=32)] = b""
    """Digest of the KEM directive answered: another one is refused."""
    group: Blob = b""
    group_digest: Annotated[bytes, Hex(most=32)] = b""
    joined: Blob = b""
    """Agreed epoch state (pair chains, G); b"" until complete."""
    join_digest: Annotated[bytes, Hex(most=32)] = b""
    adverts: Mapping[str, Blob] = field(default_factory=dict)
    node_keys: Mapping[str, Digest] = field(default_factory=dict)


@dataclass(frozen=True)
class InstanceWork:
    """One attempt of one instance."""

    instance: Annotated[bytes, Hex(most=512)]
    purpose: Annotated[str, Pattern("scales|update|scalars")]
    attempt: Number
    cohort: tuple[str, ...]
    secret: Blob = b""
    """Secret state of dure.secagg.instance (b, B, R, shares received); b"" once erased."""
    share: Blob = b""
    """Share message, as sent."""
    shares: Mapping[str, Blob] = field(default_factory=dict)
    """Everyone's share messages, from the open."""
    open_envelope: Blob = b""
    ctx: Annotated[bytes, Hex(most=32)] = b""
    upload_sha256: Annotated[bytes, Hex(most=32)] = b""
    """Rule 1: the update these masks are for; set before the first byte leaves."""
    rounding_key: Annotated[bytes, Hex(most=32)] = b""
    trailer: tuple[Annotated[int, Range(0, 2**64 - 1)], ...] = ()
    usage_envelope: Blob = b""
    commit: Blob = b""
    signed_set: Annotated[bytes, Hex(most=32)] = b""
    """Digest of the one survivor set signed."""
    signature: Blob = b""
    survivors_envelope: Blob = b""
    reveal: Blob = b""
    revealed_pairs: tuple[str, ...] = ()
    aggregate_envelope: Blob = b""
    sum: str = ""
    verified: bool = False
    void: Blob = b""
    burnt: Annotated[str, Pattern(r"[^\x00-\x1f]{0,500}")] = ""
    """Why this node will not go on in it."""


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


@dataclass(frozen=True)
class TrainedWork:
    """What the worker brought, as far as the protocol needs it. Floats as hex of their IEEE bytes."""

    weights_id: Digest
    has_arrays: bool
    update_sha256: Digest
    weight_int: Annotated[int, Range(0, 2**63 - 1)]
    metrics: tuple[str, ...]
    metric_values: tuple[Annotated[int, Range(-(2**63), 2**63 - 1)], ...]
    """round(ŵ·metric·2^30), in the order of `metrics` (sorted)."""
    tokens: Number = 0
    steps: Number = 0
    milliseconds: Number = 0
    device: str = ""


@dataclass(frozen=True)
class ExchangeWork:
    """One exchange of this run."""

    number: Number
    epoch: Number
    category: Annotated[str, Pattern("train|evaluate|query")]
    instruction: Blob
    node_values: Blob
    weights: str
    layout: Blob
    base_record: Blob
    weights_id: Digest
    content_id: Digest
    deadline_ms: Annotated[int, Range(0, 2**53)] = 0
    trained: TrainedWork | None = None
    ready: Blob = b""
    sat_out: Annotated[str, Pattern(r"[^\x00-\x1f]{0,1000}")] = ""
    instances: Annotated[tuple[InstanceWork, ...], Items(0, 64)] = ()
    next_base: Blob = b""
    next_weights_id: Digest = bytes(32)
    accept: Blob = b""
    closed: bool = False


@dataclass(frozen=True)
class NodeRunState:
    """Everything this node knows of one run."""

    run: Digest
    plan_envelope: Blob = b""
    app_blob: str = ""
    decision: Annotated[str, Pattern("ask|allowed|refused")] = "ask"
    refusal: Annotated[str, Pattern(r"[^\x00-\x1f]{0,1000}")] = ""
    approval: Blob = b""
    epoch: EpochWork | None = None
    last_epoch: Number = 0
    """Highest epoch number begun; a lower one is never gone back to."""
    old_epoch: EpochWork | None = None
    """The epoch an instance in flight still runs under."""
    exchange: ExchangeWork | None = None
    last_closed: Number = 0
    """Highest exchange closed for this node."""
    last_accepted: Number = 0
    """Highest exchange this node accepted; goes into its adverts."""
    base_record: Blob = b""
    """The base this node computed or took with u_min acceptances; b"" before the first exchange."""
    base_weights_id: Digest = bytes(32)
    scales: OpenedScales | None = None
    """Opened scales on the current base whose update was not opened yet."""
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Metric names seen frozen per category."""
    seqs: Mapping[str, Number] = field(default_factory=dict)
    """Highest statement number seen per node key (hex): rule 7."""
    status: Annotated[str, Pattern(r"[^\x00-\x1f]{0,1000}")] = ""
    kind: Annotated[str, Pattern(r"[a-z-]{0,16}")] = ""
    """Directive now followed; what `owed` answers depends on it."""
    finished: bool = False

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
