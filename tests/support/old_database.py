"""A coordinator's database as an earlier release left it: one run in the middle, as SQL text.

`python -m support.old_database`, started in tests/, writes `fixtures/coordinator_<revision>.sql`: the tables of that revision, made by the
migrations up to it, with the rows of a run that a simulated consortium played. Do it again only if the format of events or statements
changed on purpose, while nothing is released; afterwards such a file stays as it is.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sim.exchange_world import World

from dure.statements.dsse import key_id
from dure_coordinator.storage import database
from dure_coordinator.storage import tables as t
from dure_coordinator.storage.store import StatementRow, With, _write_with

REVISION = "0003"
"""The one before the newest."""
PATH = Path(__file__).parents[1] / "fixtures" / f"coordinator_{REVISION}.sql"


def played() -> World:
    """Three members after one exchange: the same keys and plan whenever it is called."""
    world = World(3, 1, seed=11, duplicate=0.0)
    world.start()
    world.run_until(lambda w: w.idle())
    assert world.exchange(1, "query").status == "ok"
    world.run_until(lambda w: w.idle())
    return world


def write(path: Path = PATH) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.db"
        engine = sa.create_engine(f"sqlite:///{file}")
        with engine.connect() as connection:
            _migrate(connection, REVISION)
            _fill(connection, played())
            connection.commit()
        engine.dispose()
        with sqlite3.connect(file) as db:
            lines = [_legible(line) for line in db.iterdump() if not line.startswith(("BEGIN", "COMMIT"))]
    path.write_text(f"-- Written by tests/support/old_database.py: a database of revision {REVISION}.\n" + "\n".join(lines) + "\n")


def _legible(line: str) -> str:
    """Blobs that are JSON as JSON: half the size, and a difference can be read."""

    def text(found: re.Match[str]) -> str:
        raw = bytes.fromhex(found[1])
        return f"CAST({sql_text(raw.decode())} AS BLOB)" if raw.isascii() and raw.decode().isprintable() else found[0]

    return re.sub(r"X'([0-9A-F]{66,})'", text, line)


def sql_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _migrate(connection: sa.Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _fill(c: sa.Connection, world: World) -> None:
    """What the coordinator would have kept."""
    c.execute(
        sa.insert(t.runs),
        {"run": world.run, "name": "sim", "plan": world.facts.plan_envelope, "app_digest": world.plan.app_sha256}
        | {"label": "open", "reason": "", "created": world.began},
    )
    for position, (at, body) in enumerate(world.log):
        c.execute(sa.insert(t.events), {"run": world.run, "position": position, "time": at, "body": body})
    kept = {e: None for e in (world.facts.plan_envelope, *world.envelopes)}
    rows = sorted((StatementRow.of(raw, world.run) for raw in kept), key=lambda row: (row.party, row.seq))
    party = key_id(world.facts.coordinator_key)
    _write_with(c, world.run, With(statements=tuple(rows), chain=(party, world.chain)))
    for member, node in world.nodes.items():
        key = node.site.node_key.public_key().public_bytes_raw()
        c.execute(sa.insert(t.nodes), {"member": member, "node": "n1", "node_key": key, "generation": 1})


def opened(folder: Path) -> Path:
    """The file as an SQLite database in this folder."""
    made = folder / "coordinator.sqlite"
    with sqlite3.connect(made) as db:
        db.executescript(PATH.read_text())
    return made


if __name__ == "__main__":
    write()
