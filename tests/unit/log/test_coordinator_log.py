"""The coordinator's log: entries in the transaction of their state, files in an order no crash can spoil, heads that a quorum cosigned."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.blobs import DiskFull
from dure.charter.log_keys import Witnessing
from dure.errors import DureError, Unavailable
from dure.statements.dsse import seal_payload
from dure.tlog.checkpoint import open_checkpoint
from dure.tlog.files import CHECKPOINT, Disk, LogDamaged, LogFiles
from dure.tlog.merkle import merkle_root, root_at
from dure.tlog.note import COSIGNATURE_V1, ED25519, Note, NoteKey, sign
from dure.tlog.witness import AddCheckpoint, Seen, WitnessRefused, answer, judge
from dure_coordinator.engine import Changes
from dure_coordinator.log.publisher import Publisher
from dure_coordinator.log.witnesses import MOST_TOLD, StreamWitness
from dure_coordinator.storage.store import NewEvent, RunRow, StatementRow, Store, With

ORIGIN = "titan.dure/log"
KEY = Ed25519PrivateKey.from_private_bytes(b"log" + bytes(29))
LOG = NoteKey(ORIGIN, ED25519, KEY.public_key().public_bytes_raw())
SIGNER = Ed25519PrivateKey.from_private_bytes(b"signer" + bytes(26))
RUN = bytes(32)


def statement(n: int, key=SIGNER, text="x") -> StatementRow:
    body = f'{{"_type":"{text}","predicate":{{"seq":{n}}},"predicateType":"urn:dure:test:v1","subject":[]}}'
    return StatementRow.of(seal_payload(body.encode(), key).to_bytes(), RUN)


@pytest.fixture
async def store(tmp_path):
    store = await Store.open(f"sqlite:///{tmp_path}/c.db")
    await store.add_run(RunRow(RUN, "digits", b"plan", bytes(32)))
    yield store
    await store.close()


async def keep(store, *numbers):
    await store.write(RUN, With(statements=tuple(statement(n) for n in numbers)))


# -- the database --------------------------------------------------------------------------------------------------------


async def test_every_statement_is_an_entry_once_each_signers_in_order(store):
    await keep(store, 0, 2)
    assert (await store.log_head()).size == 1, "number 2 waits for number 1"
    other = Ed25519PrivateKey.generate()
    await store.write(RUN, With(statements=(statement(0, other),)))
    await keep(store, 2, 1)
    expected = [statement(0).envelope, statement(0, other).envelope, statement(1).envelope, statement(2).envelope]
    assert await store.log_entries(0, 4) == expected
    assert (await store.log_head()).root() == merkle_root(expected)
    assert await store.log_index(statement(2).digest) == 3
    assert await store.log_index(bytes(32)) is None
    assert await store.log_next_seq(statement(0).party) == 3


async def test_a_second_statement_of_one_number_is_kept_as_evidence_and_is_no_entry(store):
    await keep(store, 0, 1)
    await store.write(RUN, With(statements=(statement(1, text="another"),)))
    assert (await store.log_head()).size == 2
    assert len(await store.statement(statement(1).party, 1)) == 2


async def test_an_entry_and_the_state_it_describes_are_kept_together_or_not_at_all(store):
    await store.append(RUN, NewEvent(0, 1.0, b"event", With(statements=(statement(0),))))
    with pytest.raises(DureError, match="is there already"):
        await store.append(RUN, NewEvent(0, 1.0, b"other", With(statements=(statement(1),))))
    assert (await store.log_head()).size == 1
    await keep(store, 1)
    assert await store.log_entries(0, 2) == [statement(n).envelope for n in (0, 1)]


async def test_statements_from_before_the_log_are_taken_in_when_a_database_is_upgraded(store, tmp_path):
    await keep(store, 0, 1, 2, 3, 4)
    await store.close()
    with sqlite3.connect(tmp_path / "c.db") as db:
        for line in (
            "drop table snapshots",
            "drop table past_exchanges",
            "drop table log",
            "drop table log_head",
            "drop table log_parties",
            "drop index ix_statements_digest",
            *(f"alter table uploads drop column {name}" for name in ("keep_until", "pinned", "removed")),
            "update alembic_version set version_num='0001'",
        ):
            db.execute(line)
    again = await Store.open(f"sqlite:///{tmp_path}/c.db")
    await keep(again, 5)
    expected = [statement(n).envelope for n in range(6)]
    assert await again.log_entries(0, 6) == expected
    assert (await again.log_head()).root() == merkle_root(expected)
    await again.close()


# -- the files -----------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


class Failing(Disk):
    """Stops at the n-th operation, before or after it was done."""

    def __init__(self, at: int, after: bool) -> None:
        self.left, self.after = at, after

    def _reach(self, act) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        act()
        if self.left == 0:
            raise Killed

    def put(self, path, data):
        self._reach(lambda: super(Failing, self).put(path, data))

    def sync(self, folders):
        self._reach(lambda: super(Failing, self).sync(folders))

    def remove(self, path):
        self._reach(lambda: super(Failing, self).remove(path))


def signed(files: LogFiles) -> bytes:
    from dure.tlog.checkpoint import Checkpoint

    text = Checkpoint(ORIGIN, files.size, files.root).text()
    return Note(text, (sign(text, ORIGIN, KEY),)).to_bytes()


STEPS = (3, 260, 260, 521, 600)
"""Sizes published one after the other: a partial tile, a full one, the same size again, two at once, a partial again."""
ENTRIES = [b"entry %d" % i for i in range(STEPS[-1])]


def play(folder, disk=None) -> None:
    """Grows and publishes as far as it gets; goes on where an earlier try ended."""
    files = LogFiles(folder, LOG, disk)
    for size in STEPS:
        if size > (files.published.checkpoint.size if files.published else 0):
            files.grow(ENTRIES[files.size : size])
            files.publish(signed(files))


def check_readable(folder) -> int:
    """Whatever `checkpoint` names is there, with the right bytes; returns its size."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    head = open_checkpoint(path.read_bytes(), LOG).checkpoint
    tree = LogFiles(folder, LOG).tree(head.size)
    assert list(tree.entries()) == ENTRIES[: head.size]
    assert root_at(tree.node, head.size) == head.root == merkle_root(ENTRIES[: head.size])
    return head.size


