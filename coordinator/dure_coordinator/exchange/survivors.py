"""Survivors: each of U signs the one survivor set; a quorum certificate must stand before any share is revealed."""

from __future__ import annotations

from dure.errors import DureError
from dure.secagg import instance as sums
from dure.secagg.ids import InstanceId
from dure.statements.dsse import Envelope
from dure.statements.kinds import InstanceSurvivors, Survivor, SurvivorSignature
from dure.wire.messages import Report
from dure_coordinator.exchange.common import OK, Taken, current, names, refusal_of, refuse, with_instance
from dure_coordinator.exchange.state import InstancePhase, InstanceState, RunState
from dure_coordinator.exchange.void import begin_void


def commit_hashes(instance: InstanceState) -> dict[str, bytes]:
    """Payload digest of each survivor's commit: what is signed."""
    return {m: Envelope.from_bytes(instance.commits[m]).payload_sha256 for m in instance.survivors}


def take_signature(state: RunState, member: str, report: Report, now: float) -> Taken:
    """64 bytes over TLV("SA1", "survivors", I, ctx, U); signatures that come after the quorum are answered, not kept."""
    instance = current(state)
    if instance is None or report.instance != instance.instance:
        return Taken(state, refuse("instance", "is not being run"))
    if member not in instance.survivors:
        return Taken(state, refuse("member", "is not in the survivor set"))
    if member in instance.signatures:
        return Taken(state, OK if instance.signatures[member] == report.body else refuse("body", "another signature was kept"))
    if instance.decision == "void" or instance.phase in (InstancePhase.SHARE, InstancePhase.OPEN, InstancePhase.UPLOAD):
        return Taken(state, refuse("instance", f"is in its phase {instance.phase}"))
    try:
        check_signature(state, instance, member, report.body)
    except DureError as e:
        return Taken(state, refusal_of(e))
    if instance.phase is not InstancePhase.SURVIVORS:
        return Taken(state)
    return Taken(with_instance(state, signatures={**instance.signatures, member: report.body}))


def check_signature(state: RunState, instance: InstanceState, member: str, signature: bytes) -> None:
    assert state.epoch is not None
    payload = sums.survivors_message(InstanceId.decode(instance.instance), instance.ctx, commit_hashes(instance))
    sums.verify_survivors_signature(payload, signature, member=member, node_keys=state.epoch.node_keys)


def advance_survivors(state: RunState, now: float) -> RunState:
    """At t signatures the set is certified; below, at the deadline, the instance is voided."""
    instance = current(state)
    if instance is None or instance.phase is not InstancePhase.SURVIVORS:
        return state
    if len(instance.signatures) < instance.threshold:
        if now < instance.began + state.facts.plan.deadlines.survivors:
            return state
        missing = names(set(instance.survivors) - set(instance.signatures))
        return begin_void(
            state, f"{len(instance.signatures)} members signed the survivor set, {instance.threshold} are needed; missing: {missing}", now
        )
    hashes = commit_hashes(instance)
    statement = InstanceSurvivors(
        instance=instance.instance,
        ctx=instance.ctx,
        survivors=tuple(Survivor(m, hashes[m]) for m in instance.survivors),
        certificate=tuple(SurvivorSignature(m, instance.signatures[m]) for m in sorted(instance.signatures)),
    )
    return with_instance(state, phase=InstancePhase.CERTIFY, survivors_statement=statement)


def certified(state: RunState, envelope: bytes, now: float) -> RunState:
    """instance-survivors is signed and an entry: its head goes to the witnesses."""
    instance = current(state)
    if instance is None or instance.phase is not InstancePhase.CERTIFY:
        return state
    return with_instance(state, phase=InstancePhase.COSIGN, survivors_envelope=envelope, began=now)


def cosigned(state: RunState, proof: bytes, now: float) -> RunState:
    """The survivors' entry is under a cosigned head: the decision to reveal is taken, once and for all, and shares may be asked for."""
    instance = current(state)
    if instance is None or instance.phase is not InstancePhase.COSIGN:
        return state
    return with_instance(state, phase=InstancePhase.REVEAL, decision="reveal", survivors_proof=proof, began=now)


def advance_cosign(state: RunState, now: float) -> RunState:
    """Without a cosigned head by the deadline the instance is voided: nothing was asked to be revealed in it."""
    instance = current(state)
    if instance is None or instance.phase is not InstancePhase.COSIGN:
        return state
    if now < instance.began + state.facts.plan.deadlines.survivors:
        return state
    return begin_void(
        state, "the log's head over its survivor set was not cosigned in time (`dure coordinator status` names the witnesses)", now
    )
