"""A coordinator's database as an earlier release left it: one run in the middle, as SQL text.

`python -m support.old_database`, started in tests/, writes `fixtures/coordinator_<revision>.sql`: the tables of that revision, made by the
migrations up to it, with the rows of a run that a simulated consortium played. Do it again only if the format of events or statements
changed on purpose, while nothing is released; afterwards such a file stays as it is.
"""

from __future__ import annotations

import base64
import json
import re
import sqlite3
import tempfile
import zlib
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sim.exchange_world import SimNode, World

from dure.statements.dsse import key_id
from dure.statements.statement import Chain
from dure_coordinator.storage import database
from dure_coordinator.storage import tables as t
from dure_coordinator.storage.store import StatementRow, With, _write_with
from dure_participant.exchange.site import History, Sent

REVISION = "0003"
"""The one before the newest."""
PATH = Path(__file__).parents[1] / "fixtures" / f"coordinator_{REVISION}.sql"
NODES = PATH.with_name(f"nodes_{REVISION}.json")
"""What the members' nodes of that run remember."""


def consortium() -> World:
    """Three members: the same signing keys and plan whenever it is called."""
    return World(3, 1, seed=11, duplicate=0.0)


def played() -> World:
    """They, after one exchange."""
    world = consortium()
    world.start()
    world.run_until(lambda w: w.idle())
    assert world.exchange(1, "query").status == "ok"
    world.run_until(lambda w: w.idle())
    return world


def write() -> None:
    world = played()
    NODES.write_text(json.dumps({member: _remembered(node) for member, node in world.nodes.items()}, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.db"
        engine = sa.create_engine(f"sqlite:///{file}")
        with engine.connect() as connection:
            _migrate(connection, REVISION)
            _fill(connection, world)
            connection.commit()
        engine.dispose()
        with sqlite3.connect(file) as db:
            lines = [_legible(line) for line in db.iterdump() if not line.startswith(("BEGIN", "COMMIT"))]
    PATH.write_text(f"-- Written by tests/support/old_database.py: a database of revision {REVISION}.\n" + "\n".join(lines) + "\n")


def _remembered(node: SimNode) -> dict[str, Any]:
    sent = [{f: v.hex() if isinstance(v, bytes) else v for f, v in vars(record).items()} for record in node.history.sent]
    state = base64.b64encode(zlib.compress(node.state, 9)).decode()
    return {"state": state, "seq": node.chain.seq, "prev": node.chain.prev.hex() if node.chain.prev else None, "sent": sent}


def remember(world: World) -> None:
    """Gives the nodes of a consortium the memory of those that played the run."""
    for member, said in json.loads(NODES.read_text()).items():
        node = world.nodes[member]
        node.state = zlib.decompress(base64.b64decode(said["state"]))
        node.chain = Chain(said["seq"], bytes.fromhex(said["prev"]) if said["prev"] else None)
        node.history = History(tuple(_sent(record) for record in said["sent"]))


def _sent(said: dict[str, Any]) -> Sent:
    of_bytes = {name for name, kind in Sent.__annotations__.items() if "bytes" in str(kind)}
    return Sent(**{f: bytes.fromhex(v) if f in of_bytes else tuple(v) if isinstance(v, list) else v for f, v in said.items()})


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
    party = key_id(world.coordinator_key.public_key().public_bytes_raw())
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
