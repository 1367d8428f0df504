"""What a node's half of the exchange is told. Each is idempotent: the same input changes nothing a second time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dure.recompute.sums import Finding
from dure.statements.kinds import Energy, EnvCommitment
from dure.wire.messages import Directive


@dataclass(frozen=True)
class Directed:
    """The coordinator's current directive, as decoded by `wire/`. Not believed: judged."""

    directive: Directive


@dataclass(frozen=True)
class Allowed:
    """The operator (or the site's policy) decided about this run's plan."""

    run: bytes
    allowed: bool = True
    reason: str = ""
    """Why not; sent to the coordinator as the refusal."""
    consented: tuple[bytes, ...] = ()
    """Earlier sums on the plan's base (instances) that the operator was shown and consented to."""


@dataclass(frozen=True)
class TrainResult:
    """What came of a `Train`. `problem` non-empty: nothing may leave, the node sits out with this reason."""

    weights_id: bytes = bytes(32)
    """Weights id the agent computed over the base file it gave the worker; zeros where there are no arrays."""
    has_arrays: bool = False
    update_root: bytes = bytes(32)
    """Merkle root over the chunks of local weights − base: a resumed upload must be of these very bytes."""
    weight: float = 0.0
    """num-examples, > 0."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    steps: int = 0
    milliseconds: int = 0
    device: str = ""
    environment: EnvCommitment | None = None
    """What the app worked in; None where none did."""
    measured_flop: int = 0
    """As the app counted them; 0: it did not."""
    hardware_flop: int = 0
    """Peak rate x time; 0: the site declares no rate."""
    energy: Energy | None = None
    problem: str = ""
    """In words for the operator, naming tensor or metric: app error, NaN or infinity, |x·ŵ| >= 2^6, base not as promised."""
    told: str = ""
    """What the coordinator is told of it: no value of this site's, no word of the app's, no path."""


@dataclass(frozen=True)
class Trained:
    """A `Train` action ended."""

    exchange: int
    result: TrainResult


@dataclass(frozen=True)
class UploadReady:
    """Every chunk of an `Upload` was made and handed to the stream; what the encoder then holds."""

    instance: bytes
    root: bytes
    """Merkle root over the masked chunks; of nothing for scalars."""
    length: int
    trailer: tuple[int, ...]
    """Masked, Z_2^64."""
    tag: int
    """Masked, F_p."""
    bytes_down: int = 0
    """Bytes of blobs this node fetched for the run since the last instance it said so of."""
    data: tuple[bytes, ...] = ()
    """Payload digests of the data commitments that its usage statement names."""


@dataclass(frozen=True)
class VerifyFacts:
    """What the agent found out about a downloaded sum; `step` judges it."""

    root: bytes
    """Merkle root over the sum's chunks as downloaded (leaves recomputed)."""
    length: int
    tag: int
    """Σ_b u_b Σ_c v_c·lift(q_bc) of the sum under the tag key of this ctx: the data part, no trailer, no pads."""
    e_b: str = ""
    """scales: blob id text of the exponents after caps (int8, one per block), which the agent keeps."""
    e_b_sha256: bytes = bytes(32)
    next_base: bytes = b""
    """update, plan-named step: canonical JSON of the next base record; b"" otherwise."""
    next_weights_id: bytes = bytes(32)
    """Weights id of the next base; zeros otherwise."""


@dataclass(frozen=True)
class Verified:
    """A `Verify` action ended."""

    instance: bytes
    facts: VerifyFacts


@dataclass(frozen=True)
class Recomputed:
    """A sum was added up again from its committed uploads, whole or in part."""

    instance: bytes
    aggregate_sha256: bytes
    """Payload digest of the instance-aggregate."""
    finding: Finding
    dispute: bytes = b""
    """SHA-256 of the dispute that asked for it; b"" where all of the sum was recomputed."""


@dataclass(frozen=True)
class Failed:
    """An action could not be done and repeating it will not help. `what` is the action's id."""

    what: str
    reason: str


Input = Directed | Allowed | Trained | UploadReady | Verified | Recomputed | Failed
