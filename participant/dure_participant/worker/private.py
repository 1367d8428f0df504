"""All of flwr that is not public and that the worker needs (flwr 1.41; tests/contract/test_flwr_surface.py)."""

from __future__ import annotations

import time
import weakref
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.object_ref import load_app
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE_ID = 1
NDArray = np.ndarray[Any, np.dtype[Any]]
NUMPY = "numpy.ndarray"


def load_client_app(reference: str, folder: Path) -> ClientApp:
    """The ClientApp at `module:attribute` in an unpacked app."""
    app = load_app(reference, ImportError, folder)
    if not isinstance(app, ClientApp):
        raise ImportError(f"{reference} is a {type(app).__name__}, not a flwr.clientapp.ClientApp")
    return app


def make_message(
    content: RecordDict, *, run_id: int, node_id: int, message_type: str, group_id: str, ttl_s: float, message_id: str
) -> Message:
    """An instruction as if it had come over Flower's network.

    What the instruction does not bind is constant or the node's own (ids, this node's clock), so that the coordinator
    has no side channel to tell one member something else.
    """
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node_id
    metadata = Metadata(
        run_id=run_id,
        message_id=message_id,
        src_node_id=SERVER_NODE_ID,
        dst_node_id=node_id,
        reply_to_message_id="",
        group_id=group_id,
        created_at=time.time(),
        ttl=ttl_s,
        message_type=message_type,
        src_task_id=1,
        dst_task_id=1,
    )
    metadata.delivered_at = ""  # ClientApps from before 1.2x read it; `Message` sets it, too
    message: Message = Message(content=content, metadata=metadata)  # type: ignore[call-overload]  # flwr-internal signature
    return message


def state_bytes(state: RecordDict) -> bytes:
    return bytes(recorddict_to_proto(state).SerializeToString())


def state_from_bytes(raw: bytes) -> RecordDict:
    return recorddict_from_proto(ProtoRecordDict.FromString(raw))


# -- arrays without Flower's copies --------------------------------------------------------------------------------


def serialised(array: NDArray) -> bytes:
    """np.save's bytes of an array, copied once; what is not plain numbers in C order goes through np.save itself."""
    head = BytesIO()
    if array.ndim == 0 or not array.flags.c_contiguous or array.dtype.kind not in "fiub":
        np.save(head, array, allow_pickle=False)
        return head.getvalue()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    return b"".join((head.getbuffer(), array.reshape(-1).view(np.uint8).data))


def quicken_arrays() -> None:
    """From now on `Array(ndarray)` and `Array(tensor)` copy their values once, not three times; the bytes are the same."""

    def from_numpy_ndarray(cls: type[Array], ndarray: NDArray) -> Array:
        return cls(dtype=str(ndarray.dtype), shape=tuple(ndarray.shape), stype=NUMPY, data=serialised(ndarray))

    Array.from_numpy_ndarray = classmethod(from_numpy_ndarray)  # type: ignore[assignment]


def values_of(array: Array) -> NDArray:
    """What `array.numpy()` gives, as a view of its bytes where they are plain numbers; read-only then."""
    data = BytesIO(array.data)  # shares the bytes
    if isinstance(array, LentArray) or np.lib.format.read_magic(data) != (1, 0):
        return array.numpy()
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(data)
    if fortran or dtype.kind not in "fiub":
        return array.numpy()
    return np.frombuffer(array.data, dtype, int(np.prod(shape, dtype=np.int64)), data.tell()).reshape(shape)


class LentArray(Array):
    """A tensor of the base, lent to an app for one task: copied when its values are asked for, serialised if somebody wants the bytes."""

    def __init__(self, values: NDArray, dtype: str) -> None:
        self.dtype, self.shape, self.stype = dtype, tuple(values.shape), NUMPY
        self.__dict__["_values"] = values

    @property
    def data(self) -> bytes:  # type: ignore[override]
        if "_bytes" not in self.__dict__:
            self.__dict__["_bytes"] = serialised(self.__dict__["_values"])
            self.__dict__.pop("_values")
        return bytes(self.__dict__["_bytes"])

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__["_bytes"] = value
        self.__dict__.pop("_values", None)

    def numpy(self) -> NDArray:
        """The caller's own copy, as with any `Array`."""
        return np.array(self.__dict__["_values"]) if "_values" in self.__dict__ else super().numpy()


class Lent:
    """What was lent to an app for one task."""

    def __init__(self) -> None:
        self._arrays: list[weakref.ref[LentArray]] = []

    def lend(self, values: NDArray, dtype: str) -> LentArray:
        array = LentArray(values, dtype)
        self._arrays.append(weakref.ref(array))
        return array

    def call_in(self) -> None:
        """The task is over: the file behind the values may change. An array that the app has kept gets bytes of its own."""
        for lent in self._arrays:
            if (kept := lent()) is not None:
                _ = kept.data
