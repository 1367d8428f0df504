"""One instance of the secure sum from key agreement to the signed aggregate: real messages, real statements, uploads in memory."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.blobs import Manifest, chunk_leaf
from dure.recompute.evidence import Evidence, Trust
from dure.secagg import epoch as keys
from dure.secagg import instance as sums
from dure.secagg import messages, recover, thresholds
from dure.secagg.certificate import context
from dure.secagg.encode import weight_of
from dure.secagg.ids import InstanceId, Purpose
from dure.secagg.kernel import KIND_OF, UploadEncoder
from dure.secagg.shares import SHARE
from dure.secagg.summing import DTYPE, GROUP_OF, add_chunk, opened_totals, shape_of, unmask_chunk
from dure.secagg.tag import TagKey
from dure.statements.kinds import (
    CohortMember,
    InstanceAggregate,
    InstanceCommit,
    InstanceOpen,
    InstanceSurvivors,
    NodeDelegation,
    Survivor,
    SurvivorSignature,
)
from dure.statements.statement import Chain, seal
from dure.tlog.merkle import merkle_root

CONSORTIUM, RUN, NOW = b"c" * 16, b"r" * 32, 1_000_000


@dataclass
class Upload:
    """A committed upload in memory; `dure.recompute.sums.Source`."""

    chunks: list[bytes]
    manifest: Manifest

    def read_chunk(self, k: int) -> bytes:
        return self.chunks[k]

    @classmethod
    def of(cls, data: bytes, chunk_bytes: int) -> Upload:
        parts = [data[i : i + chunk_bytes] for i in range(0, len(data), chunk_bytes)]
        return cls(parts, Manifest(tuple(map(chunk_leaf, parts)), len(data), chunk_bytes))


@dataclass
class Instance:
    """What a doubter gets. Tests change parts of it; `aggregate_with` signs another aggregate with the coordinator's own key."""

    trust: Trust
    coordinator: Ed25519PrivateKey
    evidence: Evidence
    aggregate: bytes
    fact: InstanceAggregate
    seeds: bytes
    recovered: recover.Recovered
    uploads: dict[str, Upload]
    total: Upload
    node_keys: dict[str, Ed25519PrivateKey] = field(default_factory=dict)

    def aggregate_with(self, **changes: Any) -> bytes:
        """The aggregate a lying coordinator signs instead."""
        return seal(replace(self.fact, **changes), self.coordinator, Chain(), NOW)[0].to_bytes()


def _key(rng: random.Random) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def open_instance(
    *,
    n: int = 4,
    c: int = 1,
    purpose: Purpose = Purpose.UPDATE,
    elements: int = 600_000,
    lost: tuple[str, ...] = (),
    seed: int = 0,
    message: tuple[str, bytes] = ("train", bytes(32)),
) -> Instance:
    """An instance among m0…, in which `lost` dealt and then sent nothing; `message`: type and content id of what was asked."""
    rng = random.Random(seed)
    names = tuple(f"m{i}" for i in range(n))
    coordinator, signing, node = _key(rng), {m: _key(rng) for m in names}, {m: _key(rng) for m in names}
    public = {m: _public(k) for m, k in node.items()}
    adverts, epochs = _epoch(names, node, public, rng)
    where = InstanceId(CONSORTIUM, RUN, 3, purpose, epoch=1)
    secret, shares = {}, {}
    for m in names:
        secret[m], shares[m] = sums.deal(
            instance=where, cohort=names, me=m, epoch=epochs[m], colluders=c, node_key=node[m], rng=rng.randbytes
        )
    secret = {m: sums.receive_shares(s, shares, public) for m, s in secret.items()}
    length, chunk_bytes = shape_of(purpose, elements)
    opened, _ = seal(
        _open(where, names, adverts, shares, 0 if purpose is Purpose.SCALARS else elements, n, c, message), coordinator, Chain(), NOW
    )
    ctx = context(where, opened.payload_sha256)
    there = tuple(m for m in names if m not in lost)
    uploads, commits = {}, {}
    for i, m in enumerate(there):
        secret[m] = sums.start_upload(secret[m], ctx=ctx, upload_digest=sha256(m.encode()).digest())
        uploads[m], trailer, tag = _upload(secret[m], epochs[m], ctx, names, m, elements, chunk_bytes, i)
        fact = InstanceCommit(where.tlv(), ctx, m, merkle_root(uploads[m].manifest.leaves), length, trailer, tag, None)
        commits[m], _ = seal(fact, node[m], Chain(), NOW)
        secret[m] = sums.committed(secret[m], commits[m].payload_sha256)
    hashes = {m: e.payload_sha256 for m, e in commits.items()}
    u_min = thresholds.u_min(n, c)
    signatures = {}
    for m in there:
        secret[m], signatures[m] = sums.sign_survivors(secret[m], ctx=ctx, commits=hashes, u_min=u_min, node_key=node[m])
    fact = InstanceSurvivors(
        where.tlv(),
        ctx,
        tuple(Survivor(m, hashes[m]) for m in there),
        tuple(SurvivorSignature(m, signatures[m]) for m in sorted(signatures)),
    )
    survivors, _ = seal(fact, coordinator, Chain(), NOW)
    reveals = {}
    for m in there:
        secret[m], reveals[m] = sums.reveal(
            secret[m], ctx=ctx, commits=hashes, signatures=signatures, u_min=u_min, node_keys=public, node_key=node[m]
        )
    found = recover.recover(instance=where, ctx=ctx, cohort=names, survivors=there, shares=shares, reveals=reveals, colluders=c)
    total = sum_of([uploads[m] for m in there], purpose, found, chunk_bytes)
    said = [json_commit(commits[m].to_bytes(), public[m]) for m in there]
    trailer, tag = opened_totals([s.trailer for s in said], [s.tag for s in said], found.unmask)
    seeds = found.to_bytes()
    aggregate = InstanceAggregate(
        where.tlv(), ctx, survivors.payload_sha256, merkle_root(total.manifest.leaves), length, trailer, tag, sha256(seeds).digest()
    )
    delegations = {m: seal(NodeDelegation(m, "n1", public[m], 1, 0, 2**40), signing[m], Chain(), NOW)[0].to_bytes() for m in names}
    raw = {m: e.to_bytes() for m, e in commits.items()}
    evidence = Evidence(opened.to_bytes(), survivors.to_bytes(), delegations, adverts, shares, raw)
    trust = Trust(CONSORTIUM, RUN, (_public(coordinator),), {m: (_public(k),) for m, k in signing.items()}, c, u_min)
    made = Instance(trust, coordinator, evidence, b"", aggregate, seeds, found, uploads, total, node)
    made.aggregate = made.aggregate_with()
    return made


