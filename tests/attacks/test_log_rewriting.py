"""A log that lies to a member's witness: nothing is cosigned, and what the log signed is kept as evidence."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.tiny_charter import charter, key_of

from dure.charter.log_keys import log_key
from dure.errors import DureError
from dure.statements.kinds import CharterVersion, RunApproval
from dure.statements.statement import Chain, seal
from dure.tlog.checkpoint import Checkpoint
from dure.tlog.files import LogFiles
from dure.tlog.merkle import Frontier, consistency_proof, leaf_hash
from dure.tlog.note import COSIGNATURE_V1, Note, NoteKey, SignatureLine, cosign, sign
from dure.tlog.witness import AddCheckpoint
from dure_participant.exchange.state import NodeRunState
from dure_participant.log import mirror as mirrors
from dure_participant.log.mirror import EVIDENCE, Mirror, carried
from dure_participant.log.newest import Newest
from dure_participant.store import NodeStore

CHARTER = charter()
LOG_KEY, LOG = key_of("hub log"), log_key(CHARTER.terms)
ORIGIN = LOG.name
OWN = Ed25519PrivateKey.from_private_bytes(b"own" + bytes(29))
OTHER = Ed25519PrivateKey.from_private_bytes(b"other" + bytes(27))
WITNESS = key_of("ara witness")


def statements(key, count):
    """The first `count` statements of a key's chain, and the chain after them."""
    chain, made = Chain(), []
    for n in range(count):
        envelope, chain = seal(RunApproval(bytes([n]) * 32, "ara", "n1"), key, chain, 1_700_000_000)
        made.append(envelope.to_bytes())
    return made, chain


MINE, MY_CHAIN = statements(OWN, 4)
THEIRS, _ = statements(OTHER, 40)


class Log:
    """A log that signs whatever it holds."""

    def __init__(self, entries):
        self.entries, self.nodes, self.frontier = list(entries), {}, Frontier()
        self.roots = [self.frontier.root()]
        for entry in entries:
            for level, index, value in self.frontier.append(leaf_hash(entry)):
                self.nodes[level, index] = value
            self.roots.append(self.frontier.root())

    def request(self, old, size=None):
        size = len(self.entries) if size is None else size
        text = Checkpoint(ORIGIN, size, self.roots[size]).text()
        note = Note(text, (sign(text, ORIGIN, LOG_KEY),)).to_bytes()
        proof = consistency_proof(lambda level, i: self.nodes[level, i], old, size) if old <= size else ()
        return AddCheckpoint(old, tuple(proof), note).to_bytes()

    async def fetch(self, start, end):
        for entry in self.entries[start:end]:
            yield entry


@pytest.fixture
def mirror(tmp_path):
    store = NodeStore(tmp_path / "node.sqlite")
    store.commit(bytes(32), NodeRunState(run=bytes(32)).to_bytes(), MY_CHAIN, (), "", tuple(MINE))
    yield Mirror(
        files=LogFiles(tmp_path / "log", LOG),
        member="ara",
        name="ara.titan/witness",
        key=WITNESS,
        charters=(CHARTER,),
        own=OWN.public_key().public_bytes_raw(),
        store=store,
        folder=tmp_path,
    )
    store.close()


def evidence(mirror) -> list[str]:
    return [p.read_text() for p in sorted((mirror.folder / EVIDENCE).glob("*/why"))]


async def test_a_log_that_grows_honestly_is_mirrored_and_cosigned(mirror):
    log = Log([*THEIRS[:3], MINE[0], *THEIRS[3:6], MINE[1]])
    for old, size in ((0, 4), (4, 8)):
        status, body = await mirror.add_checkpoint(log.request(old, size), log.fetch)
        assert status == 200, body
        line = SignatureLine.parse(body.decode().rstrip("\n"))
        key = NoteKey(mirror.name, COSIGNATURE_V1, WITNESS.public_key().public_bytes_raw())
        assert key in Note(Checkpoint(ORIGIN, size, log.roots[size]).text(), (line,)).verify([key])
    assert list(mirror.files.tree(8).entries()) == log.entries
    assert evidence(mirror) == []


async def test_entries_that_come_with_the_head_are_judged_like_those_that_are_fetched(mirror):
    log = Log([*THEIRS[:3], MINE[0], *THEIRS[3:6], MINE[1]])
    assert (await mirror.add_checkpoint(log.request(0, 4), carried(log.entries[:3], log.fetch)))[0] == 200, "the fourth is fetched"
    for wrong in ([*THEIRS[3:6], MINE[2]], [*THEIRS[3:6], MINE[1], THEIRS[9]]):
        assert (await mirror.add_checkpoint(log.request(4, 8), carried(wrong, log.fetch)))[0] == 422
    assert len(evidence(mirror)) == 2
    assert (await mirror.add_checkpoint(log.request(4, 8), carried(log.entries[4:8], log.fetch)))[0] == 200


