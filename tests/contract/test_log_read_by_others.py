"""Our log is read and checked by tools we did not write, and its tampered twins are rejected by each of them.

Go's sumdb and tlog-scales share no line with core/dure/tlog; what both refuse is refused for what it is and not for our reading of it.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.other_readers import Checks, GoSumdb, Rejected, TlogScales, go_missing
from support.signed_log import AT, SignedLog, signed_log

from dure.charter.log_keys import witness_name
from dure.tlog.checkpoint import Checkpoint
from dure.tlog.files import CHECKPOINT, LogFiles
from dure.tlog.http import LogServer, Shelf
from dure.tlog.merkle import consistency_proof, inclusion_proof, leaf_hash, root_at
from dure.tlog.note import Note, SignatureLine, cosign, sign
from dure.tlog.proof import TlogProof

OLD, SIZE = 300, 604
"""Two heads: one full tile and a partial one, then two and a partial one; level 1 is a partial tile in both."""


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> SignedLog:
    return signed_log(tmp_path_factory.mktemp("log"), plans=SIZE - 4)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> SignedLog:
    """Another consortium, of the same names."""
    return signed_log(tmp_path_factory.mktemp("other"), plans=SIZE - 4)


@pytest.fixture(scope="module")
def folder(log, tmp_path_factory) -> Path:
    """The log's files as the coordinator writes them, in two publications."""
    made = tmp_path_factory.mktemp("files") / "log"
    log.publish(made, log.entries[:OLD])
    log.publish(made)
    return made


@pytest.fixture(scope="module")
def checks(log, folder) -> Checks:
    return checks_of(log, folder, (0, 1, 255, 256, 511, 512, SIZE - 1), OLD)


def checks_of(log: SignedLog, folder: Path, indices: tuple[int, ...], *olds: int) -> Checks:
    files = LogFiles(folder, log.log)
    size, node = files.size, files.tree(files.size).node
    records = tuple((i, inclusion_proof(node, i, size)) for i in indices)
    trees = tuple((old, root_at(node, old), consistency_proof(node, old, size)) for old in olds)
    return Checks(log.log.vkey(), tuple(w.vkey() for w in log.witnesses), log.quorum, records, trees)


@pytest.fixture(scope="module", params=["go sumdb", "tlog-scales"])
def reader(request, tmp_path_factory):
    logging.getLogger("tlog_scales").setLevel(logging.CRITICAL)
    if request.param == "tlog-scales":
        return TlogScales()
    if missing := go_missing():
        pytest.skip(f"not run: {missing}")
    return GoSumdb.build(tmp_path_factory.mktemp("go"))


def test_the_log_is_accepted_with_its_signatures_tiles_entries_and_proofs(reader, folder, checks, log):
    assert reader.read(str(folder), checks) == {"size": SIZE, "cosigned": len(log.witnesses)}


def test_a_log_of_three_levels_is_accepted(reader, log, tmp_path):
    """70,000 entries: two full tiles of level 1 and a level 2; a node flipped in any of them is noticed."""
    entries, folder = [b"entry %d" % i for i in range(70_000)], tmp_path / "log"
    log.publish(folder, entries)
    checks = replace(checks_of(log, folder, (0, 65_535, 65_536, 69_999), 1, 256, 65_535, 65_536, 69_998), step=701)
    assert reader.read(str(folder), checks) == {"size": 70_000, "cosigned": len(log.witnesses)}
    for path in ("tile/2/000.p/1", "tile/1/000", "tile/1/001.p/17"):
        flip(folder / path, 7)
        with pytest.raises(Rejected):
            reader.read(str(folder), checks)
        flip(folder / path, 7)


@pytest.fixture
def served(folder) -> Iterator[str]:
    """The log's address over HTTP."""
    with LogServer("127.0.0.1", 0, Shelf(folder), public=False) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.url
        server.shutdown()


def test_the_log_is_accepted_over_http(reader, served, checks, log):
    assert reader.read(served, checks) == {"size": SIZE, "cosigned": len(log.witnesses)}


# -- tampered twins ------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int = 40) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def head(folder: Path, change: Callable[[Note], Note]) -> None:
    path = folder / CHECKPOINT
    path.write_bytes(change(Note.from_bytes(path.read_bytes())).to_bytes())


def broken(line: SignatureLine) -> SignatureLine:
    return SignatureLine(line.name, line.key_id, line.signature[:-1] + bytes([line.signature[-1] ^ 1]))


def later(line: SignatureLine) -> SignatureLine:
    return SignatureLine(line.name, line.key_id, (AT + 1).to_bytes(8, "big") + line.signature[8:])


def by_another_key(log: SignedLog, other: SignedLog, note: Note) -> Note:
    name = log.log.name
    return Note(note.text, (sign(note.text, name, other.founded.hub.log_key), *note.signatures[1:]))


def by_another_witness(log: SignedLog, other: SignedLog, note: Note) -> Note:
    """A member of the other consortium, of the same name, cosigns in the place of ours."""
    name = witness_name(log.charter.members[0].host)
    return Note(note.text, (*note.signatures[:1], cosign(note.text, name, other.witness("ara"), AT), *note.signatures[2:]))


def fork(log: SignedLog, folder: Path) -> None:
    """Another history, signed by the log's own key and by as many witnesses as the charter calls c."""
    shutil.rmtree(folder)
    files = LogFiles(folder, log.log)
    files.grow([*log.entries[:-1], log.entries[1]])
    checkpoint = Checkpoint(log.log.name, files.size, files.root)
    files.publish(log.note(checkpoint, list(log.founded.members)[: log.charter.colluders]).to_bytes())


