"""Whose signatures make a head of the consortium's log: the log's key, the witnesses' keys and their quorum, by the charter."""

from __future__ import annotations

from dure.charter.model import Terms
from dure.secagg.thresholds import u_min
from dure.tlog.note import COSIGNATURE_V1, ED25519, NoteKey


def origin_of(terms: Terms) -> str:
    """The log's name: one log per consortium, whatever its coordinator's address."""
    return f"dure/{terms.name}/{terms.consortium_id.hex()}"


def log_key(terms: Terms) -> NoteKey:
    return NoteKey(origin_of(terms), ED25519, terms.coordinator.log_key)


def witness_name(host: str) -> str:
    """A witness is known by its member's host, such as `krafton.titan/witness`."""
    return f"{host}/witness"


def witness_keys(terms: Terms) -> tuple[NoteKey, ...]:
    """One per member."""
    return tuple(NoteKey(witness_name(m.host), COSIGNATURE_V1, m.witness_key) for m in terms.members)


def witness_quorum(terms: Terms) -> int:
    """q = ⌊(n+c)/2⌋ + 1 of n witnesses with at most c dishonest: two quorums share an honest one (ledger.md §1).

    The same number as the members that must finish an exchange of the whole consortium.
    """
    return u_min(len(terms.members), terms.colluders)
