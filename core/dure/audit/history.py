"""What the entries of a log say about runs, exchanges and instances, and whether it fits together: every rule that the log alone can show.

One `History` reads the entries in order. A rule that does not hold is a `Refused` that names the field; the caller notes it with the index
and goes on, so that one report names everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dure.audit.keys import Keys, Party
from dure.errors import Refused
from dure.provenance.attestation import check_published
from dure.secagg.certificate import context, verify_certificate
from dure.secagg.ids import InstanceId
from dure.secagg.thresholds import share_threshold, u_min, voids_needed
from dure.statements import kinds
from dure.statements.statement import Signed


class RuleBroken(Refused):
    """An entry contradicts what stands before it, or what its plan and the charter allow."""


def must(holds: bool, field_name: str, why: str) -> None:
    if not holds:
        raise RuleBroken(field_name, why)


def check_author(kind: str, signed: Signed[Any], party: Party) -> None:
    """That whoever signed may say such a thing, and speaks for itself."""
    roles = _JUDGES.get(kind, (frozenset({"coordinator", "member", "node"}), None))[0]
    must(party.role in roles, "signatures", f"{kind} must be signed by a {' or '.join(sorted(roles))}, is by {party}")
    member = getattr(signed.fact, "member", None)
    if party.role != "coordinator" and member is not None:
        must(member == party.member, "member", f"{party} cannot speak for {member}")


@dataclass
class Instance:
    """One instance of the secure sum as the log tells it."""

    id: InstanceId
    opened: kinds.InstanceOpen
    ctx: bytes
    node_keys: dict[str, bytes]
    """Every member's node key when it was opened."""
    commits: dict[str, tuple[bytes, kinds.InstanceCommit]] = field(default_factory=dict)
    """member -> (payload digest, commit)."""
    survivors: tuple[str, ...] = ()
    survivors_sha256: bytes = b""
    aggregate_sha256: bytes = b""
    voids: set[str] = field(default_factory=set)
    dropouts: dict[str, str] = field(default_factory=dict)

    @property
    def cohort(self) -> tuple[str, ...]:
        return tuple(m.member for m in self.opened.cohort)


@dataclass
class Run:
    """One run as the log tells it."""

    plan: kinds.RunPlan
    approvals: set[str] = field(default_factory=set)
    instances: dict[bytes, Instance] = field(default_factory=dict)
    accepts: dict[int, dict[str, kinds.ExchangeAccept]] = field(default_factory=dict)
    usages: dict[tuple[int, str], bytes] = field(default_factory=dict)
    """(exchange, member) -> envelope digest."""

    def exchange(self, number: int) -> list[Instance]:
        return [i for i in self.instances.values() if i.id.exchange == number]


