"""A consortium in one process: every member's half and the coordinator's, with the arithmetic of a tiny vector."""

from __future__ import annotations

import random
from functools import lru_cache
from hashlib import sha256

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.secagg import epoch as keys
from dure.secagg import field as fp
from dure.secagg import instance as sums
from dure.secagg import recover
from dure.secagg.certificate import context
from dure.secagg.encode import Weight, from_words, weight_of
from dure.secagg.ids import InstanceId, Purpose
from dure.secagg.kernel import KIND_OF, UploadEncoder
from dure.secagg.tag import TagKey
from dure.secagg.thresholds import u_min

CONSORTIUM, RUN = b"c" * 16, b"r" * 32


def names_of(n: int) -> tuple[str, ...]:
    return tuple(f"m{i:03d}" for i in range(n))


@lru_cache(16)
def epoch_of(n: int):
    """(node keys, public node keys, EpochKeys by member) of n members: made once, everything in it is immutable."""
    rng = random.Random(n).randbytes
    members = names_of(n)
    private = {m: Ed25519PrivateKey.from_private_bytes(rng(32)) for m in members}
    public = {m: k.public_key().public_bytes_raw() for m, k in private.items()}
    secrets, adverts, kems, groups = {}, {}, {}, {}
    for m in members:
        secrets[m], adverts[m] = keys.begin_epoch(
            consortium=CONSORTIUM, run=RUN, epoch=1, members=members, me=m, node_key=private[m], generation=0, last_accepted=0, rng=rng
        )
    for m in members:
        secrets[m], kems[m] = keys.encapsulate(secrets[m], adverts, public, rng)
    for m in members:
        secrets[m], groups[m] = keys.agree(secrets[m], kems, rng)
    return private, public, {m: keys.complete(secrets[m], groups) for m in members}


class Sim:
    """One instance among n members, step by step; a test leaves members out or tampers in between."""

    def __init__(self, n: int, c: int, *, purpose: Purpose = Purpose.UPDATE, seed: int = 0, elements: int = 300, exchange: int = 3):
        self.rng = random.Random(seed).randbytes
        self.members, self.c, self.r = names_of(n), c, n
        self.private, self.public, self.epochs = epoch_of(n)
        self.instance = InstanceId(CONSORTIUM, RUN, exchange, purpose, epoch=1)
        self.u_min = u_min(n, c)
        self.elements = 0 if purpose is Purpose.SCALARS else elements
        self.ctx = context(self.instance, sha256(b"open").digest())
        self.state: dict[str, sums.InstanceSecret] = {}
        self.shares: dict[str, bytes] = {}
        self.commits: dict[str, bytes] = {}
        self.uploads: dict[str, tuple[np.ndarray, tuple[int, ...], int]] = {}
        self.deltas = {m: np.frombuffer(self.rng(4 * 300), np.uint32).astype(np.float32) / 2**31 - 1 for m in self.members}

    def deal(self) -> None:
        for m in self.members:
            self.state[m], self.shares[m] = sums.deal(
                instance=self.instance,
                cohort=self.members,
                me=m,
                epoch=self.epochs[m],
                colluders=self.c,
                node_key=self.private[m],
                rng=self.rng,
            )

    def receive(self) -> None:
        for m in self.members:
            self.state[m] = sums.receive_shares(self.state[m], self.shares, self.public)

    def tag_key(self, m: str) -> TagKey:
        return TagKey(self.epochs[m].group_key, self.ctx, self.members)

    def upload(self, who, *, weight: Weight | None = None, commit: bool = True) -> None:
        for m in who:
            self.state[m] = sums.start_upload(self.state[m], ctx=self.ctx, upload_digest=sha256(m.encode()).digest())
            encoder = UploadEncoder(
                kind=KIND_OF[self.instance.purpose],
                masks=sums.masks(self.state[m], self.ctx),
                tag=self.tag_key(m),
                me=m,
                cohort_size=len(self.members),
                weight=weight or weight_of(1000),
                rounding_key=sha256(b"round" + m.encode()).digest(),
                elements=self.elements,
                e_b=np.zeros(-(-self.elements // 4096), np.int8) if self.instance.purpose is Purpose.UPDATE else None,
                metrics=None if self.instance.purpose is Purpose.SCALES else {"loss": 0.5},
            )
            bulk = [bytes(encoder.chunk(k, self.deltas[m][encoder.elements_of(k)])[0]) for k in range(encoder.chunks)]
            trailer, tag = encoder.finish()
            kind = np.uint16 if self.instance.purpose is Purpose.UPDATE else np.uint64
            self.uploads[m] = (np.frombuffer(b"".join(bulk), kind), trailer, tag)
            if commit:
                self.commits[m] = sha256(b"commit" + m.encode()).digest()
                self.state[m] = sums.committed(self.state[m], self.commits[m])

    def sign(self, who, commits=None) -> dict[str, bytes]:
        signatures = {}
        for m in who:
            self.state[m], signatures[m] = sums.sign_survivors(
                self.state[m], ctx=self.ctx, commits=commits or self.commits, u_min=self.u_min, node_key=self.private[m]
            )
        return signatures

    def reveal(self, who, signatures, commits=None, not_opening=()) -> dict[str, bytes]:
        found = {}
        for m in who:
            self.state[m], found[m] = sums.reveal(
                self.state[m],
                ctx=self.ctx,
                commits=commits or self.commits,
                signatures=signatures,
                not_opening=tuple(x for x in not_opening if x != m),
                u_min=self.u_min,
                node_keys=self.public,
                node_key=self.private[m],
            )
        return found

    def recover(self, reveals) -> recover.Recovered:
        return recover.recover(
            instance=self.instance,
            ctx=self.ctx,
            cohort=self.members,
            survivors=tuple(m for m in self.members if m in self.commits),
            shares=self.shares,
            reveals=reveals,
            colluders=self.c,
            node_keys=self.public,
        )

    def open(self, found: recover.Recovered):
        """(vector, trailer, tag) of the sum, unmasked."""
        unmask = found.unmask
        ups = [self.uploads[m] for m in found.survivors]
        total = ups[0][0].copy()
        for bulk, _, _ in ups[1:]:
            if total.dtype == np.uint16:
                total = total + bulk
            else:
                fp.add_into(total, bulk)
        if total.size:
            (unmask.ring_chunk if total.dtype == np.uint16 else unmask.field_chunk)(0, total)
        trailer = np.zeros(len(ups[0][1]), np.uint64)
        for _, words, _ in ups:
            trailer = trailer + np.array(words, np.uint64)
        tag = unmask.tag(sum(t for _, _, t in ups) % fp.P)
        return total, from_words(unmask.trailer(trailer)), tag

    def verify(self, total, trailer, tag, survivors) -> None:
        key = self.tag_key(self.members[0])
        bulk = 0
        if total.size:
            bulk = key.ring_chunk(0, total) if total.dtype == np.uint16 else key.field_chunk(0, total)
        key.verify(bulk=bulk, trailer=trailer, tag=tag, survivors=survivors, purpose=self.instance.purpose)

    def ready(self) -> Sim:
        """Dealt and opened."""
        self.deal()
        self.receive()
        return self


@pytest.fixture
def sim():
    return Sim


@pytest.fixture
def epoch():
    return epoch_of
