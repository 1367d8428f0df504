"""The state of one run: frozen dataclasses, a pure fold over the event log. Never persisted, so never migrated.

RunState ─ epoch: EpochState ─ exchange: ExchangeState ─ instances: InstanceState (scales, update | scalars)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from dure.secagg.recover import Recovered
from dure_coordinator.exchange.duties import Reply
from dure_coordinator.exchange.events import Asked
from dure_coordinator.exchange.facts import RunFacts


class RunPhase(StrEnum):
    APPROVING = "approving"
    EPOCH = "epoch"
    IDLE = "idle"
    EXCHANGE = "exchange"
    FINISHED = "finished"
    ABORTED = "aborted"


class EpochPhase(StrEnum):
    ADVERT = "advert"
    KEM = "kem"
    GROUP = "group"
    JOIN = "join"
    READY = "ready"


class ExchangePhase(StrEnum):
    EXECUTE = "execute"
    SCALES = "scales"
    UPDATE = "update"
    SCALARS = "scalars"
    STEP = "step"
    """The coordinator computes the next base and collects acceptances."""
    CLOSED = "closed"
    FAILED = "failed"


class InstancePhase(StrEnum):
    SHARE = "share"
    OPEN = "open"
    """All share messages are here; the coordinator owes the signed instance-open."""
    UPLOAD = "upload"
    SURVIVORS = "survivors"
    CERTIFY = "certify"
    """The quorum signed; the coordinator owes the signed instance-survivors."""
    COSIGN = "cosign"
    """instance-survivors is an entry of the log; a head over it that the witnesses' quorum cosigned is waited for."""
    REVEAL = "reveal"
    SUM = "sum"
    AGGREGATE = "aggregate"
    """The sum is there; the coordinator owes the signed instance-aggregate (and instance-dropouts)."""
    OPENED = "opened"
    VOID = "void"
    """Collecting instance-void statements."""
    VOIDED = "voided"
    FAILED = "failed"
    """Given up before anyone was asked for a byte: needs no voids."""


@dataclass(frozen=True)
class Patience:
    """For how long whom is waited for, in seconds; from the settings of the coordinator process that took the run up last."""

    gone_grace_s: float = 15.0
    return_grace_s: float = 30.0
    join_grace_s: float = 5.0


@dataclass(frozen=True)
class Presence:
    """One roster member's node, as last seen."""

    node_key: bytes
    generation: int
    delegation: bytes
    connected: bool
    until: float = 0.0
    """While it is away: unix seconds from which it is lost."""
    lost: bool = False
    """Away for too long: no phase waits for it any more when everyone else is done."""


@dataclass(frozen=True)
class EpochState:
    """One key epoch of the run."""

    number: int
    phase: EpochPhase
    members: tuple[str, ...]
    began: float
    """Start of the current phase, unix seconds."""
    started: float
    """Start of the epoch, unix seconds."""
    adverts: Mapping[str, bytes] = field(default_factory=dict)
    kems: Mapping[str, bytes] = field(default_factory=dict)
    groups: Mapping[str, bytes] = field(default_factory=dict)
    joined: tuple[str, ...] = ()
    node_keys: Mapping[str, bytes] = field(default_factory=dict)
    """Node key each member's advert verified under."""
    delegations: Mapping[str, bytes] = field(default_factory=dict)
    """Each member's word for that key, as it stood when the epoch began: part of every instance's evidence."""


@dataclass(frozen=True)
class Ready:
    """A node executed the instruction and could deal."""

    content_id: bytes
    weights_id: bytes
    layout_sha256: bytes
    metrics: tuple[str, ...]
    seq: int
    prev: bytes
    """32 bytes; zeros where the node's chain is empty."""


