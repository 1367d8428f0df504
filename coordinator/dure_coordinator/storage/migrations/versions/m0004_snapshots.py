"""A run's state now and then, so that a load need not fold its whole log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    counter = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "snapshots",
        sa.Column("run", sa.LargeBinary(32), sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("position", counter, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("shape", sa.String(64), nullable=False),
        sa.Column("head", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "past_exchanges",
        sa.Column("run", sa.LargeBinary(32), sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("place", counter, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("past_exchanges")
    op.drop_table("snapshots")
