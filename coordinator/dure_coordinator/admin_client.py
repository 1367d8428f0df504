"""A command's end of the admin socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc

from dure.charter.coordinator import CoordinatorFolder
from dure.errors import DureError, Unavailable
from dure_coordinator.sockets import socket_path
from dure_pb.v1 import admin_pb2 as pb
from dure_pb.v1 import admin_pb2_grpc

LIMIT_BYTES = 256 << 20


class CommandFailed(DureError):
    """The coordinator said no; its own words."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def call(directory: Path, command: str, arguments: dict[str, Any], archive: bytes = b"", *, timeout_s: float = 600.0) -> dict[str, Any]:
    """Ask the coordinator that serves this folder.

    Raises:
        Unavailable: none does; says how to start it.
        CommandFailed: it refused.
    """
    CoordinatorFolder.load(directory)
    path = socket_path(directory / "sockets", "admin.sock")
    options = [("grpc.max_receive_message_length", LIMIT_BYTES), ("grpc.max_send_message_length", LIMIT_BYTES)]
    with grpc.insecure_channel(f"unix:{path}", options) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        request = pb.CallRequest(command=command, arguments=json.dumps(arguments), archive=archive)
        try:
            answer = stub.Call(request, timeout=timeout_s)
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]  # RpcError of a call is a Call too
            if code is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(f"no coordinator serves {directory}; start it with `dure coordinator serve --dir {directory}`") from None
            raise Unavailable(f"the coordinator did not answer: {error.details()}") from None  # type: ignore[attr-defined]
    if answer.error:
        raise CommandFailed(answer.error, answer.exit_code or 1)
    result = json.loads(answer.result)
    assert isinstance(result, dict)
    return result
