"""The database: migrations give what the tables say, and what is returned has been committed."""

from __future__ import annotations

import sqlite3

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.errors import Conflict
from dure.statements.kinds import RunApproval
from dure.statements.statement import Chain, seal
from dure_coordinator.storage.store import (
    BlobRow,
    JournalRow,
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


def url(path) -> str:
    return f"sqlite:///{path}/c.db"


@pytest.fixture
async def store(tmp_path):
    store = await Store.open(url(tmp_path))
    await store.add_run(RunRow(RUN, "digits", b"plan", bytes(32)))
    yield store
    await store.close()


async def test_migrations_lead_to_exactly_the_tables_the_code_uses(store):
    with store.engine.connect() as c:
        difference = compare_metadata(MigrationContext.configure(c), metadata)
    assert difference == []


async def test_sqlite_is_durable_at_every_commit(store):
    with store.engine.connect() as c:
        assert c.scalar(sa.text("PRAGMA journal_mode")) == "wal"
        assert c.scalar(sa.text("PRAGMA synchronous")) == 2
        assert c.scalar(sa.text("PRAGMA foreign_keys")) == 1


async def test_opening_again_keeps_everything(store, tmp_path):
    await store.append(RUN, NewEvent(0, 5.0, b"first"))
    again = await Store.open(url(tmp_path))
    assert [e.body for e in await again.events(RUN)] == [b"first"]
    await again.close()


async def test_a_database_of_a_newer_version_is_refused_by_name(store, tmp_path):
    await store.close()
    with sqlite3.connect(tmp_path / "c.db") as db:
        db.execute("update alembic_version set version_num = '9999'")
    with pytest.raises(StoreUnusable, match="another version"):
        await Store.open(url(tmp_path))


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
    envelope, chain = seal(RunApproval(RUN, "asan", "n1"), Ed25519PrivateKey.generate(), Chain(), 7.0)
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
    ("url", "named"),
    [
        ("nonsense", "is no SQLAlchemy URL"),
        ("sqlite+aiosqlite:///x.db", "asyncio driver"),
        ("nosuchbase://host/x", "name another one"),
        ("sqlite:////no/such/folder/x.db", "folder does not exist"),
    ],
)
async def test_a_database_url_that_cannot_be_used_is_one_clear_line(url, named):
    """The first two left as tracebacks: a coordinator.toml of before the plain driver names aiosqlite."""
    with pytest.raises(StoreUnusable, match=named) as refused:
        await Store.open(url)
    assert "\n" not in str(refused.value)
