"""Key epochs, the coordinator's half: adverts, kems, groups are passed around and verified on the way; whoever is silent
at a deadline is left out, if u_min remain, and a new epoch number is begun with the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dure.errors import DureError
from dure.secagg import epoch as keys
from dure.secagg.errors import Malformed
from dure.wire.messages import Report, ReportKind
from dure_coordinator.exchange.approving import candidates
from dure_coordinator.exchange.common import OK, Taken, in_flight, is_lost, json_body, names, refusal_of, refuse, sit_out
from dure_coordinator.exchange.state import EpochPhase, EpochState, RunPhase, RunState

LOST_TWICE = 2
"""How often in a row a member may give an epoch up before the others go on without it."""
_NEXT = {EpochPhase.ADVERT: EpochPhase.KEM, EpochPhase.KEM: EpochPhase.GROUP, EpochPhase.GROUP: EpochPhase.JOIN}


def start_epoch(state: RunState, now: float) -> RunState:
    """A new epoch among the candidates."""
    members = candidates(state)
    number = state.epochs + 1
    node_keys = {m: state.present[m].node_key for m in members}
    words = {m: state.present[m].delegation for m in members}
    epoch = EpochState(number, EpochPhase.ADVERT, members, now, now, node_keys=node_keys, delegations=words)
    return replace(state, phase=RunPhase.EPOCH, epoch=epoch, epochs=number, renew=False, reason="")


def epoch_is_due(state: RunState, now: float) -> bool:
    """Whether keys must be agreed anew before the next exchange."""
    epoch = state.epoch
    if epoch is None or state.renew or now >= epoch.started + state.facts.epoch_max_s:
        return True
    return any(epoch.node_keys.get(m) != state.present[m].node_key for m in candidates(state))


def take_epoch_message(state: RunState, member: str, report: Report, now: float) -> Taken:
    """advert, kem, group or joined."""
    epoch = state.epoch
    if epoch is None or report.epoch != epoch.number:
        return Taken(state, refuse("epoch", f"is {report.epoch}, the current one is {epoch.number if epoch else 0}"))
    if member not in epoch.members:
        return Taken(state, refuse("member", f"is not in epoch {epoch.number}"))
    if report.kind is ReportKind.JOINED:
        return _take_joined(state, epoch, member)
    kept = _table(epoch, report.kind)
    if member in kept:
        return Taken(state, OK if kept[member] == report.body else refuse("body", "another message of this kind was kept"))
    if state.phase is not RunPhase.EPOCH or epoch.phase.value != report.kind.value:
        return Taken(state, refuse("kind", f"the epoch is in its phase {epoch.phase}"))
    try:
        _verify(state, epoch, member, report)
    except DureError as e:
        return Taken(state, refusal_of(e))
    kept = {**kept, member: report.body}
    if report.kind is ReportKind.ADVERT:
        epoch = replace(epoch, adverts=kept)
    else:
        epoch = replace(epoch, kems=kept) if report.kind is ReportKind.KEM else replace(epoch, groups=kept)
    return Taken(replace(state, epoch=epoch))


def _take_joined(state: RunState, epoch: EpochState, member: str) -> Taken:
    if member in epoch.joined:
        return Taken(state)
    if epoch.phase not in (EpochPhase.JOIN, EpochPhase.READY):
        return Taken(state, refuse("kind", f"the epoch is in its phase {epoch.phase}"))
    lost = {m: times for m, times in state.lost.items() if m != member}
    return Taken(replace(state, lost=lost, epoch=replace(epoch, joined=tuple(sorted({*epoch.joined, member})))))


def _table(epoch: EpochState, kind: ReportKind) -> Mapping[str, bytes]:
    return {ReportKind.ADVERT: epoch.adverts, ReportKind.KEM: epoch.kems, ReportKind.GROUP: epoch.groups}[kind]


def _verify(state: RunState, epoch: EpochState, member: str, report: Report) -> None:
    facts, said = state.facts, epoch.node_keys
    message: keys.Advert | keys.Kem | keys.Group
    if report.kind is ReportKind.ADVERT:
        message = advert = keys.verify_advert(report.body, member=member, node_keys=said)
        if advert.generation != state.present[member].generation:
            raise Malformed("epoch-advert.generation", "is not the one this node connected with")
    elif report.kind is ReportKind.KEM:
        message = keys.verify_kem(report.body, member=member, members=epoch.members, node_keys=said)
    else:
        message = keys.verify_group(report.body, member=member, members=epoch.members, node_keys=said)
    if (message.consortium, message.run, message.epoch) != (facts.consortium, facts.run, epoch.number):
        raise Malformed("epoch", "the message belongs to another consortium, run or epoch")


def take_lost(state: RunState, member: str, report: Report, now: float) -> Taken:
    """A node lost its epoch state, or shows that the epoch cannot be completed: keys are agreed anew.

    Body: JSON {reason, convicts?, evidence? (hex)}. The evidence is judged here; without a guilty party nobody is left out.
    """
    epoch = state.epoch
    if epoch is None or report.epoch != epoch.number or member not in epoch.members:
        return Taken(state, refuse("epoch", "is not the current one"))
    try:
        said = json_body(report.body, {"reason": str, "convicts": str, "evidence": str}, ("reason",))
    except DureError as e:
        return Taken(state, refusal_of(e))
    guilty = _convicted(epoch, said)
    if guilty is not None:
        state = replace(state, convicted={**state.convicted, guilty: str(said["reason"])[:500]})
    if in_flight(state) is not None:
        return Taken(sit_out(replace(state, renew=True), member, "keys", str(said["reason"])))
    if state.phase is not RunPhase.EPOCH:
        return Taken(replace(state, renew=True))
    if member in state.left_out:  # said already; too few others are there to go on
        return Taken(state)
    times = state.lost.get(member, 0) + 1
    state = replace(state, lost={**state.lost, member: min(times, LOST_TWICE)})
    if times >= LOST_TWICE:  # nobody can say who lies: the others go on without whoever says it again, and both stand named
        state = replace(state, left_out=tuple(sorted({*state.left_out, member})))
    if len(candidates(state)) >= state.facts.u_min:
        return Taken(start_epoch(state, now))
    return Taken(replace(state, renew=True, reason=f"{member} cannot complete epoch {epoch.number}: {said['reason']}"[:500]))


def _convicted(epoch: EpochState, said: Mapping[str, str]) -> str | None:
    accused = said.get("convicts", "")
    if accused not in epoch.adverts or accused not in epoch.groups:
        return None
    try:
        evidence = bytes.fromhex(said.get("evidence", ""))
        own = {"advert": epoch.adverts[accused], "group": epoch.groups[accused]}
        return keys.judge_group(evidence, members=epoch.members, node_keys=epoch.node_keys, **own)
    except (DureError, ValueError, KeyError):
        return None


def advance_epoch(state: RunState, now: float) -> RunState:
    """Next phase when all have spoken; at the deadline, or when the silent are lost, a new try with those who did."""
    epoch = state.epoch
    if state.phase is not RunPhase.EPOCH or epoch is None:
        return state
    spoken = _spoken(epoch)
    silent = [m for m in epoch.members if m not in spoken]
    late = now >= epoch.began + state.facts.plan.deadlines.epoch
    if not silent or (epoch.phase is EpochPhase.JOIN and late and len(spoken) >= state.facts.u_min):
        if epoch.phase is EpochPhase.JOIN:
            return replace(state, phase=RunPhase.IDLE, epoch=replace(epoch, phase=EpochPhase.READY, began=now), reason="")
        return replace(state, epoch=replace(epoch, phase=_NEXT[epoch.phase], began=now))
    gone = [m for m in silent if is_lost(state, m)]
    if late or gone:
        out = silent if late else gone
        without = replace(state, left_out=tuple(sorted({*state.left_out, *out})))
        if len(candidates(without)) >= state.facts.u_min:
            return start_epoch(without, now)
        if late:  # too few would remain: the silent are asked again, under a new number, as soon as enough are there
            return replace(state, phase=RunPhase.IDLE, renew=True, left_out=(), reason=f"keys not agreed: {names(silent)} did not answer")
    return state


def _spoken(epoch: EpochState) -> tuple[str, ...]:
    if epoch.phase is EpochPhase.JOIN:
        return epoch.joined
    return tuple({EpochPhase.ADVERT: epoch.adverts, EpochPhase.KEM: epoch.kems, EpochPhase.GROUP: epoch.groups}[epoch.phase])
