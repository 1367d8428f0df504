"""One instance of the secure sum, the member's half: a state machine of plain functions.

    deal → receive_shares → start_upload → masks … committed → sign_survivors → reveal → verified
      dealt      opened       uploading        committed          signed       revealed   verified      any before reveal: void → voided

Each function takes the state and gives the next; the caller persists it before anything leaves. A step repeated with the
same input gives the same bytes; a step out of order, or with another input, is `Refused` under the number of its rule in
secure-aggregation.md, section 5. DSSE envelopes (open, commit, aggregate) are the caller's; here stand their hashes.
"Erased" means: not in the state any more. Whoever keeps an older copy of the state undoes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.secagg import messages, shamir, tlv
from dure.secagg.certificate import (
    context,
    sign_survivors_message,
    survivors_message,
    verify_certificate,
    verify_survivors_signature,
)
from dure.secagg.epoch import EpochKeys
from dure.secagg.errors import BelowThreshold, Convicted, Malformed, PairMismatch, Refused
from dure.secagg.ids import InstanceId
from dure.secagg.kdf import hkdf
from dure.secagg.masks import MaskSet, MaskStream, pair_sign
from dure.secagg.parse import pairs, state
from dure.secagg.seal import commit_key, seal
from dure.secagg.shares import (
    BUNDLE,
    SELF,
    SHARE,
    ShareMessage,
    accuse_share,
    bundle_associated,
    check_cohort_form,
    commit_pair,
    commit_secret,
    commit_share,
    judge_share,
    open_share,
    others,
    read_shares,
    share_associated,
)
from dure.secagg.thresholds import share_threshold

__all__ = [
    "InstanceSecret",
    "Phase",
    "committed",
    "context",
    "deal",
    "judge_share",
    "masks",
    "receive_shares",
    "reveal",
    "sign_survivors",
    "start_upload",
    "survivors_message",
    "verified",
    "verify_certificate",
    "verify_survivors_signature",
    "void",
]

Rng = Callable[[int], bytes]
REVEAL = "instance-reveal"


class Phase(StrEnum):
    DEALT = "dealt"
    OPENED = "opened"
    UPLOADING = "uploading"
    COMMITTED = "committed"
    SIGNED = "signed"
    REVEALED = "revealed"
    VERIFIED = "verified"
    VOIDED = "voided"


_TABLES = ("pair_secrets", "channel_keys", "self_shares", "bundle_shares")
_BLOBS = ("b", "bundle_key", "share_message", "shares_hash", "ctx", "upload_digest", "commit_hash", "survivors", "signature", "revealed")


@dataclass(frozen=True)
class InstanceSecret:
    """A member's whole state in one instance. Persist it before every message; it holds secrets until verified or voided."""

    instance: InstanceId
    cohort: tuple[str, ...]
    me: str
    colluders: int
    phase: Phase
    b: bytes = field(default=b"", repr=False)
    bundle_key: bytes = field(default=b"", repr=False)
    pair_secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Peer → R_ij."""
    channel_keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Peer → K_peer>me, until its shares are open."""
    self_shares: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Dealer → my share of its b."""
    bundle_shares: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Dealer → my share of its B."""
    share_message: bytes = field(default=b"", repr=False)
    shares_hash: bytes = b""
    """H(all share messages), for `instance-open`."""
    ctx: bytes = b""
    upload_digest: bytes = b""
    """Of everything that decides the uploaded bytes (rule 1)."""
    commit_hash: bytes = b""
    """SHA-256 of the own commit payload."""
    survivors: bytes = field(default=b"", repr=False)
    """The survivor set signed: its payload."""
    signature: bytes = field(default=b"", repr=False)
    revealed: bytes = field(default=b"", repr=False)
    """The survivor set revealed for: its payload."""

    def to_bytes(self) -> bytes:
        head = (self.instance.parts(), self.cohort, self.me, self.colluders, str(self.phase))
        blobs = tuple(getattr(self, name) for name in _BLOBS)
        return tlv.encode("instance-secret", 1, head, blobs, tuple(pairs(dict(getattr(self, name))) for name in _TABLES))

    @classmethod
    def from_bytes(cls, data: bytes) -> InstanceSecret:
        part = state(data, "instance-secret")
        head, blobs, tables = part.sub("head"), part.sub("blobs"), part.sub("tables")
        part.end()
        instance, cohort = InstanceId.of(head.value("instance")), head.texts("cohort")
        me, colluders, phase = head.text("me"), head.number("colluders"), head.text("phase")
        found = {name: blobs.blob(name) for name in _BLOBS}
        maps = {name: tables.pairs(name, 32) for name in _TABLES}
        for rest in (head, blobs, tables):
            rest.end()
        if phase not in set(Phase):
            raise Malformed("instance-secret.phase", "is none")
        fresh = cls(instance, cohort, me, colluders, Phase(phase))
        return replace(fresh, **found, **maps)  # type: ignore[arg-type]  # names and types are those of the two lists above

    @property
    def erased(self) -> bool:
        return self.phase in (Phase.VERIFIED, Phase.VOIDED)


