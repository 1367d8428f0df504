"""Brings a coordinator whose database is older than its log up to it again, from a member's mirror or from its own log's files.

What a mirror holds counts because the log's own key signed its head: it is what this coordinator said. What the older database has said
since, under numbers that were taken, is set aside; its runs end, since their members' nodes are past what it remembers of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from dure.charter.coordinator import CoordinatorFolder
from dure.charter.log_keys import Witnessing, in_force, log_keys, witnessing
from dure.charter.model import Charter
from dure.charter.succession import coordinator_keys
from dure.errors import BadInput, Conflict, Refused
from dure.identity.files import write_atomic
from dure.secagg.ids import InstanceId
from dure.statements.anykind import kind_of
from dure.statements.dsse import Envelope, key_id
from dure.statements.kinds import CharterVersion, RunPlan
from dure.statements.statement import read_verified
from dure.tlog.checkpoint import Head
from dure.tlog.files import CHECKPOINT, LogFiles
from dure.tlog.merkle import Frontier, leaf_hash, root_at
from dure.tlog.note import NoteKey
from dure.tlog.tiles import TiledTree
from dure_coordinator.exchange.events import Abort, encode_event
from dure_coordinator.storage.store import NewEvent, StatementRow, Store, With

LOG, SET_ASIDE = "log", "log-set-aside"
BATCH = 1024
REASON = "the coordinator was restored from an older copy; go on with `dure run start --from` or from a member's model"


@dataclass(frozen=True)
class Restored:
    """What was done."""

    before: int
    """Entries there were."""
    size: int
    set_aside: int
    """Statements this coordinator had signed under numbers that were taken."""
    ended: tuple[str, ...]
    """Ids of runs that were open, hex."""


def read_mirror(folder: Path, logs: Sequence[NoteKey]) -> tuple[Head, TiledTree]:
    """The head and entries of a node's folder, of a copy that has its `log`, or of a bundle.

    Args:
        logs: keys this log has or had, newest first.

    Raises:
        BadInput: there is no log.
        LogDamaged, Refused: its head is not signed by one of them, or the entries do not give it.
    """
    if not (folder / LOG / CHECKPOINT).is_file():
        raise BadInput(f"{folder}: holds no {LOG}/{CHECKPOINT}; give a node's folder, a copy of it with its log, or a bundle")
    files = LogFiles(folder / LOG, logs[0], former=logs[1:])
    assert files.published is not None
    tree = files.tree(files.size)
    if Frontier().extend(map(leaf_hash, tree.entries())).root() != files.published.checkpoint.root:
        raise Refused(str(folder / LOG), "its entries do not give its head: it is damaged")
    return files.published, tree


async def restore(store: Store, folder: CoordinatorFolder, mirror: Path) -> Restored:
    """Does it. The coordinator must not be serving; a second time finds nothing to do.

    Raises:
        BadInput: the mirror has no more than the database, or names a charter version that is not here.
        Conflict: this log and the mirror both have a head that the log signed, and neither continues the other. Nothing is changed.
        LogDamaged, Refused: see `read_mirror`.
    """
    folder.charter()  # its keys are here
    charters = folder.charters()
    logs = log_keys(charters)
    own_files = LogFiles(folder.directory / LOG, logs[0], former=logs[1:])
    head, tree = read_mirror(mirror, logs)
    before = await store.log_head()
    if await _holds_all(store, before.size, tree):
        raise BadInput(f"{mirror}: has {tree.size} entries, all of which this coordinator has ({before.size}); nothing to restore")
    by = witnessing(in_force(charters, _check_charter(folder, charters, tree), tree.size).terms)
    if not head.note.verify([by.log]):
        raise Refused(str(mirror / LOG / CHECKPOINT), "is not signed by the log key of the charter version in force at its end")
    _check_heads(own_files, tree, folder.directory)
    signers = [key_id(key) for key in coordinator_keys(charters, 1)]
    gone = await store.restore_log(map(_row_of, tree.entries()), signers)
    aside = folder.directory / SET_ASIDE / f"{int(time.time() * 1000)}"
    for envelope in gone:
        write_atomic(aside / f"{Envelope.from_bytes(envelope).sha256.hex()}.json", envelope)
    ended = await _end_runs(store)
    if tree.size > own_files.size or own_files.root != head.checkpoint.root:  # else the mirror is this very log
        _write_files(own_files, aside, head, tree, by)
    return Restored(before.size, (await store.log_head()).size, len(gone), tuple(ended))


async def _holds_all(store: Store, size: int, tree: TiledTree) -> bool:
    if tree.size > size:
        return False
    frontier = Frontier()
    for start in range(0, tree.size, BATCH):
        frontier.extend(map(leaf_hash, await store.log_entries(start, min(tree.size, start + BATCH))))
    return frontier.root() == root_at(tree.node, tree.size)


def _check_charter(folder: CoordinatorFolder, charters: Sequence[Charter], tree: TiledTree) -> list[int]:
    """Where each version's entry is. A backup may be older than the charter, too; without the newest one the log's entries cannot be read
    rightly."""
    files, own = folder.versions(), {key_id(key) for key in coordinator_keys(charters, 1)}
    positions = []
    for index, entry in enumerate(tree.entries()):
        envelope = Envelope.from_bytes(entry)
        if kind_of(envelope.payload) != CharterVersion.kind or envelope.signatures[0][0] not in own:
            continue
        positions.append(index)
        fact = read_verified(entry, CharterVersion)
        if fact.version > len(files) or sha256(files[fact.version - 1]).digest() != fact.file_sha256:
            raise BadInput(
                f"{folder.published_path()}: the log has a charter version {fact.version} that is not in it; put the newest consortium "
                "file there, which every member has"
            )
    return positions


def _check_heads(own: LogFiles, tree: TiledTree, directory: Path) -> None:
    if own.published is None:
        return
    head = own.published.checkpoint
    if head.size > tree.size:
        raise BadInput(
            f"this log's own files have {head.size} entries, the mirror {tree.size}; take those: dure coordinator restore-log {directory}"
        )
    if root_at(tree.node, head.size) != head.root:
        raise Conflict(
            f"{own.folder / CHECKPOINT} and the mirror are two histories of one log, both signed by its key; keep copies of both as "
            "evidence and show them to the members (`dure log evidence` at their nodes)"
        )


def _row_of(entry: bytes) -> StatementRow:
    envelope = Envelope.from_bytes(entry)
    said = json.loads(envelope.payload)["predicate"]
    run = None
    if kind_of(envelope.payload) == RunPlan.kind:
        run = envelope.payload_sha256
    elif isinstance(said.get("run"), str):
        run = bytes.fromhex(said["run"])
    elif isinstance(said.get("instance"), str):
        run = InstanceId.decode(bytes.fromhex(said["instance"])).run
    return StatementRow.of(entry, run)


async def _end_runs(store: Store) -> list[str]:
    ended = []
    for row in await store.runs():
        if row.label == "open":
            position = len(await store.events(row.run))
            event = NewEvent(position, time.time(), encode_event(Abort(REASON)), With(label=("aborted", REASON)))
            await store.append(row.run, event)
            ended.append(row.run.hex())
    return ended


def _write_files(own: LogFiles, aside: Path, head: Head, tree: TiledTree, by: Witnessing) -> None:
    """The log's folder anew: tiles that were written for a history that never counted must not stand in the way. The old one is kept."""
    best = own.published
    if len(head.note.verify(by.keys)) >= by.quorum:
        best = head
    aside.mkdir(parents=True, exist_ok=True, mode=0o700)
    own.folder.rename(aside / LOG)
    files = LogFiles(own.folder, own.keys[0], former=own.keys[1:])
    files.grow(tree.entries())
    if best is not None:
        files.publish(best.note.to_bytes())
