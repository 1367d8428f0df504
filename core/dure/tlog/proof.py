"""One entry's proof as a file: index, path and the cosigned head, checkable offline. Source: c2sp.org/tlog-proof@v1."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from dataclasses import dataclass

from dure.errors import Refused
from dure.tlog.checkpoint import Head, open_checkpoint
from dure.tlog.merkle import HASH_BYTES, MAX_PROOF, leaf_hash, verify_inclusion
from dure.tlog.note import NoteKey, NoteRefused, decode_base64

HEADER = "c2sp.org/tlog-proof@v1"


class TlogProofRefused(Refused):
    """A proof file is out of form."""


@dataclass(frozen=True)
class TlogProof:
    """An entry's place in the log."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes
    """The signed note, verbatim."""
    extra: bytes = b""
    """Opaque, not authenticated."""

    def to_bytes(self) -> bytes:
        extra = [f"extra {base64.b64encode(self.extra).decode()}"] if self.extra else []
        lines = [HEADER, *extra, f"index {self.index}", *(base64.b64encode(h).decode() for h in self.path)]
        return "".join(f"{line}\n" for line in lines).encode() + b"\n" + self.checkpoint

    @staticmethod
    def from_bytes(raw: bytes) -> TlogProof:
        """Raises TlogProofRefused: not a proof file."""
        head, gap, checkpoint = raw.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
            if not gap or lines.pop(0) != HEADER:
                raise TlogProofRefused("proof", f"does not begin with {HEADER}")
            extra = decode_base64(lines.pop(0)[6:], "extra") if lines and lines[0].startswith("extra ") else b""
            found = re.fullmatch(r"index (0|[1-9][0-9]{0,18})", lines.pop(0) if lines else "")
            path = tuple(decode_base64(line, "path") for line in lines)
        except (UnicodeDecodeError, NoteRefused):
            raise TlogProofRefused("proof", "is out of form") from None
        if found is None or len(path) > MAX_PROOF or any(len(h) != HASH_BYTES for h in path):
            raise TlogProofRefused("proof", "has no index, or a path that is none")
        return TlogProof(int(found[1]), path, checkpoint, extra)

    def verify(self, entry: bytes, log: NoteKey, witnesses: Collection[NoteKey], *, quorum: int) -> Head:
        """That `entry` is in the log at `index`, under a head the quorum cosigned.

        Raises:
            NoteRefused, CheckpointRefused, ProofRefused: it is not shown.
        """
        head = open_checkpoint(self.checkpoint, log, witnesses, quorum=quorum)
        verify_inclusion(leaf_hash(entry), self.index, head.checkpoint.size, self.path, head.checkpoint.root)
        return head
