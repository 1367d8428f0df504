"""ServerApp requests and replies on the wire (serverapp.proto) <-> the dataclasses of `backend`. Free of flwr.

Used by both ends of the run's socket. The ServerApp process runs other people's code, so the daemon judges what it
decodes here: a file name is one plain name in the run's folder, numbers are finite, JSON is strict.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from dure.errors import DureError
from dure.model.content import Instruction, InstructionRefused, values_from_json, values_to_json
from dure_coordinator.flower.backend import ExchangeReply, ExchangeRequest, Node, RunResult, RunStopped
from dure_coordinator.flower.journal import request_digest
from dure_pb.v1 import serverapp_pb2 as pb

MAX_NODES = 1000
MAX_SUMMARY_BYTES = 4 << 20
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ARRAYS_TO_PB = {"none": 1, "mean-update": 2, "weights": 3}
_ARRAYS_FROM_PB = {number: name for name, number in _ARRAYS_TO_PB.items()}


class WireRefused(DureError):
    """A message on the run's socket that is not well-formed; names the field."""


def request_to_pb(request: ExchangeRequest) -> pb.ServerAppGridServiceExchangeRequest:
    return pb.ServerAppGridServiceExchangeRequest(
        seq=request.seq,
        instruction_json=_dump(request.instruction.to_json()),
        nodes=list(request.nodes),
        node_values=[
            pb.ServerAppNodeValues(node_id=node, values_json=_dump({record: values_to_json(keys) for record, keys in records.items()}))
            for node, records in sorted(request.node_values.items())
        ],
        flat_file="" if request.flat_path is None else request.flat_path.name,
        timeout_s=request.timeout_s or 0.0,
        digest=request_digest(request),
    )


def request_from_pb(message: pb.ServerAppGridServiceExchangeRequest, run_dir: Path) -> ExchangeRequest:
    """Judge a ServerApp's request.

    Raises:
        WireRefused, InstructionRefused, LayoutRefused: naming the field.
    """
    instruction = Instruction.from_json(_load(message.instruction_json, "instruction_json", 64 << 20))
    nodes = tuple(message.nodes)
    if not nodes or len(nodes) > MAX_NODES or list(nodes) != sorted(set(nodes)):
        raise WireRefused(f"nodes: not 1 to {MAX_NODES} different ids in ascending order")
    node_values: dict[int, dict[str, dict[str, Any]]] = {}
    for entry in message.node_values:
        if entry.node_id not in nodes or entry.node_id in node_values:
            raise WireRefused(f"node_values: node {entry.node_id} is not asked, or named twice")
        records = _load(entry.values_json, "node_values", 1 << 20)
        if not isinstance(records, dict):
            raise WireRefused("node_values: not an object")
        node_values[entry.node_id] = {name: values_from_json(values, f"node_values.{name}") for name, values in records.items()}
        instruction.with_node_values(node_values[entry.node_id])
    flat = _file(message.flat_file, run_dir, "flat_file")
    if (flat is None) != (instruction.arrays is None):
        raise WireRefused("flat_file: must be there exactly when the instruction has arrays")
    if not math.isfinite(message.timeout_s) or message.timeout_s < 0:
        raise WireRefused("timeout_s: not a number of seconds")
    request = ExchangeRequest(
        seq=message.seq,
        instruction=instruction,
        nodes=nodes,
        node_values=node_values,
        flat_path=flat,
        timeout_s=message.timeout_s or None,
    )
    if message.digest != request_digest(request):
        raise WireRefused("digest: is not the digest of this request")
    return request


def reply_to_pb(reply: ExchangeReply) -> pb.ServerAppGridServiceExchangeResponse:
    """The daemon's answer; `flat_path` must lie in the run's folder."""
    ok = reply.status == "ok"
    return pb.ServerAppGridServiceExchangeResponse(
        status=pb.ServerAppGridServiceExchangeResponse.STATUS_OK if ok else pb.ServerAppGridServiceExchangeResponse.STATUS_FAILED,
        arrays=_ARRAYS_TO_PB[reply.arrays],  # type: ignore[arg-type]
        flat_file="" if reply.flat_path is None else reply.flat_path.name,
        metrics=[pb.ServerAppMetric(name=name, value=value) for name, value in reply.metrics.items()],
        num_examples=reply.num_examples,
        survivors=list(reply.survivors),
        errors=[pb.ServerAppNodeError(node_id=node, reason=reason) for node, reason in reply.errors.items()],
        reason=reply.reason,
        seed=reply.seed,
    )


