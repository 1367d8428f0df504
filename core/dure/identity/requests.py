"""What a member asks of the next charter version, signed by its governance key: to leave, or to have its keys replaced.

A request decides nothing: k members sign the version that grants it (`dure member sign`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dure.charter.model import CharterMember
from dure.errors import BadInput, NotAuthorised
from dure.identity.files import read_json, write_json
from dure.identity.member import JoinRequest, MemberFolder, check_ca
from dure.statements import schema
from dure.statements.dsse import canonical_json

REPLACES, LEAVES = "replaces", "leaves"


@dataclass(frozen=True)
class LeaveRequest:
    """A member wants to leave the consortium whose first charter version it pinned."""

    member: str
    pin: bytes
    signature: bytes

    @staticmethod
    def of(folder: MemberFolder) -> LeaveRequest:
        """Raises NotAuthorised: the member has pinned no charter, so there is nothing to leave."""
        if folder.pin is None:
            raise NotAuthorised(f"{folder.directory} has pinned no charter: this member is in no consortium yet")
        return LeaveRequest(folder.member.id, folder.pin, folder.governance_key.sign(_leaving(folder.member.id, folder.pin)))

    def write(self, path: Path) -> None:
        write_json(path, {LEAVES: self.member, "charter_sha256": self.pin.hex(), "signature": self.signature.hex()})

    @staticmethod
    def load(path: Path, member: CharterMember, pin: bytes) -> LeaveRequest:
        """Read and check one.

        Raises:
            BadInput: not a leave request.
            NotAuthorised: of another consortium, or not signed by the member's governance key.
        """
        body = read_json(path, "a leave request, made with `dure member leave`", LEAVES, "charter_sha256", "signature")
        found = LeaveRequest(str(body[LEAVES]), _hex(path, body, "charter_sha256"), _hex(path, body, "signature"))
        if found.pin != pin:
            raise NotAuthorised(f"{path}: is about another consortium")
        _check(path, member.governance_key, found.signature, _leaving(found.member, pin), f"{member.id}'s governance key in the charter")
        return found


def _leaving(member: str, pin: bytes) -> bytes:
    return canonical_json({LEAVES: member, "charter_sha256": pin.hex()})


@dataclass(frozen=True)
class ReplaceRequest:
    """A member wants other keys; public halves only, signed by the new governance key and, where it is not lost, by the old one."""

    request: JoinRequest
    replaces: bytes
    """Fingerprint of the member as the charter has it."""
    old_signature: bytes | None

    @staticmethod
    def of(new: MemberFolder, before: CharterMember, old: MemberFolder | None) -> ReplaceRequest:
        request, replaces = new.join_request(), JoinRequest(before, b"").digest
        signature = None if old is None else old.governance_key.sign(_replacing(request.member, replaces))
        return ReplaceRequest(request, replaces, signature)

    def write(self, path: Path) -> None:
        old = None if self.old_signature is None else self.old_signature.hex()
        member = {**schema.encode(self.request.member), "signature": self.request.signature.hex()}
        write_json(path, {**member, REPLACES: self.replaces.hex(), "old_signature": old})

    @staticmethod
    def load(path: Path, before: CharterMember) -> ReplaceRequest:
        """Read and check one.

        Args:
            before: the member as the charter has it.

        Raises:
            BadInput: not a request to replace keys, or of other keys than the charter's.
            NotAuthorised: a signature in it does not verify.
        """
        body = read_json(path, "a request made with `dure member replace-keys`", "id", "signature", REPLACES, "old_signature")
        replaces, signature = _hex(path, body, REPLACES), _hex(path, body, "signature")
        old = None if body["old_signature"] is None else _hex(path, body, "old_signature")
        fields = {k: v for k, v in body.items() if k not in ("signature", REPLACES, "old_signature")}
        member = schema.decode(CharterMember, fields, path.name)
        _check(path, member.governance_key, signature, canonical_json(schema.encode(member)), "the governance key in it")
        if old is not None:
            _check(path, before.governance_key, old, _replacing(member, replaces), f"{before.id}'s governance key in the charter")
        if replaces != JoinRequest(before, b"").digest or member.host != before.host:
            raise BadInput(f"{path}: replaces keys of {member.id} that are not in the charter in force; make the request anew")
        check_ca(member)
        return ReplaceRequest(JoinRequest(member, signature), replaces, old)


def _replacing(member: CharterMember, replaces: bytes) -> bytes:
    return canonical_json({"member": schema.encode(member), REPLACES: replaces.hex()})


def _hex(path: Path, body: dict[str, object], field: str) -> bytes:
    try:
        return bytes.fromhex(str(body[field]))
    except ValueError:
        raise BadInput(f"{path}: {field} is not hex") from None


def _check(path: Path, key: bytes, signature: bytes, message: bytes, whose: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        raise NotAuthorised(f"{path}: is not signed by {whose}") from None


def replace_keys(directory: Path, before: CharterMember, old: MemberFolder | None, version: int, now: float) -> MemberFolder:
    """A member's new folder: the same organisation, every key another one.

    Args:
        old: its folder with the keys to be replaced; None where it is lost. Then the pin must be given anew (`dure member trust`).
        version: of the charter in force; node generations go on above any this member can have given out under it.
    """
    label = before.host.partition(".")[2]
    names = {"label": label, "display_name": before.display_name, "registration": before.registration}
    new = MemberFolder.create(directory, before.id, **names, now=now)
    given = old.next_delegation()[0] - 1 if old is not None else 0
    new.begin_at(max(given, version << 16))
    if old is not None and old.pin is not None:
        new.trust(old.pin)
    return new
