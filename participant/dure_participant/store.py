"""A node's durable memory: one SQLite file, 0600, in which what is erased is overwritten.

State, statement chain and the record of what was sent (rule 2) change in one transaction, before any action is performed. The daemon
and the command line open the same file; SQLite's own locking keeps them apart.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dure.errors import BadInput, Unavailable
from dure.statements import schema
from dure.statements.dsse import Envelope
from dure.statements.kinds import ExchangeAccept
from dure.statements.statement import Chain, read_verified
from dure_participant.exchange.site import Committed, History, Sent

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (run BLOB PRIMARY KEY, state BLOB NOT NULL, updated REAL NOT NULL);
CREATE TABLE IF NOT EXISTS chain (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, prev BLOB);
CREATE TABLE IF NOT EXISTS sent (number INTEGER PRIMARY KEY AUTOINCREMENT, instance BLOB UNIQUE NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS decisions (
  plan BLOB PRIMARY KEY, allowed INTEGER NOT NULL, reason TEXT NOT NULL, how TEXT NOT NULL, time REAL NOT NULL, env BLOB,
  consented TEXT NOT NULL DEFAULT '[]', data TEXT
);
CREATE TABLE IF NOT EXISTS plans (run BLOB PRIMARY KEY, envelope BLOB NOT NULL, app_blob TEXT NOT NULL, time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS notes (number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, run BLOB, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS given (run BLOB NOT NULL, exchange INTEGER NOT NULL, fact TEXT NOT NULL, PRIMARY KEY (run, exchange));
CREATE TABLE IF NOT EXISTS statements (
  number INTEGER PRIMARY KEY, sha256 BLOB UNIQUE NOT NULL, run BLOB NOT NULL, envelope BLOB NOT NULL, time REAL NOT NULL,
  delivered INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS recomputations (
  number INTEGER PRIMARY KEY AUTOINCREMENT, run BLOB NOT NULL, exchange INTEGER NOT NULL, asked REAL NOT NULL,
  done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0, waits TEXT NOT NULL DEFAULT '', result TEXT, ended REAL
);
CREATE TABLE IF NOT EXISTS committed (subject BLOB PRIMARY KEY, envelope_sha256 BLOB NOT NULL);
PRAGMA user_version = 8;
"""
VERSION = 8
KEEP_NOTES = 2_000


@dataclass(frozen=True)
class Recomputation:
    """One recomputation the operator asked for."""

    number: int
    run: bytes
    exchange: int
    asked: float
    done: int
    """Chunks that agree so far."""
    total: int
    waits: str
    """Why it does not go on at present; "" while it does."""
    result: list[dict[str, Any]] | None
    """One finding per sum; None before the end."""
    ended: float | None


@dataclass(frozen=True)
class Accepted:
    """The sums this node accepted in an exchange: what its own exchange-accept says."""

    exchange: int
    aggregates: tuple[bytes, ...]
    """Payload digests, scales first."""
    recomputed: tuple[bytes, ...]
    """Those that were added up again before."""
    time: int


@dataclass(frozen=True)
class Decision:
    """What the operator, or the site's policy, said of a plan."""

    allowed: bool
    reason: str
    how: str
    time: float
    env_sha256: bytes | None = None
    """The environment to run it in, where the plan names none; None: this node's own interpreter."""
    consented: tuple[bytes, ...] = ()
    """Earlier sums on the plan's base (instances) that were shown and consented to; by a person only."""
    data: tuple[bytes, ...] | None = None
    """Payload digests of the data commitments that the run's usage statements name; None: those of the node's setting."""