@dataclass
class History:
    """Everything so far."""

    keys: Keys
    runs: dict[bytes, Run] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Entries by kind."""
    disputes: list[tuple[int, Any]] = field(default_factory=list)

    def take(self, index: int, kind: str, signed: Signed[Any], party: Party) -> None:
        """Judges one entry whose signature and place in its chain hold.

        Raises:
            Refused: the first rule it breaks.
        """
        self.counts[kind] = self.counts.get(kind, 0) + 1
        check_author(kind, signed, party)
        judge = _JUDGES.get(kind, (None, None))[1]
        if kind == "dispute":
            self.disputes.append((index, signed.fact))
        if judge is not None:
            judge(self, signed)

    def run_of(self, run: bytes) -> Run:
        found = self.runs.get(run)
        if found is None:
            raise RuleBroken("run", f"{run.hex()[:12]} has no plan before this entry")
        return found

    def instance_of(self, raw: bytes) -> Instance:
        where = InstanceId.decode(raw)
        found = self.run_of(where.run).instances.get(raw)
        if found is None:
            raise RuleBroken("instance", f"{where.key} was not opened before this entry")
        return found


def _plan(history: History, signed: Signed[kinds.RunPlan]) -> None:
    plan, charter = signed.fact, history.keys.charter
    must(plan.consortium == charter.terms.consortium_id, "consortium", "is another one")
    must((plan.charter_version, plan.charter_sha256) == (charter.version, charter.digest), "charter_version", "is not in force here")
    members = {m.id for m in charter.members}
    must(set(plan.roster) <= members and list(plan.roster) == sorted(set(plan.roster)), "roster", "names strangers, or is out of order")
    must(plan.colluders == charter.colluders, "colluders", "is not the charter's")
    must(plan.u_min == u_min(len(plan.roster), plan.colluders), "u_min", "is not what the roster needs")
    must(plan.w_max <= charter.terms.w_max, "w_max", "is above the charter's")
    must(plan.outer_step.name != "none" or charter.terms.allow_unrecomputed_bases, "outer_step", "the charter wants it named")
    history.runs[signed.envelope.payload_sha256] = Run(plan)


def _approval(history: History, signed: Signed[kinds.RunApproval]) -> None:
    run = history.run_of(signed.fact.run)
    must(signed.fact.member in run.plan.roster, "member", "is not in the run's roster")
    run.approvals.add(signed.fact.member)


def _open(history: History, signed: Signed[kinds.InstanceOpen]) -> None:
    said = signed.fact
    where = InstanceId.decode(said.instance)
    run = history.run_of(where.run)
    cohort = tuple(m.member for m in said.cohort)
    must(where.consortium == run.plan.consortium and said.run == where.run, "instance", "is of another consortium or run")
    must(said.instance not in run.instances, "instance", f"{where.key} is opened twice")
    must(where.exchange <= run.plan.max_exchanges, "exchange", f"{where.exchange} is above the plan's {run.plan.max_exchanges}")
    must(len(run.approvals) >= run.plan.u_min, "run", f"{len(run.approvals)} members approved, {run.plan.u_min} are needed to open")
    must(list(cohort) == sorted(set(cohort)) and set(cohort) <= run.approvals, "cohort", "names somebody who has not approved")
    must(len(cohort) >= run.plan.u_min and said.u_min == run.plan.u_min, "u_min", "the cohort is too small")
    must(said.threshold == share_threshold(len(cohort), run.plan.colluders), "threshold", "is not what the cohort needs")
    if said.scales is not None:
        scales = run.instances.get(said.scales.instance)
        must(scales is not None and scales.aggregate_sha256 == said.scales.aggregate_sha256, "scales", "are not opened before")
        must(scales is not None and set(cohort) <= set(scales.survivors), "cohort", "is not of survivors of the scales")
    run.instances[said.instance] = Instance(where, said, context(where, signed.envelope.payload_sha256), history.keys.node_keys())


def _commit(history: History, signed: Signed[kinds.InstanceCommit]) -> None:
    said, digest = signed.fact, signed.envelope.payload_sha256
    instance = history.instance_of(said.instance)
    must(said.member in instance.cohort, "member", "is not in the cohort")
    must(said.ctx == instance.ctx, "ctx", "is of another instance-open than the one in the log")
    before = instance.commits.get(said.member)
    must(before is None or before[0] == digest, "instance", f"{said.member} committed to two different uploads of one instance")
    must(not instance.survivors or said.member not in instance.survivors, "instance", "comes after the survivor set that has it")
    instance.commits[said.member] = (digest, said)


def _survivors(history: History, signed: Signed[kinds.InstanceSurvivors]) -> None:
    said = signed.fact
    instance = history.instance_of(said.instance)
    run = history.run_of(instance.id.run)
    must(not instance.survivors, "instance", "has two survivor sets")
    must(said.ctx == instance.ctx, "ctx", "is of another instance-open")
    for survivor in said.survivors:
        found = instance.commits.get(survivor.member)
        must(
            found is not None and found[0] == survivor.commit_sha256,
            "survivors",
            f"the commit of {survivor.member} is not in the log before",
        )
    verify_certificate(
        instance.id,
        instance.ctx,
        instance.cohort,
        {s.member: s.commit_sha256 for s in said.survivors},
        {s.member: s.signature for s in said.certificate},
        instance.node_keys,
        run.plan.colluders,
        run.plan.u_min,
    )
    instance.survivors, instance.survivors_sha256 = tuple(s.member for s in said.survivors), signed.envelope.payload_sha256


def _aggregate(history: History, signed: Signed[kinds.InstanceAggregate]) -> None:
    said = signed.fact
    instance = history.instance_of(said.instance)
    run = history.run_of(instance.id.run)
    must(
        bool(instance.survivors) and said.survivors_sha256 == instance.survivors_sha256,
        "survivors_sha256",
        "is not the logged survivor set",
    )
    must(not instance.aggregate_sha256, "instance", "has two aggregates")
    must(said.ctx == instance.ctx, "ctx", "is of another instance-open")
    lengths = {instance.commits[m][1].length for m in instance.survivors}
    must(lengths == {said.length}, "length", "is not that of the uploads it is the sum of")
    needed = voids_needed(len(instance.cohort), run.plan.colluders)
    must(len(instance.voids) < needed, "instance", "is opened although enough members voided it")
    instance.aggregate_sha256 = signed.envelope.payload_sha256


def _dropout(history: History, signed: Signed[kinds.InstanceDropout]) -> None:
    instance = history.instance_of(signed.fact.instance)
    # Whoever was lost before the freeze is in no cohort, and is named all the same.
    must(signed.fact.member in history.run_of(instance.id.run).plan.roster, "member", "is not in the run's roster")
    must(signed.fact.member not in instance.survivors, "member", "is in the sum, and said to have dropped out")
    instance.dropouts[signed.fact.member] = signed.fact.reason


def _void(history: History, signed: Signed[kinds.InstanceVoid]) -> None:
    instance = history.instance_of(signed.fact.instance)
    must(signed.fact.member in instance.cohort, "member", "is not in the cohort")
    instance.voids.add(signed.fact.member)


def _accept(history: History, signed: Signed[kinds.ExchangeAccept]) -> None:
    said = signed.fact
    run = history.run_of(said.run)
    opened = {i.aggregate_sha256 for i in run.instances.values() if i.aggregate_sha256}
    must(set(said.aggregates) <= opened, "aggregates", "name a sum that is not in the log before")
    others = run.accepts.setdefault(said.exchange, {})
    must(said.member not in others, "exchange", f"{said.member} accepted exchange {said.exchange} twice")
    bases = {a.base_id for a in others.values()} | {said.base_id}
    must(len(bases) == 1, "base_id", f"members name different next bases after exchange {said.exchange}")
    sums = {a.aggregates for a in others.values()} | {said.aggregates}
    must(len(sums) == 1, "aggregates", f"members accepted different sums in exchange {said.exchange}")
    others[said.member] = said


def _usage(history: History, signed: Signed[kinds.Usage]) -> None:
    run = history.run_of(signed.fact.run)
    run.usages[signed.fact.exchange, signed.fact.member] = signed.envelope.sha256


def _release(history: History, signed: Signed[kinds.ReleasePublished]) -> None:
    release = check_published(signed.fact, history.keys.charter)
    history.run_of(release.run)


_Judge = Callable[[History, Signed[Any]], None]
_COORDINATOR, _NODE = frozenset({"coordinator"}), frozenset({"node"})
_JUDGES: dict[str, tuple[frozenset[str], _Judge | None]] = {
    "charter": (_COORDINATOR, None),
    "node-delegation": (frozenset({"member"}), None),
    "run-plan": (_COORDINATOR, _plan),
    "run-approval": (_NODE, _approval),
    "instance-open": (_COORDINATOR, _open),
    "instance-commit": (_NODE, _commit),
    "instance-survivors": (_COORDINATOR, _survivors),
    "instance-aggregate": (_COORDINATOR, _aggregate),
    "instance-dropout": (_COORDINATOR, _dropout),
    "instance-void": (_NODE, _void),
    "exchange-accept": (_NODE, _accept),
    "usage": (_NODE, _usage),
    "release-published": (_COORDINATOR, _release),
}