def test_a_crash_before_or_after_any_write_leaves_a_whole_log_that_goes_on(tmp_path):
    """Every single operation of five publications, each with the crash before and after it."""
    at, crashed = 1, True
    while crashed:
        for after in (False, True):
            folder = tmp_path / f"{at}-{after}"
            crashed = False
            try:
                play(folder, Failing(at, after))
            except Killed:
                crashed = True
            before = check_readable(folder)
            play(folder)
            assert check_readable(folder) == STEPS[-1] >= before
        at += 1
    assert at > 25


def test_a_path_never_gets_other_bytes(tmp_path):
    files = LogFiles(tmp_path / "log", LOG)
    files.grow(ENTRIES[:10])
    again = LogFiles(tmp_path / "log", LOG)
    with pytest.raises(LogDamaged, match="other bytes"):
        again.grow([b"forged", *ENTRIES[1:10]])


def test_a_changed_tile_or_head_is_noticed_at_the_next_start(tmp_path):
    play(tmp_path / "log")
    tile = tmp_path / "log" / "tile/0/002.p/88"
    tile.write_bytes(bytes(32) + tile.read_bytes()[32:])
    with pytest.raises(LogDamaged):
        LogFiles(tmp_path / "log", LOG)
    other = NoteKey("other", ED25519, LOG.public)
    with pytest.raises(LogDamaged, match="origin"):
        LogFiles(tmp_path / "log", other)


def test_partial_tiles_do_not_pile_up(tmp_path):
    files = LogFiles(tmp_path / "log", LOG)
    for size in range(1, 600, 7):
        files.grow(ENTRIES[files.size : size])
        files.publish(signed(files))
    assert len([p for p in (tmp_path / "log").rglob("*.p/*") if p.is_file()]) <= 12
    check_readable(tmp_path / "log")


class Full(Disk):
    """Has no room for the next `left` files."""

    def __init__(self, fits: int) -> None:
        self.fits, self.full = fits, True

    def put(self, path, data):
        if self.full and self.fits == 0:
            raise DiskFull(path)
        self.fits -= 1
        super().put(path, data)


@pytest.mark.parametrize("fits", range(6))
def test_a_disk_that_fills_up_while_appending_tears_nothing_and_goes_on_with_room(tmp_path, fits):
    """The same process tries again: it used to count the entries whose files were missing, and published over them."""
    disk = Full(10**9)
    files = LogFiles(tmp_path / "log", LOG, disk)
    files.grow(ENTRIES[:3])
    files.publish(signed(files))
    disk.fits = fits
    with pytest.raises(DiskFull):
        files.grow(ENTRIES[3:600])
    assert files.size == 3
    disk.full = False
    files.grow(ENTRIES[3:600])
    files.publish(signed(files))
    assert check_readable(tmp_path / "log") == 600