def leaf_and_entry(folder: Path) -> None:
    """An entry and its leaf hash, which then agree with each other and not with the tree above."""
    path = folder / "tile/entries/001"
    bundle, number = bytearray(path.read_bytes()), 3
    at = 0
    for _ in range(number):
        at += 2 + int.from_bytes(bundle[at : at + 2], "big")
    end = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
    bundle[end - 10] ^= 1
    path.write_bytes(bundle)
    leaves = bytearray((folder / "tile/0/001").read_bytes())
    leaves[32 * number : 32 * (number + 1)] = leaf_hash(bytes(bundle[at + 2 : end]))
    (folder / "tile/0/001").write_bytes(leaves)


def swapped(path: Path) -> None:
    data = path.read_bytes()
    first = 2 + int.from_bytes(data[:2], "big")
    second = first + 2 + int.from_bytes(data[first : first + 2], "big")
    path.write_bytes(data[first:second] + data[:first] + data[second:])


TAMPERED: dict[str, Callable[[Path, SignedLog, SignedLog], object]] = {
    "size": lambda f, log, _: head(f, lambda n: Note(n.text.replace(b"\n604\n", b"\n603\n"), n.signatures)),
    "root": lambda f, log, _: flip(f / CHECKPOINT, len(log.log.name) + 12),
    "log's signature": lambda f, log, _: head(f, lambda n: Note(n.text, (broken(n.signatures[0]), *n.signatures[1:]))),
    "log's signature left out": lambda f, log, _: head(f, lambda n: Note(n.text, n.signatures[1:])),
    "a cosignature": lambda f, log, _: head(f, lambda n: Note(n.text, (*n.signatures[:-1], broken(n.signatures[-1])))),
    "a cosignature's time": lambda f, log, _: head(f, lambda n: Note(n.text, (*n.signatures[:-1], later(n.signatures[-1])))),
    "too few cosignatures": lambda f, log, _: head(f, lambda n: Note(n.text, n.signatures[:-1])),
    "another log's key": lambda f, log, other: head(f, lambda n: by_another_key(log, other, n)),
    "another witness's key": lambda f, log, other: head(f, lambda n: by_another_witness(log, other, n)),
    "a fork the log signed": lambda f, log, _: fork(log, f),
    "another consortium's log": lambda f, log, other: (shutil.rmtree(f), other.publish(f)),
    "an entry": lambda f, log, _: flip(f / "tile/entries/001"),
    "two entries swapped": lambda f, log, _: swapped(f / "tile/entries/000"),
    "the newest entry": lambda f, log, _: flip(f / "tile/entries/002.p/92", -1),
    "entries cut short": lambda f, log, _: (f / "tile/entries/000").write_bytes((f / "tile/entries/000").read_bytes()[:-1]),
    "entries gone": lambda f, log, _: (f / "tile/entries/001").unlink(),
    "a leaf": lambda f, log, _: flip(f / "tile/0/001"),
    "a leaf of the partial tile": lambda f, log, _: flip(f / "tile/0/002.p/92"),
    "an entry and its leaf": lambda f, log, _: leaf_and_entry(f),
    "a node": lambda f, log, _: flip(f / "tile/1/000.p/2"),
    "a tile cut short": lambda f, log, _: (f / "tile/1/000.p/2").write_bytes((f / "tile/1/000.p/2").read_bytes()[:-1]),
    "a tile gone": lambda f, log, _: (f / "tile/0/000").unlink(),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_twin_is_rejected(reader, folder, checks, log, other, tmp_path, what):
    twin = tmp_path / "log"
    shutil.copytree(folder, twin)
    TAMPERED[what](twin, log, other)
    with pytest.raises(Rejected):
        reader.read(str(twin), checks)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: replace(c, records=((1, c.records[0][1]),)),
        lambda c: replace(c, records=((0, c.records[0][1][:-1]),)),
        lambda c: replace(c, records=((0, [*c.records[0][1][:-1], bytes(32)]),)),
        lambda c: replace(c, trees=((OLD, bytes(32), c.trees[0][2]),)),
        lambda c: replace(c, trees=((OLD + 1, *c.trees[0][1:]),)),
        lambda c: replace(c, trees=((*c.trees[0][:2], c.trees[0][2][1:]),)),
        lambda c: replace(c, quorum=c.quorum + 1),
    ],
    ids=["another index", "path too short", "path forged", "older root forged", "another older size", "consistency too short", "quorum"],
)
def test_a_proof_of_something_else_is_rejected(reader, folder, checks, change):
    with pytest.raises(Rejected):
        reader.read(str(folder), change(checks))


def test_proof_files_are_exchanged_both_ways_with_tlog_scales(folder, log, capsys, monkeypatch):
    """c2sp.org/tlog-proof: ours to the byte what theirs is, and theirs verifies with us."""
    from tlog_scales import cli

    monkeypatch.setattr("sys.argv", ["tlog-tiles", "gen-proof", str(folder), "417"])
    cli.main()
    theirs = capsys.readouterr().out.encode()
    files = LogFiles(folder, log.log)
    ours = TlogProof(417, tuple(inclusion_proof(files.tree(SIZE).node, 417, SIZE)), (folder / CHECKPOINT).read_bytes())
    assert ours.to_bytes() == theirs
    seen = TlogProof.from_bytes(theirs).verify(log.entries[417], log.log, log.witnesses, quorum=log.quorum)
    assert seen.checkpoint.size == SIZE
