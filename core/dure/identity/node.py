"""A node's own folder: what `dure node init` makes and `dure node run` needs.

<dir>/node.json  node.key tls.key witness.key (0600)  tls.pem  delegation.json  member-statements/  consortium.json  pin
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.charter.consortium import ConsortiumFile
from dure.charter.model import Charter, CharterMember
from dure.errors import BadInput, Conflict, NotAuthorised
from dure.identity import keys, tls
from dure.identity.delegation import delegate, verify_delegation
from dure.identity.files import read, read_json, whole_or_nothing, write_atomic, write_json
from dure.identity.member import MemberFolder
from dure.statements.dsse import Envelope, key_id
from dure.statements.kinds import NodeDelegation

WHAT = "a node's folder, made with `dure node init`"
STATEMENTS = "member-statements"


@dataclass(frozen=True)
class NodeIdentity:
    """Who this node is, and whom it believes."""

    directory: Path
    member: str
    node: str
    key: Ed25519PrivateKey
    """The node key: signs every statement and protocol message."""
    delegation: bytes
    """DSSE envelope of the member's word for it."""
    delegated: NodeDelegation
    charters: tuple[Charter, ...]
    """Every version, verified from the pinned version 1."""
    pin: bytes
    address: str
    """host:port of the coordinator."""
    ended: str = ""
    """Why this node can take no part any more under the newest version; "" while it can."""

    @property
    def charter(self) -> Charter:
        """The newest version this node has: the one it obeys."""
        return self.charters[-1]

    @property
    def witness_key(self) -> Ed25519PrivateKey:
        """The member's key for cosigning heads of the log; this node is its witness."""
        return keys.load_signing_key(self.directory / "witness.key")

    @property
    def member_statements(self) -> tuple[bytes, ...]:
        """What the member signed with its signing key so far, its delegations, in order: the log must have them first."""
        return tuple(path.read_bytes() for path in sorted((self.directory / STATEMENTS).glob("*.json")))

    @property
    def tls_key_pem(self) -> bytes:
        return keys.read_private(self.directory / "tls.key")

    @property
    def tls_certificate_pem(self) -> bytes:
        return read(self.directory / "tls.pem", WHAT)

    @property
    def coordinator_ca_pem(self) -> bytes:
        return self.charter.terms.coordinator.ca_pem.encode()

    def followed(self, offered: Sequence[bytes]) -> NodeIdentity:
        """Who this node is under the charter versions its coordinator shows: newer ones that rightly follow are durable when this returns.

        Raises:
            NotAuthorised, Refused, BadInput: they do not follow from those seen before; nothing is changed then.
        """
        path = self.directory / "consortium.json"
        newer = ConsortiumFile.load(path).followed_by(offered, self.pin)
        if newer is None:
            return self
        newer.write(path)
        return load_node(self.directory)

    def __repr__(self) -> str:
        return f"NodeIdentity({self.member}/{self.node})"