# -- publishing ----------------------------------------------------------------------------------------------------------


class Member:
    """A witness that keeps its own record, as a node does."""

    def __init__(self, name: str) -> None:
        self.name, self.key, self.seen, self.asleep = name, Ed25519PrivateKey.generate(), {}, False

    @property
    def note_key(self) -> NoteKey:
        return NoteKey(self.name, COSIGNATURE_V1, self.key.public_key().public_bytes_raw())

    async def add_checkpoint(self, request: bytes, entries=()) -> bytes:
        if self.asleep:
            raise Unavailable("asleep")
        self.sent = entries
        checkpoint, self.seen[ORIGIN] = judge(AddCheckpoint.from_bytes(request), {ORIGIN: [LOG]}, self.seen)
        return answer(checkpoint, self.name, self.key, 1_700_000_000)


@pytest.fixture
def members():
    return [Member(f"m{i}") for i in range(5)]


@pytest.fixture
def publisher(store, tmp_path, members):
    return Publisher(
        store=store,
        files=LogFiles(tmp_path / "log", LOG),
        origin=ORIGIN,
        key=lambda _log: KEY,
        witnessing=lambda _size: Witnessing(LOG, tuple(m.note_key for m in members), 4),
        reach=lambda: {m.name: m for m in members},
        committed=Changes(),
    )


async def test_a_head_is_published_once_the_quorum_cosigned_and_proves_its_entries(store, publisher, members):
    await keep(store, *range(7))
    members[4].asleep = True
    assert await publisher.publish()
    proof = await publisher.covering(statement(3).digest)
    head = proof.verify(statement(3).envelope, LOG, publisher.witnessing(4).keys, quorum=4)
    assert (head.checkpoint.size, sorted(head.cosigned)) == (7, ["m0", "m1", "m2", "m3"])


async def test_without_the_quorum_nothing_is_published_and_the_sleepers_are_named(store, publisher, members):
    await keep(store, 0)
    members[3].asleep = members[4].asleep = True
    assert not await publisher.publish()
    assert publisher.size == 0
    assert {name: publisher.missing()[name] for name in ("m3", "m4")} == {"m3": "asleep", "m4": "asleep"}
    members[3].asleep = False
    assert await publisher.publish()
    assert publisher.missing() == {}


async def test_a_witness_that_slept_through_heads_is_asked_from_where_it_stands(store, publisher, members):
    members[4].asleep = True
    for n in range(4):
        await keep(store, n)
        assert await publisher.publish()
    members[4].asleep, members[0].asleep = False, True
    await keep(store, 4)
    assert await publisher.publish()
    assert members[4].seen[ORIGIN] == Seen(5, (await store.log_head()).root())


async def test_a_restarted_coordinator_asks_again_and_publishes_the_same_head(store, publisher, members, tmp_path):
    """It was killed after the witnesses kept the head and before `checkpoint` was written."""
    await keep(store, 0, 1)

    def killed(_note):
        raise Killed

    publisher.files.publish = killed
    with pytest.raises(Killed):
        await publisher.publish()
    publisher.files, publisher._sizes = LogFiles(tmp_path / "log", LOG), {}
    assert await publisher.publish()
    assert publisher.size == 2


async def test_a_database_that_was_rolled_back_signs_nothing(store, publisher, members, tmp_path):
    await keep(store, 0, 1)
    assert await publisher.publish()
    other = await Store.open(f"sqlite:///{tmp_path}/old.db")
    await other.add_run(RunRow(RUN, "digits", b"plan", bytes(32)))
    await other.write(RUN, With(statements=(statement(0, text="another"),)))
    publisher.store = other
    with pytest.raises(Unavailable, match="rolled back"):
        await publisher.publish()
    await keep(other, 1, 2)
    with pytest.raises(DureError, match=r"rolled back|other bytes"):
        await publisher.publish()
    await other.close()


async def test_witnesses_that_saw_more_than_the_log_stop_it_by_name(store, publisher, members):
    """A coordinator restored from a backup, files and all."""
    await keep(store, 0)
    for member in members:
        member.seen[ORIGIN] = Seen(9, bytes(32))
    assert not await publisher.publish()
    assert "rolled back" in publisher.missing()["m0"]


