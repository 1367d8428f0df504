"""Which keys were valid at which index of the log, and where each signer's chain stands there. Source: ledger.md §2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dure.charter.model import Charter
from dure.errors import Refused
from dure.statements.dsse import key_id
from dure.statements.kinds import CharterVersion, NodeDelegation
from dure.statements.statement import Signed


class KeyRefused(Refused):
    """An entry's signer may not sign at this index, or its chain has a gap."""


@dataclass(frozen=True)
class Party:
    """Who holds a key: the coordinator, a member's signing key, or a member's node."""

    role: str
    """coordinator | member | node"""
    member: str = ""
    node: str = ""
    generation: int = 0

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
    _chains: dict[str, tuple[int, bytes | None]] = field(default_factory=dict)
    """key id -> (next seq, digest of the latest envelope)."""

    @property
    def charter(self) -> Charter:
        return self.versions[max(self.in_force, 1) - 1]

    def __post_init__(self) -> None:
        self._enter_charter()

    def _enter_charter(self) -> None:
        """The coordinator's and the members' own keys of the version in force; nodes stay as they were delegated."""
        nodes = {k: v for k, v in self._parties.items() if v[1].role == "node"}
        terms = self.charter.terms
        self._parties = {key_id(terms.coordinator.signing_key): (terms.coordinator.signing_key, Party("coordinator"))}
        for member in terms.members:
            self._parties[key_id(member.signing_key)] = (member.signing_key, Party("member", member.id))
        there = {m.id for m in terms.members}
        self._parties |= {k: v for k, v in nodes.items() if v[1].member in there}

    def signer(self, key: str) -> tuple[bytes, Party]:
        """The key of this id and who holds it, valid for the next entry.

        Raises:
            KeyRefused: no such key is valid here.
        """
        if key not in self._parties:
            raise KeyRefused("signatures", f"key {key[:16]} is not valid at this index")
        return self._parties[key]

    def node_keys(self) -> dict[str, bytes]:
        """The node key of every member that has one here."""
        return {party.member: key for key, party in self._parties.values() if party.role == "node"}

    def follow(self, signed: Signed[object], party: Party) -> None:
        """Takes in an entry whose signature verified: its place in the signer's chain, and the keys it brings or ends.

        Raises:
            KeyRefused: a gap, a wrong predecessor, or a key that may not be brought so.
        """
        key = key_id(signed.key)
        following, prev = self._chains.get(key, (0, None))
        if (signed.seq, signed.prev) != (following, prev):
            raise KeyRefused("seq", f"is {signed.seq} after {following - 1}, or names another predecessor: the chain of {party} has a gap")
        self._chains[key] = (following + 1, signed.envelope.sha256)
        if isinstance(signed.fact, NodeDelegation):
            self._delegate(signed.fact, party)
        elif isinstance(signed.fact, CharterVersion):
            self._new_version(signed.fact)

    def _delegate(self, fact: NodeDelegation, party: Party) -> None:
        if (party.role, party.member) != ("member", fact.member):
            raise KeyRefused("member", f"{party} cannot delegate for {fact.member}")
        for key, (_, held) in list(self._parties.items()):
            if held.role == "node" and held.member == fact.member:
                if held.generation >= fact.generation:
                    raise KeyRefused("generation", f"{fact.generation} is not above {held.generation}")
                del self._parties[key]  # one node speaks for a member; the older key ends here
        self._parties[key_id(fact.node_key)] = (fact.node_key, Party("node", fact.member, fact.node, fact.generation))

    def _new_version(self, fact: CharterVersion) -> None:
        if fact.version != self.in_force + 1 or fact.version > len(self.versions):
            raise KeyRefused("version", f"{fact.version} does not follow {self.in_force}, or its file is not in the bundle")
        if fact.charter_sha256 != self.versions[fact.version - 1].digest:
            raise KeyRefused("charter_sha256", f"is not the digest of version {fact.version} in the bundle")
        self.in_force = fact.version
        self._enter_charter()