def create_node(member_dir: Path, directory: Path, node: str, consortium: Path, *, now: float) -> NodeIdentity:
    """Make a node on the machine that also holds its member's keys.

    Raises:
        BadInput: a name or file is wrong, or the member is not in the charter.
        NotAuthorised: the consortium file is not of the charter this member pinned, or pinned nothing.
        Conflict: the folder holds a node already.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", node):
        raise BadInput(f"--name {node!r}: use 1 to 64 of letters, digits, '.', '_' and '-'")
    if (directory / "node.json").exists():
        raise Conflict(f"{directory} holds a node already; choose another --dir")
    member = MemberFolder.load(member_dir)
    file = ConsortiumFile.load(consortium)
    if member.pin is None:
        raise NotAuthorised(
            f"nothing is pinned yet: compare {file.first_digest.hex()} with the other members, "
            f"then `dure member trust DIGEST --dir {member_dir}`"
        )
    charter = file.charter(member.pin)
    if charter.member(member.member.id) != member.member:
        raise NotAuthorised(f"the charter's keys for {member.member.id} are not those in {member_dir}")
    member.remember(charter)
    # The keys come first: a folder is a node only once node.json, written last, is there.
    for leftover in ("node.key", "tls.key", "witness.key"):
        (directory / leftover).unlink(missing_ok=True)
    with whole_or_nothing(directory):
        _make_node(member, directory, node, file, now=now)
    return load_node(directory)


def _make_node(member: MemberFolder, directory: Path, node: str, file: ConsortiumFile, *, now: float) -> None:
    assert member.pin is not None
    generation, chain = member.next_delegation()
    key = keys.new_signing_key(directory / "node.key")
    envelope, chain = delegate(
        member.signing_key,
        member=member.member.id,
        node=node,
        node_key=keys.public_bytes(key),
        generation=generation,
        chain=chain,
        now=now,
    )
    member.record_delegation(generation, chain, envelope.to_bytes())
    certificate = tls.issue_node_certificate(
        member.ca,
        keys.load_tls_key(member.directory / "ca.key"),
        keys.new_tls_key(directory / "tls.key").public_key(),
        member.member.host,
        node,
        datetime.fromtimestamp(now, UTC),
    )
    write_atomic(directory / "tls.pem", tls.pem(certificate))
    write_atomic(directory / "delegation.json", envelope.to_bytes())
    for number, statement in enumerate(member.statements()):
        write_atomic(directory / STATEMENTS / f"{number:06d}.json", statement)
    keys.write_private(directory / "witness.key", read(member.directory / "witness.key", "a member's folder"))
    file.write(directory / "consortium.json")
    write_atomic(directory / "pin", member.pin.hex().encode() + b"\n")
    write_json(directory / "node.json", {"member": member.member.id, "node": node})


def load_node(directory: Path) -> NodeIdentity:
    """Open a node's folder; the charter is walked anew from the pinned version.

    A node whose member left, or has other keys by now, opens all the same, with the reason in `ended`: what it did can be looked at.

    Raises:
        BadInput: it is none, or a file is damaged.
        NotAuthorised: charter or delegation do not verify.
    """
    body = read_json(directory / "node.json", WHAT, "member", "node")
    pin = bytes.fromhex(read(directory / "pin", WHAT).decode().strip())
    file = ConsortiumFile.load(directory / "consortium.json")
    charters = file.charters(pin)
    delegation = read(directory / "delegation.json", WHAT)
    member, ended = _standing(charters, str(body["member"]), Envelope.from_bytes(delegation))
    delegated = verify_delegation(delegation, member=member.id, signing_key=member.signing_key, now=None)
    key = keys.load_signing_key(directory / "node.key")
    if delegated.node_key != keys.public_bytes(key):
        raise NotAuthorised(f"{directory / 'delegation.json'}: is for another node key")
    keys.load_tls_key(directory / "tls.key")  # not only once it dials
    return NodeIdentity(directory, member.id, str(body["node"]), key, delegation, delegated, charters, pin, file.address, ended)


def _standing(charters: Sequence[Charter], name: str, delegation: Envelope) -> tuple[CharterMember, str]:
    """The member as the newest version has it that knows the key which delegated; and why its node is over under the newest of all."""
    signers = {key for key, _ in delegation.signatures}
    known = [m for charter in charters for m in charter.members if m.id == name and key_id(m.signing_key) in signers]
    newest = charters[-1]
    if not known:
        return newest.member(name), ""  # its signature will not verify
    now = next((m for m in newest.members if m.id == name), None)
    if now is None:
        return known[-1], f"charter version {newest.version} has {name} no more: its nodes' work is over, what they did stays valid"
    if any(getattr(now, field) != getattr(known[-1], field) for field in ("signing_key", "witness_key", "ca_pem")):
        return known[-1], f"charter version {newest.version} replaces {name}'s keys: make a new node with them (`dure node init`)"
    return now, ""
