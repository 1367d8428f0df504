"""The database: migrations give what the tables say, and what is returned has been committed. On SQLite, and on a real PostgreSQL."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.postgres import Postgres, found_or_skip

from dure.errors import Conflict
from dure.settings_cli import without_password
from dure.statements.kinds import RunApproval
from dure.statements.statement import Chain, SeenHead, seal
from dure_coordinator.storage.store import (
    BlobRow,
    EventsMissing,
    JournalRow,
    KeptBytes,
    NewEvent,
    NodeRow,
    RunRow,
    StatementRow,
    Store,
    StoreUnusable,
    UploadRow,
    With,
)
from dure_coordinator.storage.tables import metadata

RUN = bytes(range(32))


@pytest.fixture(scope="module")
def server():
    made = Postgres(found_or_skip())
    yield made
    made.remove()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.deep)])
def url(request, tmp_path):
    return f"sqlite:///{tmp_path}/c.db" if request.param == "sqlite" else request.getfixturevalue("server").database()


@pytest.fixture
async def store(url):
    store = await Store.open(url)
    await store.add_run(RunRow(RUN, "digits", b"plan", bytes(32)))
    yield store
    await store.close()


async def test_migrations_lead_to_exactly_the_tables_the_code_uses(store):
    with store.engine.connect() as c:
        difference = compare_metadata(MigrationContext.configure(c), metadata)
    assert difference == []


async def test_sqlite_is_durable_at_every_commit(tmp_path):
    store = await Store.open(f"sqlite:///{tmp_path}/c.db")
    with store.engine.connect() as c:
        assert c.scalar(sa.text("PRAGMA journal_mode")) == "wal"
        assert c.scalar(sa.text("PRAGMA synchronous")) == 2
        assert c.scalar(sa.text("PRAGMA foreign_keys")) == 1
    await store.close()


async def test_opening_again_keeps_everything(store, url):
    await store.append(RUN, NewEvent(0, 5.0, b"first"))
    await store.close()
    again = await Store.open(url)
    assert [e.body for e in await again.events(RUN)] == [b"first"]
    await again.close()


async def test_a_database_of_a_newer_version_is_refused_by_name(store, url):
    with store.engine.begin() as c:
        c.execute(sa.text("update alembic_version set version_num = '9999'"))
    await store.close()
    with pytest.raises(StoreUnusable, match="another version"):
        await Store.open(url)


async def test_an_unwritable_database_is_one_line(tmp_path):
    with pytest.raises(StoreUnusable) as e:
        await Store.open(f"sqlite:///{tmp_path}/none/c.db")
    assert "\n" not in str(e.value)


async def test_a_second_event_at_one_position_is_a_conflict_and_changes_nothing(store):
    await store.append(RUN, NewEvent(0, 1.0, b"one"))
    blob = BlobRow(RUN, "weights", "ab:1")
    with pytest.raises(Conflict):
        await store.append(RUN, NewEvent(0, 1.0, b"two", With(blobs=(blob,))))
    assert [e.body for e in await store.events(RUN)] == [b"one"]
    assert await store.runs_of_blob("ab:1") == []


async def test_what_belongs_to_an_event_is_committed_with_it(store):
    seen = Chain().having_seen(SeenHead(40, b"\x08" * 32))
    envelope, chain = seal(RunApproval(RUN, "asan", "n1"), Ed25519PrivateKey.generate(), seen, 7.0)
    row = StatementRow.of(envelope.to_bytes(), RUN)
    upload = UploadRow(bytes(32), RUN, b"i", "asan", 10, 5)
    await store.begin_upload(upload)
    await store.begin_upload(upload)
    also = With(
        statements=(row, row),
        blobs=(BlobRow(RUN, "sum", "cd:2", 3),),
        chain=("key", chain),
        committed=(bytes(32), b"commit"),
        label=("aborted", "told to"),
        journal=JournalRow(1, nodes=(4, 5), digest=bytes(32), category="train", reply={"a": 1}, summed=True),
    )
    await store.append(RUN, NewEvent(0, 1.0, b"e", also))
    assert await store.statements(run=RUN, kind="run-approval") == [row]
    assert (row.seq, row.party) == (0, envelope.signatures[0][0])
    assert await store.chain_of("key") == chain
    assert await store.chain_of("other") == Chain()
    assert await store.runs_of_blob("cd:2") == [(RUN, "sum")]
    assert (await store.upload(bytes(32))).commit == b"commit"
    assert [u.member for u in await store.uploads(RUN, b"i")] == ["asan"]
    assert (await store.runs())[0].label == "aborted"
    assert await store.journal(RUN) == [also.journal]


async def test_a_members_words_are_kept_whatever_they_hold(store):
    """PostgreSQL's text has no NUL: a refusal with one in it would have kept the run from ever ending."""
    await store.write(RUN, With(label=("aborted", "asan: no\0, thanks é")))
    assert (await store.runs())[0].reason == "asan: no\ufffd, thanks é"


async def test_what_uploads_take_is_counted_in_whole_bytes(store):
    await store.begin_upload(UploadRow(bytes(32), RUN, b"i", "b-c", 10, 5))
    await store.begin_upload(UploadRow(b"2" * 32, RUN, b"i", "bb", 2**40, 5))
    assert await store.kept_bytes(RUN) == KeptBytes(2, 2**40 + 10, None, 0)
    assert type((await store.kept_bytes()).length) is int
    assert [u.member for u in await store.uploads(RUN, b"i")] == ["b-c", "bb"]


