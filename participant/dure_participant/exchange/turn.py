"""One call of `step` while it runs: what it was given, what it has decided so far. Lives no longer than the call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from dure.errors import Refused
from dure.secagg import thresholds, tlv
from dure.secagg.epoch import EpochKeys
from dure.secagg.ids import InstanceId
from dure.secagg.instance import InstanceSecret
from dure.statements.dsse import Envelope, canonical_json
from dure.statements.kinds import EnvCommitment, RunPlan
from dure.statements.schema import decode
from dure.statements.statement import Chain, Signed, seal, subject
from dure_participant.exchange.site import Committed, History, Sent, Site
from dure_participant.exchange.state import EpochWork, ExchangeWork, InstanceWork, NodeRunState


@dataclass
class Turn:
    """Handlers read and change it; `step` turns it into a `Step`, or throws it away when something is refused."""

    site: Site
    history: History
    chain: Chain
    state: NodeRunState
    now: float
    rng: Callable[[int], bytes]
    records: list[Sent] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sealed: list[bytes] = field(default_factory=list)
    """Statements signed in this turn, in the order of their numbers."""
    fresh: list[Committed] = field(default_factory=list)
    """Env-commitments among them."""

    def change(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    def change_exchange(self, **changes: Any) -> None:
        assert self.state.exchange is not None
        self.change(exchange=replace(self.state.exchange, **changes))

    def put_instance(self, work: InstanceWork) -> None:
        """Adds the instance to the exchange, or replaces it."""
        exchange = self.state.exchange
        assert exchange is not None
        known = [i.instance for i in exchange.instances]
        if work.instance in known:
            self.change_exchange(instances=tuple(work if i.instance == work.instance else i for i in exchange.instances))
        else:
            self.change_exchange(instances=(*exchange.instances, work))

    def put_known(self, work: InstanceWork) -> None:
        """Replaces the instance where it is: in the exchange, or among the past ones."""
        if any(p.instance == work.instance for p in self.state.past):
            self.change(past=tuple(work if p.instance == work.instance else p for p in self.state.past))
        else:
            self.put_instance(work)

    def seal(self, fact: Any) -> Envelope:
        """The next statement of this node's chain."""
        envelope, self.chain = seal(fact, self.site.node_key, self.chain, self.now)
        self.sealed.append(envelope.to_bytes())
        return envelope

    def committed(self, environment: EnvCommitment) -> bytes:
        """Envelope digest of this node's env-commitment that says this: signed now, or when it was true first."""
        about = subject(environment)
        known = next((c for c in self.history.committed if c.subject == about), None)
        if known is None:
            known = Committed(about, self.seal(environment).sha256)
            self.history = self.history.with_committed((known,))
            self.fresh.append(known)
        return known.envelope_sha256

    def record(self, sent: Sent) -> None:
        self.history = self.history.with_records((sent,))
        self.records.append(sent)

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def plan(self) -> RunPlan:
        return plan_of(self.state.plan_envelope)

    @property
    def u_min(self) -> int:
        """From the pinned charter, never from the coordinator."""
        return thresholds.u_min(len(self.plan.roster), self.site.colluders)

    @property
    def exchange(self) -> ExchangeWork:
        assert self.state.exchange is not None
        return self.state.exchange


@lru_cache(maxsize=16)
def plan_of(envelope: bytes) -> RunPlan:
    """The plan in an envelope that was verified when it was taken."""
    predicate = dict(json.loads(Envelope.from_bytes(envelope).payload)["predicate"])
    for name in ("seq", "prev", "time", "checkpoint"):
        predicate.pop(name)
    return decode(RunPlan, predicate)


def same(field_name: str, got: Any, expected: Any, why: str = "") -> None:
    """Refuses, naming the field, what is not as this node knows it."""
    if got != expected:
        raise Refused(field_name, why or "is not what this node knows")


def signing_key(site: Site, member: str) -> bytes:
    """The key that delegates for a member; `Refused` for one that left."""
    if member not in site.members:
        raise Refused("members", f"{member} is no member of the charter any more")
    return site.members[member]


def document(documents: Mapping[str, bytes], name: str) -> bytes:
    if name not in documents:
        raise Refused(name, "is absent from the directive")
    return documents[name]


