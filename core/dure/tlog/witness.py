"""What a witness does with a new head: C2SP tlog-witness `add-checkpoint`, pure. The same bytes travel over gRPC and over HTTP.

The caller holds a lock, keeps the new `Seen` durably and only then answers: checking and keeping must be one step, or a slower
request could roll the record back.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.errors import Refused
from dure.tlog.checkpoint import Checkpoint, CheckpointRefused
from dure.tlog.merkle import EMPTY_ROOT, MAX_PROOF, ProofRefused, verify_consistency
from dure.tlog.note import MAX_NOTE_BYTES, Note, NoteKey, NoteRefused, cosign, decode_base64

SIZE_TYPE = "text/x.tlog.size"
MAX_REQUEST_BYTES = MAX_NOTE_BYTES + 64 * (MAX_PROOF + 1)
MAX_ANSWER_BYTES = 64 * 1024
"""Some cosignature lines, or one line that says why not."""


@dataclass(frozen=True)
class Seen:
    """The latest head a witness cosigned for one origin; a new witness starts at the empty tree."""

    size: int = 0
    root: bytes = EMPTY_ROOT


class WitnessRefused(Refused):
    """No cosignature. `status` is tlog-witness's HTTP status; `evidence` says whether the log has been caught (keep the request)."""

    def __init__(self, status: int, why: str, *, size: int | None = None, evidence: bool = False) -> None:
        super().__init__("checkpoint", why)
        self.status = status
        self.size = size
        """With 409: the size the next request should start from."""
        self.evidence = evidence


def refusal_of(status: int, body: bytes) -> WitnessRefused:
    """What a witness's answer other than 200 says, as far as it can be shown to people."""
    text = body[:500].decode(errors="replace").strip()
    size = int(text) if status == 409 and text.isascii() and text.isdigit() and len(text) < 20 else None
    plain = "".join(c if c.isprintable() else " " for c in text)
    if size is not None:
        plain = f"its newest head has size {size}"
    return WitnessRefused(status, plain or f"refused with status {status}", size=size)


@dataclass(frozen=True)
class AddCheckpoint:
    """The request: the size the sender thinks the witness has, a consistency proof from there, and the new signed head."""

    old: int
    proof: tuple[bytes, ...]
    checkpoint: bytes

    def to_bytes(self) -> bytes:
        lines = [f"old {self.old}", *(base64.b64encode(h).decode() for h in self.proof)]
        return "".join(f"{line}\n" for line in lines).encode() + b"\n" + self.checkpoint

    @staticmethod
    def from_bytes(raw: bytes) -> AddCheckpoint:
        """Raises WitnessRefused with status 400: out of form."""
        head, gap, checkpoint = raw.partition(b"\n\n")
        try:
            first, *rest = head.decode("ascii").split("\n")
            found = re.fullmatch(r"old (0|[1-9][0-9]{0,18})", first)
            if len(raw) > MAX_REQUEST_BYTES or not gap or found is None or len(rest) > MAX_PROOF:
                raise WitnessRefused(400, "the request is out of form")
            return AddCheckpoint(int(found[1]), tuple(decode_base64(line, "proof") for line in rest), checkpoint)
        except (UnicodeDecodeError, NoteRefused):
            raise WitnessRefused(400, "the request is out of form") from None


def judge(request: AddCheckpoint, logs: Mapping[str, Sequence[NoteKey]], seen: Mapping[str, Seen]) -> tuple[Checkpoint, Seen]:
    """What may be cosigned, and what must be kept before it is.

    Args:
        logs: origin -> the log's keys, of which one must have signed.
        seen: origin -> latest head cosigned.

    Raises:
        WitnessRefused: 400 out of form; 404 unknown origin; 403 not the log's signature; 409 another old size, or the same size with
            another root (evidence); 422 the proof does not verify (evidence).
    """
    try:
        note = Note.from_bytes(request.checkpoint)
        checkpoint = Checkpoint.parse(note.text)
    except (NoteRefused, CheckpointRefused) as e:
        raise WitnessRefused(400, f"the checkpoint is out of form: {e}") from None
    found = logs.get(checkpoint.origin)
    if not found:
        raise WitnessRefused(404, f"origin {checkpoint.origin[:100]!r} is unknown here")
    try:
        signed = bool(note.verify(found))
    except NoteRefused:
        signed = False
    if not signed:
        raise WitnessRefused(403, f"not signed by the key of {checkpoint.origin}")
    have = seen.get(checkpoint.origin, Seen())
    if request.old > checkpoint.size:
        raise WitnessRefused(400, f"old size {request.old} is above the checkpoint's {checkpoint.size}")
    if request.old != have.size:
        raise WitnessRefused(409, f"this witness has size {have.size}", size=have.size, evidence=False)
    _check_growth(request.proof, have, checkpoint)
    return checkpoint, Seen(checkpoint.size, checkpoint.root)


def _check_growth(proof: Sequence[bytes], have: Seen, checkpoint: Checkpoint) -> None:
    if have.size == checkpoint.size and have.root != checkpoint.root:
        raise WitnessRefused(409, f"two heads of size {have.size}: the log shows two histories", size=have.size, evidence=True)
    try:
        verify_consistency(have.size, have.root, checkpoint.size, checkpoint.root, proof)
    except ProofRefused as e:
        raise WitnessRefused(422, f"not shown to continue the head of size {have.size}: {e.why}", evidence=True) from None


def answer(checkpoint: Checkpoint, name: str, key: Ed25519PrivateKey, time: int) -> bytes:
    """The cosignature line a witness sends once the new head is durable with it."""
    return cosign(checkpoint.text(), name, key, time).line().encode()
