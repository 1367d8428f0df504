"""in-toto Statements in a chain per signing key: sealing one, and reading one back with its signature checked.

Every predicate carries `seq`, `prev` (digest of the party's previous envelope), `time` and `checkpoint` (the log's head that its signer
had seen), so gaps, order and causality are visible. Source: in-toto Statement v1; ledger.md §1 "Entries"; docs/spec/ledger.md, "Heads in
statements".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.errors import Refused
from dure.statements import schema
from dure.statements.dsse import IN_TOTO, Envelope, canonical_json, encode_parsed, parse_canonical, seal_payload
from dure.times import LATEST_S

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
S = TypeVar("S")


class SeenHead(NamedTuple):
    """A head of the log that a quorum cosigned, as a statement names it."""

    size: int
    """Entries below it; 1 or more."""
    root: bytes


@dataclass(frozen=True)
class Chain:
    """Where a signing key's chain of statements stands; persisted with whatever the statement describes."""

    seq: int = 0
    """Number of the next statement."""
    prev: bytes | None = None
    """Envelope digest of the latest one."""
    seen: SeenHead | None = None
    """The newest head its holder has seen, which the next statement names; never an older one than a statement before named."""

    @staticmethod
    def after(envelope: bytes) -> Chain:
        """Where a chain stands whose latest statement this is; kept bytes of one's own, which are not judged again."""
        latest = Envelope.from_bytes(envelope)
        place = read_place(latest.payload)
        return Chain(place.seq + 1, latest.sha256, place.seen)

    def having_seen(self, head: SeenHead | None) -> Chain:
        """The same place, its holder having seen this head too."""
        newer = head is not None and (self.seen is None or head.size > self.seen.size)
        return replace(self, seen=head) if newer else self


class Place(NamedTuple):
    """What a statement says besides its fact."""

    seq: int
    prev: bytes | None
    time: int
    seen: SeenHead | None


@dataclass(frozen=True)
class Signed(Generic[S]):
    """A statement whose signature verified under `key`, with its place in that key's chain."""

    fact: S
    envelope: Envelope
    key: bytes
    seq: int
    prev: bytes | None
    time: int
    seen: SeenHead | None = None


def seal(fact: Any, key: Ed25519PrivateKey, chain: Chain, now: float) -> tuple[Envelope, Chain]:
    """Sign a fact as the next statement of `key`'s chain; the caller persists the returned chain with it."""
    predicate = {
        **schema.encode(fact),
        "seq": chain.seq,
        "prev": chain.prev.hex() if chain.prev else None,
        "time": int(now),
        "checkpoint": {"root": chain.seen.root.hex(), "size": chain.seen.size} if chain.seen else None,
    }
    payload = canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": fact.kind, "digest": {"sha256": subject(fact).hex()}}],
            "predicateType": f"urn:dure:{fact.kind}:v1",
            "predicate": predicate,
        }
    )
    envelope = seal_payload(payload, key)
    return envelope, Chain(chain.seq + 1, envelope.sha256, chain.seen)


def subject(fact: Any) -> bytes:
    """SHA-256 of the fact's own canonical JSON: what a statement of it is about, whoever signs it and when."""
    return hashlib.sha256(canonical_json(schema.encode(fact))).digest()


def open_statement(raw: bytes | Envelope, kind: type[S], keys: Iterable[bytes], *, max_bytes: int = 32_768) -> Signed[S]:
    """Check an envelope's signature and read the fact in it.

    Args:
        keys: 32-byte Ed25519 keys of which one must have signed, and nobody else.

    Raises:
        Refused: out of form (names the field), of another kind, or signed by none of the keys.
    """
    envelope = raw if isinstance(raw, Envelope) else Envelope.from_bytes(raw, max_bytes=max_bytes)
    if envelope.payload_type != IN_TOTO:
        raise Refused("payloadType", f"must be {IN_TOTO}")
    signers = envelope.signed_by(keys)
    if not signers:
        raise Refused("signatures", "not signed by a key that may sign this")
    # Its key id says whose chain it is kept in: one beside a valid signature, which nobody checks, could be another party's.
    if len(envelope.signatures) != 1:
        raise Refused("signatures", f"a statement has exactly one, this has {len(envelope.signatures)}")
    fact, place = read_payload(envelope.payload, kind)
    return Signed(fact, envelope, next(iter(signers)), *place)


def read_verified(raw: bytes, kind: type[S]) -> S:
    """The fact in an envelope whose signature was verified when it was taken in; form is checked again, signature is not."""
    return read_payload(Envelope.from_bytes(raw).payload, kind)[0]


def read_payload(payload: bytes, kind: type[S]) -> tuple[S, Place]:
    """The fact, and its place, of a statement of this kind; nothing is verified but the form.

    Raises:
        Refused: out of form, or of another kind; names the field.
    """
    name: str = kind.kind  # type: ignore[attr-defined]  # every statement dataclass has it
    body, predicate = _statement(payload)
    if body["predicateType"] != f"urn:dure:{name}:v1":
        raise Refused("predicateType", f"must be urn:dure:{name}:v1")
    place = _place(predicate)
    fact = schema.decode(kind, predicate)  # so the rest of the predicate is the fact's own canonical JSON
    if body["subject"] != [{"name": name, "digest": {"sha256": hashlib.sha256(encode_parsed(predicate)).hexdigest()}}]:
        raise Refused("subject", "does not name what the predicate states")
    return fact, place


def read_place(payload: bytes) -> Place:
    """The place of a statement of any kind, known here or not. Raises Refused."""
    return _place(_statement(payload)[1])


def _statement(payload: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """(statement, a copy of its predicate), the predicate not judged."""
    body = parse_canonical("payload", payload)
    if not isinstance(body, dict) or set(body) != {"_type", "subject", "predicateType", "predicate"}:
        raise Refused("payload", "must be an in-toto statement")
    if body["_type"] != STATEMENT_TYPE:
        raise Refused("_type", f"must be {STATEMENT_TYPE}")
    if not isinstance(body["predicate"], dict):
        raise Refused("predicate", "must be an object")
    return body, dict(body["predicate"])


def _place(predicate: dict[str, Any]) -> Place:
    """Takes a statement's place in its signer's chain, and in the log, out of its predicate."""
    seq, prev, time, seen = (_take(predicate, field) for field in ("seq", "prev", "time", "checkpoint"))
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 2**48:
        raise Refused("seq", "must be a number in 0..2^48")
    if not isinstance(time, int) or isinstance(time, bool) or not 0 <= time <= LATEST_S:
        raise Refused("time", "must be unix seconds, before the year 10000")
    if prev is not None and (not isinstance(prev, str) or len(prev) != 64):
        raise Refused("prev", "must be 64 hex digits or null")
    return Place(seq, schema.decode_digest(prev, "prev") if prev is not None else None, time, _seen(seen))


def _seen(said: Any) -> SeenHead | None:
    if said is None:
        return None
    if not isinstance(said, dict) or set(said) != {"root", "size"}:
        raise Refused("checkpoint", "must be null, or the root and size of a head")
    size = said["size"]
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size < 2**48:
        raise Refused("checkpoint.size", "must be a number in 1..2^48")
    return SeenHead(size, schema.decode_digest(said["root"], "checkpoint.root"))


def _take(predicate: dict[str, Any], field: str) -> Any:
    if field not in predicate:
        raise Refused(field, "is absent")
    return predicate.pop(field)
