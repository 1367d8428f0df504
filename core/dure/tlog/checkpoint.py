"""The log's signed head: origin, size, root; signed by the log, cosigned by witnesses. Source: c2sp.org/tlog-checkpoint."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dure.errors import Refused
from dure.tlog.merkle import HASH_BYTES
from dure.tlog.note import Note, NoteKey, decode_base64

MAX_SIZE = 1 << 62
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


class CheckpointRefused(Refused):
    """A checkpoint is out of form, of another log, or not signed by whom it must be."""


@dataclass(frozen=True)
class Checkpoint:
    """One head of one log."""

    origin: str
    size: int
    root: bytes

    def text(self) -> bytes:
        """The three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()

    @staticmethod
    def parse(text: bytes) -> Checkpoint:
        """Raises CheckpointRefused: not three lines of a head; extension lines are refused, our log writes none."""
        lines = text.decode().split("\n")
        if len(lines) != 4 or lines[3]:
            raise CheckpointRefused("checkpoint", "must have three lines")
        origin, size, root = lines[:3]
        if not origin or len(origin.encode()) > 255 or not _SIZE.fullmatch(size) or int(size) > MAX_SIZE:
            raise CheckpointRefused("checkpoint", "must have an origin and a size without leading zeros")
        raw = decode_base64(root, "root")
        if len(raw) != HASH_BYTES:
            raise CheckpointRefused("root", f"has {len(raw)} bytes, not {HASH_BYTES}")
        return Checkpoint(origin, int(size), raw)


@dataclass(frozen=True)
class Head:
    """A checkpoint with verified signatures."""

    checkpoint: Checkpoint
    note: Note
    cosigned: dict[str, int]
    """Witness name -> unix seconds of its cosignature."""


def open_by_any(raw: bytes, logs: Sequence[NoteKey]) -> Head:
    """A checkpoint that one of these keys of one log signed; cosignatures are not looked at. Raises as `open_checkpoint`, of the first."""
    note = Note.from_bytes(raw)
    signed = note.verify(log for log in logs if log.name == logs[0].name)
    return open_checkpoint(raw, next((log for log in logs if log in signed), logs[0]))


def open_checkpoint(raw: bytes, log: NoteKey, witnesses: Collection[NoteKey] = (), *, quorum: int = 0) -> Head:
    """Reads a signed checkpoint.

    Args:
        log: the log's key; its name is the origin.
        witnesses: their keys; lines of anybody else are ignored.
        quorum: how many of them must have cosigned.

    Raises:
        NoteRefused, CheckpointRefused: out of form; a signature that does not verify; not the log's; too few cosignatures (named).
    """
    note = Note.from_bytes(raw)
    checkpoint = Checkpoint.parse(note.text)
    if checkpoint.origin != log.name:
        raise CheckpointRefused("origin", f"is {checkpoint.origin!r}, not {log.name!r}")
    found = note.verify([log, *witnesses])
    if log not in found:
        raise CheckpointRefused("checkpoint", f"is not signed by the log's key {log.name}")
    cosigned = {key.name: time for key, time in found.items() if key != log}
    if len(cosigned) < quorum:
        missing = ", ".join(sorted({w.name for w in witnesses} - set(cosigned)))
        raise CheckpointRefused("cosignatures", f"{len(cosigned)} of {quorum} needed witnesses; missing: {missing}")
    return Head(checkpoint, note, cosigned)
