"""Protobuf <-> values of the log on the members' port: where a peer's log messages are judged.

What is inside them is judged by its own decoder: an envelope by `statements.dsse`, an add-checkpoint request and its answer by
`tlog.witness`, a head by `tlog.checkpoint`. Every refusal is a `WireRefused` that names the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dure.statements.dsse import MAX_ENVELOPE_BYTES
from dure.tlog.files import CHECKPOINT, log_path
from dure.tlog.merkle import HASH_BYTES
from dure.tlog.note import MAX_NOTE_BYTES
from dure.tlog.tiles import ENTRIES, MAX_ENTRY_BYTES, Tile, TileRefused
from dure.tlog.witness import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES
from dure.wire.control import MAX_REASON_CHARS, WireRefused
from dure_pb.v1 import log_pb2 as pb

BATCH = 64
"""Statements or entries in one message: at most 2 MiB of ours."""
MAX_PATH = 100


@dataclass(frozen=True)
class Appended:
    """How many of the statements given are entries now, and why the next is not."""

    accepted: int
    reason: str = ""


@dataclass(frozen=True)
class HeadAsked:
    """A head a witness is asked about: the coordinator's number for it, and the bytes of tlog-witness `add-checkpoint`."""

    number: int
    request: bytes
    entries: tuple[bytes, ...] = ()
    """The first of the entries that the head adds, at most BATCH; the witness fetches the others, and judges all of them by the root."""


@dataclass(frozen=True)
class HeadAnswer:
    """What a witness says to a head; number 0, without status and body, says only that it is here."""

    number: int = 0
    status: int = 0
    """tlog-witness's HTTP status."""
    body: bytes = b""


def encode_append(envelopes: Sequence[bytes]) -> pb.AppendRequest:
    """At most BATCH statements; the caller's own data, so not judged."""
    return pb.AppendRequest(envelopes=envelopes)


def decode_append(message: pb.AppendRequest) -> tuple[bytes, ...]:
    """A node's statements, judged by the coordinator in number and size."""
    if not 1 <= len(message.envelopes) <= BATCH:
        raise WireRefused("envelopes", f"must be 1 to {BATCH}, are {len(message.envelopes)}")
    for envelope in message.envelopes:
        if len(envelope) > MAX_ENVELOPE_BYTES:
            raise WireRefused("envelopes", f"one has {len(envelope)} bytes, at most {MAX_ENVELOPE_BYTES}")
    return tuple(message.envelopes)


def encode_appended(answer: Appended) -> pb.AppendResponse:
    return pb.AppendResponse(accepted=answer.accepted, reason=answer.reason[:MAX_REASON_CHARS])


def decode_appended(message: pb.AppendResponse, given: int) -> Appended:
    """The coordinator's answer to `given` statements, judged by a node."""
    if message.accepted > given:
        raise WireRefused("accepted", f"is {message.accepted} of {given}")
    if len(message.reason) > MAX_REASON_CHARS or not message.reason.isprintable():
        raise WireRefused("reason", f"must be at most {MAX_REASON_CHARS} printable characters")
    if (message.accepted == given) == bool(message.reason):
        raise WireRefused("reason", "must be there if, and only if, something was not accepted")
    return Appended(message.accepted, message.reason)


def encode_head_asked(asked: HeadAsked) -> pb.WitnessResponse:
    return pb.WitnessResponse(number=asked.number, add_checkpoint=asked.request, entries=asked.entries)


def decode_head_asked(message: pb.WitnessResponse, last: int) -> HeadAsked:
    """A head to cosign, judged by a node; `last` is the number of the one before on this stream, 0 before the first."""
    if not last < message.number <= 2**48:
        raise WireRefused("number", f"is {message.number} after {last}: heads come in order, each once")
    if len(message.add_checkpoint) > MAX_REQUEST_BYTES:
        raise WireRefused("add_checkpoint", f"has {len(message.add_checkpoint)} bytes, at most {MAX_REQUEST_BYTES}")
    if message.cosigned:
        raise WireRefused("cosigned", "has no place beside a head that is asked about")
    return HeadAsked(message.number, message.add_checkpoint, _entries(message.entries) if message.entries else ())


