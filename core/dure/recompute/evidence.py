"""What everyone may know of one opened instance, as one record, and its judgement: a chain of digests from the aggregate one accepted.

    aggregate → survivors → commits        (payload digests)
    aggregate → ctx → open → share messages, adverts → node keys
    aggregate → seeds → each one's commitment in the share messages

Whoever holds the digest of an aggregate needs to trust nobody for the rest. The uploads themselves are `sums.py`'s.
Source: secure-aggregation.md, section 7; ledger.md, section 4. Layout: docs/spec/secagg.md, "Evidence".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from dure.errors import Refused
from dure.secagg import epoch as keys
from dure.secagg import messages, tlv
from dure.secagg.certificate import context, verify_certificate
from dure.secagg.errors import Malformed
from dure.secagg.ids import InstanceId
from dure.secagg.parse import fields, pairs
from dure.secagg.recover import Recovered, check_recovered
from dure.secagg.shares import SHARE, read_shares
from dure.secagg.summing import opened_totals, shape_of
from dure.secagg.thresholds import share_threshold
from dure.statements.kinds import InstanceAggregate, InstanceCommit, InstanceOpen, InstanceSurvivors, NodeDelegation
from dure.statements.statement import Signed, open_statement

MAX_EVIDENCE_BYTES = 1 << 24
"""Share messages of 100 members are 2.7 MB, their commits and delegations 0.5 MB."""
MAX_SEEDS_BYTES = 1 << 22
"""What `Recovered.from_bytes` reads; of 100 members with 33 lost it is 300 kB."""


@dataclass(frozen=True)
class Evidence:
    """Signed messages of one opened instance, verbatim. Tables are by member: the first three of the cohort, `commits` of the survivors."""

    open: bytes
    survivors: bytes
    delegations: Mapping[str, bytes]
    adverts: Mapping[str, bytes]
    shares: Mapping[str, bytes]
    commits: Mapping[str, bytes]

    def to_bytes(self) -> bytes:
        """Canonical, for a blob."""
        tables = (self.delegations, self.adverts, self.shares, self.commits)
        return tlv.encode("evidence", 1, self.open, self.survivors, *(pairs(dict(table)) for table in tables))

    @classmethod
    def from_bytes(cls, data: bytes) -> Evidence:
        """`Malformed` unless it is a record of this form; nothing in it is believed yet."""
        part = fields(data, "evidence", max_bytes=MAX_EVIDENCE_BYTES)
        if part.text("kind") != "evidence" or part.number("version") != 1:
            raise Malformed("evidence", "is of no form this version knows")
        envelopes = part.blob("open"), part.blob("survivors")
        tables = [part.pairs(name) for name in ("delegations", "adverts", "shares", "commits")]
        part.end()
        return cls(*envelopes, *tables)


@dataclass(frozen=True)
class Trust:
    """What a judge brings along: from its pinned charter, and the plan it approved."""

    consortium: bytes
    run: bytes
    coordinator_keys: tuple[bytes, ...]
    """The coordinator's signing keys while the run went on: one, unless it was replaced."""
    signing_keys: Mapping[str, tuple[bytes, ...]]
    """Per member the keys, 32 bytes each, that delegated to its node keys while the run went on: one, unless it was replaced."""
    colluders: int
    u_min: int


@dataclass(frozen=True)
class Opened:
    """One opened instance, judged: every field follows from signatures."""

    instance: InstanceId
    ctx: bytes
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    aggregate: InstanceAggregate
    commits: Mapping[str, InstanceCommit]
    """By survivor."""
    shares: Mapping[str, bytes]
    chunk_bytes: int

    @property
    def length(self) -> int:
        """Bytes of each upload, and of the sum."""
        return self.aggregate.length


def judge(aggregate: bytes, evidence: Evidence, trust: Trust) -> Opened:
    """The instance this signed aggregate closed.

    The caller knows the aggregate already (it accepted its digest): this says what else follows from it.

    Raises:
        Refused, SecaggError: names what is not as the aggregate, or a signature, says.
    """
    said = open_statement(aggregate, InstanceAggregate, trust.coordinator_keys).fact
    instance = InstanceId.decode(said.instance)
    _same("aggregate.instance", (instance.consortium, instance.run), (trust.consortium, trust.run), "belongs to another consortium or run")
    opened = open_statement(evidence.open, InstanceOpen, trust.coordinator_keys)
    cohort, node_keys = _judge_open(said, instance, opened, evidence, trust)
    survivors, commits = _judge_survivors(said, instance, cohort, node_keys, evidence, trust)
    length, chunk_bytes = shape_of(instance.purpose, opened.fact.elements)
    _same("aggregate.length", said.length, length)
    return Opened(instance, said.ctx, cohort, survivors, said, commits, evidence.shares, chunk_bytes)


