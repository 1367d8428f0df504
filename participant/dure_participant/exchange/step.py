"""The one entrance of the node's half: state and input give the next state, actions, and a note in words.

approving · epoch · execute · share · upload (open) · survivors (and reveal) · verify (result) · void      rules: who may send what, ever
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dure.errors import DureError, Refused
from dure.secagg.ids import InstanceId
from dure.statements.statement import Chain
from dure.wire.messages import Directive, DirectiveKind
from dure_participant.exchange import approving, dispute, epoch, execute, rules, share, survivors, upload, verify, void
from dure_participant.exchange.actions import Action, Note
from dure_participant.exchange.inputs import Allowed, Directed, Failed, Input, Recomputed, Trained, UploadReady, Verified
from dure_participant.exchange.owed import owed_in
from dure_participant.exchange.site import Committed, History, Sent, Site
from dure_participant.exchange.state import ExchangeWork, InstanceWork, NodeRunState
from dure_participant.exchange.turn import AheadOfMe, Turn, known_instances, plain, sit_out


@dataclass(frozen=True)
class Step:
    """What an input led to. The agent stores state, chain and records in one transaction, then performs the actions."""

    state: NodeRunState
    chain: Chain
    """Of the node key; shared by all runs of this node, so runs take turns in `step`."""
    records: tuple[Sent, ...]
    """Add to the history (by instance; a later record replaces an earlier one)."""
    actions: tuple[Action, ...]
    note: str
    """One line for the operator; "" when there is nothing to say."""
    statements: tuple[bytes, ...] = ()
    """Envelopes signed in this step, in order; kept for ever, and delivered to the log before anything that refers to them."""
    committed: tuple[Committed, ...] = ()
    """Env-commitments among them: add to the history."""


def begin(run: bytes, generations: Mapping[str, int] | None = None) -> NodeRunState:
    """The state before the run's first directive. `generations`: the highest this node has seen of each member, in any run."""
    return NodeRunState(run=run, generations=dict(generations or {}))


_FOLLOW: dict[DirectiveKind, Callable[[Turn, Directive], None]] = {
    DirectiveKind.APPROVE: approving.follow_approve,
    DirectiveKind.ADVERT: epoch.follow_advert,
    DirectiveKind.KEM: epoch.follow_kem,
    DirectiveKind.GROUP: epoch.follow_group,
    DirectiveKind.JOIN: epoch.follow_join,
    DirectiveKind.EXECUTE: execute.follow_execute,
    DirectiveKind.SHARE: share.follow_share,
    DirectiveKind.OPEN: upload.follow_open,
    DirectiveKind.SURVIVORS: survivors.follow_survivors,
    DirectiveKind.REVEAL: survivors.follow_reveal,
    DirectiveKind.RESULT: verify.follow_result,
    DirectiveKind.VOID: void.follow_void,
}


def step(site: Site, history: History, chain: Chain, state: NodeRunState, given: Input, now: float, rng: Callable[[int], bytes]) -> Step:
    """The next state. Whatever the coordinator sends wrongly changes nothing and is named in `note`; never raises for it.

    Args:
        history: of this node, all runs.
        now: unix seconds.
        rng: n fresh random bytes.
    """
    if state.stopped:
        return Step(state, chain, (), (), "")
    turn = Turn(site, history, chain, state, now, rng)
    try:
        _take(turn, given)
    except AheadOfMe as e:
        return Step(replace(state, stopped=plain(str(e))), chain, (), (Note(plain(str(e))),), plain(str(e)))
    except DureError as e:
        return Step(state, chain, (), (Note(plain(f"refused: {e}", 900)),), plain(f"refused: {e}", 900))
    before = () if isinstance(given, Directed) else tuple(a.id for a in owed_in(site, state) if not isinstance(a, Note))
    due = tuple(a for a in owed_in(site, turn.state) if isinstance(a, Note) or a.id not in before)
    note = "; ".join(turn.notes)
    actions = (*due, *((Note(note),) if note else ()))
    return Step(turn.state, turn.chain, tuple(turn.records), actions, note, tuple(turn.sealed), tuple(turn.fresh))


