"""What the entries of the log say that this node acts on: its own statements, charter versions, and node keys that ended. No I/O.

Whoever cosigns a head answers for its history: an entry that brings another charter than the one this node verified is not cosigned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dure.charter.log_keys import in_force
from dure.charter.model import Charter
from dure.charter.succession import coordinator_keys
from dure.errors import DureError
from dure.statements.anykind import kind_of
from dure.statements.dsse import Envelope, key_id
from dure.statements.kinds import CharterVersion, DataCommitment, NodeDelegation, NodeRevocation
from dure.statements.statement import open_statement
from dure.tlog.witness import WitnessRefused

Held = tuple[bytes, int, bytes]
"""(node key, generation, signing key that delegated)."""


@dataclass(frozen=True)
class Followed:
    """What the first `size` entries say."""

    size: int = 0
    own: int = 0
    """This node's statements among them."""
    versions: tuple[int, ...] = ()
    """Index of each charter version's entry, 1 first."""
    nodes: Mapping[str, Held] = field(default_factory=dict)
    """Member -> the node that speaks for it."""
    ended: frozenset[bytes] = frozenset()
    """Node keys that may speak no more, though nothing newer took their place."""
    data: Mapping[bytes, str] = field(default_factory=dict)
    """Payload digest -> name of the data that this node's member registered."""

    def to_json(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "own": self.own,
            "versions": list(self.versions),
            "nodes": {m: [key.hex(), generation, signer.hex()] for m, (key, generation, signer) in self.nodes.items()},
            "ended": sorted(key.hex() for key in self.ended),
            "data": {digest.hex(): name for digest, name in self.data.items()},
        }

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Followed:
        """As `to_json` wrote it; KeyError or ValueError for anything else."""
        nodes = {m: (bytes.fromhex(key), int(generation), bytes.fromhex(by)) for m, (key, generation, by) in body["nodes"].items()}
        ended = frozenset(bytes.fromhex(key) for key in body["ended"])
        data = {bytes.fromhex(digest): str(name) for digest, name in body["data"].items()}
        return Followed(int(body["size"]), int(body["own"]), tuple(map(int, body["versions"])), nodes, ended, data)


@dataclass(frozen=True)
class Follower:
    """Reads entries in order.

    Args:
        member: whose node this is.
        own: this node's public key.
        statement: what this node signed under a number; None for one it has not.
        charters: every version it has verified, 1 first.
    """

    member: str
    own: bytes
    statement: Callable[[int], bytes | None]
    charters: Callable[[], Sequence[Charter]]

    def take(self, so_far: Followed, entry: bytes) -> Followed:
        """What is known after one more entry.

        Raises:
            WitnessRefused: nobody should cosign a head with this entry below it.
        """
        after = replace(so_far, size=so_far.size + 1)
        try:
            envelope = Envelope.from_bytes(entry)
        except DureError:
            return after  # somebody else's; whoever audits the log names it
        signer = envelope.signatures[0][0]
        if signer == key_id(self.own):
            return replace(after, own=self._own(so_far.own, entry))
        charters, now = self.charters(), in_force(self.charters(), so_far.versions, so_far.size)
        terms = now.terms
        self._not_replaced(signer, now, so_far.size)
        for key in coordinator_keys(charters, now.version):  # a version is entered under the key it names itself
            if signer == key_id(key):
                return self._coordinators(after, envelope, key)
        members = {key_id(m.signing_key): (m.id, m.signing_key) for m in terms.members}
        return self._members(after, envelope, *members[signer]) if signer in members else after

    def _not_replaced(self, signer: str, now: Charter, index: int) -> None:
        former = {key_id(c.terms.coordinator.signing_key): c.version for c in self.charters()[: now.version - 1]}
        if signer in former and signer != key_id(now.terms.coordinator.signing_key):
            whose = f"the coordinator's key of charter version {former[signer]}, which version {now.version} replaced"
            raise WitnessRefused(422, f"entry {index} is signed by {whose}", evidence=True)

    def _own(self, number: int, entry: bytes) -> int:
        if entry != self.statement(number):
            raise WitnessRefused(422, f"an entry under this node's key is not its statement {number}", evidence=True)
        return number + 1

    def _coordinators(self, after: Followed, envelope: Envelope, key: bytes) -> Followed:
        if b"urn:dure:charter:" not in envelope.payload:
            return after
        try:
            fact = open_statement(envelope, CharterVersion, [key]).fact
        except DureError:
            return after
        number, known = len(after.versions) + 1, self.charters()
        if fact.version > len(known):
            raise WitnessRefused(422, f"charter version {fact.version} is not known to this node yet; it hears of it when it connects anew")
        if fact.version != number or fact.charter_sha256 != known[number - 1].digest:
            raise WitnessRefused(422, f"the log's charter version {fact.version} is not the one this node verified", evidence=True)
        if key != known[number - 1].terms.coordinator.signing_key:
            why = f"charter version {fact.version} is entered under another key than the coordinator's that it names"
            raise WitnessRefused(422, why, evidence=True)
        return _under(replace(after, versions=(*after.versions, after.size - 1)), known[number - 1])

    def _members(self, after: Followed, envelope: Envelope, member: str, key: bytes) -> Followed:
        try:
            kind = kind_of(envelope.payload)
            if kind == DataCommitment.kind and member == self.member:
                named = open_statement(envelope, DataCommitment, [key]).fact.name
                return replace(after, data={**after.data, envelope.payload_sha256: named})
            if kind == NodeRevocation.kind:
                return _without(after, member, open_statement(envelope, NodeRevocation, [key]).fact)
            if kind != NodeDelegation.kind:
                return after
            fact = open_statement(envelope, NodeDelegation, [key]).fact
        except DureError:
            return after
        held = after.nodes.get(member)
        if fact.member != member or (held is not None and held[1] >= fact.generation):
            return after
        return replace(after, nodes={**after.nodes, member: (fact.node_key, fact.generation, key)})


def _without(so_far: Followed, member: str, fact: NodeRevocation) -> Followed:
    """The member's node key, if it is of a generation that its member revoked, ends here."""
    held = so_far.nodes.get(member)
    if held is None or fact.member != member or held[1] > fact.generation:
        return so_far
    nodes = {m: h for m, h in so_far.nodes.items() if m != member}
    return replace(so_far, nodes=nodes, ended=so_far.ended | {held[0]})


def _under(so_far: Followed, charter: Charter) -> Followed:
    """Node keys end with the signing key that delegated to them."""
    signing = {m.id: m.signing_key for m in charter.members}
    over = {member: held for member, held in so_far.nodes.items() if signing.get(member) != held[2]}
    nodes = {member: held for member, held in so_far.nodes.items() if member not in over}
    return replace(so_far, nodes=nodes, ended=so_far.ended | {held[0] for held in over.values()})


def ended_keys(so_far: Followed, newest: Charter) -> frozenset[bytes]:
    """Node keys nothing may be shared with any more, the newest charter version being obeyed before its entry is read."""
    return _under(so_far, newest).ended
