"""Uploads stay until the challenge window has closed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("uploads", sa.Column("keep_until", sa.Float, nullable=True))
    for name in ("pinned", "removed"):
        op.add_column("uploads", sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    with op.batch_alter_table("uploads") as table:
        for name in ("removed", "pinned", "keep_until"):
            table.drop_column(name)
