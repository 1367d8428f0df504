"""Whose signatures make a head of the consortium's log: the log's key, the witnesses' keys and their quorum, by the charter."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from dure.charter.model import Charter, Terms
from dure.secagg.thresholds import u_min
from dure.tlog.checkpoint import CheckpointRefused, Head, open_checkpoint
from dure.tlog.note import COSIGNATURE_V1, ED25519, NoteKey


def origin_of(terms: Terms) -> str:
    """The log's name: one log per consortium, whatever its coordinator's address."""
    return f"dure/{terms.name}/{terms.consortium_id.hex()}"


def log_key(terms: Terms) -> NoteKey:
    return NoteKey(origin_of(terms), ED25519, terms.coordinator.log_key)


def log_keys(charters: Sequence[Charter]) -> tuple[NoteKey, ...]:
    """The log's key in each of these versions, newest first, each once. The name stays; the ids tell them apart (C2SP signed-note)."""
    return tuple(dict.fromkeys(log_key(charter.terms) for charter in reversed(charters)))


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


@dataclass(frozen=True)
class Witnessing:
    """What makes a head count under one charter version."""

    log: NoteKey
    keys: tuple[NoteKey, ...]
    quorum: int

    def open(self, raw: bytes) -> Head:
        """The head in a signed checkpoint. Raises as `open_checkpoint`."""
        return open_checkpoint(raw, self.log, self.keys, quorum=self.quorum)


def witnessing(terms: Terms) -> Witnessing:
    return Witnessing(log_key(terms), witness_keys(terms), witness_quorum(terms))


def judging(charters: Sequence[Charter], raw: bytes) -> Witnessing:
    """The newest of these versions under which a signed head counts; the first, under which it does not, where there is none.

    For whoever has a head and not the entries below it: a newer version may be known before a head covers its entry.
    """
    for charter in reversed(charters[1:]):
        by = witnessing(charter.terms)
        with contextlib.suppress(CheckpointRefused):
            by.open(raw)
            return by
    return witnessing(charters[0].terms)


def in_force(charters: Sequence[Charter], positions: Sequence[int], size: int) -> Charter:
    """The version by which a head of `size` entries is judged: the newest whose entry it covers; before any is an entry, the first.

    Args:
        charters: every version, 1 first.
        positions: index in the log of each version's entry, as far as they are entries, ascending.
    """
    covered = sum(position < size for position in positions[: len(charters)])
    return charters[max(covered, 1) - 1]
