"""A member's own folder: its keys, its CA, and the join request it hands out.

<dir>/member.json  governance.key signing.key witness.key ca.key (0600)  ca.pem  chain.json  statements/  pin
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dure.charter.model import Charter, CharterMember
from dure.errors import BadInput, NotAuthorised
from dure.identity import keys, tls
from dure.identity.files import json_bytes, read, read_json, whole_or_nothing, write_atomic, write_json
from dure.statements import schema
from dure.statements.anykind import kind_of
from dure.statements.dsse import Envelope, canonical_json
from dure.statements.kinds import NodeDelegation, NodeRevocation
from dure.statements.statement import Chain, read_verified, seal

WHAT = "a member's folder, made with `dure member init NAME`"


@dataclass(frozen=True)
class JoinRequest:
    """Who wants to be a member: public halves only, signed by its governance key."""

    member: CharterMember
    signature: bytes

    @property
    def digest(self) -> bytes:
        """What is compared over a second channel."""
        return keys.fingerprint(canonical_json(schema.encode(self.member)))

    def write(self, path: Path) -> None:
        write_atomic(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        return json_bytes({**schema.encode(self.member), "signature": self.signature.hex()})

    @staticmethod
    def load(path: Path) -> JoinRequest:
        """Read and check one.

        Raises:
            BadInput: not a join request.
            NotAuthorised: its signature is not by the governance key in it.
        """
        body = read_json(path, "a join request, made with `dure member init NAME`", "id", "signature")
        try:
            signature = bytes.fromhex(body.pop("signature"))
        except (ValueError, TypeError):
            raise BadInput(f"{path}: signature is not hex") from None
        member = schema.decode(CharterMember, body, path.name)
        try:
            key = Ed25519PublicKey.from_public_bytes(member.governance_key)
            key.verify(signature, canonical_json(schema.encode(member)))
        except InvalidSignature:
            raise NotAuthorised(f"{path}: the signature is not by the governance key in it; ask the member for the file again") from None
        check_ca(member)
        return JoinRequest(member, signature)


def check_ca(member: CharterMember) -> None:
    """That a member's CA is a CA, self-signed, and constrained to its host and nothing else.

    Raises:
        BadInput: says what is wrong.
    """
    certificate = tls.load_certificate(member.ca_pem.encode(), f"{member.id}: ca_pem")
    try:
        certificate.verify_directly_issued_by(certificate)
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        allowed = certificate.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        raise BadInput(f"{member.id}: ca_pem is not a self-signed CA with a name constraint") from None
    if not basic.ca or allowed is None or list(allowed) != [x509.UniformResourceIdentifier(member.host)]:
        raise BadInput(f"{member.id}: ca_pem must be constrained to {member.host} and nothing else")


@dataclass(frozen=True)
class MemberFolder:
    """A member's keys on disk. Private keys are loaded when needed and not kept."""

    directory: Path
    member: CharterMember

    @property
    def governance_key(self) -> Ed25519PrivateKey:
        return keys.load_signing_key(self.directory / "governance.key")

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        return keys.load_signing_key(self.directory / "signing.key")

    @property
    def ca(self) -> x509.Certificate:
        return tls.load_certificate(self.member.ca_pem.encode(), "ca.pem")

    @property
    def pin(self) -> bytes | None:
        """Digest of charter version 1 this member trusts; None until `dure member trust` or `sign`."""
        path = self.directory / "pin"
        return bytes.fromhex(path.read_text().strip()) if path.exists() else None

    def trust(self, digest: bytes) -> None:
        """Pin charter version 1; never silently another one.

        Raises:
            NotAuthorised: another digest is pinned.
        """
        if (pinned := self.pin) is not None and pinned != digest:
            raise NotAuthorised(
                f"{self.directory / 'pin'} has {pinned.hex()} already; remove that file only if the members agreed on a new start"
            )
        write_atomic(self.directory / "pin", digest.hex().encode() + b"\n")

    def remember(self, charter: Charter) -> None:
        """The newest charter version this member has made a node for; an older one, or another of the same number, is not gone back to.

        Raises:
            NotAuthorised: a rollback: whoever was voted out would be back.
        """
        path, digest = self.directory / "charter.json", charter.digest.hex()
        if path.exists():
            seen = read_json(path, WHAT, "version", "sha256")
            if int(seen["version"]) > charter.version or (int(seen["version"]) == charter.version and seen["sha256"] != digest):
                raise NotAuthorised(
                    f"charter version {charter.version} is older than version {seen['version']}, which {self.directory} has seen; "
                    "ask the administrator for the newest consortium file"
                )
        write_json(path, {"version": charter.version, "sha256": digest})

    def next_delegation(self) -> tuple[int, Chain]:
        """Generation and chain place of the next delegation."""
        path = self.directory / "chain.json"
        if not path.exists():
            return 1, Chain()
        body = read_json(path, WHAT, "generation", "seq", "prev")
        return int(body["generation"]) + 1, Chain(int(body["seq"]), bytes.fromhex(body["prev"]) if body["prev"] else None)

    def begin_at(self, generation: int) -> None:
        """Node generations of these keys, which have signed nothing yet, go on above this one."""
        write_json(self.directory / "chain.json", {"generation": generation, "seq": 0, "prev": None})

    def record_delegation(self, generation: int, chain: Chain, envelope: bytes) -> None:
        """Persist what was signed, and that it was, before the delegation leaves this folder."""
        assert chain.prev is not None
        write_atomic(self.directory / "statements" / f"{chain.seq - 1:06d}.json", envelope)
        write_json(self.directory / "chain.json", {"generation": generation, "seq": chain.seq, "prev": chain.prev.hex()})

    def revoke(self, node: str, reason: str, now: float) -> NodeRevocation:
        """Takes back the word for a node of that name; durable here before it leaves this folder.

        Raises:
            BadInput: this member has delegated to no such node.
        """
        said = [
            read_verified(raw, NodeDelegation)
            for raw in self.statements()
            if kind_of(Envelope.from_bytes(raw).payload) == NodeDelegation.kind
        ]
        generations = [word.generation for word in said if word.node == node]
        if not generations:
            raise BadInput(
                f"{self.directory}: has delegated to no node {node}; there are {', '.join(sorted({w.node for w in said})) or 'none'}"
            )
        fact = NodeRevocation(self.member.id, node, max(generations), int(now), reason)
        following, chain = self.next_delegation()
        envelope, chain = seal(fact, self.signing_key, chain, now)
        self.record_delegation(following - 1, chain, envelope.to_bytes())
        return fact

    def statements(self) -> tuple[bytes, ...]:
        """Everything the signing key signed, in order."""
        return tuple(path.read_bytes() for path in sorted((self.directory / "statements").glob("*.json")))

    def join_request(self) -> JoinRequest:
        return JoinRequest(self.member, self.governance_key.sign(canonical_json(schema.encode(self.member))))

    @staticmethod
    def create(directory: Path, name: str, *, label: str, display_name: str, registration: str, now: float) -> MemberFolder:
        """Make a member's keys and CA.

        Raises:
            BadInput, Refused: a name is not an id, or nothing a charter can hold. Nothing is left behind then.
            Conflict: keys are there already.
        """
        for what, value in (("NAME", name), ("--consortium", label)):
            if not re.fullmatch(r"[a-z0-9-]{1,32}", value):
                raise BadInput(f"{what} {value!r}: use 1 to 32 of a-z, 0-9 and -")
        host = f"{name}.{label}"
        with whole_or_nothing(directory):
            governance, signing, witness = (keys.new_signing_key(directory / f"{n}.key") for n in ("governance", "signing", "witness"))
            ca = tls.issue_member_ca(keys.new_tls_key(directory / "ca.key"), host, datetime.fromtimestamp(now, UTC))
            member = CharterMember(
                id=name,
                display_name=display_name or name,
                registration=registration,
                host=host,
                governance_key=keys.public_bytes(governance),
                signing_key=keys.public_bytes(signing),
                witness_key=keys.public_bytes(witness),
                ca_pem=tls.pem(ca).decode(),
            )
            schema.decode(CharterMember, schema.encode(member), "member")  # a name nobody could put into a charter
            write_atomic(directory / "ca.pem", tls.pem(ca))
            write_json(directory / "member.json", schema.encode(member))
        return MemberFolder(directory, member)

    @staticmethod
    def load(directory: Path) -> MemberFolder:
        """Open a member's folder.

        Raises:
            BadInput: it is none.
        """
        read(directory / "member.json", WHAT)
        return MemberFolder(directory, schema.decode(CharterMember, read_json(directory / "member.json", WHAT), "member.json"))
