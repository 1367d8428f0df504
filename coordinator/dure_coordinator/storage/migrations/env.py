"""Alembic's entry; always called by `storage.database.upgrade` with an open connection."""

from __future__ import annotations

from alembic import context

from dure_coordinator.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter most things in place
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
