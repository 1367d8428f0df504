"""Key epochs, the member's half: adverts, encapsulations, group key; then one ratcheting chain per pair.

    begin_epoch → advert → encapsulate → kem → agree → group → complete → EpochKeys

Every step takes the state and what came in and gives the next state and the message to send; the caller persists the
state before the message leaves, and asked again sends the stored message (`EpochSecret.messages`).
Formulas: secure-aggregation.md, section 3; layouts: docs/spec/secagg.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from dure.secagg import messages, tlv
from dure.secagg.errors import Convicted, Malformed, PairMismatch, Refused
from dure.secagg.kdf import digest, hkdf
from dure.secagg.parse import Fields, fields, state
from dure.secagg.seal import SEAL_BYTES, commit_key, seal, unseal

Rng = Callable[[int], bytes]
KEY_BYTES = 32

ADVERT, KEM, GROUP = "epoch-advert", "epoch-kem", "epoch-group"
MLKEM_PUBLIC_BYTES, MLKEM_CIPHERTEXT_BYTES = 1184, 1088
MAX_CHAIN_STEPS = 1 << 16
"""No run has so many exchanges; a larger number is somebody's attempt to keep this node hashing."""


@dataclass(frozen=True)
class Advert:
    """A member's public keys for one epoch."""

    consortium: bytes
    run: bytes
    epoch: int
    member: str
    node_key: bytes
    generation: int
    x25519: bytes
    mlkem768: bytes
    group_commitment: bytes
    last_accepted: int
    """Number of the last exchange this member accepted in this run, 0 if none."""


@dataclass(frozen=True)
class Kem:
    """Ciphertexts from one member to every higher one."""

    consortium: bytes
    run: bytes
    epoch: int
    member: str
    adverts_hash: bytes
    ciphertexts: Mapping[str, bytes]


@dataclass(frozen=True)
class Group:
    """g_i, sealed for every peer, each with a commitment to the sealing key."""

    consortium: bytes
    run: bytes
    epoch: int
    member: str
    transcript: bytes
    sealed: Mapping[str, bytes]
    """Peer → H(sealing key) ‖ sealed g_i. The commitment keeps an accuser from showing a wrong key."""


def _head(data: bytes, label: str, member: str, node_keys: Mapping[str, bytes]) -> tuple[bytes, bytes, int, Fields]:
    part = messages.verified(data, label, member, node_keys)
    consortium, run, epoch = part.blob("consortium", 16), part.blob("run", 32), part.number("epoch")
    if part.text("member") != member:
        raise Malformed(f"{label}.member", f"must be {member}")
    return consortium, run, epoch, part


def verify_advert(data: bytes, *, member: str, node_keys: Mapping[str, bytes]) -> Advert:
    """Both sides: the advert, signed by this member's node. Whether consortium, run, epoch and generation fit is the caller's."""
    consortium, run, epoch, part = _head(data, ADVERT, member, node_keys)
    advert = Advert(
        consortium,
        run,
        epoch,
        member,
        part.blob("node_key", 32),
        part.number("generation"),
        part.blob("x25519", 32),
        part.blob("mlkem768", MLKEM_PUBLIC_BYTES),
        part.blob("group_commitment", 32),
        part.number("last_accepted"),
    )
    part.end()
    if advert.node_key != node_keys[member]:
        raise Malformed(f"{ADVERT}.node_key", "is not the key that signed")
    return advert


def verify_kem(data: bytes, *, member: str, members: tuple[str, ...], node_keys: Mapping[str, bytes]) -> Kem:
    """Both sides: one ciphertext for every member above this one, no other."""
    consortium, run, epoch, part = _head(data, KEM, member, node_keys)
    kem = Kem(consortium, run, epoch, member, part.blob("adverts", 32), part.pairs("ciphertexts", MLKEM_CIPHERTEXT_BYTES))
    part.end()
    if set(kem.ciphertexts) != {m for m in members if m.encode() > member.encode()}:
        raise Malformed(f"{KEM}.ciphertexts", "must name every higher member and no other")
    return kem


def verify_group(data: bytes, *, member: str, members: tuple[str, ...], node_keys: Mapping[str, bytes]) -> Group:
    """Both sides: one sealed share of the group key for every other member."""
    consortium, run, epoch, part = _head(data, GROUP, member, node_keys)
    group = Group(consortium, run, epoch, member, part.blob("transcript", 32), part.pairs("sealed", 32 + KEY_BYTES + SEAL_BYTES))
    part.end()
    if set(group.sealed) != set(members) - {member}:
        raise Malformed(f"{GROUP}.sealed", "must name every other member")
    return group


