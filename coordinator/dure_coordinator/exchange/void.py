"""Void: an instance that cannot be finished is given up. V certificates show that it can never be opened, and the base is free again."""

from __future__ import annotations

from dataclasses import replace

from dure.errors import DureError
from dure.secagg import thresholds
from dure.statements.kinds import InstanceVoid
from dure.statements.statement import open_statement
from dure.wire.messages import Report
from dure_coordinator.exchange.close import fail_exchange
from dure_coordinator.exchange.common import OK, Taken, abort, all_exchanges, current, names, refusal_of, refuse, with_instance, with_known
from dure_coordinator.exchange.state import InstancePhase, InstanceState, RunState


def begin_void(state: RunState, reason: str, now: float) -> RunState:
    """The decision is void, once and for all: nothing is ever asked to be revealed in this instance."""
    instance = current(state)
    assert instance is not None and instance.decision == ""
    return with_instance(state, phase=InstancePhase.VOID, decision="void", reason=reason, began=now)


def take_void(state: RunState, member: str, report: Report, now: float) -> Taken:
    """One member's instance-void, of the instance's own cohort."""
    instance = current(state)
    if instance is None or report.instance != instance.instance or instance.decision != "void":
        return Taken(state, refuse("instance", "is not being voided"))
    if member not in instance.cohort:
        return Taken(state, refuse("member", "is not in the cohort"))
    if member in instance.voids:
        return Taken(state, OK if instance.voids[member] == report.body else refuse("body", "another void was kept"))
    assert state.epoch is not None
    try:
        word = open_statement(report.body, InstanceVoid, [state.epoch.node_keys[member]]).fact
    except DureError as e:
        return Taken(state, refusal_of(e))
    if (word.instance, word.member) != (instance.instance, member):
        return Taken(state, refuse("void", "names another instance or member"))
    return Taken(with_instance(state, voids={**instance.voids, member: report.body}))


def take_parting(state: RunState, member: str, report: Report, now: float) -> Taken:
    """A void that comes after the run's end: nodes give up whatever they do not know the end of, so that the base may be free again."""
    found = next((i for e in all_exchanges(state) for i in e.instances if i.instance == report.instance), None)
    if found is None or member not in found.cohort:
        return Taken(state, refuse("instance", "is none of this run's that this member dealt in"))
    if member in found.voids:
        return Taken(state, OK if found.voids[member] == report.body else refuse("body", "another void was kept"))
    epoch, seen = state.epoch, state.present.get(member)
    keys = [*((epoch.node_keys[member],) if epoch and member in epoch.node_keys else ()), *((seen.node_key,) if seen else ())]
    try:
        word = open_statement(report.body, InstanceVoid, keys).fact
    except DureError as e:
        return Taken(state, refusal_of(e))
    if (word.instance, word.member) != (found.instance, member):
        return Taken(state, refuse("void", "names another instance or member"))
    return Taken(with_known(state, replace(found, voids={**found.voids, member: report.body})))


def voids_needed(state: RunState, instance: InstanceState) -> int:
    return thresholds.voids_needed(len(instance.cohort), state.facts.colluders)


def advance_void(state: RunState, now: float) -> RunState:
    """V voids close the exchange as failed. Without them by the deadline nobody can say the base is free: the run ends."""
    instance = current(state)
    if instance is None or instance.phase is not InstancePhase.VOID:
        return state
    needed = voids_needed(state, instance)
    if len(instance.voids) >= needed:
        return fail_exchange(with_instance(state, phase=InstancePhase.VOIDED), instance.reason)
    if now >= instance.began + state.facts.plan.deadlines.accept:
        missing = names(set(instance.cohort) - set(instance.voids))
        return abort(
            state, f"{instance.reason}; and {len(instance.voids)} of {needed} needed members gave the instance up; missing: {missing}"
        )
    return state
