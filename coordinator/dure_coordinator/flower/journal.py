"""The run's journal: what the ServerApp asked, what it was told; so that a restarted one goes on where it was.

`Strategy.start` has no hook between rounds. Instead the whole ServerApp starts again after a crash and is answered from
here, exchange by exchange, until it asks something new. Its request must then be the same as the first time: a
different one is stopped with both digests named, never answered. Pure and free of flwr: the daemon keeps the entries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dure.errors import DureError
from dure.model.content import Value, canonical_bytes, values_to_json
from dure_coordinator.flower.backend import ExchangeRequest


class Diverged(DureError):
    """A replayed ServerApp asked something else than the first time; the run stops."""

    def __init__(self, *, seq: int, journaled: bytes, asked: bytes) -> None:
        super().__init__(
            f"exchange {seq}: the restarted ServerApp sends content {asked.hex()}, the journal holds {journaled.hex()}; "
            "the run stops (unseeded randomness or time in the ServerApp?)"
        )
        self.seq, self.journaled, self.asked = seq, journaled, asked


class OutOfOrder(DureError):
    """A sequence number that skips one; our own ServerApp process never sends it."""


@dataclass(frozen=True)
class Entry:
    """One exchange as the ServerApp saw it."""

    seq: int
    digest: bytes
    """`request_digest` of what was asked."""
    category: str
    weights_id: bytes | None
    """Of the arrays in the request; None without arrays."""
    reply: Mapping[str, Any] | None = None
    """The daemon's own durable form of the reply (status, metrics, blob ids …); None while the exchange runs."""
    summed: bool = False
    """The exchange ended in an aggregate: its category is used up on these weights."""


@dataclass(frozen=True)
class Journal:
    """All of a run so far. Persist the result of every method before acting on it."""

    entries: tuple[Entry, ...] = ()
    nodes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Node ids last answered to `Nodes(seq)` before exchange seq: sampling draws on them, so a replay sees the same."""

    def nodes_for(self, seq: int) -> tuple[int, ...] | None:
        """What a replayed `Nodes(seq)` must be answered; None: exchange `seq` was not asked yet, so ask the fleet.

        Until then the answer may change from call to call: a strategy may be waiting for more nodes than the quorum.
        """
        return self.nodes.get(seq) if seq <= len(self.entries) else None

    def with_nodes(self, seq: int, nodes: Sequence[int]) -> Journal:
        """The journal after `Nodes(seq)` was answered; the last answer before exchange `seq` is asked stays."""
        return self if seq <= len(self.entries) else replace(self, nodes={**self.nodes, seq: tuple(nodes)})

    def ask(self, request: ExchangeRequest) -> tuple[Journal, Entry]:
        """The entry that answers a request: `reply` set is the answer, None means running (or to be started).

        Returns:
            the journal to keep (unchanged for a repeated request) and the entry.

        Raises:
            Diverged: the number was used for another content.
            OutOfOrder: the number skips one, or follows one that has no reply yet.
        """
        digest = request_digest(request)
        if 1 <= request.seq <= len(self.entries):
            entry = self.entries[request.seq - 1]
            if entry.digest != digest:
                raise Diverged(seq=request.seq, journaled=entry.digest, asked=digest)
            return self, entry
        if request.seq != len(self.entries) + 1 or (self.entries and self.entries[-1].reply is None):
            raise OutOfOrder(f"exchange {request.seq} asked after {len(self.entries)}; numbers rise by one, answered in turn")
        arrays = request.instruction.arrays
        entry = Entry(
            seq=request.seq,
            digest=digest,
            category=request.instruction.category,
            weights_id=None if arrays is None else arrays.weights_id,
        )
        return replace(self, entries=(*self.entries, entry)), entry

    def answered(self, seq: int, reply: Mapping[str, Any], *, summed: bool) -> Journal:
        """The journal with exchange `seq` answered; persist it before the ServerApp gets the reply."""
        entry = self.entries[seq - 1]
        assert entry.reply is None or entry.reply == reply, f"exchange {seq} answered twice"
        done = replace(entry, reply=reply, summed=summed)
        return replace(self, entries=(*self.entries[: seq - 1], done, *self.entries[seq:]))

    def summed_before(self, entry: Entry) -> Entry | None:
        """The earlier exchange whose sum used up this category on these weights (secure-aggregation.md, 5.2).

        Then the nodes are not asked: answer at once, `failed`, naming it. Without arrays there is nothing to repeat.
        """
        if entry.weights_id is None:
            return None
        for earlier in self.entries[: entry.seq - 1]:
            if earlier.summed and earlier.category == entry.category and earlier.weights_id == entry.weights_id:
                return earlier
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "nodes": {str(seq): list(nodes) for seq, nodes in self.nodes.items()},
            "entries": [
                {
                    "seq": entry.seq,
                    "digest": entry.digest.hex(),
                    "category": entry.category,
                    "weights_id": entry.weights_id.hex() if entry.weights_id else None,
                    "reply": entry.reply,
                    "summed": entry.summed,
                }
                for entry in self.entries
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Journal:
        """From our own database; not for bytes from outside."""
        return cls(
            nodes={int(seq): tuple(nodes) for seq, nodes in data["nodes"].items()},
            entries=tuple(
                Entry(
                    seq=entry["seq"],
                    digest=bytes.fromhex(entry["digest"]),
                    category=entry["category"],
                    weights_id=bytes.fromhex(entry["weights_id"]) if entry["weights_id"] else None,
                    reply=entry["reply"],
                    summed=entry["summed"],
                )
                for entry in data["entries"]
            ),
        )


def already_summed_reason(earlier: Entry) -> str:
    """The wording of the `Error` messages for a second exchange on one base."""
    return (
        f"these weights were already summed in {earlier.category} exchange {earlier.seq}; "
        "a second sum on one base could single a member out, so nodes were not asked"
    )


def request_digest(request: ExchangeRequest) -> bytes:
    """SHA-256 of what the members would be told; which nodes are connected and how long to wait are not part of it."""
    values: dict[str, Any] = {
        str(node): {record: values_to_json(keys) for record, keys in sorted(records.items())}
        for node, records in request.node_values.items()
    }
    extra = json.dumps({"seq": request.seq, "node_values": values}, sort_keys=True, separators=(",", ":")).encode()
    content = canonical_bytes(request.instruction, per_node_keys_of(request.node_values))
    return hashlib.sha256(b"dure serverapp request 1\n" + len(extra).to_bytes(8, "little") + extra + content).digest()


def per_node_keys_of(node_values: Mapping[int, Mapping[str, Mapping[str, Value]]]) -> frozenset[str]:
    """The config keys that differ per node in a request."""
    return frozenset(key for records in node_values.values() for keys in records.values() for key in keys)