def stopped_to_pb(reason: str) -> pb.ServerAppGridServiceExchangeResponse:
    """The answer that ends the run at the ServerApp: diverged, cancelled, refused for good."""
    return pb.ServerAppGridServiceExchangeResponse(status=pb.ServerAppGridServiceExchangeResponse.STATUS_STOPPED, reason=reason)


def reply_from_pb(message: pb.ServerAppGridServiceExchangeResponse, run_dir: Path) -> ExchangeReply:
    """Raises RunStopped if the coordinator says so, WireRefused if the answer is not one."""
    kinds = pb.ServerAppGridServiceExchangeResponse
    if message.status == kinds.STATUS_STOPPED:
        raise RunStopped(message.reason or "the coordinator stopped the run")
    if message.status not in (kinds.STATUS_OK, kinds.STATUS_FAILED) or message.arrays not in _ARRAYS_FROM_PB:
        raise WireRefused("exchange response: status or arrays is absent")
    return ExchangeReply(
        status="ok" if message.status == kinds.STATUS_OK else "failed",
        arrays=_ARRAYS_FROM_PB[message.arrays],  # type: ignore[arg-type]
        flat_path=_file(message.flat_file, run_dir, "flat_file"),
        metrics={metric.name: metric.value for metric in message.metrics},
        num_examples=message.num_examples,
        survivors=tuple(message.survivors),
        errors={error.node_id: error.reason for error in message.errors},
        reason=message.reason,
        seed=message.seed,
    )


def nodes_to_pb(nodes: list[Node]) -> pb.ServerAppGridServiceNodesResponse:
    return pb.ServerAppGridServiceNodesResponse(nodes=[pb.ServerAppNode(node_id=node.node_id, member=node.member) for node in nodes])


def missing_to_pb(reason: str) -> pb.ServerAppGridServiceNodesResponse:
    """The answer at the deadline; `reason` names who is missing."""
    return pb.ServerAppGridServiceNodesResponse(missing=reason)


def result_to_pb(result: RunResult) -> pb.ServerAppGridServiceFinishRequest:
    return pb.ServerAppGridServiceFinishRequest(
        rounds=result.rounds,
        metrics_json=json.dumps(result.metrics, sort_keys=True).encode(),
        layout_json=(result.layout_json or "").encode(),
        flat_file="" if result.flat_path is None else result.flat_path.name,
    )


def result_from_pb(message: pb.ServerAppGridServiceFinishRequest, run_dir: Path) -> RunResult:
    """Judge what a finished ServerApp hands over; metrics may hold NaN, which is the app's business."""
    metrics = _load(message.metrics_json, "metrics_json", MAX_SUMMARY_BYTES)
    if not isinstance(metrics, dict) or not all(isinstance(rounds, dict) for rounds in metrics.values()):
        raise WireRefused("metrics_json: not {kind: {round: {name: value}}}")
    try:
        by_round = {kind: {int(key): values for key, values in rounds.items()} for kind, rounds in metrics.items()}
    except ValueError:
        raise WireRefused("metrics_json: a round is not a number") from None
    return RunResult(
        rounds=message.rounds,
        metrics=by_round,
        layout_json=message.layout_json.decode(errors="replace") or None,
        flat_path=_file(message.flat_file, run_dir, "flat_file"),
    )


def _file(name: str, run_dir: Path, field: str) -> Path | None:
    if not name:
        return None
    if not _FILE.fullmatch(name):
        raise WireRefused(f"{field}: {name[:80]!r} is not a plain file name")
    path = run_dir / name
    if path.is_symlink() or not path.is_file():
        raise WireRefused(f"{field}: {name!r} is not a plain file in the run's folder")
    return path


def _dump(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()


def _load(raw: bytes, field: str, limit: int) -> Any:
    if len(raw) > limit:
        raise WireRefused(f"{field}: {len(raw)} bytes, at most {limit}")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise WireRefused(f"{field}: not JSON") from None


__all__ = [
    "InstructionRefused",
    "WireRefused",
    "missing_to_pb",
    "nodes_to_pb",
    "reply_from_pb",
    "reply_to_pb",
    "request_from_pb",
    "request_to_pb",
    "result_from_pb",
    "result_to_pb",
    "stopped_to_pb",
]
