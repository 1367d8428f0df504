"""k-of-n attestations: one statement, signed by members' governance keys on their own machines, and its entry in the log.

Releases and allocations are such statements. They have no number and no time of their own, so that every member signs the same bytes. As an
entry one stands in a coordinator's `release-published` or `allocation-published`, with the signatures, so that the log alone shows who
signed. Source: DSSE v1.0.2; in-toto Statement v1; ledger.md §6 and §8.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.charter.model import Charter
from dure.errors import BadInput, Refused
from dure.provenance.errors import NotSigned
from dure.statements import schema
from dure.statements.dsse import IN_TOTO, Envelope, canonical_json, check_canonical, key_id, seal_payload
from dure.statements.kinds import Allocation, AllocationPublished, MemberSignature, Release, ReleasePublished
from dure.statements.statement import STATEMENT_TYPE

A = TypeVar("A", bound=Release | Allocation)
P = TypeVar("P", ReleasePublished, AllocationPublished)
MAX_STATEMENT_BYTES = 12_288


def statement_of(fact: Release | Allocation) -> bytes:
    """The bytes that members sign."""
    name, digest = fact.subject
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest.hex()}}],
            "predicateType": f"urn:dure:{fact.kind}:v1",
            "predicate": schema.encode(fact),
        }
    )


def read_statement(payload: bytes, kind: type[A]) -> A:
    """The release, or allocation, that these bytes are the statement of.

    Raises:
        Refused: names the field.
    """
    what = kind.kind
    if len(payload) > MAX_STATEMENT_BYTES:
        raise Refused(what, f"larger than {MAX_STATEMENT_BYTES} bytes")
    try:
        body = json.loads(payload)
        predicate = body["predicate"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused(what, "is not an in-toto statement") from None
    check_canonical(what, body, payload)
    fact = schema.decode(kind, predicate, what)
    if statement_of(fact) != payload:
        raise Refused(what, "is not the statement of what it states")
    return fact


def sign(payload: bytes, governance_key: Ed25519PrivateKey) -> Envelope:
    """One member's signature, a DSSE envelope of its own."""
    return seal_payload(payload, governance_key)


@dataclass(frozen=True)
class Voters:
    """Whose signatures count under a release or an allocation, and how many are needed.

    A signature has no time. So a key counts where it was its member's governance key in the version that the statement was made under, and
    in every later one up to that in force where it is entered: then it was valid whenever it was used. A key that was taken out
    on the way counts for nothing, since nobody could tell a signature made before from one made after. As many are needed as the stricter
    of the two versions asks for. Source: docs/spec/releases.md, "Attestation".
    """

    made_under: Charter
    in_force: Charter
    keys: Mapping[str, bytes]
    """Member -> governance key."""
    what: str = Release.kind
    """release | allocation, for words."""

    @staticmethod
    def of(version: int, charters: Sequence[Charter], what: str = Release.kind) -> Voters:
        """Of a statement made under `version`, entered where the last of these versions is in force.

        Args:
            charters: 1 first.

        Raises:
            Refused: there is no such version, or not yet.
        """
        if not 1 <= version <= len(charters):
            raise Refused("charter_version", f"the {what} is of charter version {version}, in force is {charters[-1].version}")
        since = charters[version - 1 :]
        held = set.intersection(*({(m.id, m.governance_key) for m in charter.members} for charter in since))
        return Voters(since[0], since[-1], dict(sorted(held)), what)

    @property
    def needed(self) -> int:
        return max(self.made_under.terms.k, self.in_force.terms.k)

    @property
    def out(self) -> list[str]:
        """Members of that version whose key does not count any more."""
        return [m.id for m in self.made_under.members if m.id not in self.keys]

    @property
    def by_key(self) -> dict[bytes, str]:
        return {key: member for member, key in self.keys.items()}


def merge(payload: bytes, signed: dict[str, Envelope], voters: Voters) -> Envelope:
    """All signatures in one envelope, in order of member.

    Args:
        signed: envelopes by the name of their file.

    Raises:
        NotSigned: one is of another statement, by nobody whose signature counts, or does not verify; names the file.
    """
    known, found = voters.by_key, dict[str, tuple[str, bytes]]()
    for name, envelope in signed.items():
        if envelope.payload != payload or envelope.payload_type != IN_TOTO:
            raise NotSigned(f"{name}: signs another {voters.what} than this one; was it made again since?")
        try:
            signers = envelope.signed_by(known)
        except Refused as error:
            raise NotSigned(f"{name}: {error}") from None
        if not signers:
            raise NotSigned(f"{name}: {_nobody(envelope, voters)}; leave this file out")
        found |= {known[key]: line for key in signers for line in envelope.signatures if line[0] == key_id(key)}
    return Envelope(payload, tuple(found[member] for member in sorted(found)))


