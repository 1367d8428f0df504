"""The share message: what a member deals in one instance, how it is committed to, and who is guilty when it does not open.

Layout (docs/spec/secagg.md, "Share"): fixed-size columns, one entry per member in cohort order; columns of pairs skip the author.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from dure.secagg import messages, tlv
from dure.secagg.errors import Malformed, PairMismatch
from dure.secagg.ids import InstanceId
from dure.secagg.kdf import digest
from dure.secagg.parse import fields
from dure.secagg.seal import SEAL_BYTES, commit_key, unseal

SHARE = "instance-share"
SELF, BUNDLE = "self", "bundle"


def others(cohort: tuple[str, ...], member: str) -> tuple[str, ...]:
    return tuple(m for m in cohort if m != member)


def position(cohort: tuple[str, ...], member: str) -> int:
    """1-based place in the cohort: Shamir's x and the pad's number."""
    return cohort.index(member) + 1


def check_cohort_form(cohort: tuple[str, ...]) -> None:
    if len(cohort) > 255 or list(cohort) != sorted(set(cohort), key=str.encode):
        raise Malformed("cohort", "must be distinct members in bytewise order")


def commit_secret(kind: str, instance: InstanceId, author: str, secret: bytes) -> bytes:
    """H(b_i) or H(B_i)."""
    return digest("commit/" + kind, instance.parts(), author, secret)


def commit_pair(instance: InstanceId, a: str, b: str, secret: bytes) -> bytes:
    """H(R_ij), the same from both ends."""
    low, high = sorted((a, b), key=str.encode)
    return digest("commit/pair", instance.parts(), low, high, secret)


def commit_share(kind: str, instance: InstanceId, dealer: str, holder: str, share: bytes) -> bytes:
    return digest("commit/share", kind, instance.parts(), dealer, holder, share)


def bundle_associated(instance: InstanceId, author: str) -> tuple[tlv.Value, ...]:
    return ("inst/bundle", instance.parts(), author)


def share_associated(instance: InstanceId, dealer: str, holder: str) -> tuple[tlv.Value, ...]:
    return ("inst/share", instance.parts(), dealer, holder)


@dataclass(frozen=True)
class ShareMessage:
    """One member's deal, public part. Tables are by member."""

    instance: InstanceId
    cohort: tuple[str, ...]
    member: str
    transcript: bytes
    self_commitment: bytes
    bundle_commitment: bytes
    pair_commitments: Mapping[str, bytes]
    self_share_commitments: Mapping[str, bytes]
    bundle_share_commitments: Mapping[str, bytes]
    key_commitments: Mapping[str, bytes]
    bundle: bytes
    sealed: Mapping[str, bytes]

    def parts(self) -> tuple[tlv.Value, ...]:
        column = b"".join
        return (
            self.instance.parts(),
            self.cohort,
            self.member,
            self.transcript,
            self.self_commitment,
            self.bundle_commitment,
            column(self.pair_commitments[m] for m in others(self.cohort, self.member)),
            column(self.self_share_commitments[m] + self.bundle_share_commitments[m] for m in self.cohort),
            column(self.key_commitments[m] for m in others(self.cohort, self.member)),
            self.bundle,
            column(self.sealed[m] for m in others(self.cohort, self.member)),
        )


def read_share(data: bytes, *, member: str, node_keys: Mapping[str, bytes] | None) -> ShareMessage:
    """The share message of this member; `node_keys` None: its signature was verified before."""
    part = messages.unverified(data, SHARE) if node_keys is None else messages.verified(data, SHARE, member, node_keys)
    instance, cohort = InstanceId.of(part.value("instance")), part.texts("cohort")
    check_cohort_form(cohort)
    if part.text("member") != member or member not in cohort:
        raise Malformed(f"{SHARE}.member", f"must be {member}, of the cohort")
    peers = others(cohort, member)
    m, n = len(cohort), len(peers)
    transcript, self_commitment, bundle_commitment = part.blob("transcript", 32), part.blob("self", 32), part.blob("bundle_key", 32)
    pair_column, share_column, key_column = part.blob("pairs", 32 * n), part.blob("shares", 64 * m), part.blob("keys", 32 * n)
    bundle, sealed_column = part.blob("bundle", 32 * n + SEAL_BYTES), part.blob("sealed", (64 + SEAL_BYTES) * n)
    part.end()
    return ShareMessage(
        instance,
        cohort,
        member,
        transcript,
        self_commitment,
        bundle_commitment,
        pair_commitments=_column(peers, pair_column, 32),
        self_share_commitments={who: row[:32] for who, row in _column(cohort, share_column, 64).items()},
        bundle_share_commitments={who: row[32:] for who, row in _column(cohort, share_column, 64).items()},
        key_commitments=_column(peers, key_column, 32),
        bundle=bundle,
        sealed=_column(peers, sealed_column, 64 + SEAL_BYTES),
    )


def _column(names: tuple[str, ...], data: bytes, size: int) -> dict[str, bytes]:
    return {name: data[k * size : (k + 1) * size] for k, name in enumerate(names)}


def read_shares(
    instance: InstanceId, cohort: tuple[str, ...], shares: Mapping[str, bytes], node_keys: Mapping[str, bytes] | None
) -> dict[str, ShareMessage]:
    """All share messages of an instance: each by its author for this instance and cohort, each pair committing to one secret.

    Raises:
        Malformed, BadSignature: what the relay gave is no set of share messages.
        PairMismatch: H(R_ij) or the epoch's transcript differ; nobody deals on.
    """
    if set(shares) != set(cohort):
        raise Malformed(SHARE, "one of every member of the cohort, and no other")
    found = {m: read_share(shares[m], member=m, node_keys=node_keys) for m in cohort}
    for member, message in found.items():
        if message.instance != instance or message.cohort != cohort:
            raise Malformed(SHARE, f"{member}'s is for another instance or cohort")
    for a, b in combinations(cohort, 2):
        one, other = found[a], found[b]
        if one.pair_commitments[b] != other.pair_commitments[a] or one.transcript != other.transcript:
            raise PairMismatch(a, b)
    return found


def open_share(message: ShareMessage, holder: str, key: bytes) -> tuple[bytes, bytes] | None:
    """The holder's shares of b and B, or None if they do not open to their commitments."""
    plain = unseal(key, message.sealed[holder], *share_associated(message.instance, message.member, holder))
    if plain is None or len(plain) != 64:
        return None
    good = (
        commit_share(SELF, message.instance, message.member, holder, plain[:32]) == message.self_share_commitments[holder]
        and commit_share(BUNDLE, message.instance, message.member, holder, plain[32:]) == message.bundle_share_commitments[holder]
    )
    return (plain[:32], plain[32:]) if good else None


def accuse_share(dealer: str, holder: str, key: bytes) -> bytes:
    """Evidence: the single-use channel key, against the dealer's signed message."""
    return tlv.encode("accuse-share", dealer, holder, key)


def judge_share(evidence: bytes, *, share: bytes, node_keys: Mapping[str, bytes]) -> str | None:
    """Anyone: the dealer this evidence convicts, or None if it shows nothing. `share` is the accused's message."""
    part = fields(evidence, "evidence", max_bytes=4096)
    if part.text("kind") != "accuse-share":
        return None
    dealer, holder, key = part.text("dealer"), part.text("holder"), part.blob("key", 32)
    part.end()
    message = read_share(share, member=dealer, node_keys=node_keys)
    if message.key_commitments.get(holder) != commit_key(key):
        return None  # not the key the dealer committed to: the accuser may have made it up
    return dealer if open_share(message, holder, key) is None else None