def owed(site: Site, state: NodeRunState) -> tuple[Action, ...]:
    """What is to be done in this state: performed again after a restart, with the same bytes."""
    return owed_in(site, state)


def _take(turn: Turn, given: Input) -> None:
    match given:
        case Directed():
            _follow(turn, given.directive)
        case Allowed():
            approving.take_allowed(turn, given)
        case Trained():
            execute.take_trained(turn, given)
        case UploadReady():
            upload.take_upload_ready(turn, given)
        case Verified():
            verify.take_verified(turn, given)
        case Recomputed():
            dispute.take_recomputed(turn, given)
        case Failed():
            _failed(turn, given)


def _follow(turn: Turn, directive: Directive) -> None:
    if directive.run != turn.state.run:
        raise Refused("run", "is another run")
    if turn.state.finished and directive.kind is not DirectiveKind.FINISHED:
        raise Refused("run", "is finished here")
    if "disputes" in directive.documents and turn.state.decision == "allowed":
        dispute.take_disputes(turn, directive.documents["disputes"])
    if directive.kind is DirectiveKind.FINISHED:
        _finish(turn, directive)
        return
    if directive.kind is DirectiveKind.WAIT:
        turn.change(kind="wait", status=plain(directive.reason, 900))
        if "voids" in directive.documents:
            rules.take_voids(turn, directive.documents["voids"])
        return
    if directive.kind is not DirectiveKind.APPROVE:
        if turn.state.decision != "allowed":
            raise Refused("kind", f"{directive.kind} before this node approved the plan (rule 6)")
        if turn.state.frozen and directive.kind not in (
            DirectiveKind.SHARE,
            DirectiveKind.RESULT,
            DirectiveKind.EXECUTE,
            DirectiveKind.VOID,
        ):
            raise Refused("run", f"is frozen here: {turn.state.frozen}")
    _FOLLOW[directive.kind](turn, directive)


def _finish(turn: Turn, directive: Directive) -> None:
    """The run is over: every secret of it is erased. Shown again, it may bring how the last instances ended."""
    if not turn.state.finished:
        void.part(turn, directive.reason)
        turn.note(plain(f"run over: {directive.reason}"))
    turn.change(kind="finished", finished=True, epoch=None, old_epoch=None, lost=b"", status=plain(directive.reason, 900))
    if "voids" in directive.documents:
        rules.take_voids(turn, directive.documents["voids"])
    if "certificates" in directive.documents:
        survivors.take_certificates(turn, directive.documents["certificates"])


def _failed(turn: Turn, given: Failed) -> None:
    """An action cannot be done: before its first byte the node sits out; after it, it can only be left out."""
    exchange = turn.state.exchange
    turn.note(f"{given.what}: {given.reason}")
    if given.what.split("/")[0] in ("recompute", "recheck"):
        dispute.gave_up(turn, given.what, given.reason)
        return
    doubted = _doubted(turn.state, given)
    if doubted is not None:
        dispute.doubt(turn, doubted, given.reason)
        return
    if exchange is None or exchange.sat_out or given.what.split("/")[0] not in ("train", "upload", "verify", "commit"):
        return
    if turn.state.kind == "result" and exchange.accept:
        return
    if not _concerns(exchange, given.what):
        return  # what an earlier exchange left behind is no reason to miss this one
    # The reason may hold paths, values or the app's own words: those are the operator's, not the coordinator's.
    sit_out(turn, f"{given.what.split('/')[0]}: could not be done at this node; its operator sees why")


def _doubted(state: NodeRunState, given: Failed) -> InstanceWork | None:
    """The sum that could not even be verified: not served, noise, no next base follows from it."""
    if not given.what.startswith("verify/") or not given.reason.startswith("sum: "):
        return None
    return next((w for w in known_instances(state) if given.what.endswith(InstanceId.decode(w.instance).key)), None)


def _concerns(exchange: ExchangeWork, what: str) -> bool:
    """Whether an action's id is of this exchange: an instance of it, or its training."""
    kind, _, rest = what.partition("/")
    return kind == "train" or any(InstanceId.decode(work.instance).key in rest for work in exchange.instances)
