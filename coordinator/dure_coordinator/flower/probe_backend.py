"""A `Backend` that lets a ServerApp come to its first broadcast and no further. Free of flwr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from dure.model.content import flower_node_id
from dure.model.layout import Layout
from dure_coordinator.flower.backend import ExchangeRequest, Node, RunResult

ANSWER = "probe.json"


class Sent(BaseException):
    """The app has sent its first message: the probe is over. No `except Exception` of the app's catches it."""


class ProbeBackend:
    """Keeps the layout of the first arrays sent."""

    def __init__(self, members: int) -> None:
        self._nodes = [Node(flower_node_id(f"probe-{i}"), f"probe-{i}") for i in range(members)]
        self.layout: Layout | None = None

    def nodes(self, seq: int, timeout_s: float | None) -> list[Node]:
        return self._nodes

    def exchange(self, request: ExchangeRequest) -> NoReturn:
        arrays = request.instruction.arrays
        self.layout = None if arrays is None else arrays.layout
        raise Sent

    def finish(self, result: RunResult) -> None:
        return None

    def fail(self, kind: str, message: str) -> None:
        return None

    def write(self, folder: Path, error: str) -> None:
        """What was found: {"layout": canonical JSON text or null, "error": one line or ""}."""
        layout = None if self.layout is None else self.layout.to_json().decode()
        (folder / ANSWER).write_text(json.dumps({"layout": layout, "error": error}))