def json_commit(raw: bytes, key: bytes) -> InstanceCommit:
    from dure.statements.statement import open_statement

    return open_statement(raw, InstanceCommit, [key]).fact


def _epoch(names: tuple[str, ...], node: Any, public: Any, rng: random.Random) -> tuple[dict[str, bytes], dict[str, keys.EpochKeys]]:
    secrets, adverts, kems, groups = {}, {}, {}, {}
    for m in names:
        secrets[m], adverts[m] = keys.begin_epoch(
            consortium=CONSORTIUM, run=RUN, epoch=1, members=names, me=m, node_key=node[m], generation=1, last_accepted=0, rng=rng.randbytes
        )
    for m in names:
        secrets[m], kems[m] = keys.encapsulate(secrets[m], adverts, public, rng.randbytes)
    for m in names:
        secrets[m], groups[m] = keys.agree(secrets[m], kems, rng.randbytes)
    return adverts, {m: keys.complete(secrets[m], groups) for m in names}


def _open(
    where: InstanceId, names: tuple[str, ...], adverts: Any, shares: Any, elements: int, n: int, c: int, message: tuple[str, bytes]
) -> InstanceOpen:
    zero = bytes(32)
    return InstanceOpen(
        instance=where.tlv(),
        charter_version=1,
        charter_sha256=zero,
        run=RUN,
        category=message[0].partition(".")[0],
        message_type=message[0],
        weights_id=zero,
        base_id=zero,
        content_id=message[1],
        layout_sha256=zero,
        elements=elements,
        codec={"update": "ring16", "scales": "fp61", "scalars": "none"}[where.purpose],
        cohort=tuple(CohortMember(m, messages.message_hash(adverts[m], keys.ADVERT), 0) for m in names),
        metrics=(),
        shares_sha256=messages.hash_all(shares, SHARE),
        scales=None,
        u_min=thresholds.u_min(n, c),
        threshold=thresholds.share_threshold(n, c),
        upload_deadline=NOW + 600,
    )


def _upload(
    secret: Any, epoch: Any, ctx: bytes, names: tuple[str, ...], m: str, elements: int, chunk_bytes: int, i: int
) -> tuple[Upload, tuple[int, ...], int]:
    purpose = secret.instance.purpose
    encoder = UploadEncoder(
        kind=KIND_OF[purpose],
        masks=sums.masks(secret, ctx),
        tag=TagKey(epoch.group_key, ctx, names),
        me=m,
        cohort_size=len(names),
        weight=weight_of(1000),
        rounding_key=sha256(b"round" + m.encode()).digest(),
        elements=0 if purpose is Purpose.SCALARS else elements,
        e_b=np.zeros(-(-elements // 4096), np.int8) if purpose is Purpose.UPDATE else None,
        metrics=None if purpose is Purpose.SCALES else {"loss": 0.5},
    )
    delta = np.random.default_rng(i).standard_normal(elements, np.float32) / 8
    parts = [bytes(encoder.chunk(k, delta[encoder.elements_of(k)])[0]) for k in range(encoder.chunks)]
    return Upload.of(b"".join(parts), chunk_bytes), *encoder.finish()


def sum_of(uploads: list[Upload], purpose: Purpose, found: recover.Recovered, chunk_bytes: int) -> Upload:
    """What an honest coordinator opens."""
    group, parts = GROUP_OF[purpose], []
    for k, first in enumerate(uploads[0].chunks):
        total = np.zeros(len(first) // DTYPE[group].itemsize, DTYPE[group])
        for upload in uploads:
            add_chunk(group, total, upload.chunks[k])
        unmask_chunk(group, found.unmask, k, total)
        parts.append(total.tobytes())
    return Upload.of(b"".join(parts), chunk_bytes)
