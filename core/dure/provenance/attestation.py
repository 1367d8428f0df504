"""The k-of-n release attestation: one statement, signed by members' governance keys on their own machines, and its entry in the log.

The statement has no number and no time of its own, so that every member signs the same bytes. As an entry it stands in a coordinator's
`release-published`, with the signatures, so that the log alone shows who signed. Source: DSSE v1.0.2; in-toto Statement v1; ledger.md §6.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.charter.model import Charter
from dure.errors import BadInput, Refused
from dure.provenance.errors import NotSigned
from dure.statements import schema
from dure.statements.dsse import IN_TOTO, Envelope, canonical_json, check_canonical, key_id, seal_payload
from dure.statements.kinds import MemberSignature, Release, ReleasePublished
from dure.statements.statement import STATEMENT_TYPE

PREDICATE = "urn:dure:release:v1"
MAX_STATEMENT_BYTES = 4096


def statement_of(release: Release) -> bytes:
    """The bytes that members sign."""
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": release.name, "digest": {"sha256": release.files_sha256.hex()}}],
            "predicateType": PREDICATE,
            "predicate": schema.encode(release),
        }
    )


def read_statement(payload: bytes) -> Release:
    """The release that these bytes are the statement of.

    Raises:
        Refused: names the field.
    """
    if len(payload) > MAX_STATEMENT_BYTES:
        raise Refused("release", f"larger than {MAX_STATEMENT_BYTES} bytes")
    try:
        body = json.loads(payload)
        predicate = body["predicate"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused("release", "is not an in-toto statement") from None
    check_canonical("release", body, payload)
    release = schema.decode(Release, predicate, "release")
    if statement_of(release) != payload:
        raise Refused("release", "is not the statement of what it states")
    return release


def sign(payload: bytes, governance_key: Ed25519PrivateKey) -> Envelope:
    """One member's signature, a DSSE envelope of its own."""
    return seal_payload(payload, governance_key)


def merge(payload: bytes, signed: dict[str, Envelope], charter: Charter) -> Envelope:
    """All signatures in one envelope, in order of member.

    Args:
        signed: envelopes by the name of their file.

    Raises:
        NotSigned: one is of another release, by no member, or does not verify; names the file.
    """
    known = {m.governance_key: m.id for m in charter.members}
    found: dict[str, tuple[str, bytes]] = {}
    for name, envelope in signed.items():
        if envelope.payload != payload or envelope.payload_type != IN_TOTO:
            raise NotSigned(f"{name}: signs another release than this folder holds; was it made again since?")
        try:
            signers = envelope.signed_by(known)
        except Refused as error:
            raise NotSigned(f"{name}: {error}") from None
        if not signers:
            raise NotSigned(f"{name}: is by no member's governance key; leave this file out")
        found |= {known[key]: line for key in signers for line in envelope.signatures if line[0] == key_id(key)}
    return Envelope(payload, tuple(found[member] for member in sorted(found)))


def signers_of(envelope: Envelope, charter: Charter) -> tuple[str, ...]:
    """Members that signed, in order.

    Raises:
        NotSigned: a line is of no member, or does not verify.
    """
    known = {m.governance_key: m.id for m in charter.members}
    try:
        found = envelope.signed_by(known)
    except Refused as error:
        raise NotSigned(f"the release's attestation: {error}") from None
    if len(found) != len(envelope.signatures):
        raise NotSigned("the release's attestation has a signature that is of no member in the charter, or one twice")
    return tuple(sorted(known[key] for key in found))


def check_enough(signers: Iterable[str], charter: Charter) -> None:
    """That k members signed.

    Raises:
        NotSigned: fewer; says who has not.
    """
    there = set(signers)
    missing = [m.id for m in charter.members if m.id not in there]
    if len(there) < charter.terms.k:
        have = f"signed by {len(there)} of {len(charter.members)} members, {charter.terms.k} are needed"
        raise NotSigned(f"the release is {have}; not yet by {', '.join(missing)} (`dure release sign`)")


def published(envelope: Envelope, charter: Charter) -> ReleasePublished:
    """The entry of a release that enough members signed.

    Raises:
        NotSigned: too few, or somebody else.
    """
    signers = signers_of(envelope, charter)
    check_enough(signers, charter)
    by_key = {key_id(m.governance_key): m.id for m in charter.members}
    lines = sorted((by_key[key], signature) for key, signature in envelope.signatures)
    return ReleasePublished(envelope.payload.decode(), tuple(MemberSignature(m, s) for m, s in lines))


def check_published(entry: ReleasePublished, charter: Charter) -> Release:
    """The release an entry publishes, by the charter in force where the entry stands.

    Raises:
        Refused: out of form, or of another consortium or charter version.
        NotSigned: by too few, or not by those it names.
    """
    release = read_statement(entry.statement.encode())
    if (release.consortium, release.charter_version, release.charter_sha256) != (
        charter.terms.consortium_id,
        charter.version,
        charter.digest,
    ):
        raise Refused("charter_version", f"the release is of charter version {release.charter_version}, in force is {charter.version}")
    envelope = envelope_of(entry, charter)
    if [s.member for s in entry.signatures] != list(signers_of(envelope, charter)):
        raise Refused("signatures", "are not in order of the members that they are of")
    check_enough((s.member for s in entry.signatures), charter)
    return release


def envelope_of(entry: ReleasePublished, charter: Charter) -> Envelope:
    """The attestation as members signed it."""
    lines = tuple((key_id(charter.member(s.member).governance_key), s.signature) for s in entry.signatures)
    return Envelope(entry.statement.encode(), lines)


def read_signatures(files: Sequence[tuple[str, bytes]]) -> dict[str, Envelope]:
    """Signature files by name.

    Raises:
        BadInput: one is none.
    """
    found = {}
    for name, raw in files:
        try:
            found[name] = Envelope.from_bytes(raw)
        except Refused:
            raise BadInput(f"{name}: not a signature file as `dure release sign` writes it") from None
    return found
