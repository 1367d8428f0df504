"""What the agent is to do next. All are a function of the persisted state (`owed`), so repeating one after a crash is
harmless; `id` is stable, and one that is running already is left running.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dure.model.content import Instruction
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
    update_sha256: bytes
    """The local weights file's digest; refuse (`Failed`) to go on with another."""
    rounding_key: bytes
    weight_int: int
    """ŵ_int."""
    trailer: tuple[int, ...]
    """In the clear, signed values modulo 2^64; the clip count (index 2 of update) is zero here and filled in by the encoder."""
    self_seed: bytes
    """b_i."""
    pair_secrets: Mapping[str, bytes]
    """R_ij by peer."""
    group_key: bytes
    """G, for the tag."""
    base_record: bytes = b""
    e_b: str = ""
    """update: blob id text of the exponents to use, before the bump."""
    e_bump: int = 0


@dataclass(frozen=True)
class Commit:
    """End the upload stream with this envelope until the coordinator acknowledges it."""

    id: str
    instance: bytes
    upload: bytes
    length: int
    chunk_bytes: int
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
    group_key: bytes
    cohort_size: int
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


@dataclass(frozen=True)
class Note:
    """One line for the operator's log and status page."""

    text: str


Action = Send | AskOperator | Train | Upload | Commit | Verify | Note