async def test_entries_that_come_while_witnesses_think_are_in_the_next_head(store, publisher, members):
    running = asyncio.create_task(publisher.run())
    for n in range(12):
        await keep(store, n)
        await publisher.committed.bump()
        await asyncio.sleep(0)
    async with asyncio.timeout(20):
        for n in range(12):
            proof = await publisher.covering(statement(n).digest)
            proof.verify(statement(n).envelope, LOG, publisher.witnessing(4).keys, quorum=4)
    running.cancel()


async def test_an_unforeseen_fault_of_the_disk_is_shown_and_publishing_goes_on(store, publisher, members, monkeypatch):
    """An OSError used to end the task that publishes, and with it every run, without a word."""
    monkeypatch.setattr("dure_coordinator.log.publisher.AGAIN_S", 0.01)
    grow, broken = publisher.files.grow, True

    def fails(entries):
        if broken:
            raise OSError(5, "Input/output error")
        grow(entries)

    publisher.files.grow = fails
    running = asyncio.create_task(publisher.run())
    await keep(store, 0)
    await publisher.committed.bump()
    async with asyncio.timeout(20):
        while "Input/output" not in publisher.trouble:  # noqa: ASYNC110  # a plain attribute; nobody wakes us
            await asyncio.sleep(0.01)
        broken = False
        await publisher.covering(statement(0).digest)
    assert publisher.trouble == ""
    running.cancel()


async def test_a_witness_that_answers_garbage_is_named_and_not_counted(store, publisher, members):
    await keep(store, 0)

    async def lies(_request, _entries):
        return "— m0 AAAAAAAAAAAA\n".encode()

    members[0].add_checkpoint = lies
    assert await publisher.publish()
    assert "m0" in publisher.refusals

    async def refuses(_request, _entries):
        raise WitnessRefused(422, "not shown to continue", evidence=True)

    members[1].add_checkpoint = refuses
    await keep(store, 1)
    assert not await publisher.publish()
    assert "not shown to continue" in publisher.missing()["m1"]


async def test_a_witness_that_does_not_read_piles_up_nothing():
    """Its stream is full: every head it was asked about is given up, and only the newest waits."""
    witness = StreamWitness()
    for n in range(50):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(witness.add_checkpoint(b"head %d" % n), 0.001)
    newest = await witness.next()
    assert newest.request == b"head 49"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(witness.next(), 0.001)
    witness.answer(newest.number, 200, b"late")  # nobody waits for it any more
    for n in range(50):
        witness.tell(b"head %d" % n)
    told = [(await witness.next()).head for _ in range(MOST_TOLD)]
    assert told[0] == b"head 0"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(witness.next(), 0.001)


async def test_a_witness_is_sent_the_entries_it_lacks_together_with_the_head(store, publisher, members, monkeypatch):
    """Each would ask for them otherwise: a round trip in every exchange's way. One that lacks more than are at hand fetches."""
    await keep(store, 0, 1)
    assert await publisher.publish()
    assert members[0].sent == (statement(0).envelope, statement(1).envelope)
    members[4].asleep = True
    await keep(store, 2)
    assert await publisher.publish()
    assert members[0].sent == (statement(2).envelope,)
    members[4].asleep, members[0].asleep = False, True
    monkeypatch.setattr("dure_coordinator.log.publisher.TAIL_ENTRIES", 1)
    await keep(store, 3)
    assert await publisher.publish()
    assert (members[1].sent, members[4].sent) == ((statement(3).envelope,), ())


async def test_every_published_head_is_told_to_whoever_keeps_a_mirror(store, publisher):
    told = []
    publisher.published = told.append
    await keep(store, 0)
    assert await publisher.publish() and await publisher.publish()
    assert told == [publisher.files.published.note.to_bytes()]


async def test_entries_sent_with_a_head_are_the_right_ones_after_a_write_that_failed(store, publisher, members):
    """The files went back to the published head and what was at hand did not: a witness further behind got others, and called it a lie."""
    await keep(store, 0, 1, 2)
    assert await publisher.publish()
    for member in members:
        member.asleep = True
    await keep(store, 3, 4, 5)
    assert not await publisher.publish()
    await keep(store, 6, 7)
    grow = publisher.files.grow

    def fails(entries):
        publisher.files.grow = grow
        publisher.files._builder = publisher.files._resume()
        raise DiskFull(publisher.files.folder)

    publisher.files.grow = fails
    with pytest.raises(DureError):
        await publisher.publish()
    assert not await publisher.publish()
    for start in range(9):
        assert list(publisher._entries_from(start)) in ([], await store.log_entries(start, 8))
