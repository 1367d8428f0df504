"""The coordinator's database: what is returned has been committed.

One process writes (serve.lock), one transaction at a time; a crash between two calls loses nothing that was answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from dure.errors import Conflict, Refused
from dure.statements.dsse import Envelope
from dure.statements.statement import Chain
from dure.tlog.merkle import Frontier
from dure_coordinator.storage import database, log_rows, snapshots
from dure_coordinator.storage import tables as t
from dure_coordinator.storage.database import StoreUnusable
from dure_coordinator.storage.snapshots import SnapshotRow

T = TypeVar("T")


class EventsMissing(Refused):
    """A run's events have a gap: this run cannot be read, the others can."""


@dataclass(frozen=True)
class RunRow:
    """One run as the registry knows it; its state is the fold of its events."""

    run: bytes
    name: str
    plan: bytes
    app_digest: bytes
    label: str = "open"
    """open | finished | stopped | aborted: anything but open is final."""
    reason: str = ""
    created: float = 0.0


@dataclass(frozen=True)
class EventRow:
    position: int
    time: float
    body: bytes


@dataclass(frozen=True)
class StatementRow:
    """A signed statement, verbatim."""

    party: str
    """Key id of the signer."""
    seq: int
    kind: str
    envelope: bytes
    digest: bytes
    run: bytes | None = None

    @staticmethod
    def of(raw: bytes, run: bytes | None = None) -> StatementRow:
        """The row for an envelope whose signature was checked by whoever accepted it."""
        envelope = Envelope.from_bytes(raw)
        body = json.loads(envelope.payload)
        kind = str(body["predicateType"]).removeprefix("urn:dure:").removesuffix(":v1")
        return StatementRow(envelope.signatures[0][0], int(body["predicate"]["seq"]), kind, raw, envelope.sha256, run)


@dataclass(frozen=True)
class BlobRow:
    """A blob that this run's roster may read, and why."""

    run: bytes
    purpose: str
    blob: str
    exchange: int = 0


@dataclass(frozen=True)
class UploadRow:
    upload: bytes
    run: bytes
    instance: bytes
    member: str
    length: int
    chunk_bytes: int
    commit: bytes | None = None
    keep_until: float | None = None
    """Unix seconds; None while its exchange goes on."""
    pinned: bool = False
    removed: bool = False
    """Its bytes are gone."""


