"""Directives and reports: what the coordinator asks of a node now, and what a node answers.

A directive is level-triggered: it says what the member should be doing now, in full, and may be repeated at will. A report answers one;
the same report gets the same answer. Both are small (control plane); bulk bytes travel on the streams of `wire/bulk.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

PROTOCOL_VERSION = 1
"""A coordinator speaks this one and the one before it, so it is upgraded first and its members' nodes after it, each when it suits them."""
MAX_CONTROL_BYTES = 16 * 1024 * 1024
"""Largest control message; 100 share messages of 26.8 kB are 2.7 MB, an instruction's records 1 MiB each."""
OUT_OF_TIME = "not done in time"
"""How the reason of a node ends that sits out because of the deadline: it counts as late, as one that says nothing does."""


def why_not_spoken(theirs: int, node: str, *, current: int = PROTOCOL_VERSION) -> str:
    """ "" where a coordinator of version `current` speaks `theirs`; else why not, saying which side must be upgraded."""
    oldest = max(1, current - 1)
    if oldest <= theirs <= current:
        return ""
    spoken = f"{oldest} and {current}" if oldest < current else f"{current}"
    return f"is {theirs}, this coordinator speaks {spoken}; upgrade {'this coordinator' if theirs > current else node}"


class DirectiveKind(StrEnum):
    """What a node should be doing. `parts` are per member, `documents` by name.

    Any of them may carry the document `disputes`: TLV of (dispute envelope, its author's delegation) pairs, for every member to recheck.
    """

    APPROVE = "approve"  # documents: plan, (app: blob id text)           -> report approval
    ADVERT = "advert"  # members                                          -> report advert
    KEM = "kem"  # parts: adverts; documents: delegation/<member>         -> report kem
    GROUP = "group"  # parts: kems                                        -> report group
    JOIN = "join"  # parts: groups                                        -> report joined
    EXECUTE = "execute"  # documents: instruction, values?, layout?, weights? (blob id text), base? (record) -> ready | sit-out
    SHARE = "share"  # members: cohort; update: documents scales_survivors, scales_aggregate, scales_sum (blob id text) -> share
    OPEN = "open"  # parts: shares; documents: open                       -> push upload + commit | sit-out
    SURVIVORS = "survivors"  # parts: commits                             -> report signature
    REVEAL = "reveal"  # documents: survivors, proof (tlog-proof); members: dropped that do not open -> report reveal
    RESULT = "result"  # documents: survivors, aggregate, sum (blob id text)     -> report accept
    VOID = "void"  # the instance is given up                             -> report void
    WAIT = "wait"  # nothing to do now; reason says what is waited for
    FINISHED = "finished"  # the run is over; reason says how


class ReportKind(StrEnum):
    """A node's answers. Bodies: DSSE envelopes (approval, accept, void, dispute), signed TLV (the rest), UTF-8 JSON (ready, sit-out)."""

    APPROVAL = "approval"
    REFUSAL = "refusal"
    ADVERT = "advert"
    KEM = "kem"
    GROUP = "group"
    JOINED = "joined"
    READY = "ready"
    SIT_OUT = "sit-out"
    SHARE = "share"
    SIGNATURE = "signature"
    REVEAL = "reveal"
    ACCEPT = "accept"
    VOID = "void"
    DISPUTE = "dispute"  # answers no directive: an opened sum does not hold; taken when the run is over, too
    LOST = "lost"  # this node's epoch state is gone or stale: start a new epoch


@dataclass(frozen=True)
class Directive:
    run: bytes
    kind: DirectiveKind
    exchange: int = 0
    instance: bytes = b""
    epoch: int = 0
    members: tuple[str, ...] = ()
    parts: Mapping[str, bytes] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    deadline_ms: int = 0
    """Unix milliseconds by which the answer counts; 0 is none."""
    reason: str = ""


@dataclass(frozen=True)
class Report:
    run: bytes
    kind: ReportKind
    exchange: int = 0
    instance: bytes = b""
    epoch: int = 0
    body: bytes = b""


@dataclass(frozen=True)
class Hello:
    protocol_version: int
    charter_digest: bytes
    delegation: bytes
    software: str


@dataclass(frozen=True)
class HelloReply:
    protocol_version: int
    charter_digest: bytes
    time_ms: int
    charter_roots: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class EvidenceQuery:
    """A member asks what an exchange's sums were opened from."""

    run: bytes
    exchange: int


@dataclass(frozen=True)
class SumEvidence:
    """Where to find what one opened sum was made of; blobs by id text. Nothing in it is believed: `dure.recompute` judges."""

    aggregate: bytes
    """DSSE bytes of the instance-aggregate."""
    evidence: str
    seeds: str


@dataclass(frozen=True)
class ReportReply:
    accepted: bool
    field: str = ""
    reason: str = ""