@dataclass(frozen=True)
class InstanceState:
    """One instance of the secure sum, one attempt."""

    instance: bytes
    """TLV of the instance id: the key everywhere."""
    purpose: Literal["scales", "update", "scalars"]
    attempt: int
    epoch: int
    cohort: tuple[str, ...]
    threshold: int
    phase: InstancePhase
    began: float
    """When members were asked for what they are asked now, unix seconds; a phase in which only the coordinator works keeps it."""
    shares: Mapping[str, bytes] = field(default_factory=dict)
    open_statement: Any = None
    open_envelope: bytes = b""
    ctx: bytes = b""
    commits: Mapping[str, bytes] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    signatures: Mapping[str, bytes] = field(default_factory=dict)
    survivors_statement: Any = None
    survivors_envelope: bytes = b""
    survivors_proof: bytes = b""
    """tlog-proof of it under a cosigned head; nobody is asked to reveal before."""
    decision: Literal["", "reveal", "void"] = ""
    """Persisted once; the other is never asked for."""
    reveals: Mapping[str, bytes] = field(default_factory=dict)
    unopened: tuple[str, ...] = ()
    """Dropped members whose bundle does not open; survivors are asked for their pair secrets."""
    recovered: Recovered | None = None
    """What the reveals opened."""
    root: bytes = b""
    sum: str = ""
    seeds: str = ""
    """Blob id text of what was revealed; the aggregate names its SHA-256."""
    evidence: str = ""
    """Blob id text of `dure.recompute.evidence.Evidence`."""
    uploads: Mapping[str, str] = field(default_factory=dict)
    """Survivor -> blob id text of its committed upload: root and length from the commit. Empty until summed, and for scalars."""
    e_b: str = ""
    e_b_sha256: bytes = bytes(32)
    trailer: tuple[int, ...] = ()
    """Opened, modulo 2^64."""
    tag: int = 0
    aggregate_statement: Any = None
    aggregate_envelope: bytes = b""
    dropouts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Per member left out: (phase, reason)."""
    dropout_envelopes: Mapping[str, bytes] = field(default_factory=dict)
    voids: Mapping[str, bytes] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class ExchangeState:
    """One exchange."""

    number: int
    epoch: int
    asked: Asked
    category: Literal["train", "evaluate", "query"]
    has_arrays: bool
    weights_id: bytes
    content_id: bytes
    layout: bytes
    base_record: bytes
    """Canonical JSON; b"" without arrays."""
    members: tuple[str, ...]
    phase: ExchangePhase
    began: float
    ready: Mapping[str, Ready] = field(default_factory=dict)
    sat_out: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """(phase, reason) per member that left, was lost or was left out."""
    instances: tuple[InstanceState, ...] = ()
    """In order; the last is the current one. Failed attempts stay."""
    metrics: tuple[str, ...] = ()
    scales: InstanceState | None = None
    """The opened scales this exchange's update uses, its own or an earlier exchange's."""
    scales_exchange: int = 0
    step_result: Mapping[str, bytes] = field(default_factory=dict)
    accepts: Mapping[str, bytes] = field(default_factory=dict)
    usages: Mapping[str, bytes] = field(default_factory=dict)
    """DSSE bytes of the usage statement that came with each acceptance; b"" for none."""
    reply: Reply | None = None
    reason: str = ""
    started: float = 0.0
    """When it was begun, unix seconds."""
    ended: float = 0.0
    """When it was closed or failed, unix seconds; 0 while it runs."""
    phases: tuple[tuple[str, float], ...] = ()
    """(phase, when it came to it, unix seconds), in order; timing.py names them."""

    @property
    def instance(self) -> InstanceState | None:
        """The current instance."""
        return self.instances[-1] if self.instances else None


@dataclass(frozen=True)
class Unanswered:
    """A request that was decided and whose Answer duty is still owed."""

    seq: int
    exchange: int
    """0: it never became one."""
    reply: Reply


@dataclass(frozen=True)
class Counted:
    """What a member's exchanges come to; all but `exchanges` is what it declared itself, in signed usage statements."""

    exchanges: int = 0
    tokens: int = 0
    steps: int = 0
    milliseconds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class Disputed:
    """A member's signed word against an opened sum."""

    member: str
    instance: bytes
    envelope: bytes
    delegation: bytes
    """Its member's word for the key that signed, so that others can check both."""


@dataclass(frozen=True)
class RunState:
    """The whole run."""

    facts: RunFacts
    phase: RunPhase
    began: float
    patience: Patience = field(default_factory=Patience)
    present: Mapping[str, Presence] = field(default_factory=dict)
    approvals: Mapping[str, bytes] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    quorum_since: float | None = None
    """When the quorum was approved and connected for the first time."""
    epoch: EpochState | None = None
    epochs: int = 0
    """Epoch numbers used."""
    left_out: tuple[str, ...] = ()
    """Members an epoch went on without; considered again once they reconnect or the exchange is over."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """How often in a row each member gave up an epoch that was being agreed."""
    renew: bool = False
    """A new epoch is due as soon as no exchange is in flight."""
    exchange: ExchangeState | None = None
    """In flight, or the last one; once answered it is slim, too."""
    closed: tuple[ExchangeState, ...] = ()
    """Earlier exchanges, closed or failed, without bulky parts (past.slim)."""
    counted: Mapping[str, Counted] = field(default_factory=dict)
    """Per member, over all closed exchanges."""
    exchanges: int = 0
    """Exchange numbers used."""
    queued: Asked | None = None
    """Asked and waiting for an epoch."""
    answers: Mapping[int, bytes] = field(default_factory=dict)
    """seq -> digest of every request decided."""
    unanswered: tuple[Unanswered, ...] = ()
    base_record: bytes = b""
    """Canonical JSON of the current base; b"" before the first exchange with arrays."""
    base_weights_id: bytes = bytes(32)
    base_accepts: Mapping[str, bytes] = field(default_factory=dict)
    """The exchange-accepts that named the current base."""
    closed_accepts: Mapping[str, bytes] = field(default_factory=dict)
    """Those of the newest exchange that closed: a node that was away learns from them how far the run is."""
    metric_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Frozen metric names per category."""
    seqs: Mapping[str, int] = field(default_factory=dict)
    """Highest statement number seen per node key (hex)."""
    convicted: Mapping[str, str] = field(default_factory=dict)
    """Members proved guilty: in no later cohort."""
    disputes: tuple[Disputed, ...] = ()
    """In order of arrival, one per member and instance."""
    stopping: bool = False
    """The ServerApp returned."""
    paused: str = ""
    """Why no exchange begins; "" while they may."""
    halting: str = ""
    """Why no further round begins; "" while they may."""
    unasked: Asked | None = None
    """What a halted ServerApp asked for last: never run, but its weights are the newest model."""
    reason: str = ""
    """In words: what is waited for, or how it ended."""