class Slot(Protocol):
    """An upload that may come; `exchange.view.UploadSlot` is one."""

    @property
    def upload(self) -> bytes: ...
    @property
    def instance(self) -> bytes: ...
    @property
    def member(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def chunk_bytes(self) -> int: ...


def upload_row(run: bytes, slot: Slot) -> UploadRow:
    """The row of an upload of which nothing has come yet."""
    return UploadRow(slot.upload, run, slot.instance, slot.member, slot.length, slot.chunk_bytes)


@dataclass(frozen=True)
class KeptBytes:
    """What the uploads of one run, or of all, take on the disk."""

    uploads: int
    length: int
    until: float | None
    """When the last one that is not pinned may go; None if none is waiting."""
    pinned: int


@dataclass(frozen=True)
class NodeRow:
    member: str
    node: str
    node_key: bytes
    generation: int


@dataclass(frozen=True)
class JournalRow:
    """One exchange as the ServerApp saw it; `flower.journal` gives it meaning."""

    seq: int
    nodes: tuple[int, ...] | None = None
    digest: bytes | None = None
    category: str | None = None
    weights_id: bytes | None = None
    reply: dict[str, Any] | None = None
    summed: bool = False


@dataclass(frozen=True)
class With:
    """What is committed together with an event."""

    statements: tuple[StatementRow, ...] = ()
    blobs: tuple[BlobRow, ...] = ()
    uploads: tuple[UploadRow, ...] = ()
    """That may come from now on."""
    chain: tuple[str, Chain] | None = None
    """(key id, where its chain stands now)."""
    committed: tuple[bytes, bytes] | None = None
    """(upload id, its signed commit)."""
    label: tuple[str, str] | None = None
    """(label, reason) of the run from now on."""
    journal: JournalRow | None = None
    keep: tuple[tuple[bytes, tuple[str, ...], float, bool], ...] = ()
    """(instance, members, until, pinned): their uploads stay so long, others of the instance go; nothing is shortened."""
    pin: bytes | None = None
    """Instance whose kept uploads stay past their time."""


NOTHING = With()


@dataclass(frozen=True)
class NewEvent:
    """An event to append, and what is committed with it."""

    position: int
    time: float
    body: bytes
    also: With = NOTHING


@dataclass
class Store:
    """Queries. Make one with `Store.open`.

    One thread works on the database, one call after the other: a transaction is then one visit to a thread, however many statements it has.
    """

    engine: sa.Engine
    _connection: sa.Connection | None = None
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="store"))

    @classmethod
    async def open(cls, url: str) -> Store:
        """Connects and upgrades the tables to this version.

        Raises:
            StoreUnusable: cannot be opened, or was written by a newer version.
        """
        store = cls(database.engine_of(url))
        try:
            await store._call(lambda: database.prepare(store.engine, url))
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """What was begun is committed first. Closing twice is no error."""
        with contextlib.suppress(RuntimeError):  # the thread is down already
            await self._call(self._disconnect)
        self._thread.shutdown()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.engine.dispose()

    async def _call(self, work: Callable[[], T]) -> T:
        """In the store's thread. Cancelling the caller does not stop it: what was begun is committed."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    async def _read(self, query: Callable[[sa.Connection], T]) -> T:
        def work() -> T:
            try:
                with self._connected() as c:
                    return query(c)
            except DBAPIError as e:
                raise StoreUnusable(f"database: {database.cause(e)}") from e

        return await self._call(work)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sa.Connection]:
        """The thread's one connection, outside any transaction; made anew after an error, whatever it was. A server's connection may have
        gone away since: the pool looks before it gives one."""
        if self.engine.dialect.name != "sqlite":
            with self.engine.connect() as c:
                yield c
            return
        if self._connection is None:
            self._connection = self.engine.connect()
        try:
            yield self._connection
            self._connection.rollback()  # ends what a read began; nothing after a commit
        except BaseException:
            broken, self._connection = self._connection, None
            broken.close()
            raise

    async def _transaction(self, change: Callable[[sa.Connection], T]) -> T:
        """All of `change` or nothing; committed when this returns."""

        def work() -> T:
            try:
                with self._connected() as c, c.begin():
                    return change(c)
            except DBAPIError as e:
                if isinstance(e, sa.exc.IntegrityError):
                    raise
                raise StoreUnusable(f"database: {database.cause(e)}; nothing of this was kept") from e

        return await self._call(work)

    # -- runs and events -------------------------------------------------------------------------------------------

    async def add_run(self, row: RunRow, also: With = NOTHING) -> None:
        """Registers a run, with its plan among the statements; `Conflict` if it is there already."""

        def change(c: sa.Connection) -> None:
            if c.scalar(sa.select(sa.func.count()).select_from(t.runs).where(t.runs.c.run == row.run)):
                raise Conflict(f"run {row.run.hex()[:12]} exists already")
            c.execute(sa.insert(t.runs), {**row.__dict__, "created": row.created or time.time()})
            _write_with(c, row.run, also)

        await self._transaction(change)

    async def runs(self) -> list[RunRow]:
        """All runs, oldest first."""
        query = sa.select(t.runs).order_by(t.runs.c.created, t.runs.c.run)
        return await self._read(lambda c: [RunRow(**r._mapping) for r in c.execute(query)])

    async def append(self, run: bytes, *events: NewEvent) -> None:
        """More events of a run, and what belongs to each, in one transaction.

        Raises:
            Conflict: there is an event at one of these positions: somebody else writes this run.
        """

        def change(c: sa.Connection) -> None:
            for e in events:
                c.execute(_INSERT[t.events], {"run": run, "position": e.position, "time": e.time, "body": e.body})
                _write_with(c, run, e.also)

        try:
            await self._transaction(change)
        except sa.exc.IntegrityError as e:
            first = events[0].position
            raise Conflict(f"run {run.hex()[:12]}: event {first} is there already; two coordinators on one database?") from e

    async def events(self, run: bytes, first: int = 0, most: int = -1) -> list[EventRow]:
        """A run's events in order, from position `first` on, at most so many.

        Raises:
            EventsMissing: there is a gap; the database was damaged.
        """
        query = sa.select(t.events.c.position, t.events.c.time, t.events.c.body).where(t.events.c.run == run, t.events.c.position >= first)
        query = query.order_by(t.events.c.position)
        query = query.limit(most) if most >= 0 else query
        rows = await self._read(lambda c: [EventRow(*r) for r in c.execute(query)])
        if [r.position for r in rows] != list(range(first, first + len(rows))):
            raise EventsMissing("events", f"of run {run.hex()[:12]} have a gap")
        return rows

    async def snapshot(self, run: bytes) -> tuple[SnapshotRow, tuple[bytes, ...]] | None:
        """The run's snapshot and its exchanges that are over."""
        return await self._read(lambda c: snapshots.read(c, run))

    async def put_snapshot(self, row: SnapshotRow, first: int, past: Sequence[bytes]) -> None:
        """Replaces the run's snapshot; `past` are its exchanges that are over, from place `first` on."""
        await self._transaction(lambda c: snapshots.replace(c, row, first, past))

    async def write(self, run: bytes, also: With) -> None:
        """What belongs to no event (a journal row, a blob that was shipped)."""
        await self._transaction(lambda c: _write_with(c, run, also))

    # -- statements ------------------------------------------------------------------------------------------------

    async def chain_of(self, party: str) -> Chain:
        """Where a signing key's chain stands; a new one starts at 0."""
        row = await self._read(lambda c: c.execute(_CHAIN_OF, {"party": party}).first())
        if row is None:
            return Chain()
        return Chain.after(row.envelope) if row.envelope is not None else Chain(row.seq, row.prev)

    async def signers(self) -> set[str]:
        """Key ids that have signed as this database's coordinator."""
        return await self._read(lambda c: set(c.scalars(sa.select(t.chain.c.party))))

    async def statements(self, *, run: bytes | None = None, kind: str | None = None) -> list[StatementRow]:
        query = sa.select(t.statements)
        if run is not None:
            query = query.where(t.statements.c.run == run)
        if kind is not None:
            query = query.where(t.statements.c.kind == kind)
        query = query.order_by(t.statements.c.party, t.statements.c.seq)
        return await self._read(lambda c: [StatementRow(**r._mapping) for r in c.execute(query)])

    # -- the log ---------------------------------------------------------------------------------------------------

    async def log_head(self) -> Frontier:
        """The log's right edge: size and root of everything committed."""
        return await self._read(log_rows.read_head)

    async def log_entries(self, start: int, end: int) -> list[bytes]:
        """Entries [start, end), verbatim. A gap means the database was damaged."""
        found = await self._read(lambda c: log_rows.entries(c, start, end))
        if len(found) != end - start:
            raise StoreUnusable(f"the log has {len(found)} of the entries {start} to {end}; restore the database from a backup")
        return found

    async def log_next_seq(self, party: str) -> int:
        """Where a signer's chain stands in the log: its first number that is no entry yet."""
        return await self._read(lambda c: log_rows.next_seq(c, party))

    async def statement(self, party: str, seq: int) -> list[bytes]:
        """Envelopes of this signer with this number: none, one, or the evidence of two."""
        query = sa.select(t.statements.c.envelope).where(t.statements.c.party == party, t.statements.c.seq == seq)
        return await self._read(lambda c: [row.envelope for row in c.execute(query.order_by(t.statements.c.digest))])

    async def statements_of(self, party: str, run: bytes | None) -> int:
        """How many statements of this signer are kept for a run, or for none."""
        where = t.statements.c.run.is_(None) if run is None else t.statements.c.run == run
        query = sa.select(sa.func.count()).select_from(t.statements).where(t.statements.c.party == party, where)
        return await self._read(lambda c: c.scalar(query) or 0)

    async def envelope(self, digest: bytes) -> bytes | None:
        """The statement whose envelope has this digest; None if it is not here."""
        query = sa.select(t.statements.c.envelope).where(t.statements.c.digest == digest).limit(1)
        return await self._read(lambda c: c.scalar(query))

    async def log_index(self, digest: bytes) -> int | None:
        """Index of the entry with this envelope digest; None if there is none."""
        return await self._read(lambda c: log_rows.index_of(c, digest))

    async def restore_log(self, entries: Iterable[StatementRow], own: Sequence[str]) -> list[bytes]:
        """Makes these statements the log, in this order, all or nothing; returns the coordinator's own that are none of them, which go.

        Args:
            own: key ids of the coordinator, each of whose chains goes on after its last entry. Other signers' further statements stay, and
                follow.
        """

        def change(c: sa.Connection) -> list[bytes]:
            places, chains = [], {key: Chain() for key in own}
            for row in entries:
                _insert_new(c, t.statements, row.__dict__)
                places.append((row.party, row.digest))
                if row.party in chains:
                    chains[row.party] = Chain(row.seq + 1, row.digest)
            kept = {digest for party, digest in places if party in chains}
            found = c.execute(sa.select(t.statements.c.digest, t.statements.c.envelope).where(t.statements.c.party.in_(own))).all()
            gone = [row for row in found if row.digest not in kept]
            for row in gone:
                c.execute(sa.delete(t.statements).where(t.statements.c.party.in_(own), t.statements.c.digest == row.digest))
            log_rows.replace_all(c, places)
            for key, chain in chains.items():
                _write_with(c, b"", With(chain=(key, chain)))
            return [row.envelope for row in gone]

        return await self._transaction(change)

    # -- blobs and uploads -----------------------------------------------------------------------------------------

    async def runs_of_blob(self, blob: str) -> list[tuple[bytes, str]]:
        """(run, purpose) pairs under which this blob is registered."""
        return await self._read(lambda c: [(r.run, r.purpose) for r in c.execute(_RUNS_OF_BLOB, {"blob": blob})])

    async def blobs(self, run: bytes) -> list[BlobRow]:
        query = sa.select(t.blobs).where(t.blobs.c.run == run).order_by(t.blobs.c.exchange)
        return await self._read(lambda c: [BlobRow(**r._mapping) for r in c.execute(query)])

    async def thin_blobs(self, run: bytes, purposes: Sequence[str]) -> list[str]:
        """Blobs registered under these purposes of this run, and under no other of any run."""
        b = t.blobs.c
        mine = sa.and_(b.run == run, b.purpose.in_(purposes))
        other = t.blobs.alias()
        elsewhere = sa.exists().where(other.c.blob == b.blob, sa.or_(other.c.run != run, other.c.purpose.not_in(purposes)))
        query = sa.select(b.blob).distinct().where(mine, ~elsewhere)
        return await self._read(lambda c: [r.blob for r in c.execute(query)])

    async def forget_blobs(self, run: bytes, blobs: Iterable[str]) -> None:
        gone = sa.delete(t.blobs).where(t.blobs.c.run == run, t.blobs.c.blob.in_(list(blobs)))
        await self._transaction(lambda c: c.execute(gone))

    async def begin_upload(self, row: UploadRow) -> None:
        """Notes an upload before its first chunk is taken; repeating it is no error."""
        await self._transaction(lambda c: _insert_new(c, t.uploads, row.__dict__))

    async def upload(self, upload: bytes) -> UploadRow | None:
        row = await self._read(lambda c: c.execute(_UPLOAD, {"upload": upload}).first())
        return None if row is None else UploadRow(**row._mapping)

    async def uploads(self, run: bytes, instance: bytes) -> list[UploadRow]:
        """Of one instance, by member in bytewise order, which is not every database's."""
        query = sa.select(t.uploads).where(t.uploads.c.run == run, t.uploads.c.instance == instance)
        rows = await self._read(lambda c: [UploadRow(**r._mapping) for r in c.execute(query)])
        return sorted(rows, key=lambda row: row.member)

    async def runs_of_uploads(self) -> dict[bytes, bytes]:
        """Run by upload, of those whose bytes are still there."""
        query = sa.select(t.uploads.c.upload, t.uploads.c.run).where(~t.uploads.c.removed)
        return await self._read(lambda c: {row.upload: row.run for row in c.execute(query)})

    async def settle_uploads(self, until: float) -> None:
        """Uploads that were left in mid-exchange when their run ended go at that time."""
        over = sa.select(t.runs.c.run).where(t.runs.c.label != "open")
        left = sa.update(t.uploads).where(t.uploads.c.keep_until.is_(None), t.uploads.c.run.in_(over)).values(keep_until=until)
        await self._transaction(lambda c: c.execute(left))

    async def expired_uploads(self, now: float) -> list[UploadRow]:
        """Uploads whose time is over and whose bytes are still there, oldest first."""
        over = sa.and_(t.uploads.c.keep_until <= now, ~t.uploads.c.pinned, ~t.uploads.c.removed)
        query = sa.select(t.uploads).where(over).order_by(t.uploads.c.keep_until)
        return await self._read(lambda c: [UploadRow(**r._mapping) for r in c.execute(query)])

    async def upload_removed(self, upload: bytes) -> None:
        """Its bytes are gone from the disk."""
        gone = sa.update(t.uploads).where(t.uploads.c.upload == upload).values(removed=True)
        await self._transaction(lambda c: c.execute(gone))

    async def unpin_uploads(self, run: bytes) -> int:
        """Lets a run's pinned uploads go when their window closes; how many that are."""
        pinned = sa.and_(t.uploads.c.run == run, t.uploads.c.pinned, ~t.uploads.c.removed)
        return await self._transaction(lambda c: int(c.execute(sa.update(t.uploads).where(pinned).values(pinned=False)).rowcount))

    async def kept_bytes(self, run: bytes | None = None) -> KeptBytes:
        """What is on the disk of one run, or of all."""
        u = t.uploads.c
        waiting = sa.func.max(sa.case((~u.pinned, u.keep_until)))
        pinned = sa.func.sum(sa.case((u.pinned, 1), else_=0))
        query = sa.select(sa.func.count(), sa.func.sum(u.length), waiting, pinned).where(~u.removed, u.length > 0)
        if run is not None:
            query = query.where(u.run == run)
        count, length, until, pins = await self._read(lambda c: c.execute(query).one())
        return KeptBytes(count, int(length or 0), until, int(pins or 0))  # PostgreSQL adds numbers up to a Decimal

    # -- nodes and journal -----------------------------------------------------------------------------------------

    async def node(self, member: str) -> NodeRow | None:
        """The node with the highest generation this member ever came with."""
        row = await self._read(lambda c: c.execute(sa.select(t.nodes).where(t.nodes.c.member == member)).first())
        return None if row is None else NodeRow(**row._mapping)

    async def put_node(self, row: NodeRow) -> None:
        def change(c: sa.Connection) -> None:
            c.execute(sa.delete(t.nodes).where(t.nodes.c.member == row.member))
            c.execute(sa.insert(t.nodes), row.__dict__)

        await self._transaction(change)

    async def journal(self, run: bytes) -> list[JournalRow]:
        query = sa.select(t.journal).where(t.journal.c.run == run).order_by(t.journal.c.seq)
        return await self._read(lambda c: [_journal_row(r._mapping) for r in c.execute(query)])


