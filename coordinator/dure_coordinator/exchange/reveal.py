"""Reveal: the cohort gives what removes the masks of exactly the certified set; each value is checked against its commitment."""

from __future__ import annotations

from dure.errors import DureError
from dure.secagg import recover
from dure.secagg.errors import BelowThreshold
from dure.secagg.ids import InstanceId
from dure.wire.messages import Report
from dure_coordinator.exchange.common import OK, Taken, abort, current, names, refusal_of, refuse, with_instance
from dure_coordinator.exchange.state import InstancePhase, InstanceState, RunState

_LATER = (InstancePhase.SUM, InstancePhase.AGGREGATE, InstancePhase.OPENED)


def take_reveal(state: RunState, member: str, report: Report, now: float) -> Taken:
    """A cohort member's reveal; one that adds pair secrets asked for since replaces the earlier one."""
    instance = current(state)
    if instance is None or report.instance != instance.instance:
        return Taken(state, refuse("instance", "is not being run"))
    if member not in instance.cohort:
        return Taken(state, refuse("member", "is not in the cohort"))
    if instance.reveals.get(member) == report.body or instance.phase in _LATER:
        return Taken(state, OK)
    if instance.phase is not InstancePhase.REVEAL:
        return Taken(state, refuse("instance", f"is in its phase {instance.phase}"))
    try:
        said = _check(state, instance, member, report.body)
    except DureError as e:
        return Taken(state, refusal_of(e))
    if member in instance.reveals and not _adds(state, instance, member, said):
        return Taken(state, refuse("body", "another reveal was kept"))
    return Taken(with_instance(state, reveals={**instance.reveals, member: report.body}))


def _adds(state: RunState, instance: InstanceState, member: str, said: recover.Reveal) -> bool:
    """Whether this second reveal is the first one and the pair secrets asked for since: nothing else may change."""
    before = _check(state, instance, member, instance.reveals[member])
    same = (before.own, before.self_shares, before.bundle_shares) == (said.own, said.self_shares, said.bundle_shares)
    wanted = set(instance.unopened)
    return same and bool(wanted - set(before.pair_secrets)) and wanted <= set(said.pair_secrets)


def _check(state: RunState, instance: InstanceState, member: str, body: bytes) -> recover.Reveal:
    assert state.epoch is not None
    return recover.check_reveal(
        body,
        instance=InstanceId.decode(instance.instance),
        ctx=instance.ctx,
        cohort=instance.cohort,
        survivors=instance.survivors,
        member=member,
        node_keys=state.epoch.node_keys,
    )


def advance_reveal(state: RunState, now: float) -> RunState:
    """Recovers as soon as it can; past the deadline the base can be neither opened nor voided, and the run ends."""
    instance = current(state)
    if instance is None or instance.phase is not InstancePhase.REVEAL:
        return state
    why = f"{len(instance.reveals)} members revealed, {instance.threshold} are needed"
    if len(instance.reveals) >= instance.threshold:
        try:
            found = recovered_from(state, instance)
        except BelowThreshold as e:
            why = str(e)
        except DureError as e:
            return abort(state, f"exchange cannot be opened: {e}")
        else:
            if not found.not_opening:
                return with_instance(state, phase=InstancePhase.SUM, recovered=found)
            if found.not_opening != instance.unopened:
                return with_instance(state, unopened=found.not_opening)
            why = f"the bundles of {names(found.not_opening)} do not open, and survivors have not given their pair secrets"
    if now >= instance.began + state.facts.plan.deadlines.reveal:
        missing = names(set(instance.cohort) - set(instance.reveals))
        return abort(state, f"{instance.purpose} was certified and cannot be opened: {why}; missing: {missing}. Its base needs a new run")
    return state


def recovered_from(state: RunState, instance: InstanceState) -> recover.Recovered:
    return recover.recover(
        instance=InstanceId.decode(instance.instance),
        ctx=instance.ctx,
        cohort=instance.cohort,
        survivors=instance.survivors,
        shares=instance.shares,
        reveals=instance.reveals,
        colluders=state.facts.colluders,
    )
