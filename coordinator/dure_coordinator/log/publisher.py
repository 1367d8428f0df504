"""Publishing: what the database has becomes files, a signed head, a head the witnesses' quorum cosigned, and only then `checkpoint`.

One head is under way at a time; entries that come meanwhile are in the next. Whoever must not go on before an entry is cosigned waits in
`covering`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.charter.log_keys import Witnessing
from dure.errors import DureError, Unavailable
from dure.statements.statement import SeenHead
from dure.tlog.checkpoint import Checkpoint
from dure.tlog.files import LogFiles
from dure.tlog.merkle import consistency_proof, inclusion_proof
from dure.tlog.note import MAX_SIGNATURES, Note, NoteKey, SignatureLine, sign
from dure.tlog.proof import TlogProof
from dure.tlog.witness import AddCheckpoint, WitnessRefused
from dure.wire import log as wire
from dure_coordinator.engine import Changes
from dure_coordinator.storage.store import Store

log = structlog.get_logger()

ASK_S = 20.0
"""How long one witness may take; it is asked again at the next head or after `AGAIN_S`."""
LATE_S = 1.0
"""How long a witness that an earlier head did not wait for has for it before it is asked about the next."""
AGAIN_S = 2.0
GATHER_S = 1.0
"""How long entries that nobody waits for gather under the next head."""
BATCH = 1024
"""Entries read from the database at a time."""
AWAY = "not connected"
TAIL_ENTRIES, TAIL_BYTES = wire.BATCH, 1 << 20
"""Of the newest entries, what goes to a witness together with the head."""


class Witness(Protocol):
    """One member's witness, however it is reached."""

    async def add_checkpoint(self, request: bytes, entries: Sequence[bytes] = ()) -> bytes:
        """The cosignature lines.

        Args:
            entries: the first of those the head adds to what this witness has.

        Raises:
            WitnessRefused: with tlog-witness's status.
            Unavailable: it does not answer now.
        """
        ...


