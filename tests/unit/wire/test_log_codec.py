"""The log's messages on the members' port: each comes back as it was, and one out of form is refused by the name of its field."""

from __future__ import annotations

import pytest

from dure.statements.dsse import MAX_ENVELOPE_BYTES
from dure.tlog.note import MAX_NOTE_BYTES
from dure.tlog.witness import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES
from dure.wire import log as wire
from dure.wire.control import WireRefused
from dure_pb.v1 import log_pb2 as pb


def test_every_message_survives_the_wire_unchanged():
    assert wire.decode_append(wire.encode_append([b"a", b""])) == (b"a", b"")
    for answer in (wire.Appended(2), wire.Appended(1, "statement 7 is missing before it")):
        assert wire.decode_appended(wire.encode_appended(answer), 2) == answer
    for asked in (wire.HeadAsked(3, b"old 0\n\n"), wire.HeadAsked(3, b"old 0\n\n", (b"x", b"y"))):
        assert wire.decode_head_asked(wire.encode_head_asked(asked), 2) == asked
        assert wire.decode_cosigned(wire.encode_head_asked(asked)) is None
    assert wire.decode_cosigned(wire.encode_cosigned(b"head")) == b"head"
    assert wire.decode_head_answer(wire.encode_head_answer(wire.HeadAnswer()), None) == wire.HeadAnswer()
    told = wire.HeadAnswer(3, 409, b"7\n")
    assert wire.decode_head_answer(wire.encode_head_answer(told), 0) == told
    assert wire.decode_span(wire.encode_span(2, 5), 5) == (2, 5)
    assert wire.decode_entries(wire.encode_entries([b"x", b"y"])) == (b"x", b"y")
    for path in ("checkpoint", "tile/0/000", "tile/entries/x001/234.p/7"):
        assert wire.decode_path(wire.encode_path(path)) == path
    assert wire.decode_file(wire.encode_file(bytes(7 * 32)), "tile/1/000.p/7") == bytes(7 * 32)


def head_answer(number=1, status=200, body=b"", last=0):
    return lambda: wire.decode_head_answer(pb.WitnessRequest(number=number, status=status, body=body), last)


def path(text):
    return lambda: wire.decode_path(pb.FileRequest(path=text))


@pytest.mark.parametrize(
    ("field", "decode"),
    [
        ("envelopes", lambda: wire.decode_append(pb.AppendRequest())),
        ("envelopes", lambda: wire.decode_append(pb.AppendRequest(envelopes=[b"x"] * 65))),
        ("envelopes", lambda: wire.decode_append(pb.AppendRequest(envelopes=[bytes(MAX_ENVELOPE_BYTES + 1)]))),
        ("accepted", lambda: wire.decode_appended(pb.AppendResponse(accepted=3), 2)),
        ("reason", lambda: wire.decode_appended(pb.AppendResponse(accepted=1), 2)),
        ("reason", lambda: wire.decode_appended(pb.AppendResponse(accepted=2, reason="and yet"), 2)),
        ("reason", lambda: wire.decode_appended(pb.AppendResponse(accepted=1, reason="\x1b[2J"), 2)),
        ("number", lambda: wire.decode_head_asked(pb.WitnessResponse(number=0), 0)),
        ("number", lambda: wire.decode_head_asked(pb.WitnessResponse(number=4), 4)),
        ("number", lambda: wire.decode_head_asked(pb.WitnessResponse(number=2**60), 4)),
        ("add_checkpoint", lambda: wire.decode_head_asked(pb.WitnessResponse(number=1, add_checkpoint=bytes(MAX_REQUEST_BYTES + 1)), 0)),
        ("entries", lambda: wire.decode_head_asked(pb.WitnessResponse(number=1, entries=[b"x"] * 65), 0)),
        ("entries", lambda: wire.decode_head_asked(pb.WitnessResponse(number=1, entries=[bytes(65_536)]), 0)),
        ("cosigned", lambda: wire.decode_head_asked(pb.WitnessResponse(number=1, cosigned=b"x"), 0)),
        ("cosigned", lambda: wire.decode_cosigned(pb.WitnessResponse(cosigned=bytes(MAX_NOTE_BYTES + 1)))),
        ("number", lambda: wire.decode_cosigned(pb.WitnessResponse(cosigned=b"x", add_checkpoint=b"y"))),
        ("number", head_answer(number=5, last=None)),
        ("number", head_answer(number=5, last=5)),
        ("status", head_answer(status=0)),
        ("status", head_answer(status=600)),
        ("body", head_answer(body=bytes(MAX_ANSWER_BYTES + 1))),
        ("end", lambda: wire.decode_span(pb.EntriesRequest(start=0, end=6), 5)),
        ("start", lambda: wire.decode_span(pb.EntriesRequest(start=4, end=3), 5)),
        ("entries", lambda: wire.decode_entries(pb.EntriesResponse())),
        ("entries", lambda: wire.decode_entries(pb.EntriesResponse(entries=[b"x"] * 65))),
        ("entries", lambda: wire.decode_entries(pb.EntriesResponse(entries=[bytes(65_536)]))),
        ("path", path("")),
        ("path", path("../coordinator.json")),
        ("path", path("tile/0/../../log.key")),
        ("path", path("/etc/passwd")),
        ("path", path("cosigned")),
        ("path", path("tile/0/0")),
        ("path", path("tile/0/x000/001")),
        ("path", path("tile/0/000.p/0")),
        ("path", path("tile/0/000.p/256")),
        ("path", path("tile/8/000")),
        ("path", path("x" * 101)),
        ("data", lambda: wire.decode_file(pb.FileResponse(data=bytes(MAX_NOTE_BYTES + 1)), "checkpoint")),
        ("data", lambda: wire.decode_file(pb.FileResponse(data=bytes(33)), "tile/0/000.p/1")),
        ("data", lambda: wire.decode_file(pb.FileResponse(data=bytes(65_538)), "tile/entries/000.p/1")),
    ],
)
def test_a_message_of_the_log_out_of_form_is_refused_by_field(field, decode):
    with pytest.raises(WireRefused) as refused:
        decode()
    assert refused.value.field == field