def _erased(secret: InstanceSecret, phase: Phase) -> InstanceSecret:
    """Only names and what was signed stay."""
    bare = InstanceSecret(secret.instance, secret.cohort, secret.me, secret.colluders, phase)
    return replace(bare, ctx=secret.ctx, survivors=secret.survivors, revealed=secret.revealed)


def deal(
    *,
    instance: InstanceId,
    cohort: tuple[str, ...],
    me: str,
    epoch: EpochKeys,
    colluders: int,
    node_key: Ed25519PrivateKey,
    rng: Rng,
    known: InstanceSecret | None = None,
) -> tuple[InstanceSecret, bytes]:
    """Fresh b and B, shared among the cohort. `known`: what this member holds of this instance already (rule 0)."""
    if known is not None and known.instance == instance:
        if known.cohort != cohort or known.erased:
            raise Refused(0, "this instance was dealt to another cohort, or is over; it takes another attempt")
        return known, known.share_message
    check_cohort_form(cohort)
    if me != epoch.me or me not in cohort or not set(cohort) <= set(epoch.members):
        raise Malformed("cohort", "must hold this member, and members of the epoch only")
    if (instance.consortium, instance.run, instance.epoch) != (epoch.consortium, epoch.run, epoch.epoch):
        raise Malformed("instance", "belongs to another consortium, run or epoch")
    threshold = share_threshold(len(cohort), colluders)
    if len(cohort) < max(threshold, colluders + 2, 3):
        raise BelowThreshold(len(cohort), max(threshold, colluders + 2, 3), "members in the cohort")
    round_keys = {peer: epoch.exchange_key(peer, instance.exchange) for peer in others(cohort, me)}
    secret = InstanceSecret(
        instance,
        cohort,
        me,
        colluders,
        Phase.DEALT,
        b=rng(32),
        bundle_key=rng(32),
        pair_secrets={peer: hkdf(rk, "inst/mask", instance.parts()) for peer, rk in round_keys.items()},
        channel_keys={peer: _channel_key(rk, instance, peer, me) for peer, rk in round_keys.items()},
    )
    self_shares = dict(zip(cohort, shamir.split(secret.b, threshold=threshold, holders=len(cohort), rng=rng), strict=True))
    bundle_shares = dict(zip(cohort, shamir.split(secret.bundle_key, threshold=threshold, holders=len(cohort), rng=rng), strict=True))
    out_keys = {peer: _channel_key(rk, instance, me, peer) for peer, rk in round_keys.items()}
    public = ShareMessage(
        instance,
        cohort,
        me,
        epoch.transcript,
        commit_secret(SELF, instance, me, secret.b),
        commit_secret(BUNDLE, instance, me, secret.bundle_key),
        pair_commitments={peer: commit_pair(instance, me, peer, r) for peer, r in secret.pair_secrets.items()},
        self_share_commitments={m: commit_share(SELF, instance, me, m, s) for m, s in self_shares.items()},
        bundle_share_commitments={m: commit_share(BUNDLE, instance, me, m, s) for m, s in bundle_shares.items()},
        key_commitments={peer: commit_key(key) for peer, key in out_keys.items()},
        bundle=_seal_bundle(secret),
        sealed={
            peer: seal(key, self_shares[peer] + bundle_shares[peer], *share_associated(instance, me, peer))
            for peer, key in out_keys.items()
        },
    )
    message = messages.signed(node_key, SHARE, *public.parts())
    return replace(secret, share_message=message), message


def _channel_key(round_key: bytes, instance: InstanceId, dealer: str, holder: str) -> bytes:
    return hkdf(round_key, "inst/chan", instance.parts(), dealer, holder)


