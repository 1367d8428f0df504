"""The coordinator's half, and every auditor's: from reveals to the seeds that take the masks off the sum of one survivor set.

Every opened value is checked against its author's signed commitment, so a wrong one is never used and its giver is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dure.secagg import messages, shamir, tlv
from dure.secagg.errors import BelowThreshold, Convicted, Malformed
from dure.secagg.ids import InstanceId
from dure.secagg.instance import REVEAL
from dure.secagg.kdf import hkdf
from dure.secagg.masks import MaskSet, MaskStream, pair_sign
from dure.secagg.parse import fields
from dure.secagg.seal import unseal
from dure.secagg.shares import (
    BUNDLE,
    SELF,
    ShareMessage,
    bundle_associated,
    commit_pair,
    commit_secret,
    commit_share,
    others,
    position,
    read_shares,
)
from dure.secagg.thresholds import share_threshold


@dataclass(frozen=True)
class Reveal:
    """One member's reveal, taken apart."""

    member: str
    own: bytes
    """b of a survivor, else empty."""
    self_shares: Mapping[str, bytes]
    bundle_shares: Mapping[str, bytes]
    pair_secrets: Mapping[str, bytes]


def check_reveal(
    data: bytes,
    *,
    instance: InstanceId,
    ctx: bytes,
    cohort: tuple[str, ...],
    survivors: tuple[str, ...],
    member: str,
    node_keys: Mapping[str, bytes] | None,
) -> Reveal:
    """The reveal of this member for exactly this survivor set; `node_keys` None: its signature was verified before."""
    part = messages.unverified(data, REVEAL) if node_keys is None else messages.verified(data, REVEAL, member, node_keys)
    if InstanceId.of(part.value("instance")) != instance or part.blob("ctx", 32) != ctx or part.text("member") != member:
        raise Malformed(REVEAL, f"is not {member}'s for this instance and context")
    survives = member in survivors
    own = part.blob("own", 32 if survives else 0)
    self_shares, bundle_shares, pair_secrets = part.pairs("self", 32), part.pairs("bundle", 32), part.pairs("pairs", 32)
    part.end()
    dropped = set(cohort) - set(survivors)
    if member not in cohort or set(self_shares) != set(survivors) - {member} or set(bundle_shares) != dropped - {member}:
        raise Malformed(REVEAL, f"{member}'s is for another survivor set")
    if not set(pair_secrets) <= dropped or (pair_secrets and not survives):
        raise Malformed(f"{REVEAL}.pairs", "belong to a survivor and name members outside the set")
    return Reveal(member, own, self_shares, bundle_shares, pair_secrets)


@dataclass(frozen=True)
class Recovered:
    """Everything that was opened for one survivor set: public from here on."""

    instance: InstanceId
    ctx: bytes
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    self_seeds: Mapping[str, bytes] = field(repr=False)
    """Survivor → b."""
    pair_secrets: Mapping[tuple[str, str], bytes] = field(repr=False)
    """(dropped, survivor) → R."""
    not_opening: tuple[str, ...] = ()
    """Dropped members whose bundle is garbage: name them in another reveal. While there are any, nothing can be unmasked."""
    wrong: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Holder → authors for whom it gave something that does not open its commitment."""

    def _unmask(self, direction: int) -> MaskSet:
        if self.not_opening:
            raise Malformed("reveals", f"the bundles of {', '.join(self.not_opening)} do not open; ask survivors for their pair secrets")
        return MaskSet(self._streams(direction))

    def _streams(self, direction: int) -> Iterator[MaskStream]:
        for member in self.survivors:
            yield MaskStream.derive(self.self_seeds[member], self.ctx, "mask/self", direction)
        for (dropped, survivor), r in sorted(self.pair_secrets.items()):
            yield MaskStream.derive(r, self.ctx, "mask/pair", direction * pair_sign(survivor, dropped))

    @property
    def unmask(self) -> MaskSet:
        """What to add to the survivors' sum so that it opens: ring_chunk, field_chunk, trailer, tag."""
        return self._unmask(-1)

    def to_bytes(self) -> bytes:
        """The blob of revealed seeds that `instance-aggregate` names; canonical."""
        seeds = tuple((m, self.self_seeds[m]) for m in self.survivors)
        order = sorted(self.pair_secrets, key=lambda pair: (pair[0].encode(), pair[1].encode()))
        secrets = tuple((d, s, self.pair_secrets[d, s]) for d, s in order)
        return tlv.encode("seeds", 1, self.instance.parts(), self.ctx, self.cohort, self.survivors, seeds, secrets)

    @classmethod
    def from_bytes(cls, data: bytes) -> Recovered:
        """`Malformed` unless it is complete and canonical. The values are not checked; `check_recovered` does that."""
        part = fields(data, "seeds")
        if part.text("kind") != "seeds" or part.number("version") != 1:
            raise Malformed("seeds", "is not a blob of seeds")
        instance, ctx = InstanceId.of(part.value("instance")), part.blob("ctx", 32)
        cohort, survivors = part.texts("cohort"), part.texts("survivors")
        seeds, listed = part.pairs("self", 32), part.sub("pairs")
        part.end()
        secrets: dict[tuple[str, str], bytes] = {}
        for k in range(listed.left):
            item = listed.sub(str(k))
            pair = (item.text("dropped"), item.text("survivor"))
            secrets[pair] = item.blob("secret", 32)
            item.end()
        dropped = [m for m in cohort if m not in survivors]
        if set(seeds) != set(survivors) or set(secrets) != {(d, s) for d in dropped for s in survivors}:
            raise Malformed("seeds", "must hold one of each survivor and of each pair of a dropped member and a survivor")
        found = cls(instance, ctx, cohort, survivors, seeds, secrets)
        if found.to_bytes() != data:
            raise Malformed("seeds", "is not in canonical order")
        return found


