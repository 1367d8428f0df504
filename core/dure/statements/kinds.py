"""One frozen dataclass per statement; the annotation of a field is its form (schema.py). Source: ledger.md §3-4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from dure.statements.schema import Hex, Items, Pattern, Range

MemberId = Annotated[str, Pattern(r"[a-z0-9-]{1,32}")]
Name = Annotated[str, Pattern(r"[A-Za-z0-9._-]{1,64}")]
Reason = Annotated[str, Pattern(r"[^\x00-\x1f]{0,500}")]
Decimal = Annotated[str, Pattern(r"[0-9]{1,9}(\.[0-9]{1,24})?(e-?[0-9]{1,2})?")]
"""As docs/spec/formats.md, "Outer steps", writes them."""
TensorPattern = Annotated[str, Pattern(r"\*?[\x21-\x29\x2b-\x7e]{1,64}\*?")]
"""A tensor's name, or with a star at either end its end, beginning or middle."""
Digest = Annotated[bytes, Hex(32)]
Nonce = Annotated[bytes, Hex(16)]
Instance = Annotated[bytes, Hex(most=512)]
"""TLV of the instance id (secagg.ids.InstanceId.tlv)."""
Counter = Annotated[int, Range(0, 2**48)]
Seconds = Annotated[int, Range(1, 10 * 86_400)]
BlobId = Annotated[str, Pattern(r"[0-9a-f]{64}:[0-9]{1,15}")]
Day = Annotated[str, Pattern(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")]
SettingValue = Annotated[str | int | bool, Range(-(2**63), 2**63 - 1)]
FlopCount = Annotated[str, Pattern(r"[1-9][0-9]{0,29}")]
"""Floating-point operations, a whole number above 0 as text: other readers' integers end at 2^53."""
GitCommit = Annotated[str, Pattern(r"[0-9a-f]{40}|[0-9a-f]{64}")]
DeviceName = Annotated[str, Pattern(r"[A-Za-z0-9][A-Za-z0-9 ()@+.,_-]{0,63}")]
"""A product's name: no path and no address fits."""
DriverVersion = Annotated[str, Pattern(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,31}")]


@dataclass(frozen=True)
class Deadlines:
    """Seconds from the phase's start."""

    approve: Seconds = 86_400
    epoch: Seconds = 60
    execute: Seconds = 3_600
    share: Seconds = 60
    upload: Seconds = 600
    survivors: Seconds = 60
    reveal: Seconds = 60
    accept: Seconds = 600


@dataclass(frozen=True)
class OuterStep:
    """What turns an aggregate into the next base; `none` leaves it to the run's ServerApp. Decimals as text."""

    name: Annotated[str, Pattern("none|average|nesterov|adam")]
    settings: Annotated[Mapping[str, Decimal], Items(0, 8)]
    averaged: Annotated[tuple[TensorPattern, ...], Items(0, 32)] = ()
    """Tensors that are averaged whatever the step: running statistics, say, which a momentum could make negative. Integers always are."""

    @property
    def named(self) -> bool:
        """Whether members compute every next base themselves; else the run's ServerApp makes them, and nobody recomputes them."""
        return self.name != "none"

    @property
    def config(self) -> dict[str, str]:
        """As `dure.model.outer.parse_step` takes it; empty where it is not named."""
        return {"name": self.name, **self.settings} if self.named else {}


@dataclass(frozen=True)
class EarlierSum:
    """An instance on the plan's base that was opened, or may have been: certified, and not voided."""

    instance: Instance
    category: Annotated[str, Pattern("train|evaluate|query")]
    purpose: Annotated[str, Pattern("scales|update|scalars")]
    survivors: Annotated[tuple[MemberId, ...], Items(3, 255)]


@dataclass(frozen=True)
class NamedBase:
    """First weights that were there before the run, and every sum opened on them: who uses them again must have seen these."""

    weights_id: Digest
    tensors_sha256: Digest
    """Of names, dtypes and shapes, in any order (dure.model.layout.tensors_sha256)."""
    parameters: Counter
    origin: Annotated[str, Pattern(r"[^\x00-\x1f]{1,300}")]
    """In words: the run and its round, or the file."""
    run: Digest | None
    """The run whose model it is; null for a file."""
    file_sha256: Digest | None
    """SHA-256 of the safetensors file; null for a run."""
    earlier: Annotated[tuple[EarlierSum, ...], Items(0, 256)]


@dataclass(frozen=True)
class InitialRule:
    """What the tensors of a pattern begin as (dure.model.initial.Rule)."""

    tensors: Annotated[str, Pattern(r"\*|\*?[\x21-\x29\x2b-\x7e]{1,64}\*?")]
    kind: Annotated[str, Pattern("normal|constant")]
    value: Decimal


@dataclass(frozen=True)
class JointInitial:
    """First weights drawn by all members together, in the run's first exchange: the same for everyone who knows the opened seeds."""

    scheme: Annotated[str, Pattern("dure-initial-1")]
    tensors_sha256: Digest
    """Of names, dtypes and shapes, in any order (dure.model.layout.tensors_sha256)."""
    parameters: Counter
    rules: Annotated[tuple[InitialRule, ...], Items(1, 64)]
    """The first that names a tensor holds."""


@dataclass(frozen=True)
class RunPlan:
    """What members approve before a run. `run` = SHA-256 of this statement's payload, which holds a nonce: one approval, one run."""

    kind: ClassVar[str] = "run-plan"
    nonce: Nonce
    consortium: Nonce
    charter_version: Counter
    charter_sha256: Digest
    name: Name
    app_sha256: Digest
    app_blob: BlobId
    app_name: Name
    app_version: Annotated[str, Pattern(r"[^\x00-\x1f]{1,64}")]
    env_sha256: Digest | None
    """SHA-256 of the lock in the app's folder: its environment; null where it has none (environments.md)."""
    roster: Annotated[tuple[MemberId, ...], Items(3, 255)]
    rounds: Annotated[int, Range(1, 1_000_000)]
    max_exchanges: Annotated[int, Range(1, 10_000_000)]
    outer_step: OuterStep
    encoding: Annotated[str, Pattern("ring16")]
    stream: Annotated[str, Pattern("aes-256-ctr")]
    recheck: Annotated[str, Pattern("off")]
    keep_uploads: Annotated[str, Pattern("none|all")]
    base: NamedBase | None
    """Where the first weights come from; null: whatever the ServerApp sends first."""
    w_max: Annotated[int, Range(1, 2**40)]
    e_cap: Annotated[int, Range(-40, 6)]
    colluders: Annotated[int, Range(1, 254)]
    u_min: Annotated[int, Range(3, 255)]
    metrics: Annotated[Mapping[str, tuple[str, ...]], Items(0, 3)]
    """Per category the names of masked metrics; empty: the first exchange of the category fixes them."""
    per_node_config: Annotated[Mapping[str, tuple[str, ...]], Items(0, 64)]
    """Config keys that may differ per node, each with the values it may have as JSON text."""
    scalars_max: Annotated[int, Range(0, 10_000_000)]
    """Most exchanges without arrays, per category."""
    allow_unrecomputed_bases: bool
    settings: Annotated[Mapping[str, SettingValue], Items(0, 256)]
    """The app's run config. Decimals as text; the app folder says their types."""
    deadlines: Deadlines
    initial: JointInitial | None = None
    """How the first weights are drawn jointly; null: they are the plan's base, or whatever the ServerApp sends first."""


@dataclass(frozen=True)
class RunApproval:
    """A node's word, after its operator allowed the plan."""

    kind: ClassVar[str] = "run-approval"
    run: Digest
    member: MemberId
    node: Name


@dataclass(frozen=True)
class CohortMember:
    member: MemberId
    advert_sha256: Digest
    seq: Counter
    """The node's latest statement number, as its `ready` said."""
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Per config record the values of this member's per-node keys, as JSON text."""


@dataclass(frozen=True)
class ScalesReference:
    """Which opened `scales` an `update` uses."""

    instance: Instance
    survivors_sha256: Digest
    """Payload digest of its instance-survivors."""
    aggregate_sha256: Digest
    """Payload digest of its instance-aggregate."""
    e_b_sha256: Digest
    """SHA-256 of the block exponents, int8 each."""


@dataclass(frozen=True)
class InstanceOpen:
    """Everything one instance is about; ctx hashes this payload, so views that differ never cancel."""

    kind: ClassVar[str] = "instance-open"
    instance: Instance
    charter_version: Counter
    charter_sha256: Digest
    run: Digest
    category: Annotated[str, Pattern("train|evaluate|query")]
    message_type: Annotated[str, Pattern(r"(train|evaluate|query)(\.[A-Za-z0-9_.-]{1,64})?")]
    weights_id: Digest
    base_id: Digest
    content_id: Digest
    layout_sha256: Digest
    elements: Counter
    codec: Annotated[str, Pattern("ring16|fp61|none")]
    cohort: Annotated[tuple[CohortMember, ...], Items(3, 255)]
    metrics: Annotated[tuple[str, ...], Items(0, 64)]
    shares_sha256: Digest
    scales: ScalesReference | None
    u_min: Annotated[int, Range(3, 255)]
    threshold: Annotated[int, Range(2, 255)]
    upload_deadline: Counter
    """Unix seconds."""


@dataclass(frozen=True)
class InstanceCommit:
    """Ends a node's upload stream; the upload counts once this is durable at the coordinator."""

    kind: ClassVar[str] = "instance-commit"
    instance: Instance
    ctx: Digest
    member: MemberId
    root: Digest
    """Merkle root over the chunks of the masked vector; of nothing where the instance has none."""
    length: Counter
    """Bytes of the masked vector."""
    trailer: Annotated[tuple[Annotated[int, Range(0, 2**64 - 1)], ...], Items(1, 96)]
    """Masked, in Z_2^64."""
    tag: Annotated[int, Range(0, 2**61 - 2)]
    """Masked, in F_p."""
    usage_sha256: Digest | None
    """Envelope digest of the exchange's usage statement; in its last instance."""


@dataclass(frozen=True)
class Survivor:
    member: MemberId
    commit_sha256: Digest
    """Payload digest of its instance-commit."""


@dataclass(frozen=True)
class SurvivorSignature:
    member: MemberId
    signature: Annotated[bytes, Hex(64)]


@dataclass(frozen=True)
class InstanceSurvivors:
    """The one survivor set of an instance, with its quorum certificate."""

    kind: ClassVar[str] = "instance-survivors"
    instance: Instance
    ctx: Digest
    survivors: Annotated[tuple[Survivor, ...], Items(3, 255)]
    certificate: Annotated[tuple[SurvivorSignature, ...], Items(2, 255)]


@dataclass(frozen=True)
class InstanceAggregate:
    """The opened sum."""

    kind: ClassVar[str] = "instance-aggregate"
    instance: Instance
    ctx: Digest
    survivors_sha256: Digest
    root: Digest
    length: Counter
    trailer: Annotated[tuple[Annotated[int, Range(0, 2**64 - 1)], ...], Items(1, 96)]
    tag: Annotated[int, Range(0, 2**61 - 2)]
    seeds_sha256: Digest
    """SHA-256 of the revealed self seeds and dropped pair secrets (TLV)."""


@dataclass(frozen=True)
class Measured:
    name: Annotated[str, Pattern(r"[^\x00-\x1f]{1,200}")]
    """As instance-open has it."""
    value: Annotated[str, Pattern(r"-?[0-9]{1,40}(\.[0-9]{1,120})?")]
    """Weighted mean over the members: the shortest decimal of the float64."""


@dataclass(frozen=True)
class Eval:
    """What members measured together on one model, in words: of the opened sum of an evaluate exchange (dure.provenance.evaluation)."""

    kind: ClassVar[str] = "eval"
    run: Digest
    exchange: Counter
    weights_id: Digest
    """Of the model."""
    aggregate_sha256: Digest
    """Payload digest of the instance-aggregate."""
    members: Annotated[tuple[MemberId, ...], Items(1, 255)]
    """Whose sum it is: each on data of its own."""
    examples: Counter
    """Behind the means."""
    metrics: Annotated[tuple[Measured, ...], Items(0, 64)]
    """In order of name."""
    data: Annotated[tuple[Digest, ...], Items(0, 128)]
    """Payload digests of data commitments that the members' usage statements of this exchange name, ascending: their own word."""


@dataclass(frozen=True)
class InstanceDropout:
    """A member the exchange began with, or the instance, is not in the opened sum."""

    kind: ClassVar[str] = "instance-dropout"
    instance: Instance
    member: MemberId
    phase: Name
    reason: Reason
    late: bool
    """Its node was there, and missed the phase's deadline."""


@dataclass(frozen=True)
class ExchangeAccept:
    """A node verified the exchange's sums; one per exchange, after its last instance."""

    kind: ClassVar[str] = "exchange-accept"
    run: Digest
    exchange: Counter
    member: MemberId
    aggregates: Annotated[tuple[Digest, ...], Items(1, 2)]
    """Payload digests of the instance-aggregates whose tags verified."""
    recomputed: Annotated[tuple[Digest, ...], Items(0, 2)]
    base_id: Digest | None
    """Next base; null where the step is not plan-named or no arrays came back."""


@dataclass(frozen=True)
class InstanceVoid:
    """Never will this node sign a survivor set or reveal anything in this instance; its secrets of it are erased."""

    kind: ClassVar[str] = "instance-void"
    instance: Instance
    member: MemberId
    reason: Reason


@dataclass(frozen=True)
class Dispute:
    """A node's word that an opened sum does not hold: it recomputed it, names where it differs, and takes no further part in the run."""

    kind: ClassVar[str] = "dispute"
    run: Digest
    exchange: Counter
    """In which the instance was opened."""
    member: MemberId
    instance: Instance
    aggregate_sha256: Digest
    """Payload digest of the instance-aggregate disputed."""
    finding: Annotated[str, Pattern("sum|trailer|tag|seeds|evidence|withheld|garbage")]
    """What does not hold, as `dure.recompute` names it; garbage: everything does, but the tag: some member's upload was none."""
    chunk: Counter | None
    """sum, withheld: the first chunk that differs, or is not served."""
    leaf: Digest | None
    """sum: BLAKE3 of that chunk as the coordinator signed it."""
    recomputed_leaf: Digest | None
    """sum: BLAKE3 of that chunk as it follows from the committed uploads."""
    upload_of: MemberId | None
    """withheld: whose upload."""
    reason: Reason


@dataclass(frozen=True)
class Energy:
    """What the accelerators of one worker took while it trained."""

    millijoules: Annotated[int, Range(1, 2**53)]
    """1 kWh = 3.6e9 mJ."""
    source: Annotated[str, Pattern("declared|nvml")]
    """declared: worker time x the power the site names; nvml: the devices' own counters, whoever else used them meanwhile."""


@dataclass(frozen=True)
class Usage:
    """What a member says it spent on one exchange: self-declared. What it does not know is null, never 0."""

    kind: ClassVar[str] = "usage"
    run: Digest
    exchange: Counter
    member: MemberId
    tokens: Counter
    steps: Counter
    milliseconds: Counter
    bytes_up: Counter
    """Masked uploads of this exchange."""
    bytes_down: Counter
    """Blobs fetched since this node's usage statement before: base, scales, sums, code."""
    device: Annotated[str, Pattern(r"[^\x00-\x1f]{0,64}")]
    data: Annotated[tuple[Digest, ...], Items(0, 16)] = ()
    """Payload digests of this member's data commitments that it says it used."""
    environment_sha256: Digest | None = None
    """Envelope digest of this member's env-commitment that its app worked in: an entry before this one. Null: no app did."""
    formula_flop: FlopCount | None = None
    """6 x parameters x tokens in a train exchange, 2 x parameters x tokens otherwise (Kaplan et al. 2020, section 2.1)."""
    measured_flop: FlopCount | None = None
    """Counted by the app: its metric `dure.flop`."""
    hardware_flop: FlopCount | None = None
    """Worker time x the peak rate that the site names (`peak_flops`): an upper bound."""
    energy: Energy | None = None


@dataclass(frozen=True)
class Accelerators:
    """So many devices of one kind; nothing in it tells one machine of a kind from another."""

    kind: Annotated[str, Pattern("cpu|gpu|npu|other")]
    name: DeviceName
    count: Annotated[int, Range(1, 65_536)]
    """Devices; of a cpu, hardware threads that the node may use."""
    memory_gib: Annotated[int, Range(1, 2**20)] | None
    """Of one, rounded down; of a cpu, the machine's."""
    driver: DriverVersion | None


@dataclass(frozen=True)
class EnvCommitment:
    """What a member says its node's app works in: self-declared. Signed by the node before the first usage statement that names it, and
    once for each content."""

    kind: ClassVar[str] = "env-commitment"
    member: MemberId
    dure_version: Annotated[str, Pattern(r"[0-9][0-9A-Za-z.+!-]{0,63}")]
    dure_commit: GitCommit | None
    """Of the working tree Dure runs from, where it has no changes; null for an installed package, whose version says what it is."""
    app_sha256: Digest
    """Of the app's archive, as the plan names it: its code to the byte."""
    lock_sha256: Digest | None
    """Of the lock its packages follow; null: this node's own interpreter, with whatever is installed there."""
    python: Annotated[str, Pattern(r"[a-z0-9]{1,16}-[0-9a-z]{1,8} [A-Za-z0-9._-]{1,48}")]
    """Interpreter and platform, as `cpython-311 linux-x86_64`."""
    accelerators: Annotated[tuple[Accelerators, ...], Items(1, 16)]


@dataclass(frozen=True)
class DataCommitment:
    """What a member says it has to train on, fixed before anybody asks: self-declared, and single files can be opened later (ledger.md)."""

    kind: ClassVar[str] = "data-commitment"
    member: MemberId
    name: Name
    root: Digest
    """RFC 6962 tree head over the files' salted leaves (dure.provenance.data_set)."""
    files: Annotated[int, Range(1, 2**32)]
    total_bytes: Counter
    documents: Counter | None
    tokens: Counter | None
    license: Annotated[str, Pattern(r"[^\x00-\x1f]{1,200}")]
    """SPDX expression or words."""
    collected_from: Day | None
    collected_to: Day | None


@dataclass(frozen=True)
class NodeDelegation:
    """A member lets a node key speak for it; a higher generation replaces every lower one."""

    kind: ClassVar[str] = "node-delegation"
    member: MemberId
    node: Name
    node_key: Digest
    generation: Annotated[int, Range(1, 2**31)]
    not_before: Counter
    not_after: Counter


@dataclass(frozen=True)
class NodeRevocation:
    """A member takes its word for a node back: from this entry on its keys up to this generation speak for nobody."""

    kind: ClassVar[str] = "node-revocation"
    member: MemberId
    node: Name
    generation: Annotated[int, Range(1, 2**31)]
    """Highest one revoked; a new node needs a higher one."""
    certificates_before: Counter
    """Unix seconds: this node's TLS certificates that were issued before are refused."""
    reason: Reason


@dataclass(frozen=True)
class CharterVersion:
    """A charter version is in force from this entry on; its own signatures are in its file."""

    kind: ClassVar[str] = "charter"
    version: Annotated[int, Range(1, 1_000_000)]
    charter_sha256: Digest
    """SHA-256 of its signed bytes, the digest that is pinned and named in plans."""
    file_sha256: Digest
    """SHA-256 of the file, signatures and all."""


@dataclass(frozen=True)
class Release:
    """What k members sign with their governance keys (dure.provenance.attestation). No entry: it stands in `release-published`."""

    kind: ClassVar[str] = "release"
    name: Annotated[str, Pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")]
    consortium: Nonce
    charter_version: Annotated[int, Range(1, 1_000_000)]
    charter_sha256: Digest
    run: Digest
    exchange: Counter
    """That made the weights; 0: the run's first."""
    weights_id: Digest
    files_sha256: Digest
    """SHA-256 of the payload of model.sig, which names every file and its content."""
    signer_sha256: Digest
    """SHA-256 of the certificate that made model.sig, DER."""
    log_size: Counter
    """The facts are drawn from so many first entries of the log, whose root is `log_root`."""
    log_root: Digest

    @property
    def subject(self) -> tuple[str, bytes]:
        return self.name, self.files_sha256


@dataclass(frozen=True)
class Portion:
    member: MemberId
    parts: Annotated[int, Range(0, 10**9)]
    """Of the allocation's whole."""


@dataclass(frozen=True)
class Allocation:
    """How k members say that something is shared out among all, by the contributions they cite. No entry: it stands in
    `allocation-published`. Whole numbers only (dure.provenance.allocation)."""

    kind: ClassVar[str] = "allocation"
    name: Annotated[str, Pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")]
    consortium: Nonce
    charter_version: Annotated[int, Range(1, 1_000_000)]
    charter_sha256: Digest
    purpose: Reason
    """In words: what is shared out."""
    runs: Annotated[tuple[Digest, ...], Items(1, 64)]
    """Whose contributions the table has, ascending."""
    begun_from: Counter
    """Unix seconds: exchanges that began earlier are not in the table."""
    begun_before: Counter
    """Unix seconds: nor those that began then or later."""
    log_size: Counter
    """The table is a function of so many first entries of the log, whose root is `log_root`."""
    log_root: Digest
    table_sha256: Digest
    basis: Annotated[str, Pattern("agreed|counted|accepted|tokens|steps|milliseconds|bytes_up")]
    """The column by whose sums the whole is shared out; agreed: by nothing that could be computed."""
    whole: Annotated[int, Range(1, 10**9)]
    portions: Annotated[tuple[Portion, ...], Items(1, 255)]
    """In order of member; their parts are the whole."""

    @property
    def subject(self) -> tuple[str, bytes]:
        return self.name, self.table_sha256


@dataclass(frozen=True)
class MemberSignature:
    member: MemberId
    signature: Annotated[bytes, Hex(64)]


@dataclass(frozen=True)
class ReleasePublished:
    """A release that enough members signed is published: their statement, verbatim, and the signatures."""

    kind: ClassVar[str] = "release-published"
    states: ClassVar[type[Release]] = Release
    statement: Annotated[str, Pattern(r"[\x20-\x7e]{1,4096}")]
    signatures: Annotated[tuple[MemberSignature, ...], Items(2, 100)]


@dataclass(frozen=True)
class AllocationPublished:
    """An allocation that enough members signed is published, likewise."""

    kind: ClassVar[str] = "allocation-published"
    states: ClassVar[type[Allocation]] = Allocation
    statement: Annotated[str, Pattern(r"[^\x00-\x1f\x7f]{1,12288}")]
    signatures: Annotated[tuple[MemberSignature, ...], Items(2, 100)]


KINDS: dict[str, type] = {
    kind.kind: kind
    for kind in (
        CharterVersion,
        RunPlan,
        RunApproval,
        InstanceOpen,
        InstanceCommit,
        InstanceSurvivors,
        InstanceAggregate,
        Eval,
        InstanceDropout,
        ExchangeAccept,
        InstanceVoid,
        Dispute,
        Usage,
        DataCommitment,
        EnvCommitment,
        NodeDelegation,
        NodeRevocation,
        ReleasePublished,
        AllocationPublished,
    )
}
