"""The members' port judges every byte once, and a refusal names the field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.wire import control
from dure.wire.messages import Directive, DirectiveKind, EvidenceQuery, Hello, HelloReply, Report, ReportKind, ReportReply, SumEvidence
from dure_pb.v1 import members_pb2 as pb

MEMBERS = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True)
RUN = st.binary(min_size=32, max_size=32)


@given(
    run=RUN,
    kind=st.sampled_from(list(DirectiveKind)),
    exchange=st.integers(0, 2**48),
    instance=st.binary(max_size=512),
    epoch=st.integers(0, 2**48),
    members=st.sets(MEMBERS, max_size=8),
    parts=st.dictionaries(MEMBERS, st.binary(max_size=64), max_size=8),
    documents=st.dictionaries(st.sampled_from(["plan", "open", "delegation/a"]), st.binary(max_size=64)),
    deadline_ms=st.integers(0, 2**53),
)
def test_a_directive_survives_the_wire_unchanged(run, kind, exchange, instance, epoch, members, parts, documents, deadline_ms):
    directive = Directive(run, kind, exchange, instance, epoch, tuple(sorted(members)), parts, documents, deadline_ms, "waiting")
    raw = control.encode_directive(directive).SerializeToString()
    assert control.decode_directive(pb.FollowResponse.FromString(raw)) == directive


@given(RUN, st.sampled_from(list(ReportKind)), st.integers(0, 2**48), st.binary(max_size=512), st.integers(0, 2**48))
def test_a_report_survives_the_wire_unchanged(run, kind, exchange, instance, epoch):
    body = b"" if kind is ReportKind.JOINED else b"x"
    report = Report(run, kind, exchange, instance, epoch, body)
    raw = control.encode_report(report).SerializeToString()
    assert control.decode_report(pb.ReportRequest.FromString(raw)) == report


def test_greetings_and_answers_survive_the_wire_unchanged():
    hello = Hello(1, bytes(32), b"envelope", "dure 0.1.0")
    assert control.decode_hello(control.encode_hello(hello)) == hello
    reply = HelloReply(1, bytes(32), 1_700_000_000_000, (b"root",))
    assert control.decode_hello_reply(control.encode_hello_reply(reply)) == reply
    answer = ReportReply(False, "epoch", "too old")
    assert control.decode_report_reply(control.encode_report_reply(answer)) == answer


def good_report() -> pb.ReportRequest:
    return pb.ReportRequest(run=bytes(32), kind="ready", body=b"{}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", bytes(31)),
        ("kind", "gossip"),
        ("kind", ""),
        ("exchange", 2**48 + 1),
        ("instance", bytes(513)),
        ("epoch", 2**60),
        ("body", bytes(65_537)),
    ],
)
def test_a_report_out_of_form_is_refused_by_field(field, value):
    message = good_report()
    setattr(message, field, value)
    with pytest.raises(control.WireRefused) as refused:
        control.decode_report(message)
    assert refused.value.field == field


def good_directive() -> pb.FollowResponse:
    return pb.FollowResponse(run=bytes(32), kind="share", members=["a", "b"])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("run", pb.FollowResponse(run=b"short", kind="share")),
        ("kind", pb.FollowResponse(run=bytes(32), kind="dance")),
        ("members", pb.FollowResponse(run=bytes(32), kind="share", members=["b", "a"])),
        ("members", pb.FollowResponse(run=bytes(32), kind="share", members=["a", "a"])),
        ("members", pb.FollowResponse(run=bytes(32), kind="share", members=["../etc"])),
        ("members", pb.FollowResponse(run=bytes(32), kind="share", members=[f"m{i:03}" for i in range(256)])),
        ("parts", pb.FollowResponse(run=bytes(32), kind="share", parts=[pb.MemberBytes(member="a"), pb.MemberBytes(member="a")])),
        ("documents", pb.FollowResponse(run=bytes(32), kind="share", documents=[pb.NamedBytes(name="a b")])),
        ("documents", pb.FollowResponse(run=bytes(32), kind="share", documents=[pb.NamedBytes(name="plan"), pb.NamedBytes(name="open")])),
        ("deadline_ms", pb.FollowResponse(run=bytes(32), kind="share", deadline_ms=-1)),
        ("reason", pb.FollowResponse(run=bytes(32), kind="wait", reason="\x1b[2J")),
    ],
)
def test_a_directive_out_of_form_is_refused_by_field(field, message):
    with pytest.raises(control.WireRefused) as refused:
        control.decode_directive(message)
    assert refused.value.field == field


def test_an_oversized_directive_is_refused_before_it_is_copied():
    message = good_directive()
    message.documents.add(name="plan", value=bytes(control.MAX_CONTROL_BYTES))
    with pytest.raises(control.WireRefused) as refused:
        control.decode_directive(message)
    assert refused.value.field == "directive"


def test_every_report_kind_has_a_size_limit():
    assert set(control.MAX_BODY_BYTES) == set(ReportKind)


def test_evidence_and_its_question_survive_the_wire_unchanged():
    query = EvidenceQuery(bytes(range(32)), 7)
    assert control.decode_evidence_query(control.encode_evidence_query(query)) == query
    sums = (SumEvidence(b"one", f"{'a' * 64}:5", f"{'b' * 64}:0"), SumEvidence(b"two", f"{'c' * 64}:5", f"{'d' * 64}:9"))
    assert control.decode_evidence(control.encode_evidence(sums)) == sums
    assert control.decode_evidence(pb.EvidenceResponse()) == ()


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("sums", lambda m: m.sums.extend([m.sums[0]] * 2)),
        ("aggregate", lambda m: setattr(m.sums[0], "aggregate", bytes(32_769))),
        ("evidence", lambda m: setattr(m.sums[0], "evidence", "../" * 20)),
        ("seeds", lambda m: setattr(m.sums[0], "seeds", "")),
    ],
)
def test_evidence_out_of_form_is_refused_by_its_field(field, change):
    message = control.encode_evidence((SumEvidence(b"one", f"{'a' * 64}:5", f"{'b' * 64}:0"),))
    change(message)
    with pytest.raises(control.WireRefused) as refused:
        control.decode_evidence(message)
    assert refused.value.field == field


def test_a_question_for_evidence_names_a_whole_run():
    with pytest.raises(control.WireRefused) as refused:
        control.decode_evidence_query(pb.EvidenceRequest(run=bytes(31), exchange=1))
    assert refused.value.field == "run"
