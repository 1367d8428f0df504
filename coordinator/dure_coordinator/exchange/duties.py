"""What the coordinator itself owes now. A duty is owed until its `Done` is in the log; its id never changes, so doing
it twice after a crash is harmless (an envelope is kept once sealed; sums and steps are content-addressed).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dure.secagg.recover import Recovered

if TYPE_CHECKING:
    from dure_coordinator.exchange.state import RunState

__all__ = ["Answer", "Cosign", "Duty", "Reply", "Sign", "Step", "Sum", "duties", "next_deadline"]


@dataclass(frozen=True)
class Sign:
    """Seal `statement` with the coordinator's key and chain. Done: {"envelope": DSSE bytes}."""

    id: str
    statement: Any
    """One of InstanceOpen, InstanceSurvivors, InstanceAggregate, InstanceDropout."""


@dataclass(frozen=True)
class Cosign:
    """Wait until this entry is under a head of the log that the witnesses' quorum cosigned. Done: {"proof": tlog-proof bytes}."""

    id: str
    envelope: bytes


@dataclass(frozen=True)
class Sum:
    """Add the spools of `survivors`, take the masks off, store the sum, the seeds and the evidence; delete every other upload.

    Done: {"root": 32 bytes, "sum", "seeds", "evidence": blob id texts} and for scales {"e_b": blob id text of the int8 exponents
    after caps, "e_b_sha256": SHA-256 of those bytes}.
    For `scalars` there is nothing to add: root is the Merkle root of nothing, sum is b"".
    """

    id: str
    instance: bytes
    purpose: Literal["scales", "update", "scalars"]
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    roots: Mapping[str, bytes]
    """Merkle root of each survivor's upload, from its commit."""
    elements: int
    """D of the flat vector; 0 for scalars."""
    length: int
    """Bytes of each upload and of the sum."""
    chunk_bytes: int
    ctx: bytes
    recovered: Recovered
    """What was opened, each value checked against its commitment; `recovered.unmask` takes the masks off the sum, chunk by chunk."""
    seeds: bytes
    """`recovered.to_bytes()`, whose SHA-256 the aggregate names; keep it with the sum."""
    evidence: bytes
    """`dure.recompute.evidence.Evidence.to_bytes()`: with seeds and uploads, all that anyone needs to add this sum up again."""
    base_e_b: str = ""
    """Blob id text of the base record's e_b; "" for none (then the plan's e_cap)."""
    e_cap: int = 6


@dataclass(frozen=True)
class Step:
    """Decode the mean update and make the reply's arrays; with a plan-named step also the next base.

    Done: {"reply": blob id text} and with a plan-named step {"base_record": canonical JSON, "weights_id": 32 bytes}
    (reply is then the next weights; else the mean update).
    """

    id: str
    exchange: int
    base_record: bytes
    """Canonical JSON of the base this exchange started from."""
    layout: bytes
    """Canonical JSON."""
    sum: str
    """Blob id text of the opened Z_2^16 sum."""
    e_b: str
    """Blob id text of the exponents (int8, one per block)."""
    e_bump: int
    """Added to every e_b (capped at 6): 2 where scales opened in an earlier exchange are used again."""
    cohort_size: int
    """m of the update instance: L depends on it."""
    weight_sum: int
    """Σ ŵ_int."""
    outer_step: Mapping[str, str]
    averaged: tuple[str, ...]
    """Patterns of the tensors it does not touch; from the plan."""
    """Configuration as `parse_step` takes it; empty: not plan-named."""


@dataclass(frozen=True)
class Reply:
    """What the ServerApp gets."""

    status: Literal["ok", "failed"]
    arrays: Literal["none", "mean-update", "weights"] = "none"
    blob: str = ""
    """Blob id text of the flat vector; "" when arrays is none."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_examples: float = 0.0
    survivors: tuple[str, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)
    """Per member not in the sum, why; on failure for every asked member."""
    reason: str = ""
    seed: bytes = b""
    """Of the run's first weights, where the exchange drew it."""


@dataclass(frozen=True)
class Answer:
    """Hand `reply` to the ServerApp's request `seq` and journal it. Done: {}."""

    id: str
    seq: int
    exchange: int
    reply: Reply


Duty = Sign | Cosign | Sum | Step | Answer


def duties(state: RunState) -> tuple[Duty, ...]:
    """Everything owed now, in the order in which it should be started."""
    from dure_coordinator.exchange.owed import duties_of

    return duties_of(state)


def next_deadline(state: RunState) -> float | None:
    """Unix seconds at which a `Tick` is wanted; None for never."""
    from dure_coordinator.exchange.owed import wakeup_of

    return wakeup_of(state)