def _seal_bundle(secret: InstanceSecret) -> bytes:
    plain = b"".join(secret.pair_secrets[peer] for peer in others(secret.cohort, secret.me))
    key = hkdf(secret.bundle_key, "inst/bundle", secret.instance.parts(), secret.me)
    return seal(key, plain, *bundle_associated(secret.instance, secret.me))


def receive_shares(secret: InstanceSecret, shares: Mapping[str, bytes], node_keys: Mapping[str, bytes]) -> InstanceSecret:
    """All share messages are in (own included): checks everything and opens this member's shares.

    Raises:
        Convicted: a dealer's share does not open; its evidence is for `judge_share`.
        PairMismatch: two members' keys differ; nobody deals on.
    """
    found = read_shares(secret.instance, secret.cohort, shares, node_keys)
    shares_hash = messages.hash_all(shares, SHARE)
    if secret.phase is not Phase.DEALT:
        if shares_hash != secret.shares_hash:
            raise Refused(0, "this instance was opened with other share messages; it takes another attempt")
        return secret
    if shares[secret.me] != secret.share_message:
        raise Refused(0, "the share message in this member's name is not the one it dealt")
    self_shares: dict[str, bytes] = {}
    bundle_shares: dict[str, bytes] = {}
    for dealer, key in secret.channel_keys.items():
        message = found[dealer]
        mine = commit_pair(secret.instance, secret.me, dealer, secret.pair_secrets[dealer])
        if message.pair_commitments[secret.me] != mine or message.key_commitments[secret.me] != commit_key(key):
            raise PairMismatch(secret.me, dealer)
        opened = open_share(message, secret.me, key)
        if opened is None:
            evidence = accuse_share(dealer, secret.me, key)
            raise Convicted(dealer, "dealt a share that does not open its commitment", evidence)
        self_shares[dealer], bundle_shares[dealer] = opened
    return replace(
        secret, phase=Phase.OPENED, channel_keys={}, self_shares=self_shares, bundle_shares=bundle_shares, shares_hash=shares_hash
    )


def start_upload(secret: InstanceSecret, *, ctx: bytes, upload_digest: bytes) -> InstanceSecret:
    """Fixes what will be uploaded; persist it before the first byte leaves.

    `upload_digest` covers all that decides the bytes: update, rounding key, weight, metrics, scales. Called again after a
    restart it must be the same: then the upload goes on; otherwise the instance is burnt (rule 1) and the member sits out.
    """
    if secret.phase is Phase.OPENED:
        if len(ctx) != 32 or len(upload_digest) != 32:
            raise Malformed("upload", "ctx and digest have 32 bytes")
        return replace(secret, phase=Phase.UPLOADING, ctx=ctx, upload_digest=upload_digest)
    if secret.phase not in (Phase.UPLOADING, Phase.COMMITTED):
        raise Refused(1, f"no upload in phase {secret.phase}")
    if (secret.ctx, secret.upload_digest) != (ctx, upload_digest):
        raise Refused(1, "another upload of this instance was begun; the instance is burnt, this member sits out")
    return secret


def masks(secret: InstanceSecret, ctx: bytes) -> MaskSet:
    """PRG(b) + Σ ±PRG(R): what hides this member's upload under this ctx."""
    if secret.phase not in (Phase.UPLOADING, Phase.COMMITTED) or secret.ctx != ctx:
        raise Refused(1, "masks exist for the upload that was begun, and no other")
    own = [MaskStream.derive(secret.b, ctx, "mask/self", 1)]
    shared = [MaskStream.derive(r, ctx, "mask/pair", pair_sign(secret.me, peer)) for peer, r in secret.pair_secrets.items()]
    return MaskSet(own + shared)


def committed(secret: InstanceSecret, commit_payload_sha256: bytes) -> InstanceSecret:
    """The signed commit ends the upload; there is one."""
    if secret.phase is Phase.UPLOADING and len(commit_payload_sha256) == 32:
        return replace(secret, phase=Phase.COMMITTED, commit_hash=commit_payload_sha256)
    if secret.commit_hash and secret.commit_hash == commit_payload_sha256:
        return secret
    raise Refused(1, "another commit of this instance was signed, or nothing was uploaded")


def _check_own_place(secret: InstanceSecret, ctx: bytes, commits: Mapping[str, bytes], rule: int) -> None:
    if not secret.ctx or secret.ctx != ctx:
        raise Refused(rule, "the survivor set is for another context")
    if not set(commits) <= set(secret.cohort):
        raise Malformed("survivors", "names somebody who is not in the cohort")
    if secret.me in commits and commits[secret.me] != secret.commit_hash:
        raise Refused(rule, "the commit in this member's name is not the one it signed")


