"""The log's entries in the database: appended in the very transaction that keeps the statement and the state it describes.

The database is the truth; the log's files (log/files.py) are written from it and can be written again.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dure.tlog.merkle import HASH_BYTES, Frontier, leaf_hash
from dure_coordinator.storage import tables as t

_ONLY = 1


async def take(c: AsyncConnection, party: str, seq: int) -> None:
    """After a statement was inserted: whatever of this signer now follows without a gap becomes entries.

    A statement that comes before its predecessor is kept and waits; a second one with a number that is an entry already is evidence against
    its signer, kept among the statements, and no entry.
    """
    following: int = await c.scalar(sa.select(t.log_parties.c.next_seq).where(t.log_parties.c.party == party)) or 0
    if seq != following:
        return
    query = sa.select(t.statements.c.digest, t.statements.c.envelope).where(t.statements.c.party == party)
    found = True
    while found:
        row = (await c.execute(query.where(t.statements.c.seq == following).order_by(t.statements.c.digest).limit(1))).first()
        if (found := row is not None) and row is not None:
            await _append(c, row.digest, row.envelope)
            following += 1
    known = sa.update(t.log_parties).where(t.log_parties.c.party == party).values(next_seq=following)
    if not (await c.execute(known)).rowcount:
        await c.execute(sa.insert(t.log_parties).values(party=party, next_seq=following))


async def _append(c: AsyncConnection, digest: bytes, envelope: bytes) -> None:
    """One more entry. The one row of `log_head` is locked until the transaction ends, so indices have no gaps and no two writers."""
    frontier = await read_head(c, lock=True)
    index = frontier.size
    frontier.extend([leaf_hash(envelope)])
    await c.execute(sa.insert(t.log).values(position=index, digest=digest))
    values = {"size": frontier.size, "peaks": b"".join(frontier.peaks)}
    if index:
        await c.execute(sa.update(t.log_head).where(t.log_head.c.id == _ONLY).values(**values))
    else:
        await c.execute(sa.insert(t.log_head).values(id=_ONLY, **values))


async def next_seq(c: AsyncConnection, party: str) -> int:
    """Number of this signer's first statement that is no entry yet."""
    return await c.scalar(sa.select(t.log_parties.c.next_seq).where(t.log_parties.c.party == party)) or 0


async def read_head(c: AsyncConnection, *, lock: bool = False) -> Frontier:
    """The tree's right edge as committed."""
    query = sa.select(t.log_head.c.size, t.log_head.c.peaks).where(t.log_head.c.id == _ONLY)
    row = (await c.execute(query.with_for_update() if lock else query)).first()
    if row is None:
        return Frontier()
    return Frontier(row.size, [row.peaks[i : i + HASH_BYTES] for i in range(0, len(row.peaks), HASH_BYTES)])


async def entries(c: AsyncConnection, start: int, end: int) -> list[bytes]:
    """Entries [start, end), verbatim, in order."""
    query = sa.select(t.statements.c.envelope).join(t.log, t.log.c.digest == t.statements.c.digest)
    found = await c.execute(query.where(t.log.c.position >= start, t.log.c.position < end).order_by(t.log.c.position))
    return [row.envelope for row in found]


async def index_of(c: AsyncConnection, digest: bytes) -> int | None:
    """Where the envelope with this digest stands; None if it is no entry."""
    found: int | None = await c.scalar(sa.select(t.log.c.position).where(t.log.c.digest == digest))
    return found