def encode_cosigned(head: bytes) -> pb.WitnessResponse:
    """The newest head that the quorum cosigned, for a witness's mirror."""
    return pb.WitnessResponse(cosigned=head)


def decode_cosigned(message: pb.WitnessResponse) -> bytes | None:
    """A head that the quorum is said to have cosigned, judged by a node in size only; None where the message asks about one instead."""
    if message.number or not message.cosigned:
        return None
    if message.add_checkpoint or message.entries:
        raise WireRefused("number", "is absent, and a head is asked about")
    if len(message.cosigned) > MAX_NOTE_BYTES:
        raise WireRefused("cosigned", f"has {len(message.cosigned)} bytes, at most {MAX_NOTE_BYTES}")
    return message.cosigned


def encode_head_answer(answer: HeadAnswer) -> pb.WitnessRequest:
    return pb.WitnessRequest(number=answer.number, status=answer.status, body=answer.body)


def decode_head_answer(message: pb.WitnessRequest, last: int | None) -> HeadAnswer:
    """A witness's message, judged by the coordinator; `last` is the number before on this stream, None before its greeting."""
    if last is None:
        if message.number or message.status or message.body:
            raise WireRefused("number", "the first message must be empty: the witness is here")
        return HeadAnswer()
    if not last < message.number <= 2**48:
        raise WireRefused("number", f"is {message.number} after {last}: heads are answered in order, each once")
    if not 100 <= message.status <= 599:
        raise WireRefused("status", f"is {message.status}, must be an HTTP status")
    if len(message.body) > MAX_ANSWER_BYTES:
        raise WireRefused("body", f"has {len(message.body)} bytes, at most {MAX_ANSWER_BYTES}")
    return HeadAnswer(message.number, message.status, message.body)


def encode_span(start: int, end: int) -> pb.EntriesRequest:
    """Entries [start, end) are wanted."""
    return pb.EntriesRequest(start=start, end=end)


def decode_span(message: pb.EntriesRequest, size: int) -> tuple[int, int]:
    """Which entries a node wants of a log of this size."""
    if message.end > size:
        raise WireRefused("end", f"is {message.end}, this log has {size} entries")
    if message.start > message.end:
        raise WireRefused("start", f"is {message.start}, after the end {message.end}")
    return message.start, message.end


def encode_entries(entries: Sequence[bytes]) -> pb.EntriesResponse:
    return pb.EntriesResponse(entries=entries)


def decode_entries(message: pb.EntriesResponse) -> tuple[bytes, ...]:
    """Some entries, judged by a node in number and size; that they are the log's, and no more than it signed, is the mirror's to see."""
    return _entries(message.entries)


def _entries(found: Sequence[bytes]) -> tuple[bytes, ...]:
    if not 1 <= len(found) <= BATCH:
        raise WireRefused("entries", f"must be 1 to {BATCH} in a message, are {len(found)}")
    for entry in found:
        if len(entry) > MAX_ENTRY_BYTES:
            raise WireRefused("entries", f"one has {len(entry)} bytes, at most {MAX_ENTRY_BYTES}")
    return tuple(found)


def encode_path(path: str) -> pb.FileRequest:
    return pb.FileRequest(path=path)


def decode_path(message: pb.FileRequest) -> str:
    """The one spelling of the path of a file a log may have."""
    if len(message.path) > MAX_PATH:
        raise WireRefused("path", f"longer than {MAX_PATH} characters")
    try:
        return log_path(message.path)
    except TileRefused as error:
        raise WireRefused("path", error.why) from None


def encode_file(data: bytes) -> pb.FileResponse:
    return pb.FileResponse(data=data)


def decode_file(message: pb.FileResponse, path: str) -> bytes:
    """The file of that path, judged by a node in size only."""
    most = _most_bytes(path)
    if len(message.data) > most:
        raise WireRefused("data", f"has {len(message.data)} bytes, {path} at most {most}")
    return message.data


def _most_bytes(path: str) -> int:
    if path == CHECKPOINT:
        return MAX_NOTE_BYTES
    tile = Tile.parse(path)
    return tile.width * (2 + MAX_ENTRY_BYTES if tile.level == ENTRIES else HASH_BYTES)