@dataclass
class Publisher:
    """One log's. `run` in the background; everything else from the event loop."""

    store: Store
    files: LogFiles
    origin: str
    key: Callable[[NoteKey], Ed25519PrivateKey]
    """The private half of a key the log has, or had."""
    witnessing: Callable[[int], Witnessing]
    """What makes a head of that size count, by the charter in force at its last entry."""
    reach: Callable[[], Mapping[str, Witness]]
    """Witnesses that can be asked now, by key name."""
    committed: Changes
    """Bumped after every commit and when a witness comes."""
    changes: Changes = field(default_factory=Changes)
    """Bumped when a head is published."""
    clock: Callable[[], float] = time.time
    published: Callable[[bytes], None] = lambda _head: None
    """Given each head the quorum cosigned."""
    refusals: dict[str, str] = field(default_factory=dict)
    """Why a witness did not cosign the newest head it was asked about, by name; kept until it cosigns one."""
    confirmed: bool = False
    """Whether this log is known to be no older copy of itself: since this process began, a quorum of witnesses stood at no more than its
    size. Two quorums share an honest witness, so no head that ever counted is longer. Nothing may be signed before, but the first charter
    version's entry, which has the same bytes whenever it is signed."""
    before_signing: Callable[[], Awaitable[None]] | None = None
    """Done once the log is confirmed, before anything else may be signed."""
    ahead: dict[str, int] = field(default_factory=dict)
    """Witnesses that say they have cosigned more entries than there are here, and how many."""
    trouble: str = ""
    """Why the last try to publish ended without a head, in words; "" when it was the witnesses, or nothing."""
    _tail: deque[bytes] = field(default_factory=deque)
    """The newest entries in the files, up to the last."""
    _sizes: dict[str, int] = field(default_factory=dict)
    """Where each witness stands, as far as it told."""
    _late: dict[str, asyncio.Future[SignatureLine | None]] = field(default_factory=dict)
    """Witnesses, by key name, that the last head did not wait for: their answers say where they stand."""
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)
    """Somebody waits for an entry to be under a cosigned head."""

    @property
    def size(self) -> int:
        """Entries under a published, cosigned head."""
        return self.files.published.checkpoint.size if self.files.published else 0

    @property
    def seen(self) -> SeenHead | None:
        """The published head, as this coordinator's statements name it."""
        head = self.files.published
        return SeenHead(head.checkpoint.size, head.checkpoint.root) if head and head.checkpoint.size else None

    async def run(self) -> None:
        """Publishes as entries come, until cancelled. What stands in the way is logged, shown by `status`, and tried again."""
        try:
            await self._publish_for_ever()
        finally:
            for task in self._late.values():
                task.cancel()

    async def _publish_for_ever(self) -> None:
        while True:
            seen = self.committed.version
            wait_s: float | None = None
            self._wanted.clear()
            try:
                if not await self.publish():
                    wait_s = AGAIN_S
                self.trouble = self._behind()
            except DureError as error:
                self.trouble, wait_s = str(error), AGAIN_S
                log.warning("log.waits", reason=self.trouble)
            except Exception as error:  # the disk's or our own mistake; no run could go on if the log ended with it
                self.trouble, wait_s = f"the log cannot be written: {type(error).__name__}: {error}", AGAIN_S
                log.exception("log.broke")
            await self.committed.wait(seen, wait_s)
            await self._gather()

    async def _gather(self) -> None:
        """Until somebody waits for a head, or `GATHER_S` are over: each head costs every witness a dozen syncs of its disk."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S):
                await self._wanted.wait()

    async def publish(self) -> bool:
        """Brings the published head up to the database, or, once after every start, has the witnesses confirm the one there is.

        False: too few witnesses cosigned; ask again.
        """
        await self._write()
        size = self.files.size
        if size == self.size and (self.confirmed or not size):
            return True
        checkpoint, by = Checkpoint(self.origin, size, self.files.root), self.witnessing(size)
        note = Note(checkpoint.text(), (sign(checkpoint.text(), self.origin, self.key(by.log)),))
        note = await self._cosigned(checkpoint, note, by)
        signed = note.verify(by.keys)
        if len(signed) < by.quorum:
            return False
        await asyncio.to_thread(self.files.publish, note.to_bytes())
        if not self.confirmed and self.before_signing is not None:
            await self.before_signing()
        self.confirmed = True
        log.info("log.published", size=size, cosigned=len(signed))
        self.published(note.to_bytes())
        await self.changes.bump()
        return True

    async def _write(self) -> None:
        head = await self.store.log_head()
        while self.files.size < head.size:
            start = self.files.size
            entries = await self.store.log_entries(start, min(head.size, start + BATCH))
            try:
                await asyncio.to_thread(self.files.grow, entries)
            except BaseException:
                self._tail.clear()  # the files are back at the published head; what is at hand must end where they do
                raise
            self._keep_tail(entries)
        if self.files.size > head.size or self.files.root != head.root():
            raise Unavailable(
                f"{self.files.folder} holds {self.files.size} entries that the database, with {head.size}, does not give: it was rolled "
                f"back or changed; nothing is signed. Stop this coordinator, then `dure coordinator restore-log {self.files.folder.parent}`"
            )

    def _keep_tail(self, entries: Sequence[bytes]) -> None:
        self._tail.extend(entries)
        size = sum(map(len, self._tail))
        while self._tail and (len(self._tail) > TAIL_ENTRIES or size > TAIL_BYTES):
            size -= len(self._tail.popleft())

    def _entries_from(self, start: int) -> tuple[bytes, ...]:
        """Entries from `start` on, where they are at hand; none where the first is not."""
        skip = start - (self.files.size - len(self._tail))
        return tuple(self._tail)[skip:] if skip >= 0 else ()

    # -- witnesses -------------------------------------------------------------------------------------------------

    async def _cosigned(self, checkpoint: Checkpoint, note: Note, by: Witnessing) -> Note:
        """The note with the cosignatures of everyone who gave one, as soon as the quorum is there."""
        keys = {key.name: key for key in by.keys}
        asked = {
            asyncio.ensure_future(self._ask(keys[name], witness, checkpoint, note.to_bytes())): name
            for name, witness in self.reach().items()
            if name in keys
        }
        here = set(asked.values())
        self.refusals = {n: why for n, why in self.refusals.items() if n in here and why != AWAY} | dict.fromkeys(keys.keys() - here, AWAY)
        lines: list[SignatureLine] = []
        pending = set(asked)
        try:
            while pending and len(lines) < by.quorum:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                lines += [line for task in done if (line := task.result()) is not None]
        finally:
            self._late |= {asked[task]: task for task in pending}
        assert len(lines) < MAX_SIGNATURES
        return note.with_signatures(lines)

    async def _ask(self, key: NoteKey, witness: Witness, checkpoint: Checkpoint, note: bytes) -> SignatureLine | None:
        """One witness's cosignature; None, with the reason in `refusals`, if it gives none now."""
        try:
            async with asyncio.timeout(ASK_S):
                await self._settled(key.name)
                for _ in range(2):  # the first try may be from a size it is past
                    old = min(self._sizes.get(key.name, 0), checkpoint.size)
                    try:
                        line = await self._once(key, witness, checkpoint, note, old)
                        self.refusals.pop(key.name, None)
                        self.ahead.pop(key.name, None)
                        return line
                    except WitnessRefused as refused:
                        if refused.status != 409 or refused.size is None or refused.size == old:
                            raise
                        self._sizes[key.name] = refused.size
                        if refused.size > checkpoint.size:
                            self.ahead[key.name] = refused.size
                            raise Unavailable(_rolled_back(refused.size, checkpoint.size)) from None
        except TimeoutError:
            self.refusals[key.name] = f"no answer in {ASK_S:g} s"
        except (DureError, OSError) as error:
            self.refusals[key.name] = str(error)
        return None

    async def _settled(self, name: str) -> None:
        """What this witness was asked before is answered, or given up: it is asked one thing at a time."""
        if (earlier := self._late.pop(name, None)) is not None:
            await asyncio.wait({earlier}, timeout=LATE_S)
            earlier.cancel()

    async def _once(self, key: NoteKey, witness: Witness, checkpoint: Checkpoint, note: bytes, old: int) -> SignatureLine | None:
        proof = await asyncio.to_thread(consistency_proof, self.files.tree(checkpoint.size).node, old, checkpoint.size)
        request = AddCheckpoint(old, tuple(proof), note).to_bytes()
        answer = await witness.add_checkpoint(request, self._entries_from(old)[: checkpoint.size - old])
        for text in answer.decode(errors="replace").splitlines():
            line = SignatureLine.parse(text)
            if (line.name, line.key_id) == (key.name, key.id):
                key.verify(checkpoint.text(), line.signature)
                self._sizes[key.name] = checkpoint.size
                return line
        raise Unavailable("answered without its own cosignature")

    def _behind(self) -> str:
        """What to do where witnesses know more than this log, and no quorum says otherwise."""
        if self.confirmed or not self.ahead:
            return ""
        seen = ", ".join(f"{name} {size}" for name, size in sorted(self.ahead.items()))
        return (
            f"this log has {self.files.size} entries and witnesses cosigned more ({seen}): it was restored from an older copy. "
            "Nothing is signed; stop it, then `dure coordinator restore-log COPY` with a copy of such a member's node's folder"
        )

    async def may_sign(self) -> None:
        """Waits until `confirmed`: a coordinator that went back in time would sign a second history otherwise."""
        while not self.confirmed:
            await self.changes.wait(self.changes.version, AGAIN_S)

    # -- readers ---------------------------------------------------------------------------------------------------

    async def covering(self, digest: bytes) -> TlogProof:
        """Waits until the entry with this envelope digest is under a cosigned head; its proof."""
        while True:
            seen = self.changes.version
            index = await self.store.log_index(digest)
            if index is not None and index < self.size:
                return await asyncio.to_thread(self.proof, index)
            self._wanted.set()
            await self.changes.wait(seen, AGAIN_S)

    def proof(self, index: int) -> TlogProof:
        """Entry `index` under the published head."""
        head = self.files.published
        assert head is not None and index < head.checkpoint.size
        path = inclusion_proof(self.files.tree(head.checkpoint.size).node, index, head.checkpoint.size)
        return TlogProof(index, tuple(path), head.note.to_bytes())

    def missing(self) -> dict[str, str]:
        """Witnesses without which the next head has no quorum, and why; empty while everything committed is published."""
        return {} if self.size == self.files.size else dict(self.refusals)


def _rolled_back(seen: int, size: int) -> str:
    return f"has seen {seen} entries, this log has {size}: it was rolled back; restore the missing ones"
