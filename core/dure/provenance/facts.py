"""`release.json`: everything a release says about itself, as facts with their source. Documents are made from this and nothing else.

Three sources, never mixed: what the log proves or members signed (`drawn_from_log.py`), what the weights themselves are, and the words of
whoever makes the release (`about.toml`). What nobody said is null here and "not declared" in every document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from dure.errors import Refused
from dure.provenance.spent import Spent
from dure.statements import schema
from dure.statements.dsse import canonical_json, parse_canonical
from dure.statements.kinds import Counter, Digest, MemberId, Nonce
from dure.statements.schema import Items, Pattern, Range
from dure.times import LATEST_S

FACTS = "release.json"
MAX_FACTS_BYTES = 1 << 24
Words = Annotated[str, Pattern(r"(?s)[^\x00-\x08\x0b-\x1f\ud800-\udfff]{0,20000}")]
"""People's text, any script, several lines."""
Line = Annotated[str, Pattern(r"[^\x00-\x1f\ud800-\udfff]{0,500}")]
ReleaseName = Annotated[str, Pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")]
Number = Annotated[str, Pattern(r"-?[0-9]{1,40}(\.[0-9]{1,40})?(e[+-]?[0-9]{1,3})?")]
"""A number as text: floats have no canonical form."""

Sum = Annotated[int, Range(0, 2**104)]
"""Of 255 members' Counters over 2^48 exchanges: nothing that a member declares of itself puts a release out of form."""


@dataclass(frozen=True)
class Accelerator:
    """What the makers of a release say of a device that members named in their usage."""

    device: Annotated[str, Pattern(r"[^\x00-\x1f]{1,64}")]
    peak_flops: Number
    """Peak rate of one device in FLOP per second, at the precision trained in."""
    devices: Annotated[int, Range(1, 2**31)] = 1
    """How many of it were behind each second a member reported."""


@dataclass(frozen=True)
class About:
    """The words of whoever makes the release; null: not declared."""

    title: Line | None = None
    summary: Words | None = None
    license: Annotated[str, Pattern(r"[A-Za-z0-9.+-]{1,64}")] | None = None
    """SPDX licence id, as the Hugging Face hub has it in lower case."""
    languages: Annotated[tuple[Annotated[str, Pattern(r"[a-z]{2,3}")], ...], Items(0, 64)] = ()
    """ISO 639 codes."""
    pipeline_tag: Annotated[str, Pattern(r"[a-z0-9-]{1,64}")] | None = None
    intended_use: Words | None = None
    limitations: Words | None = None
    contact: Line | None = None
    training_content: Annotated[Mapping[str, Words], Items(0, 64)] = field(default_factory=dict)
    """Answers to the questions of the EU template, by their key (documents/training_content.py)."""
    accelerators: Annotated[tuple[Accelerator, ...], Items(0, 64)] = ()


@dataclass(frozen=True)
class LogPoint:
    """The head whose first `size` entries the facts are drawn from."""

    origin: Line
    size: Counter
    root: Digest
    time: Annotated[int, Range(0, LATEST_S)]
    """Unix seconds of the newest of these entries, by its signer's clock: the release's date."""


@dataclass(frozen=True)
class MemberFacts:
    """One member's part in the run, up to the released exchange."""

    member: MemberId
    display_name: Line
    invited: Counter
    counted: Counter
    """Exchanges in whose sum it is, train and evaluate; a quorum signed that."""
    accepted: Counter
    tokens: Sum
    """Self-declared, as steps, milliseconds and devices."""
    steps: Sum
    milliseconds: Sum
    devices: tuple[Line, ...]
    data: Words | None
    """What the member put on the record about its data; null: nothing."""
    environment: Words | None
    """What its node says its app worked in; null: nothing."""


@dataclass(frozen=True)
class Metric:
    """One metric of these very weights, averaged over members under masks."""

    exchange: Counter
    category: Annotated[str, Pattern("train|evaluate|query")]
    name: Annotated[str, Pattern(r"[^\x00-\x1f]{1,200}")]
    value: Number
    examples: Counter
    members: Counter
    eval_sha256: Digest | None
    """Payload digest of the log's eval statement that says it; null while training, which none is about."""


@dataclass(frozen=True)
class Ancestor:
    """An earlier run of the same log whose model a run began with, as the plans say it; `dure audit lineage` recomputes it."""

    run: Digest
    app_name: Line
    begins: Line
    """What it started from itself."""


MOST_ANCESTORS = 64


@dataclass(frozen=True)
class TrainingRun:
    """The run the weights are of, by its signed plan."""

    run: Digest
    app_name: Line
    app_version: Line
    app_sha256: Digest
    env_sha256: Digest | None
    rounds: Counter
    """Planned."""
    round: Counter
    """Train exchanges behind these weights."""
    exchange: Counter
    """Number of the exchange that made them; 0: the run's first weights."""
    outer_step: Line
    lineage: Line
    begins: Line
    """What it started from."""
    base_weights_id: Digest | None
    """Of the weights the plan starts from; null: they were drawn for this run."""
    settings: Mapping[str, Line]
    ancestors: Annotated[tuple[Ancestor, ...], Items(0, MOST_ANCESTORS)] = ()
    """Nearest first; the nearest ones, where there are more."""


@dataclass(frozen=True)
class Tensors:
    """What the weights are."""

    weights_id: Digest
    tensors_sha256: Digest
    parameters: Counter
    dtypes: Mapping[str, Counter]
    """Dtype -> elements."""
    files: Annotated[tuple[Annotated[str, Pattern(r"[^\x00-\x1f/]{1,200}")], ...], Items(1, 10_000)]


@dataclass(frozen=True)
class Binding:
    """What in the log names these very weights."""

    base_id: Digest | None
    """Base record that members accepted, and whose weights these are, bit for bit."""
    accepted_by: tuple[MemberId, ...]
    """Members that signed that they computed this base themselves."""
    opened_in: tuple[Counter, ...]
    """Exchanges whose signed instance-open names these weights as what members were to use."""


@dataclass(frozen=True)
class Compute:
    """Training compute, as the members' counted usage statements say it."""

    tokens: Sum
    """Declared by the members, in exchanges that were counted."""
    statements: Counter
    """Usage statements these totals are of."""
    spent: Spent
    """Hardware: by the peak rate the member's site says, else by the one that `about` gives for the device it named."""
    device_ms: Mapping[str, Sum]
    """Device as members named it -> milliseconds; "" where they named none."""


@dataclass(frozen=True)
class Facts:
    """`release.json`."""

    v: Annotated[int, Range(1, 1)]
    name: ReleaseName
    made_with: Line
    consortium: Line
    consortium_id: Nonce
    charter_version: Annotated[int, Range(1, 1_000_000)]
    charter_sha256: Digest
    log: LogPoint
    run: TrainingRun
    tensors: Tensors
    binding: Binding
    members: Annotated[tuple[MemberFacts, ...], Items(1, 255)]
    metrics: Annotated[tuple[Metric, ...], Items(0, 1024)]
    compute: Compute
    about: About

    def to_json(self) -> bytes:
        """Canonical: the same facts have the same bytes."""
        return canonical_json(schema.encode(self))

    @staticmethod
    def from_json(raw: bytes) -> Facts:
        """The facts these bytes are the canonical JSON of.

        Raises:
            Refused: names the field.
        """
        if len(raw) > MAX_FACTS_BYTES:
            raise Refused(FACTS, f"larger than {MAX_FACTS_BYTES} bytes")
        return schema.decode(Facts, parse_canonical(FACTS, raw), FACTS)
