"""Charter versions as TUF root metadata: made, signed, merged, and walked from the pinned first version.

One custom field, `x-dure`, holds the terms. A version is good if a threshold of its own and of the previous version's governance keys
signed it, over the very bytes. Source: TUF specification 1.0 §5.3; ledger.md §2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey  # type: ignore[attr-defined]  # re-exported, not in __all__
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Role, Root  # type: ignore[attr-defined]  # re-exported, not in __all__
from tuf.api.serialization import DeserializationError, SerializationError
from tuf.api.serialization.json import JSONSerializer

from dure.charter.model import Charter, Terms, check_terms
from dure.errors import BadInput, NotAuthorised, Refused
from dure.statements import schema
from dure.statements.dsse import key_id

FIELD = "x-dure"
SPEC_VERSION = "1.0.31"
LIFE = timedelta(days=3_650)
"""`Root()` expires at once unless told; expiry blocks new runs, never an audit."""
MAX_ROOT_BYTES = 1 << 20


def tuf_key(public: bytes) -> SSlibKey:
    """An Ed25519 key as TUF metadata has it; its id is the same as in our envelopes."""
    return SSlibKey(key_id(public), "ed25519", "ed25519", {"public": public.hex()})


def propose(terms: Terms, version: int, now: datetime) -> bytes:
    """An unsigned version with these terms.

    Raises:
        BadInput: the terms cannot hold (check_terms).
    """
    check_terms(terms)
    keys = {key_id(m.governance_key): tuf_key(m.governance_key) for m in terms.members}
    roles = {"root": Role(list(keys), terms.k), **{name: Role([], 1) for name in ("timestamp", "snapshot", "targets")}}
    root = Root(
        version=version,
        spec_version=SPEC_VERSION,
        expires=(now + LIFE).replace(microsecond=0, tzinfo=UTC),
        keys=dict(keys),
        roles=roles,
        consistent_snapshot=True,
        unrecognized_fields={FIELD: schema.encode(terms)},
    )
    return _to_bytes(Metadata(root))


def _to_bytes(metadata: Metadata[Root]) -> bytes:
    return metadata.to_bytes(JSONSerializer(compact=False))


def parse(raw: bytes) -> Metadata[Root]:
    """TUF root metadata, form only.

    Raises:
        Refused: not root metadata, or too large.
    """
    if len(raw) > MAX_ROOT_BYTES:
        raise Refused("charter", f"larger than {MAX_ROOT_BYTES} bytes")
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(raw)
        _ = metadata.signed_bytes  # what is signed and pinned; computed late, so it fails late
    except (DeserializationError, SerializationError, RecursionError):
        raise Refused("charter", "is not TUF metadata") from None
    if not isinstance(metadata.signed, Root):
        raise Refused("charter", "is not root metadata")
    return metadata


def digest(metadata: Metadata[Root]) -> bytes:
    """What is pinned: SHA-256 of the signed bytes."""
    return hashlib.sha256(metadata.signed_bytes).digest()


def terms_of(metadata: Metadata[Root]) -> Terms:
    """The terms in a version, judged; and that its TUF roles say the same.

    Raises:
        Refused: a field is out of form, or keys and threshold disagree with the terms.
        BadInput: terms that cannot hold.
    """
    fields = metadata.signed.unrecognized_fields
    if FIELD not in fields:
        raise Refused("charter", f"has no {FIELD} field")
    terms = schema.decode(Terms, fields[FIELD], FIELD)
    check_terms(terms)
    role = metadata.signed.roles["root"]
    named = {key_id(m.governance_key): m.governance_key.hex() for m in terms.members}
    actual = {name: metadata.signed.keys[name].keyval.get("public") for name in role.keyids if name in metadata.signed.keys}
    if actual != named or role.threshold != terms.k:
        raise Refused("charter.roles.root", "keys and threshold must be the members' governance keys and k")
    return terms


def sign(raw: bytes, member: str, governance_key: Ed25519PrivateKey) -> bytes:
    """A member's signature file for a proposed version: JSON {member, version, keyid, sig}."""
    metadata = parse(raw)
    public = governance_key.public_key().public_bytes_raw()
    signature = CryptoSigner(governance_key, tuf_key(public)).sign(metadata.signed_bytes)
    body = {"member": member, "version": metadata.signed.version, "keyid": signature.keyid, "sig": signature.signature}
    return json.dumps(body, indent=2, sort_keys=True).encode() + b"\n"