async def test_the_log_takes_statements_in_the_order_of_their_numbers(store):
    key, rows, chain = Ed25519PrivateKey.generate(), [], Chain()
    for member in ("a", "b", "c"):
        envelope, chain = seal(RunApproval(RUN, member, "n1"), key, chain, 7.0)
        rows.append(StatementRow.of(envelope.to_bytes(), RUN))
    await store.write(RUN, With(statements=(rows[1],)))
    assert (await store.log_head()).size == 0
    await store.write(RUN, With(statements=(rows[0], rows[2])))
    assert await store.log_entries(0, 3) == [r.envelope for r in rows]
    assert await store.log_index(rows[2].digest) == 2


async def test_events_with_a_gap_are_that_runs_trouble(store):
    await store.append(RUN, NewEvent(0, 1.0, b"one"), NewEvent(2, 1.0, b"three"))
    with pytest.raises(EventsMissing, match="gap"):
        await store.events(RUN)


async def test_two_statements_with_one_seq_are_both_kept_as_evidence(store):
    key = Ed25519PrivateKey.generate()
    rows = tuple(StatementRow.of(seal(RunApproval(RUN, m, "n1"), key, Chain(), 7.0)[0].to_bytes(), RUN) for m in ("a", "b"))
    await store.write(RUN, With(statements=rows))
    assert len(await store.statements(run=RUN)) == 2


async def test_nodes_keep_the_latest_row(store):
    await store.put_node(NodeRow("asan", "n1", bytes(32), 1))
    await store.put_node(NodeRow("asan", "n2", bytes(32), 2))
    assert (await store.node("asan")).generation == 2
    assert await store.node("nobody") is None


async def test_a_run_is_registered_once(store):
    with pytest.raises(Conflict):
        await store.add_run(RunRow(RUN, "digits", b"plan", bytes(32)))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("nonsense", "is no SQLAlchemy URL"),
        ("sqlite+aiosqlite:///x.db", "asyncio driver"),
        ("nosuchbase://host/x", "name another one"),
        ("sqlite:////no/such/folder/x.db", "folder does not exist"),
        ("postgresql://dure@127.0.0.1:1/x", "[Cc]onnection refused"),
    ],
)
async def test_a_database_url_that_cannot_be_used_is_one_clear_line(wrong, named):
    """The first two left as tracebacks: a coordinator.toml of before the plain driver names aiosqlite."""
    with pytest.raises(StoreUnusable, match=named) as refused:
        await Store.open(wrong)
    assert "\n" not in str(refused.value)


async def test_a_database_url_is_shown_without_its_password():
    for shown in ("postgresql://dure:hush@127.0.0.1:1/x", "postgresql://dure@/x?host=/none&password=hush"):
        with pytest.raises(StoreUnusable) as refused:
            await Store.open(shown)
        assert "hush" not in str(refused.value) and "hush" not in without_password(shown)
    assert without_password("postgresql://dure:hush@hub/x") == "postgresql://dure:***@hub/x"
    assert without_password("sqlite:////var/lib/x.db") == "sqlite:////var/lib/x.db"


# -- PostgreSQL alone ---------------------------------------------------------------------------------------------------


@pytest.mark.deep
async def test_a_second_coordinator_on_one_postgresql_database_is_refused(server):
    """serve.lock is in a folder, and a database may be named from two."""
    url = server.database()
    first = await Store.open(url)
    with pytest.raises(StoreUnusable, match="another coordinator uses it"):
        await Store.open(url)
    await first.close()
    await (await Store.open(url)).close()


@pytest.mark.deep
async def test_a_postgresql_that_crashes_is_unusable_until_it_is_back_and_has_what_was_committed(server):
    store = await Store.open(server.database())
    await store.add_run(RunRow(RUN, "digits", b"plan", bytes(32)))
    server.stop("immediate")
    try:
        with pytest.raises(StoreUnusable):
            await store.append(RUN, NewEvent(0, 1.0, b"lost"))
        with pytest.raises(StoreUnusable):
            await store.runs()
    finally:
        server.start()
    await store.append(RUN, NewEvent(0, 1.0, b"kept"))
    assert [e.body for e in await store.events(RUN)] == [b"kept"]
    await store.close()


@pytest.mark.deep
async def test_a_postgresql_that_does_not_sync_is_refused_and_commits_wait_for_the_disk(server):
    url = server.database()
    with sa.create_engine(url, isolation_level="AUTOCOMMIT").connect() as c:
        c.execute(sa.text(f"ALTER DATABASE {sa.make_url(url).database} SET synchronous_commit = off"))
    store = await Store.open(url)
    assert await store._read(lambda c: c.scalar(sa.text("SHOW synchronous_commit"))) == "on"
    await store.close()
    _configure(server, "ALTER SYSTEM SET fsync = off")
    try:
        with pytest.raises(StoreUnusable, match="fsync off"):
            await Store.open(url)
    finally:
        _configure(server, "ALTER SYSTEM RESET fsync")


def _configure(server, change):
    with sa.create_engine(server.database(), isolation_level="AUTOCOMMIT").connect() as c:
        c.execute(sa.text(change))
        c.execute(sa.text("SELECT pg_reload_conf()"))
