"""The ServerApp process's end of the run's Unix socket."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from dure_coordinator.flower import codec
from dure_coordinator.flower.backend import ExchangeReply, ExchangeRequest, Node, QuorumMissing, RunResult, RunStopped
from dure_pb.v1 import serverapp_pb2 as pb
from dure_pb.v1 import serverapp_pb2_grpc as rpc

MAX_MESSAGE_BYTES = 64 << 20
OPTIONS = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]
RETRIED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
"""The coordinator is away or going down; every other status is its last word."""


class CoordinatorGone(Exception):
    """The coordinator did not come back in time; the process exits and is started again later."""


class GrpcBackend:
    """A `Backend` over gRPC. Every call is idempotent, so it is repeated until the coordinator answers.

    Args:
        reconnect_s: give up after so many seconds without an answer from a running coordinator.
    """

    def __init__(self, socket: str, run_dir: Path, *, reconnect_s: float = 600.0) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=OPTIONS)
        self._stub = rpc.ServerAppGridServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated code
        self._run_dir, self._reconnect_s = run_dir, reconnect_s

    def nodes(self, seq: int, timeout_s: float | None) -> list[Node]:
        request = pb.ServerAppGridServiceNodesRequest(seq=seq, timeout_s=timeout_s or 0.0)
        answer = self._call(self._stub.Nodes, request)
        if answer.missing:
            raise QuorumMissing(answer.missing)
        return [Node(node.node_id, node.member) for node in answer.nodes]

    def exchange(self, request: ExchangeRequest) -> ExchangeReply:
        return codec.reply_from_pb(self._call(self._stub.Exchange, codec.request_to_pb(request)), self._run_dir)

    def finish(self, result: RunResult) -> None:
        self._call(self._stub.Finish, codec.result_to_pb(result))

    def fail(self, kind: str, message: str) -> None:
        self._call(self._stub.Fail, pb.ServerAppGridServiceFailRequest(kind=kind, message=message[:4000]))

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        give_up, wait_s = time.monotonic() + self._reconnect_s, 0.1
        while True:
            started = time.monotonic()
            try:
                return method(request)
            except grpc.RpcError as error:
                if error.code() not in RETRIED:  # the coordinator's last word
                    raise RunStopped(error.details() or str(error.code())) from None
                now = time.monotonic()
                if now - started > 5:  # it was there and waited with us: the patience starts anew
                    give_up, wait_s = now + self._reconnect_s, 0.1
                if now > give_up:
                    raise CoordinatorGone(f"no answer in {self._reconnect_s:.0f} s: {error.details()}") from None
                time.sleep(wait_s)
                wait_s = min(wait_s * 2, 5.0)
