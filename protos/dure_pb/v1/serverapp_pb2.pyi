from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServerAppGridServiceNodesRequest(_message.Message):
    __slots__ = ("seq", "timeout_s")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    seq: int
    timeout_s: float
    def __init__(self, seq: _Optional[int] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class ServerAppNode(_message.Message):
    __slots__ = ("node_id", "member")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    member: str
    def __init__(self, node_id: _Optional[int] = ..., member: _Optional[str] = ...) -> None: ...

class ServerAppGridServiceNodesResponse(_message.Message):
    __slots__ = ("nodes", "missing")
    NODES_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[ServerAppNode]
    missing: str
    def __init__(self, nodes: _Optional[_Iterable[_Union[ServerAppNode, _Mapping]]] = ..., missing: _Optional[str] = ...) -> None: ...

class ServerAppNodeValues(_message.Message):
    __slots__ = ("node_id", "values_json")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VALUES_JSON_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    values_json: bytes
    def __init__(self, node_id: _Optional[int] = ..., values_json: _Optional[bytes] = ...) -> None: ...

class ServerAppGridServiceExchangeRequest(_message.Message):
    __slots__ = ("seq", "instruction_json", "nodes", "node_values", "flat_file", "timeout_s", "digest")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_JSON_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    NODE_VALUES_FIELD_NUMBER: _ClassVar[int]
    FLAT_FILE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    seq: int
    instruction_json: bytes
    nodes: _containers.RepeatedScalarFieldContainer[int]
    node_values: _containers.RepeatedCompositeFieldContainer[ServerAppNodeValues]
    flat_file: str
    timeout_s: float
    digest: bytes
    def __init__(self, seq: _Optional[int] = ..., instruction_json: _Optional[bytes] = ..., nodes: _Optional[_Iterable[int]] = ..., node_values: _Optional[_Iterable[_Union[ServerAppNodeValues, _Mapping]]] = ..., flat_file: _Optional[str] = ..., timeout_s: _Optional[float] = ..., digest: _Optional[bytes] = ...) -> None: ...

class ServerAppMetric(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class ServerAppNodeError(_message.Message):
    __slots__ = ("node_id", "reason")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    reason: str
    def __init__(self, node_id: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ServerAppGridServiceExchangeResponse(_message.Message):
    __slots__ = ("status", "arrays", "flat_file", "metrics", "num_examples", "survivors", "errors", "reason", "seed")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[ServerAppGridServiceExchangeResponse.Status]
        STATUS_OK: _ClassVar[ServerAppGridServiceExchangeResponse.Status]
        STATUS_FAILED: _ClassVar[ServerAppGridServiceExchangeResponse.Status]
        STATUS_STOPPED: _ClassVar[ServerAppGridServiceExchangeResponse.Status]
    STATUS_UNSPECIFIED: ServerAppGridServiceExchangeResponse.Status
    STATUS_OK: ServerAppGridServiceExchangeResponse.Status
    STATUS_FAILED: ServerAppGridServiceExchangeResponse.Status
    STATUS_STOPPED: ServerAppGridServiceExchangeResponse.Status
    class Arrays(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ARRAYS_UNSPECIFIED: _ClassVar[ServerAppGridServiceExchangeResponse.Arrays]
        ARRAYS_NONE: _ClassVar[ServerAppGridServiceExchangeResponse.Arrays]
        ARRAYS_MEAN_UPDATE: _ClassVar[ServerAppGridServiceExchangeResponse.Arrays]
        ARRAYS_WEIGHTS: _ClassVar[ServerAppGridServiceExchangeResponse.Arrays]
    ARRAYS_UNSPECIFIED: ServerAppGridServiceExchangeResponse.Arrays
    ARRAYS_NONE: ServerAppGridServiceExchangeResponse.Arrays
    ARRAYS_MEAN_UPDATE: ServerAppGridServiceExchangeResponse.Arrays
    ARRAYS_WEIGHTS: ServerAppGridServiceExchangeResponse.Arrays
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    FLAT_FILE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    status: ServerAppGridServiceExchangeResponse.Status
    arrays: ServerAppGridServiceExchangeResponse.Arrays
    flat_file: str
    metrics: _containers.RepeatedCompositeFieldContainer[ServerAppMetric]
    num_examples: float
    survivors: _containers.RepeatedScalarFieldContainer[int]
    errors: _containers.RepeatedCompositeFieldContainer[ServerAppNodeError]
    reason: str
    seed: bytes
    def __init__(self, status: _Optional[_Union[ServerAppGridServiceExchangeResponse.Status, str]] = ..., arrays: _Optional[_Union[ServerAppGridServiceExchangeResponse.Arrays, str]] = ..., flat_file: _Optional[str] = ..., metrics: _Optional[_Iterable[_Union[ServerAppMetric, _Mapping]]] = ..., num_examples: _Optional[float] = ..., survivors: _Optional[_Iterable[int]] = ..., errors: _Optional[_Iterable[_Union[ServerAppNodeError, _Mapping]]] = ..., reason: _Optional[str] = ..., seed: _Optional[bytes] = ...) -> None: ...

class ServerAppGridServiceFinishRequest(_message.Message):
    __slots__ = ("rounds", "metrics_json", "layout_json", "flat_file")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    METRICS_JSON_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_JSON_FIELD_NUMBER: _ClassVar[int]
    FLAT_FILE_FIELD_NUMBER: _ClassVar[int]
    rounds: int
    metrics_json: bytes
    layout_json: bytes
    flat_file: str
    def __init__(self, rounds: _Optional[int] = ..., metrics_json: _Optional[bytes] = ..., layout_json: _Optional[bytes] = ..., flat_file: _Optional[str] = ...) -> None: ...

class ServerAppGridServiceFinishResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerAppGridServiceFailRequest(_message.Message):
    __slots__ = ("kind", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ServerAppGridServiceFailResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