def sign_survivors(
    secret: InstanceSecret, *, ctx: bytes, commits: Mapping[str, bytes], u_min: int, node_key: Ed25519PrivateKey
) -> tuple[InstanceSecret, bytes]:
    """Signs this survivor set, and never another (rule 3).

    The caller has verified each commit's envelope and ctx, and rule 2's difference rule against earlier sums.
    """
    if secret.phase not in (Phase.UPLOADING, Phase.COMMITTED, Phase.SIGNED, Phase.REVEALED):
        raise Refused(3, f"no survivor set is signed in phase {secret.phase}")
    _check_own_place(secret, ctx, commits, 3)
    if secret.commit_hash and secret.me not in commits:
        raise Refused(3, "this member has committed and is not in the set")
    if len(commits) < u_min:
        raise Refused(3, f"{len(commits)} survivors, at least {u_min} needed")
    payload = survivors_message(secret.instance, ctx, commits)
    if secret.signature:
        if payload != secret.survivors:
            raise Refused(3, "another survivor set of this instance was signed")
        return secret, secret.signature
    if secret.phase is Phase.REVEALED:
        raise Refused(3, "this member has revealed already")
    signature = sign_survivors_message(payload, node_key)
    return replace(secret, phase=Phase.SIGNED, survivors=payload, signature=signature), signature


def reveal(
    secret: InstanceSecret,
    *,
    ctx: bytes,
    commits: Mapping[str, bytes],
    signatures: Mapping[str, bytes],
    not_opening: tuple[str, ...] = (),
    u_min: int,
    node_keys: Mapping[str, bytes],
    node_key: Ed25519PrivateKey,
) -> tuple[InstanceSecret, bytes]:
    """What removes the masks of exactly this survivor set, against a quorum certificate for it (rule 4).

    A survivor gives its b and, for each member of `not_opening` (outside the set), their pair secret; everybody gives
    shares of b of the survivors and of B of the others, never of its own. Asked again with more `not_opening` it answers
    again, for the same set only.
    """
    if secret.phase not in (Phase.UPLOADING, Phase.COMMITTED, Phase.SIGNED, Phase.REVEALED):
        raise Refused(4, f"nothing is revealed in phase {secret.phase}")
    _check_own_place(secret, ctx, commits, 4)
    payload = verify_certificate(secret.instance, ctx, secret.cohort, commits, signatures, node_keys, secret.colluders, u_min)
    if secret.survivors not in (b"", payload) or secret.revealed not in (b"", payload):
        raise Refused(4, "another survivor set of this instance was signed or revealed")
    survives = secret.me in commits
    if not set(not_opening) <= set(secret.cohort) - set(commits) - {secret.me}:
        raise Refused(4, "pair secrets are given for members outside the survivor set only")
    message = messages.signed(
        node_key,
        REVEAL,
        secret.instance.parts(),
        ctx,
        secret.me,
        secret.b if survives else b"",
        tuple((m, secret.self_shares[m]) for m in secret.cohort if m in commits and m != secret.me),
        tuple((m, secret.bundle_shares[m]) for m in secret.cohort if m not in commits and m != secret.me),
        tuple((m, secret.pair_secrets[m]) for m in secret.cohort if survives and m in not_opening),
    )
    after = replace(secret, phase=Phase.REVEALED, revealed=payload)
    if not survives:  # everyone else has just opened its R: b alone still protects an upload that arrived late
        after = replace(after, b=b"", bundle_key=b"", pair_secrets={})
    return after, message


def verified(secret: InstanceSecret) -> InstanceSecret:
    """The aggregate is verified: everything secret is erased (rule 5)."""
    if secret.phase is Phase.VOIDED:
        raise Refused(4, "a voided instance has no aggregate")
    return _erased(secret, Phase.VERIFIED)


def void(secret: InstanceSecret) -> InstanceSecret:
    """Erased for good, so that this member may sign `instance-void`. A reveal cannot be taken back (rule 2).

    The caller also moves the epoch's chains past this exchange before it signs.
    """
    if secret.phase in (Phase.REVEALED, Phase.VERIFIED):
        raise Refused(2, "this member has revealed in this instance and signs no void of it")
    return _erased(secret, Phase.VOIDED)
