"""The joint between a run's ServerApp process and the coordinator: what is asked, what is answered.

Free of flwr, so that the daemon (which must not import it) uses the same dataclasses. `Backend` is what `DureGrid`
calls; `grpc_backend.GrpcBackend` carries it over the run's socket, tests implement it in-process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from dure.errors import DureError
from dure.model.content import Instruction, Value


class GridRefused(DureError):
    """The ServerApp asked for something that cannot be done under the run's plan; nothing was sent."""


class QuorumMissing(DureError):
    """Too few members connected before the deadline; the message names who is missing."""


class RunStopped(DureError):
    """The coordinator stopped this run (cancelled, diverged from its journal, or refused for good)."""


@dataclass(frozen=True)
class Node:
    """One connected member as Flower sees it."""

    node_id: int
    """`dure.model.content.flower_node_id(member)`."""
    member: str


@dataclass(frozen=True)
class ExchangeRequest:
    """One trip to the members, asked by the ServerApp."""

    seq: int
    """1, 2, 3 … per run; the same number with the same digest gets the same reply, also after a restart."""
    instruction: Instruction
    nodes: tuple[int, ...]
    """Nodes the strategy chose, ascending. Not part of the digest: a restarted ServerApp may see other nodes connected."""
    node_values: Mapping[int, Mapping[str, Mapping[str, Value]]] = field(default_factory=dict)
    """{node: {config record: {key: value}}} for keys the plan lists as per-node; part of the digest."""
    flat_path: Path | None = None
    """The base as a flat vector file in the run's folder, if the instruction has arrays. The daemon copies or links
    it (content never changes under a link) and leaves it in place: the Grid may need it to add the mean."""
    timeout_s: float | None = None
    """What the ServerApp asked for; the plan's own deadlines rule."""


@dataclass(frozen=True)
class ExchangeReply:
    """One aggregate, or the reasons there is none."""

    status: Literal["ok", "failed"]
    arrays: Literal["none", "mean-update", "weights"] = "none"
    """`mean-update`: the flat file is the mean update and the Grid adds the base; `weights`: it is the next base
    (plan-named outer step), handed on bit for bit."""
    flat_path: Path | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Weighted means, without `num-examples`."""
    num_examples: float = 0.0
    """Sum of the survivors' weights."""
    survivors: tuple[int, ...] = ()
    errors: Mapping[int, str] = field(default_factory=dict)
    """Reason per node that is not in the sum, in words."""
    reason: str = ""
    """Why the exchange failed; used for every node without its own reason."""
    seed: bytes = b""
    """32 bytes where the exchange drew the seed of the run's first weights."""


@dataclass(frozen=True)
class RunResult:
    """What a finished ServerApp hands over."""

    rounds: int
    metrics: Mapping[str, Mapping[int, Mapping[str, float | Sequence[float]]]]
    """{"train" | "evaluate" | "server": {round: {name: value}}} from the strategy's Result."""
    layout_json: str | None = None
    flat_path: Path | None = None
    """The final arrays, flat, in the run's folder; None if the app used no strategy or ended without arrays."""


class Backend(Protocol):
    """What the Grid needs. Every call blocks and may be repeated with the same arguments."""

    def nodes(self, seq: int, timeout_s: float | None) -> list[Node]:
        """Connected nodes for exchange `seq`, at least the plan's quorum; a replayed `seq` gets the nodes it had then
        (`Journal.nodes_for`).

        Raises:
            QuorumMissing: at the deadline, naming who is missing.
        """

    def exchange(self, request: ExchangeRequest) -> ExchangeReply:
        """The aggregate of one exchange. Raises RunStopped when the run must not go on."""

    def finish(self, result: RunResult) -> None:
        """The ServerApp returned."""

    def fail(self, kind: str, message: str) -> None:
        """The ServerApp raised or was refused; `message` is one line that names the thing."""