def _nobody(envelope: Envelope, voters: Voters) -> str:
    """Whose signature this is that does not count."""
    there = {line[0] for line in envelope.signatures}
    for member in voters.made_under.members:
        if key_id(member.governance_key) in there:
            return f"is by a governance key of {member.id} that is in force no more: by version {voters.in_force.version} it was taken out"
    return "is by no member's governance key"


def signers_of(envelope: Envelope, voters: Voters) -> tuple[str, ...]:
    """Members that signed, in order.

    Raises:
        NotSigned: a line is of nobody whose signature counts, or does not verify.
    """
    known = voters.by_key
    try:
        found = envelope.signed_by(known)
    except Refused as error:
        raise NotSigned(f"the {voters.what}'s attestation: {error}") from None
    if len(found) != len(envelope.signatures):
        late = f", of {', '.join(voters.out)} by a key that was taken out before it was entered" if voters.out else ""
        raise NotSigned(f"the {voters.what}'s attestation has a signature that is of no member in the charter{late}, or one twice")
    return tuple(sorted(known[key] for key in found))


def check_enough(signers: Iterable[str], voters: Voters) -> None:
    """That enough members signed.

    Raises:
        NotSigned: fewer; says who has not, or that a statement made anew is the way on.
    """
    there = set(signers)
    if len(there) >= voters.needed:
        return
    missing = ", ".join(member for member in voters.keys if member not in there)
    have = f"the {voters.what} is signed by {len(there)} of {len(voters.keys)} members, {voters.needed} are needed"
    if len(voters.keys) < voters.needed:
        raise NotSigned(
            f"{have}, and the keys of {', '.join(voters.out)} were taken out by charter version {voters.in_force.version}; "
            f"make the {voters.what} anew under it and have it signed"
        )
    raise NotSigned(f"{have}; not yet by {missing} (`dure {voters.what} sign`)")


def published(envelope: Envelope, voters: Voters) -> ReleasePublished:
    """The entry of a release that enough members signed; raises as `entry_of`."""
    return entry_of(envelope, voters, ReleasePublished)


def entry_of(envelope: Envelope, voters: Voters, kind: type[P]) -> P:
    """The entry of what enough members signed.

    Raises:
        NotSigned: too few, or somebody else.
    """
    check_enough(signers_of(envelope, voters), voters)
    by_key = {key_id(key): member for key, member in voters.by_key.items()}
    lines = sorted((by_key[key], signature) for key, signature in envelope.signatures)
    return kind(envelope.payload.decode(), tuple(MemberSignature(m, s) for m, s in lines))


@overload
def check_published(entry: ReleasePublished, charters: Sequence[Charter]) -> Release: ...
@overload
def check_published(entry: AllocationPublished, charters: Sequence[Charter]) -> Allocation: ...
def check_published(entry: ReleasePublished | AllocationPublished, charters: Sequence[Charter]) -> Release | Allocation:
    """The release, or allocation, that an entry publishes, by the charter in force where the entry stands.

    Args:
        charters: every version in force up to there, 1 first.

    Raises:
        Refused: out of form, of another consortium, or of a charter version that is not in force yet.
        NotSigned: by too few, or not by those it names.
    """
    said, what = stated(entry), entry.states.kind
    voters = Voters.of(said.charter_version, charters, what)
    charter = voters.made_under
    if (said.consortium, said.charter_sha256) != (charter.terms.consortium_id, charter.digest):
        raise Refused("charter_sha256", f"the {what} is of another consortium, or of another version {charter.version} of the charter")
    if [by.member for by in entry.signatures] != list(signers_of(envelope_of(entry, voters), voters)):
        raise Refused("signatures", "are not in order of the members that they are of")
    check_enough((by.member for by in entry.signatures), voters)
    return said


def stated(entry: ReleasePublished | AllocationPublished) -> Release | Allocation:
    """What an entry publishes; no signature is checked. Raises Refused: out of form."""
    return read_statement(entry.statement.encode(), entry.states)


def envelope_of(entry: ReleasePublished | AllocationPublished, voters: Voters) -> Envelope:
    """The attestation as members signed it.

    Raises:
        NotSigned: it names somebody whose signature does not count.
    """
    for said in entry.signatures:
        if said.member not in voters.keys:
            raise NotSigned(
                f"the {voters.what} is signed by {said.member}, who is no member or whose key was taken out before it was entered"
            )
    lines = tuple((key_id(voters.keys[s.member]), s.signature) for s in entry.signatures)
    return Envelope(entry.statement.encode(), lines)


def read_signatures(files: Sequence[tuple[str, bytes]], what: str = Release.kind) -> dict[str, Envelope]:
    """Signature files by name.

    Raises:
        BadInput: one is none.
    """
    found = {}
    for name, raw in files:
        try:
            found[name] = Envelope.from_bytes(raw)
        except Refused:
            raise BadInput(f"{name}: not a signature file as `dure {what} sign` writes it") from None
    return found
