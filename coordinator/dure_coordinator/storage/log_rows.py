"""The log's entries in the database: appended in the very transaction that keeps the statement and the state it describes.

The database is the truth; the log's files (log/files.py) are written from it and can be written again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import sqlalchemy as sa

from dure.tlog.merkle import HASH_BYTES, Frontier, leaf_hash
from dure_coordinator.storage import tables as t

_ONLY = 1


_PARTY = sa.bindparam("its_party")
_NEXT = sa.select(t.log_parties.c.next_seq).where(t.log_parties.c.party == _PARTY)
_KNOWN = sa.update(t.log_parties).where(t.log_parties.c.party == _PARTY)
_FOLLOWING = (
    sa.select(t.statements.c.digest, t.statements.c.envelope)
    .where(t.statements.c.party == _PARTY, t.statements.c.seq == sa.bindparam("its_seq"))
    .order_by(t.statements.c.digest)
    .limit(1)
)
_HEAD = sa.select(t.log_head.c.size, t.log_head.c.peaks).where(t.log_head.c.id == _ONLY)
_NEW_ENTRY = sa.insert(t.log)
_NEW_HEAD = sa.update(t.log_head).where(t.log_head.c.id == _ONLY)


def take(c: sa.Connection, party: str, seq: int) -> None:
    """After a statement was inserted: whatever of this signer now follows without a gap becomes entries.

    A statement that comes before its predecessor is kept and waits; a second one with a number that is an entry already is evidence against
    its signer, kept among the statements, and no entry.
    """
    following: int = c.scalar(_NEXT, {"its_party": party}) or 0
    if seq != following:
        return
    while (row := c.execute(_FOLLOWING, {"its_party": party, "its_seq": following}).first()) is not None:
        _append(c, row.digest, row.envelope)
        following += 1
    if not c.execute(_KNOWN, {"its_party": party, "next_seq": following}).rowcount:
        c.execute(sa.insert(t.log_parties), {"party": party, "next_seq": following})


def _append(c: sa.Connection, digest: bytes, envelope: bytes) -> None:
    """One more entry. The one row of `log_head` is locked until the transaction ends, so indices have no gaps and no two writers."""
    frontier = read_head(c, lock=True)
    index = frontier.size
    frontier.extend([leaf_hash(envelope)])
    c.execute(_NEW_ENTRY, {"position": index, "digest": digest})
    values = {"size": frontier.size, "peaks": b"".join(frontier.peaks)}
    if index:
        c.execute(_NEW_HEAD, values)
    else:
        c.execute(sa.insert(t.log_head), {"id": _ONLY, **values})


def replace_all(c: sa.Connection, entries: Iterable[tuple[str, bytes]]) -> None:
    """Makes these (party, digest) of kept statements the log, whatever it was; then takes in what every signer has beyond them.

    Statements of the coordinator's own that are none of these must be gone before.
    """
    for table in (t.log, t.log_parties, t.log_head):
        c.execute(sa.delete(table))
    frontier, counts = Frontier(), Counter[str]()
    for index, (party, digest) in enumerate(entries):
        envelope = c.scalar(sa.select(t.statements.c.envelope).where(t.statements.c.digest == digest))
        frontier.extend([leaf_hash(envelope)])
        c.execute(_NEW_ENTRY, {"position": index, "digest": digest})
        counts[party] += 1
    c.execute(sa.insert(t.log_head), {"id": _ONLY, "size": frontier.size, "peaks": b"".join(frontier.peaks)})
    for party, following in counts.items():
        c.execute(sa.insert(t.log_parties), {"party": party, "next_seq": following})
    for (party,) in c.execute(sa.select(t.statements.c.party).distinct().order_by(t.statements.c.party)).all():
        take(c, party, counts[party])


def next_seq(c: sa.Connection, party: str) -> int:
    """Number of this signer's first statement that is no entry yet."""
    return c.scalar(_NEXT, {"its_party": party}) or 0


def read_head(c: sa.Connection, *, lock: bool = False) -> Frontier:
    """The tree's right edge as committed."""
    row = c.execute(_HEAD.with_for_update() if lock else _HEAD).first()
    if row is None:
        return Frontier()
    return Frontier(row.size, [row.peaks[i : i + HASH_BYTES] for i in range(0, len(row.peaks), HASH_BYTES)])


def entries(c: sa.Connection, start: int, end: int) -> list[bytes]:
    """Entries [start, end), verbatim, in order."""
    query = sa.select(t.statements.c.envelope).join(t.log, t.log.c.digest == t.statements.c.digest)
    found = c.execute(query.where(t.log.c.position >= start, t.log.c.position < end).order_by(t.log.c.position))
    return [row.envelope for row in found]


def index_of(c: sa.Connection, digest: bytes) -> int | None:
    """Where the envelope with this digest stands; None if it is no entry."""
    found: int | None = c.scalar(sa.select(t.log.c.position).where(t.log.c.digest == digest))
    return found
