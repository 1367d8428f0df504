"""Doubt: a sum that does not verify, or that another member disputes, is recomputed here; what is found decides, and is signed.

    doubt (tag, noise) → Recompute → frozen: "some member's upload was garbage" | "the coordinator's sum is wrong at chunk k"
    another's dispute  → Recompute of its chunk → nothing, or frozen on a mismatch this node found itself
Source: secure-aggregation.md, section 5, "A member that spoils sums".
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from dure.errors import Refused
from dure.recompute.sums import Finding
from dure.secagg import tlv
from dure.secagg.ids import InstanceId
from dure.statements.kinds import Dispute, NodeDelegation
from dure.statements.statement import open_statement, read_verified
from dure.wire.messages import Report, ReportKind
from dure_participant.exchange.actions import Action, Recompute, Send
from dure_participant.exchange.inputs import Recomputed
from dure_participant.exchange.rules import payload_sha256
from dure_participant.exchange.site import Site
from dure_participant.exchange.state import InstanceWork, NodeRunState, OwnDispute, SeenDispute
from dure_participant.exchange.turn import Turn, known_instances, plain, same, signing_key, sit_out

GARBAGE = "recomputation agrees with the coordinator: some member's upload was garbage, who sent it cannot be known"
KEPT = 64


def _known(state: NodeRunState, instance: bytes) -> InstanceWork | None:
    return next((w for w in known_instances(state) if w.instance == instance and w.aggregate_envelope), None)


# -- what this node doubts itself ---------------------------------------------------------------------------------


def doubt(turn: Turn, work: InstanceWork, why: str) -> None:
    """A sum does not verify: nothing more is done in this run, and the uploads will tell whose fault it is."""
    number = InstanceId.decode(work.instance).exchange
    reason = plain(f"the {work.purpose} sum of exchange {number} does not verify: {why}", 700)
    until_ms = int((turn.now + turn.plan.deadlines.accept) * 1000)
    work = replace(work, doubt=reason, doubt_until_ms=until_ms)
    turn.put_known(work)
    if work.recomputed == "agrees":
        _freeze(turn, work.instance, payload_sha256(work.aggregate_envelope), Finding("agrees"), f"{reason}; {GARBAGE}")
        return
    turn.change(frozen=f"{reason}; it is being recomputed from the members' uploads")
    turn.note(turn.state.frozen)


def take_recomputed(turn: Turn, given: Recomputed) -> None:
    """Judges a finding. The coordinator's word counts for nothing in it: `dure.recompute` started from the aggregate this node has."""
    finding, number = given.finding, InstanceId.decode(given.instance).exchange
    if given.dispute:
        seen = tuple(replace(d, result=plain(finding.words)) if d.sha256 == given.dispute else d for d in turn.state.disputes)
        turn.change(disputes=seen)
    work = _known(turn.state, given.instance)
    if work is not None and not given.dispute:
        work = replace(work, recomputed=finding.kind)
        turn.put_known(work)
    doubted = work.doubt if work is not None else ""
    turn.note(f"exchange {number}, {InstanceId.decode(given.instance).purpose}: {plain(finding.words)}")
    if finding.against_coordinator:
        before = doubted or f"exchange {number} was recomputed"
        _freeze(turn, given.instance, given.aggregate_sha256, finding, f"{before}; {finding.words}")
    elif doubted and finding.kind == "agrees" and not given.dispute:
        _freeze(turn, given.instance, given.aggregate_sha256, finding, f"{doubted}; {GARBAGE}")


def gave_up(turn: Turn, action: str, reason: str) -> None:
    """A recomputation could not be done here: the doubt stays, and so does the frozen run."""
    for work in known_instances(turn.state):
        if work.doubt and not work.recomputed and action == _doubt_id(work):
            turn.put_known(replace(work, recomputed="failed"))
            turn.change(frozen=plain(f"{work.doubt}; it could not be recomputed here: {reason}", 900))
            _leave(turn)
    looked = tuple(replace(d, result=plain(f"not rechecked: {reason}")) if action == _seen_id(d) else d for d in turn.state.disputes)
    turn.change(disputes=looked)


