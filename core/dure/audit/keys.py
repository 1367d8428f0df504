"""Which keys were valid at which index of the log, and where each signer's chain stands there. Source: ledger.md §2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dure.audit.entry import Entry
from dure.charter.model import Charter
from dure.errors import Refused
from dure.statements.dsse import key_id
from dure.statements.kinds import CharterVersion, NodeDelegation, NodeRevocation

DAY_S = 86_400


class KeyRefused(Refused):
    """An entry's signer may not sign at this index, or its chain has a gap."""


class ClockBack(Refused):
    """A statement says it was made a day or more before the one that stands before it in its signer's chain."""

    def __init__(self, party: Party, days: float) -> None:
        super().__init__("time", f"is {days:.1f} days before the statement that {party} made before it: backdated, or a clock was off")


@dataclass(frozen=True)
class Party:
    """Who holds a key: the coordinator, a member's signing key, or a member's node."""

    role: str
    """coordinator | member | node"""
    member: str = ""
    node: str = ""
    generation: int = 0
    delegated_by: bytes = b""
    """The member's signing key, of a node."""

    def __str__(self) -> str:
        return f"{self.member}/{self.node}" if self.role == "node" else self.member or self.role


@dataclass
class Keys:
    """Reads the log in order: `signer` before an entry, `follow` after it.

    Args:
        versions: the charter, version by version, verified from the pinned first.
    """

    versions: Sequence[Charter]
    in_force: int = 0
    """How many versions are entries so far."""
    _parties: dict[str, tuple[bytes, Party]] = field(default_factory=dict)
    _chains: dict[str, tuple[int, bytes | None, int]] = field(default_factory=dict)
    """key id -> (next seq, digest of the latest envelope, its time)."""
    _node_keys: dict[str, bytes] = field(default_factory=dict)
    _revoked: dict[str, int] = field(default_factory=dict)
    """member -> highest generation it revoked."""

    @property
    def charter(self) -> Charter:
        return self.versions[max(self.in_force, 1) - 1]

    @property
    def entered(self) -> Sequence[Charter]:
        """Every version in force so far, the newest last."""
        return self.versions[: max(self.in_force, 1)]

    def __post_init__(self) -> None:
        self._enter_charter()

    def _enter_charter(self) -> None:
        """The coordinator's and the members' own keys of the version in force; nodes go with the signing key that delegated to them."""
        terms = self.charter.terms
        there = {m.id: m.signing_key for m in terms.members}
        nodes = {k: v for k, v in self._parties.items() if v[1].role == "node" and there.get(v[1].member) == v[1].delegated_by}
        self._parties = {key_id(terms.coordinator.signing_key): (terms.coordinator.signing_key, Party("coordinator"))}
        for member in terms.members:
            self._parties[key_id(member.signing_key)] = (member.signing_key, Party("member", member.id))
        self._parties |= nodes
        self._node_keys = self._nodes()

    def signer(self, key: str, kind: str = "") -> tuple[bytes, Party]:
        """The key of this id and who holds it, valid for the next entry. A charter version is entered under the key it names itself.

        Raises:
            KeyRefused: no such key is valid here.
        """
        brought = self.versions[self.in_force] if kind == CharterVersion.kind and self.in_force < len(self.versions) else self.charter
        if key == key_id(brought.terms.coordinator.signing_key):
            return brought.terms.coordinator.signing_key, Party("coordinator")
        if key not in self._parties:
            raise KeyRefused("signatures", self._why_not(key))
        return self._parties[key]

    def _why_not(self, key: str) -> str:
        for earlier in self.versions[: max(self.in_force, 1) - 1]:
            if key == key_id(earlier.terms.coordinator.signing_key):
                return f"key {key[:16]} is the coordinator's of charter version {earlier.version}, which version {self.in_force} replaced"
        return f"key {key[:16]} is not valid at this index"

    def node_keys(self) -> dict[str, bytes]:
        """The node key of every member that has one here. Not to be changed."""
        return self._node_keys

    def _nodes(self) -> dict[str, bytes]:
        return {party.member: key for key, party in self._parties.values() if party.role == "node"}

    def follow(self, entry: Entry, party: Party) -> None:
        """Takes in an entry whose signature verified: its place in the signer's chain, and the keys it brings or ends.

        Raises:
            ClockBack: its time is a day or more before that of its predecessor.
            KeyRefused: a gap, a wrong predecessor, or a key that may not be brought so.
        """
        following, prev, before = self._chains.get(entry.key_id, (0, None, 0))
        if (entry.seq, entry.prev) != (following, prev):
            raise KeyRefused("seq", f"is {entry.seq} after {following - 1}, or names another predecessor: the chain of {party} has a gap")
        self._chains[entry.key_id] = (following + 1, entry.sha256, entry.time)
        if entry.kind == NodeDelegation.kind:
            self._delegate(entry.fact, party, self._parties[entry.key_id][0])
        elif entry.kind == NodeRevocation.kind:
            self._revoke(entry.fact, party)
        elif entry.kind == CharterVersion.kind:
            self._new_version(entry.fact, entry.key_id)
        if entry.time <= before - DAY_S:
            raise ClockBack(party, (before - entry.time) / DAY_S)

    def _delegate(self, fact: NodeDelegation, party: Party, by: bytes) -> None:
        if (party.role, party.member) != ("member", fact.member):
            raise KeyRefused("member", f"{party} cannot delegate for {fact.member}")
        if fact.generation <= self._revoked.get(fact.member, 0):
            raise KeyRefused("generation", f"{fact.generation} was revoked")
        for key, (_, held) in list(self._parties.items()):
            if held.role == "node" and held.member == fact.member:
                if held.generation >= fact.generation:
                    raise KeyRefused("generation", f"{fact.generation} is not above {held.generation}")
                del self._parties[key]  # one node speaks for a member; the older key ends here
        self._parties[key_id(fact.node_key)] = (fact.node_key, Party("node", fact.member, fact.node, fact.generation, by))
        self._node_keys = self._nodes()

    def _revoke(self, fact: NodeRevocation, party: Party) -> None:
        if (party.role, party.member) != ("member", fact.member):
            raise KeyRefused("member", f"{party} cannot revoke nodes of {fact.member}")
        self._revoked[fact.member] = max(fact.generation, self._revoked.get(fact.member, 0))
        for key, (_, held) in list(self._parties.items()):
            if held.role == "node" and held.member == fact.member and held.generation <= fact.generation:
                del self._parties[key]
        self._node_keys = self._nodes()

    def _new_version(self, fact: CharterVersion, signer: str) -> None:
        if fact.version != self.in_force + 1:
            raise KeyRefused("version", f"{fact.version} does not follow {self.in_force}")
        if fact.version > len(self.versions):
            raise KeyRefused("version", f"{fact.version} is in the log, and trust/{fact.version}.root.json is not in the bundle")
        if fact.charter_sha256 != self.versions[fact.version - 1].digest:
            raise KeyRefused("charter_sha256", f"is not the digest of version {fact.version} in the bundle")
        if signer != key_id(self.versions[fact.version - 1].terms.coordinator.signing_key):
            raise KeyRefused("signatures", f"version {fact.version} is entered under another key than the coordinator's that it names")
        self.in_force = fact.version
        self._enter_charter()
