"""The first tables: runs, their events, statements, blobs, uploads, journal, nodes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
DIGEST = sa.LargeBinary(32)


def _of_run(**options: object) -> sa.Column:
    return sa.Column("run", DIGEST, sa.ForeignKey("runs.run"), **options)  # type: ignore[arg-type]


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("run", DIGEST, primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("plan", sa.LargeBinary, nullable=False),
        sa.Column("app_digest", DIGEST, nullable=False),
        sa.Column("label", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_table(
        "events",
        _of_run(primary_key=True),
        sa.Column("position", COUNTER, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "statements",
        sa.Column("party", sa.String(64), primary_key=True),
        sa.Column("seq", COUNTER, primary_key=True),
        sa.Column("digest", DIGEST, primary_key=True),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("run", DIGEST, nullable=True),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_statements_run_kind", "statements", ["run", "kind"])
    op.create_table(
        "chain",
        sa.Column("party", sa.String(64), primary_key=True),
        sa.Column("seq", COUNTER, nullable=False),
        sa.Column("prev", DIGEST, nullable=True),
    )
    op.create_table(
        "blobs",
        _of_run(primary_key=True),
        sa.Column("purpose", sa.String(32), primary_key=True),
        sa.Column("blob", sa.String(96), primary_key=True),
        sa.Column("exchange", COUNTER, nullable=False),
    )
    op.create_index("ix_blobs_blob", "blobs", ["blob"])
    op.create_table(
        "uploads",
        sa.Column("upload", DIGEST, primary_key=True),
        _of_run(nullable=False),
        sa.Column("instance", sa.LargeBinary(512), nullable=False),
        sa.Column("member", sa.String(32), nullable=False),
        sa.Column("length", COUNTER, nullable=False),
        sa.Column("chunk_bytes", sa.Integer, nullable=False),
        sa.Column("commit", sa.LargeBinary, nullable=True),
    )
    op.create_index("ix_uploads_run_instance", "uploads", ["run", "instance"])
    op.create_table(
        "journal",
        _of_run(primary_key=True),
        sa.Column("seq", COUNTER, primary_key=True),
        sa.Column("nodes", sa.Text, nullable=True),
        sa.Column("digest", DIGEST, nullable=True),
        sa.Column("category", sa.String(16), nullable=True),
        sa.Column("weights_id", DIGEST, nullable=True),
        sa.Column("reply", sa.Text, nullable=True),
        sa.Column("summed", sa.Boolean, nullable=False),
    )
    op.create_table(
        "nodes",
        sa.Column("member", sa.String(32), primary_key=True),
        sa.Column("node", sa.String(64), nullable=False),
        sa.Column("node_key", DIGEST, nullable=False),
        sa.Column("generation", COUNTER, nullable=False),
    )


def downgrade() -> None:
    for name in ("nodes", "journal", "uploads", "blobs", "chain", "statements", "events", "runs"):
        op.drop_table(name)
