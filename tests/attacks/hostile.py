"""A coordinator that means harm, over real nodes: it holds the coordinator's real key and shows each node what it likes.

`reach` lets the honest logic bring everyone to a phase; from there a test shows a node a directive of its own making with
`show` (the node's real `exchange.step`; nothing else of it hears of the answer), or lets a member report what it should
not with `says`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from sim.exchange_world import World

from dure.secagg.ids import InstanceId, Purpose
from dure.statements.statement import seal
from dure.wire.messages import Directive, DirectiveKind, Report, ReportKind, ReportReply
from dure_coordinator.exchange import view
from dure_coordinator.exchange.events import Event, Reported
from dure_participant.exchange import actions as act
from dure_participant.exchange import inputs as inp
from dure_participant.exchange.state import NodeRunState
from dure_participant.exchange.step import owed, step


@dataclass(frozen=True)
class Answer:
    """What a node did with what it was shown."""

    before: NodeRunState
    state: NodeRunState
    actions: tuple[act.Action, ...]
    note: str

    def sent(self, kind: ReportKind) -> bytes:
        """Body of the report of this kind; b"" where the node let none go."""
        return next((a.report.body for a in self.actions if isinstance(a, act.Send) and a.report.kind is kind), b"")

    @property
    def uploads(self) -> bool:
        """Whether bytes of an update, or a commit, would leave now."""
        return any(isinstance(a, act.Upload | act.Commit) for a in self.actions)

    def refused(self, *words: str) -> bool:
        """Nothing changed, nothing leaves, and the operator reads why."""
        assert self.note.startswith("refused: ") and all(w in self.note for w in words), self.note
        assert self.state == self.before and all(isinstance(a, act.Note) for a in self.actions), self.actions
        return True

    def sits_out(self, *words: str) -> bool:
        """The node left the exchange before its first byte, saying why."""
        assert self.state.exchange is not None and self.state.exchange.sat_out and not self.uploads, self.note
        assert all(w in self.state.exchange.why_out for w in words), self.state.exchange.why_out
        return True


class Hostile(World):
    """Five members by default, one colluder assumed; `m00` is the victim unless a test says otherwise."""

    lie: Callable[[str, Report], Report] | None = None
    """What a dishonest member reports instead of what its honest half made."""

    def __init__(self, n: int = 5, c: int = 1, *, up: bool = True, **how: Any) -> None:
        super().__init__(n, c, **{"duplicate": 0.0, **how})
        if up:
            self.start()
            self.run_until(lambda w: w.idle())

    def apply(self, event: Event, *also: Any) -> ReportReply:
        if self.lie is not None and isinstance(event, Reported):
            event = Reported(event.member, self.lie(event.member, event.report))
        return super().apply(event, *also)

    # -- getting there -----------------------------------------------------------------------------------------------

    def reach(self, phase: str, purpose: str = "", *, seq: int = 1, weights: str | None = None, message: str = "train", **how: Any) -> Any:
        """Asks for an exchange and runs until its instance of this purpose is in this phase (or the exchange is, without one)."""
        if self.state.exchange is None or seq not in (self.state.exchange.asked.seq,):
            self.ask(seq, message, self.first_weights() if weights is None else weights, **how)
        self.run_until(lambda w: self._there(phase, purpose))
        return self.now_at

    def _there(self, phase: str, purpose: str) -> bool:
        exchange = self.state.exchange
        if exchange is None:
            return False
        if not purpose:
            return exchange.phase == phase
        return exchange.instance is not None and (exchange.instance.purpose, exchange.instance.phase) == (purpose, phase)

    @property
    def now_at(self) -> Any:
        """The current instance at the coordinator, or the exchange before its first."""
        assert self.state.exchange is not None
        return self.state.exchange.instance or self.state.exchange

    def settle_training(self, member: str) -> None:
        """The worker's result for what this node was told to execute."""
        for action in owed(self.nodes[member].site, self.state_of(member)):
            if isinstance(action, act.Train):
                self.feed(member, inp.Trained(action.exchange, self.train(member, action)))

    # -- what the attacker makes ---------------------------------------------------------------------------------------

    def seal(self, fact: Any) -> bytes:
        """A statement under the coordinator's real key."""
        envelope, self.chain = seal(fact, self.coordinator_key, self.chain, self.now)
        return envelope.to_bytes()

    def proof(self, envelope: bytes) -> bytes:
        """That this entry is in the log under a head all witnesses cosigned: they cosign whatever the log holds."""
        found = self.sim_log.covering(envelope, self.members, self.now)
        assert found is not None
        return found

    def signed_by(self, member: str, fact: Any, seq: int | None = None) -> bytes:
        """A statement under a colluding member's real node key, at any place of its chain."""
        chain = self.nodes[member].chain
        envelope, _ = seal(fact, self.nodes[member].site.node_key, chain if seq is None else replace(chain, seq=seq), self.now)
        return envelope.to_bytes()

    def directive(self, member: str, kind: str = "", **changes: Any) -> Directive:
        """What the honest logic would show this member now, with changes; of `documents` entries are changed, None removes one.

        With a kind: a directive of that kind, about the current exchange, instance and epoch, holding just what is given here.
        """
        exchange = self.state.exchange
        if kind:
            instance = exchange.instance.instance if exchange and exchange.instance else b""
            number = exchange.number if exchange else 0
            made = Directive(self.run, DirectiveKind(kind), number, instance, self.state.epochs, deadline_ms=int((self.now + 900) * 1000))
            return replace(made, **changes)
        honest = view.directive(self.state, member)
        if "documents" in changes:
            table = {**honest.documents, **changes["documents"]}
            changes["documents"] = {k: v for k, v in table.items() if v is not None}
        return replace(honest, **changes)

    def another(self, instance: bytes, **changes: Any) -> bytes:
        """The id of an instance like this one but for some of its parts."""
        if "purpose" in changes:
            changes["purpose"] = Purpose(changes["purpose"])
        return replace(InstanceId.decode(instance), **changes).tlv()

    # -- how it strikes ------------------------------------------------------------------------------------------------

    def show(self, member: str, directive: Directive) -> Answer:
        """The node's real step on a directive; its state is kept, its actions are looked at and not performed."""
        return self.feed(member, inp.Directed(directive))

    def feed(self, member: str, given: inp.Input) -> Answer:
        node = self.nodes[member]
        before = NodeRunState.from_bytes(node.state)
        done = step(node.site, node.history, node.chain, before, given, self.now, self.bytes)
        node.state, node.chain, node.history = done.state.to_bytes(), done.chain, node.history.with_records(done.records)
        assert NodeRunState.from_bytes(node.state) == done.state, "what a peer sends must never make the state unreadable"
        return Answer(before, done.state, done.actions, done.note)

    def says(self, member: str, kind: ReportKind, body: bytes, **where: Any) -> ReportReply:
        """A member's report, as the members' port hands it on: `member` is who the certificate says."""
        exchange = self.state.exchange
        instance = exchange.instance.instance if exchange and exchange.instance else b""
        fields = {"exchange": exchange.number if exchange else 0, "instance": instance, "epoch": self.state.epochs, **where}
        return self.apply(Reported(member, Report(self.run, kind, body=body, **fields)))


@lru_cache(maxsize=64)
def _scene(phase: str, purpose: str, n: int, c: int, how: tuple[tuple[str, Any], ...]) -> Hostile:
    made = Hostile(n, c, **dict(how))
    if phase:
        made.reach(phase, purpose)
    return made


def at(phase: str = "", purpose: str = "", *, n: int = 5, c: int = 1, **how: Any) -> Hostile:
    """A world of its own in which the first exchange's instance of this purpose is in this phase; "" before any exchange."""
    return copy.deepcopy(_scene(phase, purpose, n, c, tuple(sorted(how.items()))))