def _judge_open(
    said: InstanceAggregate, instance: InstanceId, opened: Signed[InstanceOpen], evidence: Evidence, trust: Trust
) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """(cohort, node key of each): ctx binds the open, the open binds adverts and share messages."""
    fact = opened.fact
    _same("open", context(instance, opened.envelope.payload_sha256), said.ctx, "is not the one the aggregate's ctx hashes")
    _same("open.instance", fact.instance, said.instance)
    cohort = tuple(m.member for m in fact.cohort)
    _same("open.threshold", fact.threshold, share_threshold(len(cohort), trust.colluders))
    _same("delegations", (set(evidence.delegations), set(evidence.adverts)), (set(cohort), set(cohort)), "must be of the cohort")
    node_keys = {m: _node_key(m, evidence, trust, opened.time) for m in cohort}
    for member in fact.cohort:
        advert = evidence.adverts[member.member]
        _same(f"adverts.{member.member}", messages.message_hash(advert, keys.ADVERT), member.advert_sha256)
        keys.verify_advert(advert, member=member.member, node_keys=node_keys)
    read_shares(instance, cohort, evidence.shares, node_keys)
    _same("shares", messages.hash_all(evidence.shares, SHARE), fact.shares_sha256, "are not those the instance was opened with")
    return cohort, node_keys


def _node_key(member: str, evidence: Evidence, trust: Trust, at: int) -> bytes:
    """The node key this member's charter key delegated to, at that time."""
    signers = trust.signing_keys.get(member, ())
    word = open_statement(evidence.delegations[member], NodeDelegation, signers).fact
    _same(f"delegations.{member}", word.member, member, "names another member")
    if not word.not_before <= at < word.not_after:
        raise Refused(f"delegations.{member}", "was not valid when the instance was opened")
    return word.node_key


def _judge_survivors(
    said: InstanceAggregate, instance: InstanceId, cohort: tuple[str, ...], node_keys: Mapping[str, bytes], evidence: Evidence, trust: Trust
) -> tuple[tuple[str, ...], dict[str, InstanceCommit]]:
    """(survivors, their commits): certified by a quorum of the cohort for exactly this context."""
    signed = open_statement(evidence.survivors, InstanceSurvivors, trust.coordinator_keys)
    listed = signed.fact
    _same("survivors", signed.envelope.payload_sha256, said.survivors_sha256, "is not the statement the aggregate names")
    _same("survivors.instance", (listed.instance, listed.ctx), (said.instance, said.ctx))
    members = tuple(s.member for s in listed.survivors)
    _same("survivors.survivors", list(members), sorted(set(members), key=str.encode), "must be distinct and in order")
    hashes = {s.member: s.commit_sha256 for s in listed.survivors}
    signatures = {s.member: s.signature for s in listed.certificate}
    verify_certificate(instance, said.ctx, cohort, hashes, signatures, node_keys, trust.colluders, trust.u_min)
    _same("commits", set(evidence.commits), set(members), "must be of the survivors")
    return members, {m: _commit(said, m, node_keys[m], hashes[m], evidence.commits[m]) for m in members}


def _commit(said: InstanceAggregate, member: str, node_key: bytes, payload_sha256: bytes, raw: bytes) -> InstanceCommit:
    signed = open_statement(raw, InstanceCommit, [node_key])
    commit = signed.fact
    _same(f"commits.{member}", signed.envelope.payload_sha256, payload_sha256, "is not the one the survivor set names")
    _same(f"commits.{member}.instance", (commit.instance, commit.ctx, commit.member), (said.instance, said.ctx, member))
    _same(f"commits.{member}.length", commit.length, said.length)
    _same(f"commits.{member}.trailer", len(commit.trailer), len(said.trailer))
    return commit


def open_seeds(opened: Opened, seeds: bytes) -> Recovered:
    """What takes the masks off, each value checked against its author's commitment.

    Raises:
        Malformed: not the seeds the aggregate names, or one that does not open its commitment; names whose.
    """
    if sha256(seeds).digest() != opened.aggregate.seeds_sha256:
        raise Malformed("seeds", "are not those the aggregate names")
    found = Recovered.from_bytes(seeds)
    if (found.instance, found.ctx) != (opened.instance, opened.ctx) or (found.cohort, found.survivors) != (opened.cohort, opened.survivors):
        raise Malformed("seeds", "are of another instance or survivor set")
    check_recovered(found, opened.shares)
    return found


def totals_of(opened: Opened, recovered: Recovered) -> tuple[tuple[int, ...], int]:
    """(trailer, tag) as they follow from the commits."""
    commits = [opened.commits[m] for m in opened.survivors]
    return opened_totals([c.trailer for c in commits], [c.tag for c in commits], recovered.unmask)


def _same(field: str, got: Any, expected: Any, why: str = "") -> None:
    if got != expected:
        raise Refused(field, why or "is not what the signed aggregate says")
