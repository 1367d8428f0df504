"""Who may speak for a member: its signing key delegates to one node key at a time, by generation."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.errors import NotAuthorised
from dure.statements.dsse import Envelope
from dure.statements.kinds import NodeDelegation
from dure.statements.statement import Chain, open_statement, seal

DELEGATION_DAYS = 365


def delegate(
    signing_key: Ed25519PrivateKey, *, member: str, node: str, node_key: bytes, generation: int, chain: Chain, now: float
) -> tuple[Envelope, Chain]:
    """A member's word for a node key; the caller keeps the chain and the generation it used."""
    fact = NodeDelegation(member, node, node_key, generation, int(now) - 3_600, int(now) + DELEGATION_DAYS * 86_400)
    return seal(fact, signing_key, chain, now)


def verify_delegation(raw: bytes, *, member: str, signing_key: bytes, now: float | None) -> NodeDelegation:
    """The delegation in `raw`, if that member's signing key (32 bytes) signed it and it is valid now.

    Args:
        now: unix seconds; None skips the dates (an audit looks at log positions instead).

    Raises:
        Refused: out of form or not signed by that key.
        NotAuthorised: for another member, or not valid at this time.
    """
    fact = open_statement(raw, NodeDelegation, [signing_key]).fact
    if fact.member != member:
        raise NotAuthorised(f"delegation.member: is {fact.member}, the certificate says {member}")
    if now is not None and not fact.not_before <= now <= fact.not_after:
        raise NotAuthorised("delegation: not valid at this time; delegate again, or check this machine's clock")
    return fact
