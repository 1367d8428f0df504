"""Protobuf <-> dataclasses of the members' port: the one place where a peer's control messages are judged.

Every refusal is a `WireRefused` that names the field. Sizes are checked before anything is copied.
"""

from __future__ import annotations

import re

from dure.errors import DureError
from dure.wire.messages import (
    MAX_CONTROL_BYTES,
    Directive,
    DirectiveKind,
    EvidenceQuery,
    Hello,
    HelloReply,
    Report,
    ReportKind,
    ReportReply,
    SumEvidence,
)
from dure_pb.v1 import members_pb2 as pb

_MEMBER = re.compile(r"[a-z0-9-]{1,32}")
_DOCUMENT = re.compile(r"[a-z_]{1,32}(/[a-z0-9-]{1,32})?")
_BLOB = re.compile(r"[0-9a-f]{64}:[0-9]{1,16}")
MAX_SUMS = 2
"""An exchange stands on scales and update, or on scalars."""
MAX_MEMBERS = 255
"""Shamir shares live in GF(2^8), so no cohort is larger."""
MAX_REASON_CHARS = 1000
MAX_BODY_BYTES: dict[ReportKind, int] = {
    ReportKind.APPROVAL: 32_768,
    ReportKind.REFUSAL: 4_096,
    ReportKind.ADVERT: 16_384,
    ReportKind.KEM: 1_048_576,
    ReportKind.GROUP: 262_144,
    ReportKind.JOINED: 0,
    ReportKind.READY: 65_536,
    ReportKind.SIT_OUT: 4_096,
    ReportKind.SHARE: 262_144,
    ReportKind.SIGNATURE: 4_096,
    ReportKind.REVEAL: 262_144,
    ReportKind.ACCEPT: 32_768,
    ReportKind.VOID: 32_768,
    ReportKind.DISPUTE: 32_768,
    ReportKind.LOST: 4_096,
}


class WireRefused(DureError):
    """A peer's message does not have the form it must have; nothing was done with it."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why


def _exactly(field: str, value: bytes, length: int) -> bytes:
    if len(value) != length:
        raise WireRefused(field, f"must have {length} bytes, has {len(value)}")
    return value


def _at_most(field: str, value: bytes, length: int) -> bytes:
    if len(value) > length:
        raise WireRefused(field, f"must have at most {length} bytes, has {len(value)}")
    return value


def _member(field: str, value: str) -> str:
    if not _MEMBER.fullmatch(value):
        raise WireRefused(field, "must be a member id, [a-z0-9-]{1,32}")
    return value


def _text(field: str, value: str) -> str:
    if len(value) > MAX_REASON_CHARS or not value.isprintable():
        raise WireRefused(field, f"must be at most {MAX_REASON_CHARS} printable characters")
    return value


def _number(field: str, value: int, top: int = 2**48) -> int:
    if not 0 <= value <= top:
        raise WireRefused(field, f"must be in 0..{top}")
    return value


def encode_directive(directive: Directive) -> pb.FollowResponse:
    """The protobuf form of a directive; the caller's own data, so not judged."""
    return pb.FollowResponse(
        run=directive.run,
        exchange=directive.exchange,
        kind=directive.kind.value,
        instance=directive.instance,
        epoch=directive.epoch,
        members=list(directive.members),
        parts=[pb.MemberBytes(member=m, value=v) for m, v in sorted(directive.parts.items())],
        documents=[pb.NamedBytes(name=n, value=v) for n, v in sorted(directive.documents.items())],
        deadline_ms=directive.deadline_ms,
        reason=directive.reason[:MAX_REASON_CHARS],
    )


def decode_directive(message: pb.FollowResponse) -> Directive:
    """A coordinator's directive, judged by a node.

    Raises:
        WireRefused: names the field; the node ignores the directive and says so.
    """
    if message.ByteSize() > MAX_CONTROL_BYTES:
        raise WireRefused("directive", f"larger than {MAX_CONTROL_BYTES} bytes")
    try:
        kind = DirectiveKind(message.kind)
    except ValueError:
        raise WireRefused("kind", "unknown directive; a newer coordinator? upgrade this node") from None
    if len(message.members) > MAX_MEMBERS or len(message.parts) > MAX_MEMBERS:
        raise WireRefused("members", f"more than {MAX_MEMBERS}")
    members = tuple(_member("members", m) for m in message.members)
    if list(members) != sorted(set(members)):
        raise WireRefused("members", "must be ascending and distinct")
    part_names = [_member("parts", p.member) for p in message.parts]
    if part_names != sorted(set(part_names)):
        raise WireRefused("parts", "must be ascending and distinct by member")
    names = [d.name for d in message.documents]
    if names != sorted(set(names)) or not all(_DOCUMENT.fullmatch(n) for n in names):
        raise WireRefused("documents", "must be ascending, distinct and plainly named")
    return Directive(
        run=_exactly("run", message.run, 32),
        kind=kind,
        exchange=_number("exchange", message.exchange),
        instance=_at_most("instance", message.instance, 512),
        epoch=_number("epoch", message.epoch),
        members=members,
        parts={p.member: p.value for p in message.parts},
        documents={d.name: d.value for d in message.documents},
        deadline_ms=_number("deadline_ms", message.deadline_ms, 2**53),
        reason=_text("reason", message.reason),
    )


