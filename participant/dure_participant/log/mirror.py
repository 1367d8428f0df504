"""This member's own copy of the consortium's log, and its witness: a head is cosigned only after every entry below it was read.

What is checked before a cosignature: the log's signature, that the head continues the one cosigned before, that the entries give its root,
and that this node's own statements are among them, in order, none missing that was acknowledged. What was cosigned is on disk first.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.charter.log_keys import in_force, judging, log_key, log_keys, witnessing
from dure.charter.model import Charter
from dure.errors import DureError
from dure.identity.files import write_atomic
from dure.statements.statement import SeenHead
from dure.tlog.checkpoint import Checkpoint, open_by_any
from dure.tlog.files import COSIGNED, LogFiles
from dure.tlog.merkle import Frontier, frontier_at, leaf_hash, root_at
from dure.tlog.note import Note, SignatureLine
from dure.tlog.witness import AddCheckpoint, Seen, WitnessRefused, answer, judge
from dure_participant.log.following import Followed, Follower
from dure_participant.log.noted import FACT, noted
from dure_participant.store import NodeStore

log = structlog.get_logger()

EVIDENCE = "log-evidence"
MOST_EVIDENCE = 256
"""Pieces that are kept: one convicts, and a log that lies for ever must not fill this disk."""
UNDER_WAY_S = 60.0
"""Longer than a head is under way between being made and being asked about: what was acknowledged before must be under it."""
Fetch = Callable[[int, int], AsyncIterator[bytes]]
"""(start, end) -> those entries, from the coordinator."""


def carried(entries: Sequence[bytes], fetch: Fetch) -> Fetch:
    """Gives the entries that came with a request, and fetches those after them."""

    async def give(start: int, end: int) -> AsyncIterator[bytes]:
        for entry in entries:
            yield entry
        if start + len(entries) < end:
            async for entry in fetch(start + len(entries), end):
                yield entry

    return give


@dataclass
class Mirror:
    """One node's. `add_checkpoint` from the event loop, one at a time."""

    files: LogFiles
    member: str
    name: str
    """The witness's key name."""
    key: Ed25519PrivateKey | None
    """None: this member's witness is elsewhere; the mirror follows heads that a quorum cosigned, and cosigns none."""
    own: bytes
    """This node's public key: whose statements must not be missing."""
    charters: tuple[Charter, ...]
    """Every version this node has verified, 1 first; replaced when it learns of a newer one."""
    store: NodeStore
    folder: Path
    """Where evidence is kept."""
    clock: Callable[[], float] = time.time
    on_news: Callable[[], None] = lambda: None
    """Called when entries ended a node key, on the event loop."""

    def __post_init__(self) -> None:
        self._turn = asyncio.Lock()
        self._acknowledged: list[tuple[float, int]] = []
        """(monotonic seconds, own statements acknowledged by then), oldest first."""
        self._obeyed = [time.monotonic()] * len(self.charters)
        """Since when each version is known, monotonic seconds."""
        self._follower = Follower(self.member, self.own, self.store.statement, lambda: self.charters)
        self.followed = noted(self.store)
        """What the mirror says, as far as it was read."""
        self.known = self._known()
        """The newest head of this history that a quorum cosigned: what this node's statements name."""

    @property
    def seen(self) -> Seen:
        """The head cosigned last."""
        head = self.files.published
        return Seen() if head is None else Seen(head.checkpoint.size, head.checkpoint.root)

    def obey(self, charters: tuple[Charter, ...]) -> None:
        """These versions are verified, 1 first."""
        self._obeyed += [time.monotonic()] * (len(charters) - len(self._obeyed))
        self.charters = charters
        self.files.signed_by(log_keys(charters))

    async def add_checkpoint(self, raw: bytes, fetch: Fetch) -> tuple[int, bytes]:
        """tlog-witness's answer to an add-checkpoint request: (status, body)."""
        async with self._turn:
            try:
                return 200, await self._cosign(AddCheckpoint.from_bytes(raw), fetch)
            except WitnessRefused as refused:
                if refused.evidence:
                    await asyncio.to_thread(self._keep, raw, refused)
                if refused.status == 409 and refused.size is not None and not refused.evidence:
                    return 409, b"%d\n" % refused.size
                return refused.status, f"{refused.why}\n".encode()

    async def learn(self, raw: bytes, fetch: Fetch | None = None) -> bool:
        """Keeps a head that a quorum cosigned, once it is one of this mirror's own history; False for one that is not, or not yet.

        Args:
            fetch: where the entries below it come from, for a mirror that does not cosign.

        Raises:
            NoteRefused, CheckpointRefused: not a head of this log with a quorum.
        """
        head = judging(self.charters, raw).open(raw)
        size = head.checkpoint.size
        if self.key is None and fetch is not None and size > self.seen.size:
            async with self._turn:
                try:
                    await self._keep_head(head.checkpoint, head.note, fetch)
                except WitnessRefused as refused:
                    if refused.evidence:  # not of a charter version that this node hears of when it connects anew
                        await asyncio.to_thread(self._keep, AddCheckpoint(self.seen.size, (), raw).to_bytes(), refused)
                    return False
        if size > self.followed.size:
            return False
        head = witnessing(in_force(self.charters, self.followed.versions, size).terms).open(raw)
        if await asyncio.to_thread(self._root_at, size) != head.checkpoint.root:
            return False
        if self.known is None or size >= self.known.size:  # an older one says nothing new, whoever tells of it
            await asyncio.to_thread(write_atomic, self.files.folder / COSIGNED, raw)
            self.known = SeenHead(size, head.checkpoint.root) if size else None
        return True

    def _known(self) -> SeenHead | None:
        """As `learn` kept it; None where nothing is there that can be read: the next one it hears of is kept."""
        try:
            head = open_by_any((self.files.folder / COSIGNED).read_bytes(), self.files.keys).checkpoint
        except (OSError, DureError):
            return None
        return SeenHead(head.size, head.root) if head.size else None

    def _root_at(self, size: int) -> bytes:
        return root_at(self.files.tree(self.seen.size).node, size)

    async def _cosign(self, request: AddCheckpoint, fetch: Fetch) -> bytes:
        if self.key is None:
            raise WitnessRefused(403, "this member's witness is elsewhere: its node does not cosign (cosign = false)")
        logs = self.files.keys
        checkpoint, _ = judge(request, {logs[0].name: logs}, {logs[0].name: self.seen})
        line = answer(checkpoint, self.name, self.key, int(self.clock()))
        note = Note.from_bytes(request.checkpoint).with_signatures([SignatureLine.parse(line.decode().rstrip("\n"))])
        await self._keep_head(checkpoint, note, fetch)
        return line

    async def _keep_head(self, checkpoint: Checkpoint, note: Note, fetch: Fetch) -> None:
        """Takes in what is below a head, then the head itself; all of it is on disk when this returns."""
        followed = await self._take_in(checkpoint, fetch, await asyncio.to_thread(self._owed))
        self._judge_key(checkpoint, note, followed)
        await asyncio.to_thread(self.files.publish, note.to_bytes())
        await asyncio.to_thread(self.store.set_fact, FACT, {**followed.to_json(), "time": self.clock()})
        news, self.followed = followed.ended != self.followed.ended, followed
        if news:
            self.on_news()

    async def _take_in(self, checkpoint: Checkpoint, fetch: Fetch, must: int) -> Followed:
        """Reads the new entries, checks them, writes them; what is known then."""
        start, followed = self.seen.size, await asyncio.to_thread(self._so_far)
        with tempfile.TemporaryFile(dir=self.folder) as spool:
            frontier = await asyncio.to_thread(frontier_at, self.files.tree(start).node, start) if start else Frontier()
            async for entry in fetch(start, checkpoint.size):
                if frontier.size == checkpoint.size:  # it would fill this disk, and say no more than the root can be about
                    raise WitnessRefused(422, f"more entries came than the {checkpoint.size} that the log signed", evidence=True)
                _put(spool, entry)
                frontier.extend([leaf_hash(entry)])
                followed = self._follower.take(followed, entry)
            if (frontier.size, frontier.root()) != (checkpoint.size, checkpoint.root):
                raise WitnessRefused(422, "the entries do not give the root that the log signed", evidence=True)
            if followed.own < must:
                raise WitnessRefused(422, f"this member's statement {followed.own} was acknowledged and is not in the log", evidence=True)
            await asyncio.to_thread(self.files.grow, _read(spool, self.files.size - start))
        return followed

    def _judge_key(self, checkpoint: Checkpoint, note: Note, followed: Followed) -> None:
        """By the version in force at the head's last entry; before a replaced log key's successor is an entry, the replaced one signs."""
        by, due = in_force(self.charters, followed.versions, checkpoint.size), self._due()
        if len(followed.versions) < due:
            why = f"charter version {due}, which the coordinator showed over a minute ago, is not in the log"
            raise WitnessRefused(422, why, evidence=True)
        if not note.verify([log_key(by.terms)]):
            why = f"the head of {checkpoint.size} entries is not signed by the log key of charter version {by.version}, in force there"
            raise WitnessRefused(403, why, evidence=True)

    def _due(self) -> int:
        """The newest version whose entry must be under any head asked about now, having been shown longer ago than a head is under way.

        Only one after the first: a log's first head may be of members' statements that came before the coordinator's own.
        """
        known = sum(since <= time.monotonic() - UNDER_WAY_S for since in self._obeyed)
        return known if known > 1 else 0

    def _owed(self) -> int:
        """Own statements that must be under any head asked about now: acknowledged longer ago than a head is ever under way."""
        now = time.monotonic()
        self._acknowledged.append((now, self.store.delivered()))
        ripe = [count for at, count in self._acknowledged if at <= now - UNDER_WAY_S]
        if ripe:
            self._acknowledged = [(now - UNDER_WAY_S, ripe[-1]), *[a for a in self._acknowledged if a[0] > now - UNDER_WAY_S]]
        return ripe[-1] if ripe else 0

    def _so_far(self) -> Followed:
        """What the mirror says; read anew where the note about it is of another size."""
        found = noted(self.store)
        if found.size != self.seen.size:
            found = Followed()
            for entry in self.files.tree(self.seen.size).entries() if self.seen.size else ():
                found = self._follower.take(found, entry)
        return found

    def _keep(self, raw: bytes, refused: WitnessRefused) -> None:
        """The log was caught: the request, which bears its signature, is kept beside the head cosigned before."""
        folder = self.folder / EVIDENCE / f"{int(self.clock() * 1000)}"
        if folder.parent.is_dir() and sum(1 for _ in folder.parent.iterdir()) >= MOST_EVIDENCE:
            return
        head = self.files.published
        write_atomic(folder / "add-checkpoint", raw)
        write_atomic(folder / "cosigned-before", head.note.to_bytes() if head else b"")
        write_atomic(folder / "why", f"{refused.why}\n".encode())
        self.store.note(f"the log was caught: {refused.why}; evidence in {folder}")
        log.error("log.evidence", reason=refused.why, folder=str(folder))


def _put(spool: IO[bytes], entry: bytes) -> None:
    spool.write(len(entry).to_bytes(2, "big") + entry)


def _read(spool: IO[bytes], skip: int) -> Iterator[bytes]:
    spool.seek(0)
    number = 0
    while head := spool.read(2):
        entry = spool.read(int.from_bytes(head, "big"))
        if number >= skip:  # written before, by a try that did not come to its end
            yield entry
        number += 1