async def test_a_cosigned_head_is_kept_only_if_it_is_of_the_mirrors_own_history(mirror):
    log, fork = Log([*THEIRS[:3], MINE[0]]), Log([*THEIRS[5:8], MINE[0]])
    status, line = await mirror.add_checkpoint(log.request(0), log.fetch)
    assert status == 200

    def cosigned(of, line):
        note = Note.from_bytes(AddCheckpoint.from_bytes(of.request(0)).checkpoint)
        text = Checkpoint(ORIGIN, 4, of.roots[4]).text()
        others = [cosign(text, f"{m}.titan/witness", key_of(f"{m} witness"), 1_700_000_000) for m in ("bora", "chan")]
        return note.with_signatures([line, *others]).to_bytes()

    assert await mirror.learn(cosigned(log, SignatureLine.parse(line.decode().rstrip("\n"))))
    text = Checkpoint(ORIGIN, 4, fork.roots[4]).text()
    assert not await mirror.learn(cosigned(fork, cosign(text, mirror.name, WITNESS, 1_700_000_000)))
    with pytest.raises(DureError):
        await mirror.learn(AddCheckpoint.from_bytes(log.request(0)).checkpoint)


async def test_a_head_of_another_history_is_not_cosigned_and_kept_as_evidence(mirror):
    """Without the consistency check both heads would bear this member's name."""
    honest = Log([*THEIRS[:3], MINE[0], *THEIRS[3:9]])
    assert (await mirror.add_checkpoint(honest.request(0, 6), honest.fetch))[0] == 200
    forged = Log([*THEIRS[10:13], MINE[0], *THEIRS[3:9]])
    assert (await mirror.add_checkpoint(forged.request(6, 10), forged.fetch))[0] == 422
    assert (await mirror.add_checkpoint(forged.request(6, 6), forged.fetch))[0] == 409
    assert len(evidence(mirror)) == 2
    raw = next((mirror.folder / EVIDENCE).glob("*/add-checkpoint")).read_bytes()
    assert LOG in Note.from_bytes(AddCheckpoint.from_bytes(raw).checkpoint).verify([LOG]), "the evidence bears the log's signature"
    assert (await mirror.add_checkpoint(honest.request(6, 10), honest.fetch))[0] == 200, "the honest history goes on"


async def test_a_log_that_was_rolled_back_is_told_where_this_witness_stands(mirror):
    log = Log(THEIRS[:9])
    assert (await mirror.add_checkpoint(log.request(0, 9), log.fetch))[0] == 200
    assert await mirror.add_checkpoint(log.request(0, 5), log.fetch) == (409, b"9\n")


async def test_entries_that_do_not_give_the_signed_root_are_not_cosigned(mirror):
    """The proof alone would pass: what is withheld here is what the root is about."""
    log = Log(THEIRS[:9])

    async def other_entries(start, end):
        for entry in [*THEIRS[20 : 20 + end - start]]:
            yield entry

    async def fewer(start, end):
        yield log.entries[start]

    for fetch in (other_entries, fewer):
        status, why = await mirror.add_checkpoint(log.request(0), fetch)
        assert status == 422, why
    assert len(evidence(mirror)) == 2
    assert (await mirror.add_checkpoint(log.request(0), log.fetch))[0] == 200, "nothing of the lie was written"


async def test_entries_without_end_are_cut_off_at_the_size_the_log_signed(mirror):
    """Without the bound a coordinator could fill a member's disk."""
    log, given = Log(THEIRS[:9]), []

    async def without_end(start, end):
        while True:
            given.append(None)
            assert len(given) < 100
            yield THEIRS[0]

    status, why = await mirror.add_checkpoint(log.request(0), without_end)
    assert (status, b"more entries came" in why, len(given)) == (422, True, 10)


async def test_own_statements_out_of_order_or_left_out_in_between_are_noticed(mirror):
    for entries in ([MINE[1], *THEIRS[:3]], [MINE[0], MINE[2]], [MINE[0], MINE[0]]):
        log = Log(entries)
        status, why = await mirror.add_checkpoint(log.request(0), log.fetch)
        assert (status, b"under this node's key" in why) == (422, True)


async def test_a_statement_this_node_never_signed_under_its_key_is_noticed(mirror):
    envelope, _ = seal(RunApproval(b"z" * 32, "ara", "n1"), OWN, Chain(), 1_700_000_000)
    log = Log([envelope.to_bytes()])
    assert (await mirror.add_checkpoint(log.request(0), log.fetch))[0] == 422


async def test_an_acknowledged_statement_that_never_comes_is_noticed(mirror, monkeypatch):
    """Without it the coordinator could drop a member's last statements, such as its acceptance, and say it never came."""
    log = Log([*THEIRS[:2], MINE[0], *THEIRS[2:9]])
    assert (await mirror.add_checkpoint(log.request(0, 3), log.fetch))[0] == 200
    mirror.store.mark_delivered(1)
    assert (await mirror.add_checkpoint(log.request(3, 4), log.fetch))[0] == 200, "it may have come after this head was made"
    clock = mirrors.time.monotonic() + mirrors.UNDER_WAY_S + 1
    monkeypatch.setattr(mirrors.time, "monotonic", lambda: clock)
    status, why = await mirror.add_checkpoint(log.request(4, 5), log.fetch)
    assert (status, b"statement 1 was acknowledged" in why) == (422, True)


