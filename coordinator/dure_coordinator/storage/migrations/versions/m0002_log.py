"""The log: an index for every statement, where each signer's chain stands in it, and the tree's right edge."""

from __future__ import annotations

from hashlib import sha256

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
DIGEST = sa.LargeBinary(32)


def upgrade() -> None:
    op.create_table(
        "log",
        sa.Column("position", COUNTER, primary_key=True, autoincrement=False),
        sa.Column("digest", DIGEST, nullable=False),
    )
    op.create_index("ix_log_digest", "log", ["digest"], unique=True)
    op.create_table(
        "log_parties",
        sa.Column("party", sa.String(64), primary_key=True),
        sa.Column("next_seq", COUNTER, nullable=False),
    )
    op.create_table(
        "log_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("size", COUNTER, nullable=False),
        sa.Column("peaks", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_statements_digest", "statements", ["digest"])
    _take_in_what_is_there()


def _take_in_what_is_there() -> None:
    """Statements from before the log, each signer's in order up to its first gap. Written out: a migration does not change."""
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT party, seq, digest, envelope FROM statements ORDER BY party, seq, digest")).all()
    peaks: list[bytes] = []
    following: dict[str, int] = {}
    size = 0
    for row in rows:
        if row.seq != following.setdefault(row.party, 0):
            continue
        following[row.party] += 1
        connection.execute(sa.text("INSERT INTO log (position, digest) VALUES (:p, :d)"), {"p": size, "d": row.digest})
        node, rest = sha256(b"\0" + row.envelope).digest(), size
        while rest & 1:
            node, rest = sha256(b"\1" + peaks.pop() + node).digest(), rest >> 1
        peaks.append(node)
        size += 1
    for party, seq in following.items():
        connection.execute(sa.text("INSERT INTO log_parties (party, next_seq) VALUES (:p, :n)"), {"p": party, "n": seq})
    if size:
        connection.execute(sa.text("INSERT INTO log_head (id, size, peaks) VALUES (1, :s, :p)"), {"s": size, "p": b"".join(peaks)})
