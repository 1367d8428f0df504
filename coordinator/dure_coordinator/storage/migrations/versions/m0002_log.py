"""The log: an index for every statement, and the tree's right edge."""

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
        "log_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("size", COUNTER, nullable=False),
        sa.Column("peaks", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_statements_digest", "statements", ["digest"])
    _take_in_what_is_there()


def _take_in_what_is_there() -> None:
    """Statements from before the log, each signer's in order. Written out here: a migration must not change with the code."""
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT digest, envelope FROM statements ORDER BY party, seq, digest")).all()
    peaks: list[bytes] = []
    for index, row in enumerate(rows):
        connection.execute(sa.text("INSERT INTO log (position, digest) VALUES (:p, :d)"), {"p": index, "d": row.digest})
        node, rest = sha256(b"\0" + row.envelope).digest(), index
        while rest & 1:
            node, rest = sha256(b"\1" + peaks.pop() + node).digest(), rest >> 1
        peaks.append(node)
    if rows:
        values = {"s": len(rows), "p": b"".join(peaks)}
        connection.execute(sa.text("INSERT INTO log_head (id, size, peaks) VALUES (1, :s, :p)"), values)
