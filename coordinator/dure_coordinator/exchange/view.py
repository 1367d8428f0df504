"""Pure views of a run's state: what each node should do, what may be read and uploaded, what a person is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dure.wire.messages import Directive
from dure_coordinator.exchange.state import RunState


@dataclass(frozen=True)
class UploadSlot:
    """An upload the coordinator takes now."""

    member: str
    instance: bytes
    upload: bytes
    """32 bytes: SHA-256("dure upload\\n" ‖ u16 (little-endian) length of instance ‖ instance ‖ member)."""
    length: int
    """0 for scalars: the push stream has no chunks, only the commit."""
    chunk_bytes: int


def directive(state: RunState, member: str) -> Directive:
    """What this member's node should be doing now, in full."""
    raise NotImplementedError


def upload_slots(state: RunState) -> tuple[UploadSlot, ...]:
    """Uploads that may be sent now. One whose commit is accepted stays in the list, so that a repeated commit is answered."""
    raise NotImplementedError


def readable_blobs(state: RunState, member: str) -> frozenset[str]:
    """Blob id texts this member may pull now: app, base weights, sums, next weights."""
    raise NotImplementedError


def summary(state: RunState) -> dict[str, Any]:
    """For `dure run status` and watch: phase, exchange, epoch, members with their state, waiting_for, deadline, reason."""
    raise NotImplementedError