# Statements of the hot path, built once: SQLAlchemy takes longer to build one than SQLite to run it.
_INSERT = {table: sa.insert(table) for table in t.metadata.sorted_tables}
_EXISTS = {
    table: sa.select(sa.literal(1)).select_from(table).where(*(c == sa.bindparam(c.name) for c in table.primary_key.columns))
    for table in t.metadata.sorted_tables
}
_CHAIN_OF = (
    sa.select(t.chain.c.seq, t.chain.c.prev, t.statements.c.envelope)
    .outerjoin(t.statements, t.statements.c.digest == t.chain.c.prev)
    .where(t.chain.c.party == sa.bindparam("party"))
)
_CHAIN_GONE = sa.delete(t.chain).where(t.chain.c.party == sa.bindparam("its_party"))
_RUNS_OF_BLOB = sa.select(t.blobs.c.run, t.blobs.c.purpose).where(t.blobs.c.blob == sa.bindparam("blob"))
_UPLOAD = sa.select(t.uploads).where(t.uploads.c.upload == sa.bindparam("upload"))
_COMMITTED = sa.update(t.uploads).where(t.uploads.c.upload == sa.bindparam("its_upload"))


def _write_with(c: sa.Connection, run: bytes, also: With) -> None:
    for statement in also.statements:
        if _insert_new(c, t.statements, statement.__dict__):
            log_rows.take(c, statement.party, statement.seq)
    for blob in also.blobs:
        _insert_new(c, t.blobs, blob.__dict__)
    for upload in also.uploads:
        _insert_new(c, t.uploads, upload.__dict__)
    if also.chain is not None:
        party, chain = also.chain
        c.execute(_CHAIN_GONE, {"its_party": party})
        c.execute(_INSERT[t.chain], {"party": party, "seq": chain.seq, "prev": chain.prev})
    if also.committed is not None:
        its_upload, commit = also.committed
        c.execute(_COMMITTED, {"its_upload": its_upload, "commit": commit})
    for instance, members, until, pinned in also.keep:
        _keep_uploads(c, instance, members, until, pinned)
    if also.pin is not None:
        c.execute(sa.update(t.uploads).where(t.uploads.c.instance == also.pin).values(pinned=True))
    if also.label is not None:
        label, reason = also.label
        reason = reason.replace("\0", "\ufffd")  # some of it are a member's own words, and PostgreSQL's text has no NUL
        c.execute(sa.update(t.runs).where(t.runs.c.run == run).values(label=label, reason=reason))
    if also.journal is not None:
        row = also.journal
        c.execute(sa.delete(t.journal).where(t.journal.c.run == run, t.journal.c.seq == row.seq))
        c.execute(_INSERT[t.journal], {"run": run, **row.__dict__, "nodes": _json(row.nodes), "reply": _json(row.reply)})


