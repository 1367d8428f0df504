"""Bulk frames: what goes in comes out, and everything else is refused by field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.blobs import BlobId
from dure.wire.bulk import (
    HEADER,
    MANIFEST_PART_BYTES,
    MAX_COMMIT_BYTES,
    MAX_FRAME_BYTES,
    Frame,
    FrameKind,
    PullRequest,
    Refusal,
    decode_frame,
    encode_frame,
    expect,
    push_chunk,
    split_manifest,
    split_push_chunk,
)
from dure.wire.control import WireRefused

ID = bytes(range(32))
ids = st.binary(min_size=32, max_size=32)


@given(st.sampled_from([k for k in FrameKind if k not in (FrameKind.RESUME, FrameKind.PULL)]), ids, st.integers(0, 2**20),
       st.binary(max_size=200))  # fmt: skip
def test_frame_survives_a_round_trip(kind, id, chunk, payload):
    frame = decode_frame(encode_frame(kind, id, chunk, payload[:7], payload[7:]))
    assert frame == Frame(kind, id, chunk, memoryview(payload))


@given(st.builds(PullRequest, st.builds(BlobId, ids, st.integers(0, 2**40)), st.integers(0, 2**20),
                 st.integers(0, 2**20), st.booleans()))  # fmt: skip
def test_pull_request_survives_a_round_trip(request):
    assert PullRequest.decode(request.encode()) == request


@given(st.text(max_size=300), st.text(max_size=3000), st.booleans())
def test_refusal_survives_as_far_as_it_fits(field, why, again):
    back = Refusal.decode(decode_frame(Refusal(field, why, again).encode(ID)))
    assert back.again == again
    if field.isascii() and field.isprintable() and len(field) <= 100:
        assert back.field == field
    if why.isascii() and why.isprintable() and len(why) <= 1900:
        assert back.why == why


@given(st.binary(max_size=120))
def test_any_bytes_are_a_frame_or_refused(data):
    for decode in (decode_frame, PullRequest.decode):
        try:
            decode(data)
        except WireRefused as e:
            assert e.field


def header(version=1, kind=3, zero=0, id=ID, chunk=0, length=0) -> bytes:
    return HEADER.pack(version, kind, zero, id, chunk, length)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", "frame"),
        (header()[:-1], "frame"),
        (bytes(MAX_FRAME_BYTES + 1), "frame"),
        (header(version=0), "version"),
        (header(version=2), "version"),
        (header(kind=0), "kind"),
        (header(kind=8), "kind"),
        (header(zero=1), "reserved"),
        (header(chunk=2**20 + 1), "chunk"),
        (header(length=1), "payload length"),
        (header() + b"x", "payload length"),
        (header(length=2**32 - 1), "payload length"),
        (header(kind=FrameKind.RESUME, length=1) + b"x", "payload length"),
        (header(kind=FrameKind.COMMIT, length=MAX_COMMIT_BYTES + 1) + bytes(MAX_COMMIT_BYTES + 1), "payload length"),
    ],
)
def test_malformed_frame_is_refused_and_the_field_named(data, field):
    with pytest.raises(WireRefused) as e:
        decode_frame(data)
    assert e.value.field == field


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b"", "payload length"),
        ((2**41).to_bytes(8, "little") + bytes(9), "length"),
        (bytes(8) + (2**21).to_bytes(8, "little") + b"\0", "count"),
        (bytes(16) + b"\2", "flags"),
    ],
)
def test_malformed_pull_request_is_refused_and_the_field_named(payload, field):
    with pytest.raises(WireRefused) as e:
        PullRequest.decode(encode_frame(FrameKind.PULL, ID, 0, payload))
    assert e.value.field == field


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        (Frame(FrameKind.COMMIT, ID, 4, memoryview(b"")), "kind"),
        (Frame(FrameKind.CHUNK, bytes(32), 4, memoryview(b"")), "id"),
        (Frame(FrameKind.CHUNK, ID, 3, memoryview(b"")), "chunk"),
        (Frame(FrameKind.CHUNK, ID, 5, memoryview(b"")), "chunk"),
    ],
)
def test_frame_out_of_place_is_refused_and_the_field_named(frame, field):
    with pytest.raises(WireRefused) as e:
        expect(frame, FrameKind.CHUNK, id=ID, chunk=4)
    assert e.value.field == field


@pytest.mark.parametrize("payload", [b"", b"\0", b"\2\0", b"\0\5abc", b"\0\1\xff", b"\0\1\n"])
def test_malformed_refusal_is_refused(payload):
    with pytest.raises(WireRefused, match="refusal"):
        Refusal.decode(decode_frame(encode_frame(FrameKind.REFUSE, ID, 0, payload)))


def test_pushed_chunk_keeps_its_leaf_and_one_without_a_chunk_is_refused():
    assert split_push_chunk(decode_frame(push_chunk(ID, 3, b"l" * 32, b"data"))) == (b"l" * 32, memoryview(b"data"))
    with pytest.raises(WireRefused, match="payload length"):
        split_push_chunk(decode_frame(push_chunk(ID, 3, b"l" * 32, b"")))


@pytest.mark.parametrize("size", [0, 1, MANIFEST_PART_BYTES - 1, MANIFEST_PART_BYTES, MANIFEST_PART_BYTES + 1])
def test_manifest_parts_end_with_a_short_one(size):
    parts = [decode_frame(part).payload for part in split_manifest(ID, b"x" * size)]
    assert sum(map(len, parts)) == size
    assert [len(p) == MANIFEST_PART_BYTES for p in parts] == [True] * (len(parts) - 1) + [False]


def test_payload_of_a_received_frame_is_aligned_for_numpy():
    assert HEADER.size % 16 == 0
