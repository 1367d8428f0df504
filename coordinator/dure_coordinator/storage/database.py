"""From a URL to a database of this version whose commits last: what SQLite and PostgreSQL need before the first query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError

from dure.errors import Unavailable

MIGRATIONS = Path(__file__).parent / "migrations"
ONLY_ONE = int.from_bytes(b"dure one", "big")
"""Key of the advisory lock that a coordinator holds on its PostgreSQL database. Any 63-bit number that nobody else there uses would do."""
SESSION = {"tcp_keepalives_idle": 20, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}
"""Seconds, seconds, probes: how soon PostgreSQL lets go of the lock of a coordinator whose machine went down without a word."""


class StoreUnusable(Unavailable):
    """The database cannot be opened, read or written; nothing of this call counts."""


def engine_of(url: str) -> sa.Engine:
    """An engine for the store's one thread; connects to nothing yet.

    Raises:
        StoreUnusable: no such driver here, an asyncio driver, or a URL that is none; the password is not in the message.
    """
    target = _parsed(url)
    if target.get_backend_name() == "sqlite" and target.database and not Path(target.database).parent.is_dir():
        raise StoreUnusable(f"database {shown(target)}: its folder does not exist")
    options: dict[str, Any] = {}
    if target.get_backend_name() == "postgresql":
        # One connection for the one thread, since the lock is the connection's. One that broke is noticed before it is used, not after.
        options = {"pool_size": 1, "max_overflow": 0, "pool_pre_ping": True}
    try:
        engine = sa.create_engine(target, **options)
    except (ImportError, ArgumentError) as e:
        hint = "pip install 'dure[postgres]'" if target.drivername == "postgresql+psycopg" else "install that driver"
        raise StoreUnusable(f"database {shown(target)}: {cause(e)}; {hint}, or name another one in the URL") from None
    listener = {"sqlite": _durable_sqlite, "postgresql": _one_postgres_session}.get(engine.dialect.name)
    if listener is not None:
        event.listen(engine, "connect", listener)
    return engine


def prepare(engine: sa.Engine, url: str) -> None:
    """Connects and brings the tables to this version's.

    Raises:
        StoreUnusable: cannot be reached, is in use by another coordinator, does not sync its disk, or was written by a newer version.
    """
    where = f"database {shown(_parsed(url))}"
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql" and connection.scalar(sa.text("SHOW fsync")) != "on":
                raise StoreUnusable(f"{where}: PostgreSQL runs with fsync off, so a power cut takes what was acknowledged; switch it on")
            upgrade(connection)
            connection.commit()
    except CommandError as e:
        raise StoreUnusable(f"{where}: written by another version of Dure ({e}); use that one or a newer one") from e
    except (DBAPIError, OSError) as e:
        raise StoreUnusable(f"{where}: {cause(e)}") from e


def upgrade(connection: sa.Connection) -> None:
    """Brings the tables to this version's; a no-op when they are."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    head = ScriptDirectory.from_config(config).get_current_head()
    if MigrationContext.configure(connection).get_current_revision() != head:
        command.upgrade(config, "head")


def cause(e: Exception) -> str:
    """The driver's own first line."""
    return (str(getattr(e, "orig", None) or e).splitlines() or [type(e).__name__])[0]


def shown(url: sa.engine.URL) -> str:
    """For people: without the password, wherever in the URL it is."""
    query = {k: "***" if "pass" in k.lower() else v for k, v in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True)


def _parsed(url: str) -> sa.engine.URL:
    """The URL, if it is one this store can use: its one thread needs a driver without asyncio."""
    try:
        target = sa.engine.make_url(url)
    except ArgumentError:
        raise StoreUnusable("database: is no SQLAlchemy URL; write sqlite:////path/file or postgresql+psycopg://host/name") from None
    if target.drivername in ("postgresql", "postgres"):
        target = target.set(drivername="postgresql+psycopg")
    try:
        if target.get_dialect().is_async:
            raise StoreUnusable(f"database {shown(target)}: names an asyncio driver; write {target.get_backend_name()} with a plain one")
    except (ImportError, ArgumentError):
        pass  # said when the engine is made, which names what is missing
    return target


def _durable_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _one_postgres_session(connection: Any, _record: object) -> None:
    """Every new connection: commits are on the disk when they return, and nobody else may write here while it lives.

    serve.lock keeps a second process off the folder; this keeps a second folder off the database.
    """
    with connection.cursor() as cursor:
        for name, value in SESSION.items():
            cursor.execute(f"SET {name} = {value}")
        cursor.execute("SHOW synchronous_commit")
        if cursor.fetchone()[0] == "off":
            cursor.execute("SET synchronous_commit = on")
        cursor.execute("SELECT pg_try_advisory_lock(%s)", (ONLY_ONE,))
        locked = cursor.fetchone()[0]
    connection.commit()
    if not locked:
        connection.close()
        raise StoreUnusable(
            "database: another coordinator uses it; stop that one first. PostgreSQL notices within a minute that a machine went down"
        )
