"""All of flwr that is not public and that the worker needs (flwr 1.41; tests/contract/test_flwr_surface.py)."""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.object_ref import load_app
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE_ID = 1


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
