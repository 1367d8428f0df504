"""Disputes: a member's signed word that an opened sum does not hold. Kept for good, shown to all, judged by each member for itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dure.errors import DureError
from dure.secagg import tlv
from dure.secagg.ids import InstanceId
from dure.statements.dsse import Envelope
from dure.statements.kinds import Dispute
from dure.statements.statement import open_statement, read_verified
from dure.wire.messages import Report
from dure_coordinator.exchange.common import OK, Taken, abort, all_exchanges, names, refusal_of, refuse
from dure_coordinator.exchange.state import Disputed, InstancePhase, InstanceState, RunPhase, RunState

SHOWN = 32
"""Latest disputes in every directive; a member that was away longer finds the rest by recomputing."""


def take_dispute(state: RunState, member: str, report: Report, now: float) -> Taken:
    """One per member and instance, about a sum this coordinator signed; taken when the run is over, too."""
    seen = state.present.get(member)
    if seen is None:
        return Taken(state, refuse("member", "has not connected"))
    try:
        word = open_statement(report.body, Dispute, [seen.node_key]).fact
    except DureError as e:
        return Taken(state, refusal_of(e))
    if (word.run, word.member) != (state.facts.run, member):
        return Taken(state, refuse("dispute", "names another run or member"))
    instance = _opened(state, member, word.instance)
    if instance is None or Envelope.from_bytes(instance.aggregate_envelope).payload_sha256 != word.aggregate_sha256:
        return Taken(state, refuse("dispute.aggregate_sha256", "is of no sum that was opened for this member in this run"))
    known = next((d for d in state.disputes if (d.member, d.instance) == (member, word.instance)), None)
    if known is not None:
        return Taken(state, OK if known.envelope == report.body else refuse("body", "another dispute of this sum was kept"))
    disputed = Disputed(member, word.instance, report.body, seen.delegation)
    return Taken(replace(state, disputes=(*state.disputes, disputed)))


def _opened(state: RunState, member: str, instance: bytes) -> InstanceState | None:
    for exchange in all_exchanges(state):
        for found in exchange.instances:
            if found.instance == instance and found.phase is InstancePhase.OPENED and member in exchange.members:
                return found
    return None


def advance_disputes(state: RunState, now: float) -> RunState:
    """Whoever disputes has frozen the run for itself; with too few others left it is frozen for all."""
    frozen = {d.member for d in state.disputes}
    if not frozen or state.phase in (RunPhase.FINISHED, RunPhase.ABORTED) or len(state.facts.roster) - len(frozen) >= state.facts.u_min:
        return state
    first = read_verified(state.disputes[0].envelope, Dispute)
    return abort(
        state,
        f"the run is frozen, its evidence is kept: {names(frozen)} dispute what was opened in exchange {first.exchange}: {first.reason}",
    )


def disputes_document(state: RunState) -> dict[str, bytes]:
    """For every directive of the run."""
    shown = tuple((d.envelope, d.delegation) for d in state.disputes[-SHOWN:])
    return {"disputes": tlv.encode(*shown)} if shown else {}


def disputes_in_words(state: RunState) -> list[dict[str, Any]]:
    """For `dure run show`."""
    found = []
    for disputed in state.disputes:
        word = read_verified(disputed.envelope, Dispute)
        found.append(
            {
                "member": word.member,
                "exchange": word.exchange,
                "purpose": InstanceId.decode(word.instance).purpose.value,
                "finding": word.finding,
                "chunk": word.chunk,
                "reason": word.reason,
            }
        )
    return found