def encode_report(report: Report) -> pb.ReportRequest:
    """The protobuf form of a report."""
    return pb.ReportRequest(
        run=report.run,
        exchange=report.exchange,
        kind=report.kind.value,
        instance=report.instance,
        epoch=report.epoch,
        body=report.body,
    )


def decode_report(message: pb.ReportRequest) -> Report:
    """A node's report, judged by the coordinator; what the body says is judged by the exchange logic.

    Raises:
        WireRefused: names the field.
    """
    try:
        kind = ReportKind(message.kind)
    except ValueError:
        raise WireRefused("kind", "unknown report") from None
    return Report(
        run=_exactly("run", message.run, 32),
        kind=kind,
        exchange=_number("exchange", message.exchange),
        instance=_at_most("instance", message.instance, 512),
        epoch=_number("epoch", message.epoch),
        body=_at_most("body", message.body, MAX_BODY_BYTES[kind]),
    )


def encode_report_reply(reply: ReportReply) -> pb.ReportResponse:
    """The protobuf form of the answer to a report."""
    return pb.ReportResponse(accepted=reply.accepted, field=reply.field, reason=reply.reason[:MAX_REASON_CHARS])


def decode_report_reply(message: pb.ReportResponse) -> ReportReply:
    """The coordinator's answer to a report, judged by a node."""
    return ReportReply(message.accepted, _text("field", message.field), _text("reason", message.reason))


def encode_evidence_query(query: EvidenceQuery) -> pb.EvidenceRequest:
    """The protobuf form of a member's question."""
    return pb.EvidenceRequest(run=query.run, exchange=query.exchange)


def decode_evidence_query(message: pb.EvidenceRequest) -> EvidenceQuery:
    """A member's question, judged by the coordinator."""
    return EvidenceQuery(_exactly("run", message.run, 32), _number("exchange", message.exchange))


def encode_evidence(sums: tuple[SumEvidence, ...]) -> pb.EvidenceResponse:
    """The protobuf form of the answer."""
    return pb.EvidenceResponse(sums=[pb.OpenedSum(aggregate=s.aggregate, evidence=s.evidence, seeds=s.seeds) for s in sums])


def decode_evidence(message: pb.EvidenceResponse) -> tuple[SumEvidence, ...]:
    """The answer, judged by a node in form only.

    Raises:
        WireRefused: names the field.
    """
    if len(message.sums) > MAX_SUMS:
        raise WireRefused("sums", f"more than {MAX_SUMS}")
    for said in message.sums:
        for name, text in (("evidence", said.evidence), ("seeds", said.seeds)):
            if not _BLOB.fullmatch(text):
                raise WireRefused(name, "must be a blob id")
    return tuple(SumEvidence(_at_most("aggregate", s.aggregate, 32_768), s.evidence, s.seeds) for s in message.sums)


def encode_hello(hello: Hello) -> pb.HelloRequest:
    """The protobuf form of a node's greeting."""
    return pb.HelloRequest(
        protocol_version=hello.protocol_version,
        charter_digest=hello.charter_digest,
        delegation=hello.delegation,
        software=hello.software,
    )


def decode_hello(message: pb.HelloRequest) -> Hello:
    """A node's greeting, judged by the coordinator."""
    return Hello(
        protocol_version=_number("protocol_version", message.protocol_version, 2**16),
        charter_digest=_exactly("charter_digest", message.charter_digest, 32),
        delegation=_at_most("delegation", message.delegation, 32_768),
        software=_text("software", message.software),
    )


def encode_hello_reply(reply: HelloReply) -> pb.HelloResponse:
    """The protobuf form of the coordinator's greeting."""
    return pb.HelloResponse(
        protocol_version=reply.protocol_version,
        charter_digest=reply.charter_digest,
        time_ms=reply.time_ms,
        charter_roots=list(reply.charter_roots),
    )


def decode_hello_reply(message: pb.HelloResponse) -> HelloReply:
    """The coordinator's greeting, judged by a node."""
    if len(message.charter_roots) > 1000:
        raise WireRefused("charter_roots", "more than 1000 versions")
    return HelloReply(
        protocol_version=_number("protocol_version", message.protocol_version, 2**16),
        charter_digest=_exactly("charter_digest", message.charter_digest, 32),
        time_ms=_number("time_ms", message.time_ms, 2**53),
        charter_roots=tuple(_at_most("charter_roots", r, 1_048_576) for r in message.charter_roots),
    )