class NodeStore:
    """Made once per process; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, timeout=20.0, isolation_level=None, check_same_thread=False)
        # secure_delete overwrites what is erased; a rollback journal, unlike a WAL, leaves no copy of old pages behind. Cut to nothing
        # instead of deleted, it costs no sync of the folder.
        try:
            for pragma in ("secure_delete = ON", "journal_mode = TRUNCATE", "synchronous = FULL", "foreign_keys = ON"):
                self._db.execute(f"PRAGMA {pragma}")
            self._prepare(path)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"{path} cannot be opened now: {error}; is another process busy with it, or the disk full?") from error
        except sqlite3.DatabaseError as error:
            raise BadInput(f"{path} is no node store: {error}; make a new node with `dure node init`") from error

    def _prepare(self, path: Path) -> None:
        """The tables, once; opening a store that has them writes nothing, so that looking never waits for the daemon."""
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found > VERSION:
            raise BadInput(f"{path} is of a newer dure (format {found}, this one knows {VERSION}); upgrade this one")
        if 0 < found < VERSION:
            raise BadInput(f"{path} is of a dure before its first release (format {found}); make a new node with `dure node init`")
        if found < VERSION:
            self._db.executescript(SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise Unavailable(f"the node's store cannot be written: {error}; free some disk, nothing was lost") from error

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._db.execute(sql, values).fetchall()
            except sqlite3.OperationalError as error:
                raise Unavailable(f"the node's store cannot be read: {error}; try again") from error

    # -- what a step changes ---------------------------------------------------------------------------------------

    def commit(
        self,
        run: bytes,
        state: bytes,
        chain: Chain,
        records: tuple[Sent, ...],
        note: str = "",
        statements: tuple[bytes, ...] = (),
        committed: tuple[Committed, ...] = (),
    ) -> None:
        """Persist one step whole, before any of its actions. `statements`: envelopes it signed, in the order of their numbers from where
        the chain stood; kept verbatim for ever. `committed`: the env-commitments among them."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", (run, state, time.time()))
            db.execute("INSERT OR REPLACE INTO chain VALUES (1, ?, ?)", (chain.seq, chain.prev))
            for record in records:
                text = json.dumps(schema.encode(record), sort_keys=True)
                db.execute(
                    "INSERT INTO sent (instance, record) VALUES (?, ?) ON CONFLICT (instance) DO UPDATE SET record = excluded.record",
                    (record.instance, text),
                )
            for number, envelope in enumerate(statements, chain.seq - len(statements) + 1):  # row 1 is statement 0
                digest = hashlib.sha256(envelope).digest()
                values = (number, digest, run, envelope, time.time())
                db.execute("INSERT INTO statements (number, sha256, run, envelope, time) VALUES (?, ?, ?, ?, ?)", values)
            for one in committed:
                db.execute("INSERT INTO committed VALUES (?, ?)", (one.subject, one.envelope_sha256))
            if note:
                db.execute("INSERT INTO notes (time, run, text) VALUES (?, ?, ?)", (time.time(), run, note[:1000]))
                db.execute("DELETE FROM notes WHERE number <= (SELECT MAX(number) FROM notes) - ?", (KEEP_NOTES,))

    def states(self) -> dict[bytes, bytes]:
        """State bytes of every run this node knows."""
        return {bytes(run): bytes(state) for run, state in self._rows("SELECT run, state FROM runs")}

    def statements(self, run: bytes) -> list[bytes]:
        """Every statement this node signed in a run, as it travelled, oldest first."""
        return [bytes(e) for (e,) in self._rows("SELECT envelope FROM statements WHERE run = ? ORDER BY rowid", run)]

    def statement(self, number: int) -> bytes | None:
        """The statement this node signed under that number; None if it has not."""
        rows = self._rows("SELECT envelope FROM statements WHERE number = ?", number + 1)
        return bytes(rows[0][0]) if rows else None

    def undelivered(self, most: int) -> list[tuple[int, bytes]]:
        """(number, envelope) of the first statements the log has not acknowledged, in order."""
        query = "SELECT number, envelope FROM statements WHERE delivered = 0 ORDER BY number LIMIT ?"
        return [(number - 1, bytes(envelope)) for number, envelope in self._rows(query, most)]

    def mark_delivered(self, number: int) -> None:
        """The log has every statement up to this one."""
        with self._transaction() as db:
            db.execute("UPDATE statements SET delivered = 1 WHERE number <= ? AND delivered = 0", (number + 1,))

    def delivered(self) -> int:
        """How many statements the log has acknowledged."""
        return int(self._rows("SELECT COUNT(*) FROM statements WHERE delivered = 1")[0][0])

    def accepted(self, run: bytes) -> dict[int, Accepted]:
        """What this node accepted in a run, by exchange: from the statements it signed itself."""
        found = {}
        for raw in self.statements(run):
            body = json.loads(Envelope.from_bytes(raw).payload)
            if body["predicateType"] == f"urn:dure:{ExchangeAccept.kind}:v1":
                word = read_verified(raw, ExchangeAccept)
                found[word.exchange] = Accepted(word.exchange, word.aggregates, word.recomputed, int(body["predicate"]["time"]))
        return found

    def chain(self) -> Chain:
        """Where the node key's statement chain stands."""
        rows = self._rows("SELECT seq, prev FROM chain")
        if not rows:
            return Chain()
        latest = self.statement(rows[0][0] - 1)
        return Chain.after(latest) if latest else Chain(rows[0][0], bytes(rows[0][1]) if rows[0][1] is not None else None)

    def history(self) -> History:
        """Every instance this node sent bytes in, oldest first, and every env-commitment it signed."""
        sent = tuple(schema.decode(Sent, json.loads(r)) for (r,) in self._rows("SELECT record FROM sent ORDER BY number"))
        return History(sent, tuple(Committed(bytes(s), bytes(e)) for s, e in self._rows("SELECT subject, envelope_sha256 FROM committed")))

    # -- plans and decisions ---------------------------------------------------------------------------------------

    def offer(self, run: bytes, envelope: bytes, app_blob: str) -> None:
        """Remember a plan the coordinator offers."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO plans VALUES (?, ?, ?, ?)", (run, envelope, app_blob, time.time()))

    def plans(self) -> dict[bytes, bytes]:
        """Envelopes of every plan offered, by run."""
        return {bytes(run): bytes(envelope) for run, envelope in self._rows("SELECT run, envelope FROM plans ORDER BY time")}

    def decide(
        self,
        plan: bytes,
        *,
        allowed: bool,
        reason: str,
        how: str,
        env_sha256: bytes | None = None,
        consented: Iterable[bytes] = (),
        data: Iterable[bytes] | None = None,
    ) -> None:
        """Record the operator's word on a plan digest; a later word replaces it."""
        instances = json.dumps(sorted(i.hex() for i in consented))
        named = None if data is None else json.dumps([d.hex() for d in data])
        with self._transaction() as db:
            values = (plan, int(allowed), reason, how, time.time(), env_sha256, instances, named)
            db.execute("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def decision(self, plan: bytes) -> Decision | None:
        """The word on a plan digest; None before there is one."""
        rows = self._rows("SELECT allowed, reason, how, time, env, consented, data FROM decisions WHERE plan = ?", plan)
        return _decision(*rows[0]) if rows else None

    def decisions(self) -> dict[bytes, Decision]:
        """Every word so far, by plan digest."""
        rows = self._rows("SELECT plan, allowed, reason, how, time, env, consented, data FROM decisions ORDER BY time")
        return {bytes(plan): _decision(*row) for plan, *row in rows}

    # -- recomputations asked for ----------------------------------------------------------------------------------

    def ask_recomputation(self, run: bytes, exchange: int) -> int:
        """Asks the running node to add the sums of an exchange up again; the number to look for. One that waits already is the answer."""
        with self._transaction() as db:
            same = "SELECT number FROM recomputations WHERE run = ? AND exchange = ? AND ended IS NULL"
            waiting = db.execute(same, (run, exchange)).fetchall()
            if waiting:
                return int(waiting[0][0])
            made = db.execute("INSERT INTO recomputations (run, exchange, asked) VALUES (?, ?, ?)", (run, exchange, time.time()))
            return int(made.lastrowid or 0)

    def recomputations(self, *, number: int | None = None, waiting: bool = False) -> list[Recomputation]:
        """Oldest first: all, that one, or those nobody has ended yet."""
        where = "number = ?" if number is not None else "ended IS NULL" if waiting else "1"
        rows = self._rows(
            f"SELECT number, run, exchange, asked, done, total, waits, result, ended FROM recomputations WHERE {where} ORDER BY number",  # noqa: S608  # one of three texts
            *(() if number is None else (number,)),
        )
        return [Recomputation(n, bytes(r), e, a, d, t, w, json.loads(x) if x else None, z) for n, r, e, a, d, t, w, x, z in rows]

    def recomputation_moved(self, number: int, done: int, total: int, waits: str = "") -> None:
        """How far it is, for whoever looks."""
        with self._transaction() as db:
            db.execute("UPDATE recomputations SET done = ?, total = ?, waits = ? WHERE number = ?", (done, total, waits, number))

    def end_recomputation(self, number: int, result: list[dict[str, Any]]) -> None:
        """It is done, with these findings."""
        with self._transaction() as db:
            values = (json.dumps(result, sort_keys=True), time.time(), number)
            db.execute("UPDATE recomputations SET result = ?, ended = ?, waits = '' WHERE number = ?", values)

    # -- for people ------------------------------------------------------------------------------------------------

    def note(self, text: str, run: bytes | None = None) -> None:
        """One line for `dure node status`."""
        with self._transaction() as db:
            db.execute("INSERT INTO notes (time, run, text) VALUES (?, ?, ?)", (time.time(), run, text[:1000]))

    def has_note(self, text: str, run: bytes | None = None) -> bool:
        """Whether this line was said of this run before."""
        return bool(self._rows("SELECT 1 FROM notes WHERE run IS ? AND text = ? LIMIT 1", run, text[:1000]))

    def notes(self, last: int = 10) -> list[tuple[float, bytes | None, str]]:
        """The newest lines, oldest first."""
        rows = self._rows("SELECT time, run, text FROM notes ORDER BY number DESC LIMIT ?", last)
        return [(t, bytes(r) if r is not None else None, x) for t, r, x in reversed(rows)]

    def set_fact(self, name: str, value: Any) -> None:
        """A fact for the status page: connection, since when."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def fact(self, name: str) -> Any:
        rows = self._rows("SELECT value FROM facts WHERE name = ?", name)
        return json.loads(rows[0][0]) if rows else None

    def give(self, run: bytes, exchange: int, fact: dict[str, Any]) -> None:
        """What left this site in one exchange; added to what was known."""
        with self._transaction() as db:
            rows = db.execute("SELECT fact FROM given WHERE run = ? AND exchange = ?", (run, exchange)).fetchall()
            merged = {**(json.loads(rows[0][0]) if rows else {}), **fact}
            db.execute("INSERT OR REPLACE INTO given VALUES (?, ?, ?)", (run, exchange, json.dumps(merged, sort_keys=True)))

    def given(self) -> list[tuple[bytes, int, dict[str, Any]]]:
        """Every exchange in which something left, oldest first."""
        rows = self._rows("SELECT run, exchange, fact FROM given ORDER BY rowid")
        return [(bytes(run), exchange, json.loads(fact)) for run, exchange, fact in rows]


def _decision(allowed: int, reason: str, how: str, at: float, env: bytes | None, consented: str, data: str | None) -> Decision:
    named = None if data is None else tuple(bytes.fromhex(d) for d in json.loads(data))
    return Decision(bool(allowed), reason, how, at, env, tuple(bytes.fromhex(i) for i in json.loads(consented)), named)
