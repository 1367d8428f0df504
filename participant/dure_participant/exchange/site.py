"""Who this node is, and what it has ever sent on which weights (rule 2, across runs)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.charter.log_keys import Witnessing
from dure.statements.schema import Hex, Items, Pattern, Range


@dataclass(frozen=True)
class Site:
    """What one run may rely on without asking; built by the agent from its settings and the charter.

    Limits and thresholds are of the version the run was approved under; who may take part is by the newest version this node has.
    """

    consortium: bytes
    member: str
    node: str
    node_key: Ed25519PrivateKey
    generation: int
    delegation: bytes
    """DSSE bytes of this node's own delegation."""
    charter_version: int
    charter_sha256: bytes
    colluders: int
    """The charter's c; thresholds are recomputed from it, never taken from the plan."""
    members: Mapping[str, bytes]
    """Signing key (32 bytes) of every member there is now."""
    coordinator_keys: tuple[bytes, ...]
    """The coordinator's signing keys, 32 bytes each, from the run's version on, newest last. What one that was replaced signs becomes no
    entry any more, so nothing is revealed upon it (log/following.py)."""
    witnessing: tuple[Witnessing, ...]
    """What makes a head count, by the newest version first; back to the run's own, under which a head may have been cosigned."""
    delegators: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    """Per member every signing key it has had since the run's version: one of them delegated whatever node took part."""
    former: frozenset[str] = frozenset()
    """Who was a member in an earlier version and is none now."""
    ended_keys: frozenset[bytes] = frozenset()
    """Node keys that were revoked, or whose member has another signing key by now: nothing is shared with them any more."""
    barred: str = ""
    """Why no further exchange begins in this run: the newest version does not allow what it was approved for. "" where it does."""
    charter_expires: float = float("inf")
    """Unix seconds; past it no plan is approved, while runs that began go on."""
    w_max: int = 2**40
    """The charter's largest weight; a plan may allow less."""
    allow_unrecomputed_bases: bool = False
    """The charter's word; without it a plan whose step is `none` is refused."""
    challenge_window_s: int = 0
    """For so long after an exchange the coordinator must serve its uploads; from the pinned charter."""
    recompute_first: bool = False
    """The site's setting `recompute = "always"`: every sum is added up again here before it is accepted."""
    software: str = ""


@dataclass(frozen=True)
class Sent:
    """One instance in which this node sent bytes: the unit of rule 2. Written before the first byte leaves."""

    weights_id: Annotated[bytes, Hex(32)]
    """Zeros for an exchange without arrays; then `content_id` counts."""
    category: Annotated[str, Pattern("train|evaluate|query")]
    purpose: Annotated[str, Pattern("scales|update|scalars")]
    run: Annotated[bytes, Hex(32)]
    exchange: Annotated[int, Range(0, 2**48)]
    instance: Annotated[bytes, Hex(most=512)]
    content_id: Annotated[bytes, Hex(32)]
    outcome: Annotated[str, Pattern("open|void|summed|out")] = "open"
    """open: undecided; void: V certificates seen; summed: this node's bytes are in an opened sum; out: opened without it."""
    tensors: Annotated[bytes, Hex(32)] = bytes(32)
    """`Layout.tensors_sha256`, to recognise earlier runs on the same tensors; zeros without arrays."""
    survivors: Annotated[tuple[str, ...], Items(0, 255)] = ()
    """Whom its sum is of, by a certificate this node has seen; empty: it has seen none."""


@dataclass(frozen=True)
class Committed:
    """An env-commitment this node signed: not signed again while it is true."""

    subject: Annotated[bytes, Hex(32)]
    """`dure.statements.statement.subject`: of what it says."""
    envelope_sha256: Annotated[bytes, Hex(32)]


@dataclass(frozen=True)
class History:
    """What this node ever signed or sent that outlives its run."""

    sent: tuple[Sent, ...] = field(default=())
    """In any run, oldest first; one per instance (a later record replaces an earlier)."""
    committed: tuple[Committed, ...] = field(default=())

    def with_records(self, records: tuple[Sent, ...]) -> History:
        """This history with these records added or replaced, by instance."""
        replaced = {r.instance: r for r in self.sent} | {r.instance: r for r in records}
        return replace(self, sent=tuple(replaced.values()))

    def with_committed(self, committed: tuple[Committed, ...]) -> History:
        return replace(self, committed=(*self.committed, *committed))


Category = Literal["train", "evaluate", "query"]