async def test_a_mirror_goes_on_after_a_restart(mirror, tmp_path):
    log = Log([MINE[0], *THEIRS[:5], MINE[1], *THEIRS[5:9]])
    assert (await mirror.add_checkpoint(log.request(0, 4), log.fetch))[0] == 200
    mirror.store.set_fact(mirrors.FACT, {"size": 1, "own": 0})  # a note of before the crash
    again = replace(mirror, files=LogFiles(tmp_path / "log", LOG))
    assert (await again.add_checkpoint(log.request(4, 11), log.fetch))[0] == 200
    assert again.store.fact(mirrors.FACT)["own"] == 2


async def test_garbage_and_strangers_heads_are_refused_without_evidence(mirror):
    stranger = Log(THEIRS[:2])
    raw = stranger.request(0)
    forged = raw.replace(ORIGIN.encode(), b"dure/other/log")
    assert (await mirror.add_checkpoint(forged, stranger.fetch))[0] == 404
    assert (await mirror.add_checkpoint(b"garbage", stranger.fetch))[0] == 400
    assert evidence(mirror) == []


def test_a_tampered_mirror_does_not_open(mirror, tmp_path):
    files = LogFiles(tmp_path / "other", LOG)
    files.grow(THEIRS[:5])
    text = Checkpoint(ORIGIN, 5, files.root).text()
    files.publish(Note(text, (sign(text, ORIGIN, LOG_KEY),)).to_bytes())
    path = tmp_path / "other" / "tile/0/000.p/5"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DureError, match="do not give"):
        LogFiles(tmp_path / "other", LOG)


async def test_a_charter_version_this_node_has_yet_to_hear_of_is_no_lie_of_the_log(mirror):
    """It would be noted as one, and the operator told that the log was caught, until the node connects anew."""
    mirror = replace(mirror, key=None)
    newer, _ = seal(CharterVersion(2, bytes(32), bytes(32)), key_of("hub signing"), Chain(), 1_700_000_000)
    log = Log([*THEIRS[:2], newer.to_bytes()])
    text = Checkpoint(ORIGIN, 3, log.roots[3]).text()
    cosigned = [cosign(text, f"{m}.titan/witness", key_of(f"{m} witness"), 1_700_000_000) for m in ("ara", "bora", "chan")]
    head = Note(text, (sign(text, ORIGIN, LOG_KEY), *cosigned)).to_bytes()
    assert not await mirror.learn(head, log.fetch) and mirror.seen.size == 0
    assert evidence(mirror) == []


async def test_a_log_that_lies_for_ever_does_not_fill_the_nodes_disk(mirror, monkeypatch):
    monkeypatch.setattr(mirrors, "MOST_EVIDENCE", 3)
    log = Log(THEIRS[:3])
    for number in range(5):
        mirror.clock = lambda number=number: 1_700_000_000.0 + number
        assert (await mirror.add_checkpoint(log.request(0), Log(THEIRS[5:8]).fetch))[0] == 422
    assert len(evidence(mirror)) == 3


async def test_of_heads_told_faster_than_they_are_read_only_the_newest_is_held():
    told = Newest()
    for number in range(1000):
        told.put(b"head %d" % number)
    assert await told.get() == b"head 999"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(told.get(), 0.05)


async def test_a_node_whose_members_witness_is_elsewhere_mirrors_what_was_cosigned_and_cosigns_nothing(mirror):
    """With the key in two places the log could show each of them another history, and have one name under both."""
    mirror = replace(mirror, key=None)
    log = Log([*THEIRS[:3], MINE[0], *THEIRS[3:6], MINE[1]])
    assert (await mirror.add_checkpoint(log.request(0), log.fetch))[0] == 403

    def head(of, size):
        text = Checkpoint(ORIGIN, size, of.roots[size]).text()
        cosigned = [cosign(text, f"{m}.titan/witness", key_of(f"{m} witness"), 1_700_000_000) for m in ("ara", "bora", "chan")]
        return Note(text, (sign(text, ORIGIN, LOG_KEY), *cosigned)).to_bytes()

    for size in (3, 8):
        assert await mirror.learn(head(log, size), log.fetch)
        assert list(mirror.files.tree(size).entries()) == log.entries[:size]
        assert (mirror.files.folder / "cosigned").read_bytes() == (mirror.files.folder / "checkpoint").read_bytes() == head(log, size)
    assert evidence(mirror) == []
    fork = Log([*THEIRS[5:8], MINE[0], *THEIRS[3:9]])
    assert not await mirror.learn(head(fork, 10), fork.fetch)
    assert "do not give the root" in evidence(mirror)[0]
    unsigned = AddCheckpoint.from_bytes(log.request(0)).checkpoint
    with pytest.raises(DureError, match="3 needed"):
        await mirror.learn(unsigned, log.fetch)
    assert mirror.seen.size == 8