class AheadOfMe(Exception):
    """This node's own key has signed what this node does not remember: it was restored from an older copy (rule 7)."""


def own_word(turn: Turn, signed: Signed[Any]) -> None:
    """`AheadOfMe` where a statement under this node's own key has a number this node has not given out yet."""
    if signed.key == turn.site.node_key.public_key().public_bytes_raw() and signed.seq >= turn.chain.seq:
        raise AheadOfMe(
            f"this node's own statement {signed.seq} is known to others and it remembers {turn.chain.seq}: it was restored from an older "
            "copy; make a new node under a higher generation (`dure node init`)"
        )


def find_instance(exchange: ExchangeWork | None, instance: bytes) -> InstanceWork:
    """The instance of that id; `Refused` if this node deals in no such instance."""
    for work in exchange.instances if exchange else ():
        if work.instance == instance:
            return work
    raise Refused("instance", "this node knows no such instance")


def known_instances(state: NodeRunState) -> tuple[InstanceWork, ...]:
    """Every instance this run's state still holds."""
    return (*state.past, *(state.exchange.instances if state.exchange else ()))


def find_known(state: NodeRunState, instance: bytes) -> InstanceWork:
    """The same, among the instances of earlier exchanges too."""
    past = next((p for p in state.past if p.instance == instance), None)
    return past if past is not None else find_instance(state.exchange, instance)


def secret_of(work: InstanceWork) -> InstanceSecret:
    if not work.secret:
        raise Refused("instance", "this node has dealt nothing in it")
    return InstanceSecret.from_bytes(work.secret)


def joined_epoch(state: NodeRunState, number: int) -> EpochWork | None:
    """That epoch, if its keys are complete here."""
    for epoch in (state.epoch, state.old_epoch):
        if epoch is not None and epoch.number == number and epoch.keys:
            return epoch
    return None


def epoch_keys(epoch: EpochWork) -> EpochKeys:
    return EpochKeys.from_bytes(epoch.keys)


def advance_chains(turn: Turn, exchange: int) -> None:
    """Erases the keys of this exchange and every earlier one, in whatever epoch they are."""

    def moved(epoch: EpochWork | None) -> EpochWork | None:
        if epoch is None or not epoch.keys:
            return epoch
        return replace(epoch, keys=epoch_keys(epoch).advanced_past(exchange).to_bytes())

    turn.change(epoch=moved(turn.state.epoch), old_epoch=moved(turn.state.old_epoch))


def report_body(**said: Any) -> bytes:
    """JSON of a ready, sit-out or lost report."""
    return canonical_json(said)


def plain(text: str, most: int = 500) -> str:
    """One printable line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]


def sit_out(turn: Turn, reason: str, *, convicts: str = "", evidence: bytes = b"") -> None:
    """Leaves the exchange, with the reason; nothing of this node's update has left."""
    said: dict[str, str] = {"reason": plain(reason)}
    if convicts:
        said |= {"convicts": convicts, "evidence": evidence.hex()}
    turn.change_exchange(sat_out=report_body(**said), why_out=plain(reason))
    turn.note(f"sits out of exchange {turn.exchange.number}: {plain(reason)}")


def lose(turn: Turn, epoch: int, reason: str, *, convicts: str = "", evidence: bytes = b"") -> None:
    """Asks for a new epoch."""
    said: dict[str, str] = {"reason": plain(reason)}
    if convicts:
        said |= {"convicts": convicts, "evidence": evidence.hex()}
    turn.change(lost=report_body(**said), lost_epoch=epoch, kind="lost")
    turn.note(f"epoch {epoch} cannot be used: {plain(reason)}")


def instance_id(raw: bytes) -> InstanceId:
    return InstanceId.decode(raw)


def pack(*parts: bytes) -> bytes:
    return tlv.encode(*parts)


def unpack(raw: bytes, field_name: str) -> tuple[bytes, ...]:
    """A TLV list of byte strings."""
    parts = tlv.decode(raw)
    if not all(isinstance(p, bytes) for p in parts):
        raise Refused(field_name, "must be a list of byte strings")
    return tuple(p for p in parts if isinstance(p, bytes))