@dataclass(frozen=True)
class EpochSecret:
    """A member's state between `begin_epoch` and `complete`. Persist it before each message leaves; it holds keys."""

    consortium: bytes
    run: bytes
    epoch: int
    members: tuple[str, ...]
    me: str
    generation: int
    phase: str
    """begun, encapsulated, agreed"""
    node_signer: bytes = field(repr=False)
    """Seed of the node key: every message of the epoch is signed by it."""
    x25519: bytes = field(repr=False)
    mlkem: bytes = field(repr=False)
    g: bytes = field(repr=False)
    messages: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """What was sent, by label: identical bytes whenever it is asked for again."""
    node_keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    adverts: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    kem_secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    roots: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    transcript: bytes = b""

    def to_bytes(self) -> bytes:
        maps = (self.messages, self.node_keys, self.adverts, self.kem_secrets, self.roots)
        return tlv.encode(
            "epoch-secret",
            1,
            (self.consortium, self.run, self.epoch, self.members, self.me, self.generation, self.phase),
            (self.node_signer, self.x25519, self.mlkem, self.g, self.transcript),
            tuple(_pairs(m) for m in maps),
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> EpochSecret:
        part = state(data, "epoch-secret")
        head, secrets, maps = part.sub("head"), part.sub("secrets"), part.sub("maps")
        part.end()
        names = ("node_signer", "x25519", "mlkem", "g", "transcript")
        rest: dict[str, Any] = {name: secrets.blob(name) for name in names}
        rest |= {name: maps.pairs(name) for name in ("messages", "node_keys", "adverts", "kem_secrets", "roots")}
        return cls(
            consortium=head.blob("consortium", 16),
            run=head.blob("run", 32),
            epoch=head.number("epoch"),
            members=head.texts("members"),
            me=head.text("me"),
            generation=head.number("generation"),
            phase=head.text("phase"),
            **rest,
        )


def _pairs(table: Mapping[str, bytes]) -> tuple[tuple[str, bytes], ...]:
    return tuple((k, table[k]) for k in sorted(table, key=str.encode))


def begin_epoch(
    *,
    consortium: bytes,
    run: bytes,
    epoch: int,
    members: tuple[str, ...],
    me: str,
    node_key: Ed25519PrivateKey,
    generation: int,
    last_accepted: int,
    rng: Rng,
) -> tuple[EpochSecret, bytes]:
    """Fresh keys for this epoch and the advert of their public halves."""
    if me not in members or list(members) != sorted(set(members), key=str.encode):
        raise Malformed("members", "must be distinct, in bytewise order, with this member among them")
    secret = EpochSecret(consortium, run, epoch, members, me, generation, "begun", node_key.private_bytes_raw(), rng(32), rng(64), rng(32))
    advert = messages.signed(
        node_key,
        ADVERT,
        consortium,
        run,
        epoch,
        me,
        node_key.public_key().public_bytes_raw(),
        generation,
        X25519PrivateKey.from_private_bytes(secret.x25519).public_key().public_bytes_raw(),
        MLKEM768PrivateKey.from_seed_bytes(secret.mlkem).public_key().public_bytes_raw(),
        _commit_group(secret, me, secret.g),
        last_accepted,
    )
    return replace(secret, messages={ADVERT: advert}), advert


def _commit_group(secret: EpochSecret, member: str, g: bytes) -> bytes:
    return digest("commit/group", secret.consortium, secret.run, secret.epoch, member, g)


def encapsulate(secret: EpochSecret, adverts: Mapping[str, bytes], node_keys: Mapping[str, bytes], rng: Rng) -> tuple[EpochSecret, bytes]:
    """All adverts are in (own included): verifies them and encapsulates to every higher member.

    ML-KEM draws its own randomness from the library; the result is in the state, so asked again it is the same message.
    """
    if secret.phase != "begun":
        if dict(adverts) != dict(secret.adverts):
            raise Refused(5, "this epoch was begun with other adverts; begin a new one")
        return secret, secret.messages[KEM]
    if set(adverts) != set(secret.members):
        raise Malformed("adverts", "must be those of the epoch's members")
    if adverts[secret.me] != secret.messages[ADVERT]:
        raise Refused(5, "the advert in this member's name is not the one it sent")
    kem_secrets: dict[str, bytes] = {}
    ciphertexts: dict[str, bytes] = {}
    for member in secret.members:
        advert = verify_advert(adverts[member], member=member, node_keys=node_keys)
        _same_epoch(secret, advert)
        if member.encode() <= secret.me.encode():
            continue
        try:
            public = MLKEM768PublicKey.from_public_bytes(advert.mlkem768)
            kem_secrets[member], ciphertexts[member] = public.encapsulate()
        except ValueError:
            raise Convicted(member, "advertises an ML-KEM key that is none") from None
    part = (secret.consortium, secret.run, secret.epoch, secret.me, messages.hash_all(adverts, ADVERT), _pairs(ciphertexts))
    kem = messages.signed(_signer(secret), KEM, *part)
    return (
        replace(
            secret,
            phase="encapsulated",
            adverts=dict(adverts),
            node_keys={m: node_keys[m] for m in secret.members},
            kem_secrets=kem_secrets,
            messages={**secret.messages, KEM: kem},
        ),
        kem,
    )


def _signer(secret: EpochSecret) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(secret.node_signer)


def _same_epoch(secret: EpochSecret, message: Advert | Kem | Group) -> None:
    if (message.consortium, message.run, message.epoch) != (secret.consortium, secret.run, secret.epoch):
        raise Malformed("epoch", f"{message.member}'s message belongs to another consortium, run or epoch")


def agree(secret: EpochSecret, kems: Mapping[str, bytes], rng: Rng) -> tuple[EpochSecret, bytes]:
    """All kem messages are in: derives the pair roots, seals g_i for each peer, forgets the private halves."""
    if secret.phase == "agreed":
        if _transcript(messages.hash_all(secret.adverts, ADVERT), messages.hash_all(kems, KEM)) != secret.transcript:
            raise Refused(5, "this epoch was agreed on other key messages; begin a new one")
        return secret, secret.messages[GROUP]
    if secret.phase != "encapsulated" or set(kems) != set(secret.members):
        raise Malformed("kems", "must be those of the epoch's members, after the adverts")
    if kems[secret.me] != secret.messages[KEM]:
        raise Refused(5, "the kem message in this member's name is not the one it sent")
    salt = messages.hash_all(secret.adverts, ADVERT)
    parsed = {m: verify_kem(kems[m], member=m, members=secret.members, node_keys=secret.node_keys) for m in secret.members}
    for member, kem in parsed.items():
        _same_epoch(secret, kem)
        if kem.adverts_hash != salt:
            raise PairMismatch(secret.me, member)
    roots = {peer: _pair_root(secret, parsed, peer, salt) for peer in secret.members if peer != secret.me}
    transcript = _transcript(salt, messages.hash_all(kems, KEM))
    sealed: dict[str, bytes] = {}
    for peer, root in roots.items():
        key = _seal_key(root, secret.me, peer)
        sealed[peer] = commit_key(key) + seal(key, secret.g, "group/seal", transcript, secret.me, peer)
    part = (secret.consortium, secret.run, secret.epoch, secret.me, transcript, _pairs(sealed))
    group = messages.signed(_signer(secret), GROUP, *part)
    sent = {**secret.messages, GROUP: group}
    after = replace(secret, phase="agreed", x25519=b"", mlkem=b"", kem_secrets={}, roots=roots, transcript=transcript, messages=sent)
    return after, group


def _pair_root(secret: EpochSecret, kems: Mapping[str, Kem], peer: str, salt: bytes) -> bytes:
    low, high = sorted((secret.me, peer), key=str.encode)
    ciphertext = kems[low].ciphertexts[high]
    mine = secret.me == low
    shared = secret.kem_secrets[peer] if mine else MLKEM768PrivateKey.from_seed_bytes(secret.mlkem).decapsulate(ciphertext)
    advert = verify_advert(secret.adverts[peer], member=peer, node_keys=secret.node_keys)
    try:
        public = X25519PublicKey.from_public_bytes(advert.x25519)
        classical = X25519PrivateKey.from_private_bytes(secret.x25519).exchange(public)
    except ValueError:
        raise Convicted(peer, "advertises an X25519 key of low order") from None
    return hkdf(classical + shared, "epoch/pair", low, high, digest("epoch/ciphertext", ciphertext), salt=salt)


def _transcript(adverts_hash: bytes, kems_hash: bytes) -> bytes:
    return digest("epoch/transcript", adverts_hash, kems_hash)


def _seal_key(root: bytes, author: str, reader: str) -> bytes:
    return hkdf(root, "group/seal", author, reader)


def complete(secret: EpochSecret, groups: Mapping[str, bytes]) -> EpochKeys:
    """All group messages are in: opens every g_i against its commitment. `Convicted` carries evidence for `judge_group`."""
    if secret.phase != "agreed" or set(groups) != set(secret.members):
        raise Malformed("groups", "must be those of the epoch's members, after the kem messages")
    if groups[secret.me] != secret.messages[GROUP]:
        raise Refused(5, "the group message in this member's name is not the one it sent")
    contributions: list[bytes] = []
    for member in secret.members:
        group = verify_group(groups[member], member=member, members=secret.members, node_keys=secret.node_keys)
        _same_epoch(secret, group)
        if group.transcript != secret.transcript:
            raise PairMismatch(secret.me, member)
        contributions.append(secret.g if member == secret.me else _open_group(secret, group))
    group_key = hkdf(b"".join(contributions), "group/key", salt=secret.transcript)
    chains = dict(secret.roots)
    return EpochKeys(
        secret.consortium, secret.run, secret.epoch, secret.members, secret.me, secret.transcript, 0, group_key=group_key, chains=chains
    )


def _open_group(secret: EpochSecret, group: Group) -> bytes:
    key = _seal_key(secret.roots[group.member], group.member, secret.me)
    if group.sealed[secret.me][:32] != commit_key(key):
        raise PairMismatch(secret.me, group.member)
    g = unseal(key, group.sealed[secret.me][32:], "group/seal", secret.transcript, group.member, secret.me)
    advert = verify_advert(secret.adverts[group.member], member=group.member, node_keys=secret.node_keys)
    if g is None or _commit_group(secret, group.member, g) != advert.group_commitment:
        evidence = tlv.encode("accuse-group", group.member, secret.me, key)
        raise Convicted(group.member, "sealed a share of the group key that does not open its commitment", evidence)
    return g


def judge_group(evidence: bytes, *, advert: bytes, group: bytes, members: tuple[str, ...], node_keys: Mapping[str, bytes]) -> str | None:
    """Anyone: the member this evidence convicts, or None if it shows nothing. `advert` and `group` are the accused's messages."""
    part = fields(evidence, "evidence", max_bytes=4096)
    if part.text("kind") != "accuse-group":
        return None
    accused, accuser, key = part.text("accused"), part.text("accuser"), part.blob("key", KEY_BYTES)
    part.end()
    if accused not in members or accuser not in members or accuser == accused:
        return None
    said = verify_group(group, member=accused, members=members, node_keys=node_keys)
    advertised = verify_advert(advert, member=accused, node_keys=node_keys)
    same = (said.consortium, said.run, said.epoch) == (advertised.consortium, advertised.run, advertised.epoch)
    if not same or said.sealed[accuser][:32] != commit_key(key):
        return None
    g = unseal(key, said.sealed[accuser][32:], "group/seal", said.transcript, accused, accuser)
    opens = g is not None and digest("commit/group", said.consortium, said.run, said.epoch, accused, g) == advertised.group_commitment
    return None if opens else accused


@dataclass(frozen=True)
class EpochKeys:
    """What an epoch leaves: the group key and one chain per peer. Persist it whole; only the newest state may survive."""

    consortium: bytes
    run: bytes
    epoch: int
    members: tuple[str, ...]
    me: str
    transcript: bytes
    next_exchange: int
    """Keys of lower exchanges are gone."""
    group_key: bytes = field(repr=False)
    chains: Mapping[str, bytes] = field(repr=False)
    """Peer → ck at `next_exchange`."""

    def exchange_key(self, peer: str, x: int) -> bytes:
        """rk_x with this peer; `Refused` if it was erased."""
        if x < self.next_exchange:
            raise Refused(5, f"the keys of exchange {x} are erased, {self.next_exchange} is the first that is left")
        return hkdf(self._chain(peer, x), "chain/exchange", x)

    def advanced_past(self, x: int) -> EpochKeys:
        """The same without rk of exchange x or any before it; unchanged if they are gone already."""
        if x < self.next_exchange:
            return self
        return replace(self, next_exchange=x + 1, chains={peer: self._chain(peer, x + 1) for peer in self.chains})

    def _chain(self, peer: str, x: int) -> bytes:
        if x - self.next_exchange > MAX_CHAIN_STEPS:
            raise Malformed("exchange", f"{x} is too far ahead of {self.next_exchange}")
        ck = self.chains[peer]
        for _ in range(x - self.next_exchange):
            ck = hkdf(ck, "chain/next")
        return ck

    def to_bytes(self) -> bytes:
        head = (self.consortium, self.run, self.epoch, self.members, self.me, self.transcript, self.next_exchange)
        return tlv.encode("epoch-keys", 1, head, self.group_key, _pairs(self.chains))

    @classmethod
    def from_bytes(cls, data: bytes) -> EpochKeys:
        part = state(data, "epoch-keys")
        head, group_key, chains = part.sub("head"), part.blob("group_key", KEY_BYTES), part.pairs("chains", KEY_BYTES)
        part.end()
        return cls(
            consortium=head.blob("consortium", 16),
            run=head.blob("run", 32),
            epoch=head.number("epoch"),
            members=head.texts("members"),
            me=head.text("me"),
            transcript=head.blob("transcript", 32),
            next_exchange=head.number("next_exchange"),
            group_key=group_key,
            chains=chains,
        )