def _freeze(turn: Turn, instance: bytes, aggregate_sha256: bytes, finding: Finding, reason: str) -> None:
    reason = plain(reason, 900)
    turn.change(frozen=reason)
    if all(d.instance != instance for d in turn.state.own_disputes):
        word = Dispute(
            run=turn.state.run,
            exchange=InstanceId.decode(instance).exchange,
            member=turn.site.member,
            instance=instance,
            aggregate_sha256=aggregate_sha256,
            finding="garbage" if finding.kind == "agrees" else finding.kind,
            chunk=finding.chunk,
            leaf=finding.leaf,
            recomputed_leaf=finding.recomputed,
            upload_of=finding.member or None,
            reason=plain(reason),
        )
        own = OwnDispute(instance, turn.seal(word).to_bytes())
        turn.change(own_disputes=(*turn.state.own_disputes, own))
    turn.note(f"frozen: {reason}")
    _leave(turn)


def _leave(turn: Turn) -> None:
    exchange = turn.state.exchange
    if exchange is not None and not turn.state.finished and not exchange.accept and not exchange.sat_out:
        sit_out(turn, turn.state.frozen)


# -- what others dispute ------------------------------------------------------------------------------------------


def take_disputes(turn: Turn, document: bytes) -> None:
    """Remembers each dispute once, its author's signature checked; a recheck follows from the state."""
    for item in tlv.decode(document):
        if not isinstance(item, tuple) or len(item) != 2 or not all(isinstance(part, bytes) for part in item):
            raise Refused("disputes", "must be pairs of a dispute and a delegation")
        envelope, delegation = (bytes(part) for part in item if isinstance(part, bytes))
        digest = sha256(envelope).digest()
        if all(d.sha256 != digest for d in turn.state.disputes):
            _take_dispute(turn, digest, envelope, delegation)


def _take_dispute(turn: Turn, digest: bytes, envelope: bytes, delegation: bytes) -> None:
    author = read_verified(envelope, Dispute).member  # a claim, until the next two lines
    if author not in turn.plan.roster:
        raise Refused("disputes", f"{author} is not in this run's roster")
    delegated = open_statement(delegation, NodeDelegation, [signing_key(turn.site, author)]).fact
    word = open_statement(envelope, Dispute, [delegated.node_key]).fact
    same("disputes.run", (word.run, delegated.member), (turn.state.run, author), "is of another run or member")
    if author == turn.site.member:
        return
    where = InstanceId.decode(word.instance)
    same("disputes.instance", (where.run, where.exchange), (word.run, word.exchange), "is of another run or exchange")
    seen = SeenDispute(digest, author, word.exchange, word.instance, word.aggregate_sha256, word.finding, word.chunk)
    turn.note(f"{author} disputes the {where.purpose} sum of exchange {word.exchange}: {word.reason}")
    room = turn.state.disputes
    if len(room) >= KEPT:
        room = tuple(d for d in room if not d.result)[: KEPT - 1]
    turn.change(disputes=(*room, seen))


# -- what follows from the state ----------------------------------------------------------------------------------


def owed_disputes(site: Site, state: NodeRunState) -> tuple[Action, ...]:
    """Recomputations, and disputes to send: owed in every state, a finished one too."""
    found: list[Action] = [_recompute_doubted(w) for w in known_instances(state) if w.doubt and not w.recomputed]
    found += [_recheck(d) for d in state.disputes if not d.result and (d.exchange <= state.last_closed or _known(state, d.instance))]
    for own in state.own_disputes:
        number = InstanceId.decode(own.instance).exchange
        report = Report(state.run, ReportKind.DISPUTE, number, own.instance, 0, own.envelope)
        found.append(Send(f"send/{state.run.hex()[:12]}/dispute/{sha256(own.envelope).hexdigest()[:16]}", report))
    return tuple(found)


def _doubt_id(work: InstanceWork) -> str:
    return f"recompute/{InstanceId.decode(work.instance).key}"


def _seen_id(dispute: SeenDispute) -> str:
    return f"recheck/{dispute.sha256.hex()[:16]}"


def _recompute_doubted(work: InstanceWork) -> Recompute:
    return replace(recompute_first(work), until_ms=work.doubt_until_ms)


def recompute_first(work: InstanceWork) -> Recompute:
    """All of a sum this node was shown."""
    number = InstanceId.decode(work.instance).exchange
    return Recompute(_doubt_id(work), number, work.instance, payload_sha256(work.aggregate_envelope))


def _recheck(dispute: SeenDispute) -> Recompute:
    """That chunk, or everything but the chunks where none is named."""
    where = () if dispute.finding not in ("sum", "withheld") else (dispute.chunk or 0,)
    return Recompute(_seen_id(dispute), dispute.exchange, dispute.instance, dispute.aggregate_sha256, chunks=where, dispute=dispute.sha256)