def check_recovered(found: Recovered, shares: Mapping[str, bytes]) -> None:
    """Anyone: each revealed seed is the one its author committed to in these (verified) share messages; else `Malformed`."""
    public = read_shares(found.instance, found.cohort, shares, None)
    if not set(found.survivors) <= set(found.cohort):
        raise Malformed("seeds.survivors", "names somebody who is not in the cohort")
    for member, seed in found.self_seeds.items():
        if commit_secret(SELF, found.instance, member, seed) != public[member].self_commitment:
            raise Malformed("seeds", f"{member}'s is not the one it committed to")
    for (dropped, survivor), r in found.pair_secrets.items():
        if commit_pair(found.instance, dropped, survivor, r) != public[dropped].pair_commitments[survivor]:
            raise Malformed("seeds", f"the pair secret of {dropped} and {survivor} is not the one they committed to")


def recover(
    *,
    instance: InstanceId,
    ctx: bytes,
    cohort: tuple[str, ...],
    survivors: tuple[str, ...],
    shares: Mapping[str, bytes],
    reveals: Mapping[str, bytes],
    colluders: int,
    node_keys: Mapping[str, bytes] | None = None,
) -> Recovered:
    """The seeds, from what was revealed so far.

    Raises:
        BelowThreshold: too few good shares; wait for more reveals.
        Convicted: t good shares of a survivor's b give something else than it committed to, and it did not give b itself.
    """
    public = read_shares(instance, cohort, shares, node_keys)
    given = {
        m: check_reveal(data, instance=instance, ctx=ctx, cohort=cohort, survivors=survivors, member=m, node_keys=node_keys)
        for m, data in reveals.items()
    }
    opener = _Opener(instance, cohort, public, given, share_threshold(len(cohort), colluders))
    self_seeds = {m: opener.self_seed(m) for m in survivors}
    pair_secrets: dict[tuple[str, str], bytes] = {}
    not_opening: list[str] = []
    for dropped in (m for m in cohort if m not in survivors):
        bundle = opener.bundle(dropped)
        for survivor in survivors:
            r = opener.pair_secret(dropped, survivor, bundle)
            if r is not None:
                pair_secrets[dropped, survivor] = r
        if any((dropped, s) not in pair_secrets for s in survivors):
            not_opening.append(dropped)
    wrong = {holder: tuple(sorted(authors)) for holder, authors in opener.wrong.items()}
    return Recovered(instance, ctx, cohort, survivors, self_seeds, pair_secrets, tuple(not_opening), wrong)


class _Opener:
    """Opens one secret after the other from checked reveals; remembers who gave something wrong."""

    def __init__(
        self, instance: InstanceId, cohort: tuple[str, ...], public: Mapping[str, ShareMessage], given: Mapping[str, Reveal], t: int
    ) -> None:
        self._instance, self._cohort, self._public, self._given, self._t = instance, cohort, public, given, t
        self.wrong: dict[str, set[str]] = {}

    def self_seed(self, member: str) -> bytes:
        reveal = self._given.get(member)
        if reveal is not None:
            if commit_secret(SELF, self._instance, member, reveal.own) == self._public[member].self_commitment:
                return reveal.own
            self._blame(member, member)
        shares = {m: r.self_shares[member] for m, r in self._given.items() if m != member}
        seed = self._combine(SELF, member, shares, self._public[member].self_share_commitments)
        if commit_secret(SELF, self._instance, member, seed) != self._public[member].self_commitment:
            raise Convicted(member, "dealt shares of b that do not give the b it committed to")
        return seed

    def bundle(self, member: str) -> Mapping[str, bytes]:
        """The pair secrets in a dropped member's bundle; empty if it does not open."""
        shares = {m: r.bundle_shares[member] for m, r in self._given.items() if m != member}
        message = self._public[member]
        key = self._combine(BUNDLE, member, shares, message.bundle_share_commitments)
        if commit_secret(BUNDLE, self._instance, member, key) != message.bundle_commitment:
            return {}
        sealing = hkdf(key, "inst/bundle", self._instance.parts(), member)
        plain = unseal(sealing, message.bundle, *bundle_associated(self._instance, member)) or b""
        return {peer: plain[32 * k : 32 * k + 32] for k, peer in enumerate(others(self._cohort, member))}

    def pair_secret(self, dropped: str, survivor: str, bundle: Mapping[str, bytes]) -> bytes | None:
        """From the bundle, else from what the survivor gave; None if neither is what both committed to."""
        committed = self._public[dropped].pair_commitments[survivor]
        if survivor in bundle and commit_pair(self._instance, dropped, survivor, bundle[survivor]) == committed:
            return bundle[survivor]
        reveal = self._given.get(survivor)
        if reveal is None or dropped not in reveal.pair_secrets:
            return None
        if commit_pair(self._instance, dropped, survivor, reveal.pair_secrets[dropped]) == committed:
            return reveal.pair_secrets[dropped]
        self._blame(survivor, dropped)
        return None

    def _combine(self, kind: str, dealer: str, shares: Mapping[str, bytes], commitments: Mapping[str, bytes]) -> bytes:
        good: dict[int, bytes] = {}
        for holder, share in shares.items():
            if commit_share(kind, self._instance, dealer, holder, share) == commitments[holder]:
                good[position(self._cohort, holder)] = share
            else:
                self._blame(holder, dealer)
        if len(good) < self._t:
            raise BelowThreshold(len(good), self._t, f"good shares of {dealer}'s {kind} secret")
        return shamir.combine({x: good[x] for x in sorted(good)[: self._t]})

    def _blame(self, holder: str, author: str) -> None:
        self.wrong.setdefault(holder, set()).add(author)
