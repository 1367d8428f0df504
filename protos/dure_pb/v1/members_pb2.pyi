from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("protocol_version", "charter_digest", "delegation", "software")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHARTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DELEGATION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    charter_digest: bytes
    delegation: bytes
    software: str
    def __init__(self, protocol_version: _Optional[int] = ..., charter_digest: _Optional[bytes] = ..., delegation: _Optional[bytes] = ..., software: _Optional[str] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("protocol_version", "charter_digest", "time_ms", "charter_roots")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHARTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    CHARTER_ROOTS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    charter_digest: bytes
    time_ms: int
    charter_roots: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, protocol_version: _Optional[int] = ..., charter_digest: _Optional[bytes] = ..., time_ms: _Optional[int] = ..., charter_roots: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MemberBytes(_message.Message):
    __slots__ = ("member", "value")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    member: str
    value: bytes
    def __init__(self, member: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class NamedBytes(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: bytes
    def __init__(self, name: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class FollowResponse(_message.Message):
    __slots__ = ("run", "exchange", "kind", "instance", "epoch", "members", "parts", "documents", "deadline_ms", "reason")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    exchange: int
    kind: str
    instance: bytes
    epoch: int
    members: _containers.RepeatedScalarFieldContainer[str]
    parts: _containers.RepeatedCompositeFieldContainer[MemberBytes]
    documents: _containers.RepeatedCompositeFieldContainer[NamedBytes]
    deadline_ms: int
    reason: str
    def __init__(self, run: _Optional[bytes] = ..., exchange: _Optional[int] = ..., kind: _Optional[str] = ..., instance: _Optional[bytes] = ..., epoch: _Optional[int] = ..., members: _Optional[_Iterable[str]] = ..., parts: _Optional[_Iterable[_Union[MemberBytes, _Mapping]]] = ..., documents: _Optional[_Iterable[_Union[NamedBytes, _Mapping]]] = ..., deadline_ms: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("run", "exchange", "kind", "instance", "epoch", "body")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    exchange: int
    kind: str
    instance: bytes
    epoch: int
    body: bytes
    def __init__(self, run: _Optional[bytes] = ..., exchange: _Optional[int] = ..., kind: _Optional[str] = ..., instance: _Optional[bytes] = ..., epoch: _Optional[int] = ..., body: _Optional[bytes] = ...) -> None: ...

class EvidenceRequest(_message.Message):
    __slots__ = ("run", "exchange")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    exchange: int
    def __init__(self, run: _Optional[bytes] = ..., exchange: _Optional[int] = ...) -> None: ...

class OpenedSum(_message.Message):
    __slots__ = ("aggregate", "evidence", "seeds")
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    aggregate: bytes
    evidence: str
    seeds: str
    def __init__(self, aggregate: _Optional[bytes] = ..., evidence: _Optional[str] = ..., seeds: _Optional[str] = ...) -> None: ...

class EvidenceResponse(_message.Message):
    __slots__ = ("sums",)
    SUMS_FIELD_NUMBER: _ClassVar[int]
    sums: _containers.RepeatedCompositeFieldContainer[OpenedSum]
    def __init__(self, sums: _Optional[_Iterable[_Union[OpenedSum, _Mapping]]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("accepted", "field", "reason")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    field: str
    reason: str
    def __init__(self, accepted: _Optional[bool] = ..., field: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