def merge(raw: bytes, signatures: Mapping[str, bytes], previous: bytes | None) -> bytes:
    """A proposed version with the members' signatures put in.

    Args:
        signatures: signature files by file name.
        previous: the version before, whose governance keys may (and for a change must) sign too.

    Raises:
        NotAuthorised: a signature is a stranger's or does not verify; names the file.
    """
    metadata = parse(raw)
    allowed = dict(metadata.signed.keys)
    if previous is not None:
        allowed.update(parse(previous).signed.keys)
    for name, body in signatures.items():
        keyid, sig = _signature(name, body, metadata.signed.version)
        if keyid not in allowed:
            raise NotAuthorised(f"{name}: signed by key {keyid[:16]}, which is no member's governance key; leave this file out")
        signature = Signature(keyid, sig)
        try:
            allowed[keyid].verify_signature(signature, metadata.signed_bytes)
        except Exception as error:  # securesystemslib has two unrelated classes for this
            raise NotAuthorised(f"{name}: the signature is not over this version; has the proposal changed since?") from error
        metadata.signatures[keyid] = signature
    return _to_bytes(metadata)


def _signature(name: str, body: bytes, version: int) -> tuple[str, str]:
    try:
        fields = json.loads(body)
        keyid, sig, signed = str(fields["keyid"]), str(fields["sig"]), int(fields["version"])
        bytes.fromhex(sig)
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{name}: not a signature file as `dure member sign` writes it") from None
    if signed != version:
        raise NotAuthorised(f"{name}: signs version {signed}, the proposal is version {version}")
    return keyid, sig


def missing_signers(raw: bytes) -> list[str]:
    """Members of the version that have not signed it, by id."""
    metadata = parse(raw)
    terms = terms_of(metadata)
    return [m.id for m in terms.members if key_id(m.governance_key) not in metadata.signatures]


def _signed_enough(by: Metadata[Root], metadata: Metadata[Root], whose: str) -> None:
    try:
        by.signed.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    except (UnsignedMetadataError, ValueError):
        need = by.signed.roles["root"].threshold
        raise NotAuthorised(
            f"charter version {metadata.signed.version}: fewer than {need} valid signatures of {whose} governance keys"
        ) from None


def walk_all(roots: Sequence[bytes], pin: bytes | None) -> tuple[Charter, ...]:
    """Every version, verified step by step from the first, whose digest was pinned out of band.

    Args:
        roots: every version's file, 1 first.
        pin: SHA-256 of version 1's signed bytes; None only where the caller made version 1 itself, or has compared it already.

    Raises:
        NotAuthorised: the pin does not match, a version is missing, or too few signed.
        Refused, BadInput: a version is out of form or its terms cannot hold.
    """
    if not roots:
        raise BadInput("charter: no version is there; has it been published?")
    found: list[Charter] = []
    before: Metadata[Root] | None = None
    for index, raw in enumerate(roots):
        metadata = parse(raw)
        if before is None and pin is not None and digest(metadata) != pin:
            raise NotAuthorised(
                f"charter version 1 has digest {digest(metadata).hex()}, pinned is {pin.hex()}: another consortium, or a forgery"
            )
        if metadata.signed.version != index + 1:
            raise NotAuthorised(f"charter: version {index + 1} expected, {metadata.signed.version} found")
        if before is not None:
            _signed_enough(before, metadata, "the previous version's")
        _signed_enough(metadata, metadata, "its own")
        found.append(_charter(metadata))
        if found[-1].terms.consortium_id != found[0].terms.consortium_id:
            raise Refused(f"{FIELD}.consortium_id", "a later version is of another consortium")
        before = metadata
    return tuple(found)


def _charter(metadata: Metadata[Root]) -> Charter:
    expires = metadata.signed.expires.replace(tzinfo=UTC).timestamp()
    return Charter(metadata.signed.version, digest(metadata), expires, terms_of(metadata))


def walk(roots: Sequence[bytes], pin: bytes | None) -> Charter:
    """The newest version; raises as `walk_all`."""
    return walk_all(roots, pin)[-1]


def follow(known: Sequence[bytes], offered: Sequence[bytes], pin: bytes) -> tuple[bytes, ...]:
    """What a peer shows beyond the versions this role has: the newer files, none if there are none.

    Args:
        known: every version's file that was verified before, 1 first.
        offered: what the peer says they are, 1 first. Nothing of it is believed.

    Raises:
        NotAuthorised: it shows fewer versions, another one of a number known here, or one that too few signed.
        Refused, BadInput: a version is out of form or its terms cannot hold.
    """
    if tuple(offered) == tuple(known):
        return ()
    if len(offered) < len(known):
        raise NotAuthorised(
            f"charter: {len(offered)} versions are shown, {len(known)} were seen here already: whoever was voted out would be back"
        )
    for number, (mine, theirs) in enumerate(zip(known, offered, strict=False), 1):
        if mine != theirs and digest(parse(mine)) != digest(parse(theirs)):
            raise NotAuthorised(f"charter version {number} is another one than was seen here: two histories of one consortium")
    newer = tuple(offered[len(known) :])
    walk_all((*known, *newer), pin)
    return newer
