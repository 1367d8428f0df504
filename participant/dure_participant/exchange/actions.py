"""What the agent is to do next. All are a function of the persisted state (`owed`), so repeating one after a crash is
harmless; `id` is stable, and one that is running already is left running.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dure.model.content import Instruction
from dure.secagg.encode import Weight
from dure.secagg.ids import Purpose
from dure.secagg.instance import InstanceSecret, masks
from dure.secagg.kernel import KIND_OF, UploadEncoder
from dure.secagg.scales import raised
from dure.secagg.tag import TagKey
from dure.wire.messages import Report


@dataclass(frozen=True)
class Send:
    """Send this report until it is answered. A refusal is shown to the operator; the state does not change."""

    id: str
    report: Report


@dataclass(frozen=True)
class AskOperator:
    """Show the plan, get a decision, come back with `Allowed`."""

    id: str
    run: bytes
    plan_envelope: bytes
    app_blob: str


@dataclass(frozen=True)
class Train:
    """Execute the instruction; come back with `Trained`. The agent takes the weights blob (if any), checks its weights
    id, hands file and config to the worker, and checks the reply's arrays before anything is said."""

    id: str
    exchange: int
    instruction: Instruction
    """With this node's own per-node values filled in."""
    weights: str
    """Blob id text of the base's flat vector; "" without arrays."""
    base_record: bytes
    """Canonical JSON; b"" without arrays."""
    deadline_ms: int
    w_max: int


@dataclass(frozen=True)
class Upload:
    """Build an `UploadEncoder`, stream its chunks under `upload`, come back with `UploadReady`."""

    id: str
    instance: bytes
    upload: bytes
    """32 bytes: SHA-256("dure upload\\n" ‖ u16 length of instance ‖ instance ‖ member)."""
    purpose: Literal["scales", "update", "scalars"]
    exchange: int
    cohort: tuple[str, ...]
    member: str
    ctx: bytes
    elements: int
    """D; 0 for scalars."""
    length: int
    chunk_bytes: int
    update_root: bytes
    """Merkle root over the update's chunks as they were looked at; refuse (`Failed`) to go on with another."""
    rounding_key: bytes
    weight_int: int
    """ŵ_int."""
    metrics: Mapping[str, float]
    group_key: bytes = field(repr=False)
    """G, for the tag."""
    secret: InstanceSecret = field(repr=False)
    base_record: bytes = b""
    e_b: str = ""
    """update: blob id text of the exponents (int8 per block), kept by the agent since it verified the scales."""
    e_bump: int = 0
    """update: 2 where the scales were opened in an earlier exchange: use `scales.raised(e_b)`; else 0."""

    def encoder(self, e_b: NDArray[np.int8] | None = None) -> UploadEncoder:
        """The encoder of this upload; `e_b` for update: the bytes of the blob, not raised yet."""
        return UploadEncoder(
            kind=KIND_OF[Purpose(self.purpose)],
            masks=masks(self.secret, self.ctx),
            tag=TagKey(self.group_key, self.ctx, self.cohort),
            me=self.member,
            cohort_size=len(self.cohort),
            weight=Weight(self.weight_int),
            rounding_key=self.rounding_key,
            elements=self.elements,
            e_b=raised(e_b) if e_b is not None and self.e_bump else e_b,
            metrics=None if self.purpose == "scales" else self.metrics,
        )


@dataclass(frozen=True)
class Commit:
    """End the upload stream with this envelope until the coordinator acknowledges it."""

    id: str
    upload: Upload
    """Makes again what the coordinator may still lack."""
    envelope: bytes


@dataclass(frozen=True)
class Verify:
    """Download the sum, check its chunks, compute what `VerifyFacts` holds; come back with `Verified`."""

    id: str
    instance: bytes
    purpose: Literal["scales", "update", "scalars"]
    exchange: int
    sum: str
    """Blob id text; "" for scalars."""
    elements: int
    length: int
    chunk_bytes: int
    ctx: bytes
    group_key: bytes = field(repr=False)
    cohort: tuple[str, ...]
    weight_sum: int
    """Σ ŵ_int of the opened trailer (update, scalars)."""
    base_record: bytes = b""
    """update and scales: canonical JSON of the base of this exchange."""
    layout: bytes = b""
    e_cap: int = 6
    """scales: cap where the base record holds no e_b."""
    e_b: str = ""
    """update: exponents used, before the bump."""
    e_bump: int = 0
    outer_step: Mapping[str, str] = field(default_factory=dict)
    """update: as `parse_step` takes it; empty: nothing to step, the next base is shipped."""
    averaged: tuple[str, ...] = ()
    """update: the plan's patterns of tensors the step does not touch."""

    def tag_key(self) -> TagKey:
        """Its `ring_chunk` (update) or `field_chunk` (scales) of every chunk, summed, is `VerifyFacts.tag`; 0 for scalars."""
        return TagKey(self.group_key, self.ctx, self.cohort)


@dataclass(frozen=True)
class Recompute:
    """Fetch what this sum was opened from, add it up again, come back with `Recomputed`. A sum this node neither accepted nor was
    shown is not looked at."""

    id: str
    exchange: int
    instance: bytes
    aggregate_sha256: bytes
    chunks: tuple[int, ...] | None = None
    """Only these; (): signatures, seeds, trailer and tag; None: everything."""
    until_ms: int = 0
    """Unix milliseconds after which a coordinator that cannot be reached has not served it; 0: go on trying."""
    dispute: bytes = b""


@dataclass(frozen=True)
class Note:
    """One line for the operator's log and status page."""

    text: str


Action = Send | AskOperator | Train | Upload | Commit | Verify | Recompute | Note