def _keep_uploads(c: sa.Connection, instance: bytes, members: tuple[str, ...], until: float, pinned: bool) -> None:
    u = t.uploads.c
    theirs = sa.and_(u.instance == instance, u.member.in_(members))
    later = sa.or_(u.keep_until.is_(None), u.keep_until < until)
    c.execute(sa.update(t.uploads).where(theirs, later).values(keep_until=until))
    if pinned:
        c.execute(sa.update(t.uploads).where(theirs).values(pinned=True))
    c.execute(sa.update(t.uploads).where(u.instance == instance, u.member.not_in(members)).values(keep_until=0.0))


def _insert_new(c: sa.Connection, table: sa.Table, values: dict[str, Any]) -> bool:
    """Inserts unless a row with this primary key is there; returns whether it did."""
    if c.scalar(_EXISTS[table], {column.name: values[column.name] for column in table.primary_key.columns}):
        return False
    c.execute(_INSERT[table], values)
    return True


def _journal_row(row: Any) -> JournalRow:
    values = {k: v for k, v in row.items() if k != "run"}
    nodes, reply = values["nodes"], values["reply"]
    return JournalRow(**{**values, "nodes": None if nodes is None else tuple(json.loads(nodes)), "reply": reply and json.loads(reply)})


def _json(value: Sequence[int] | dict[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True)
