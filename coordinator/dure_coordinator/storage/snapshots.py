"""Snapshots of runs: a row that is replaced, and one row per exchange that is over, which never is. What they mean is the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from dure_coordinator.storage import tables as t


@dataclass(frozen=True)
class SnapshotRow:
    """The state of a run after its first `position` events."""

    run: bytes
    position: int
    time: float
    """Of the last of those events."""
    shape: str
    head: bytes


def read(c: sa.Connection, run: bytes) -> tuple[SnapshotRow, tuple[bytes, ...]] | None:
    """The run's snapshot and its exchanges that are over, oldest first."""
    row = c.execute(sa.select(t.snapshots).where(t.snapshots.c.run == run)).first()
    if row is None:
        return None
    past = c.execute(sa.select(t.past_exchanges.c.body).where(t.past_exchanges.c.run == run).order_by(t.past_exchanges.c.place))
    return SnapshotRow(**row._mapping), tuple(p.body for p in past)


def replace(c: sa.Connection, row: SnapshotRow, first: int, past: Sequence[bytes]) -> None:
    """Puts the row in the place of the one before; `past` are the exchanges from place `first` on."""
    c.execute(sa.delete(t.snapshots).where(t.snapshots.c.run == row.run))
    c.execute(sa.insert(t.snapshots), row.__dict__)
    c.execute(sa.delete(t.past_exchanges).where(t.past_exchanges.c.run == row.run, t.past_exchanges.c.place >= first))
    if past:
        c.execute(sa.insert(t.past_exchanges), [{"run": row.run, "place": first + k, "body": body} for k, body in enumerate(past)])
