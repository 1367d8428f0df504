"""What the entries of a log say about runs, exchanges and instances, and whether it fits together: every rule that the log alone can show.

One `History` reads the entries in order. A rule that does not hold is a `Refused` that names the field; the caller notes it with the index
and goes on, so that one report names everything. Memory grows with the number of runs and environments, and not with exchanges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from dure.audit.entry import Entry
from dure.audit.exchanges import Exchange, Instance, Shelf
from dure.audit.keys import Keys, Party
from dure.errors import Refused
from dure.provenance.allocation import check_members, check_portions
from dure.provenance.attestation import check_published
from dure.provenance.evaluation import CATEGORY, evaluation
from dure.secagg.certificate import check_set, check_signers, context, survivors_message, verify_survivors_signature
from dure.secagg.ids import InstanceId, Purpose
from dure.secagg.thresholds import share_threshold, u_min, voids_needed
from dure.statements import kinds

MOST_DISPUTES = 1_000
"""Listed one by one; a log with more is in a state that a list does not make clearer."""


class RuleBroken(Refused):
    """An entry contradicts what stands before it, or what its plan and the charter allow."""


class Expired(Refused):
    """Something new began under a charter version that had expired."""


def must(holds: bool, field_name: str, why: str) -> None:
    if not holds:
        raise RuleBroken(field_name, why)


def check_author(kind: str, fact: Any, party: Party) -> None:
    """That whoever signed may say such a thing, and speaks for itself."""
    roles = _JUDGES.get(kind, _ANYBODY)[0]
    if party.role not in roles:
        raise RuleBroken("signatures", f"{kind} must be signed by a {' or '.join(sorted(roles))}, is by {party}")
    member = getattr(fact, "member", None)
    if party.role != "coordinator" and member is not None and member != party.member:
        raise RuleBroken("member", f"{party} cannot speak for {member}")


@dataclass
class Run:
    """One run as the log tells it: what its plan fixed, and how far it came."""

    app: str
    rounds: int
    consortium: bytes
    roster: tuple[str, ...]
    colluders: int
    u_min: int
    max_exchanges: int
    outer_step: str
    charter_version: int
    charter_sha256: bytes
    w_max: int
    approvals: set[str] = field(default_factory=set)
    opened: int = 0
    """Instances."""
    aggregates: int = 0
    summed: int = 0
    """Exchanges with a sum."""
    counted: Counter[str] = field(default_factory=Counter)
    """member -> sums it is in, scales apart."""
    accepted: int = 0
    """Acceptances."""

    @staticmethod
    def of(plan: kinds.RunPlan) -> Run:
        step = plan.outer_step.name
        limits = (plan.roster, plan.colluders, plan.u_min, plan.max_exchanges)
        return Run(plan.app_name, plan.rounds, plan.consortium, *limits, step, plan.charter_version, plan.charter_sha256, plan.w_max)


@dataclass
class Environment:
    """One env-commitment, and how often it was named."""

    fact: kinds.EnvCommitment
    index: int
    named: int = 0
    """Usage statements that name it."""


@dataclass
class History:
    """Everything so far."""

    keys: Keys
    runs: dict[bytes, Run] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Entries by kind."""
    names_data: int = 0
    """Usage statements that name a data commitment."""
    environments: dict[bytes, Environment] = field(default_factory=dict)
    """By envelope digest, in the order of the log."""
    disputes: list[int] = field(default_factory=list)
    """Their indices, the first `MOST_DISPUTES`."""
    shelf: Shelf = field(default_factory=Shelf)

    def take(self, index: int, entry: Entry, party: Party) -> None:
        """Judges one entry whose signature and place in its chain hold.

        Raises:
            Refused: the first rule it breaks.
        """
        kind, fact = entry.kind, entry.fact
        self.counts[kind] = self.counts.get(kind, 0) + 1
        check_author(kind, fact, party)
        judge = _JUDGES.get(kind, _ANYBODY)[1]
        if kind == "env-commitment":
            self.environments.setdefault(entry.sha256, Environment(fact, index))
        if kind == "dispute" and len(self.disputes) < MOST_DISPUTES:
            self.disputes.append(index)
        if judge is not None:
            judge(self, fact, entry)

    def run_of(self, run: bytes) -> Run:
        found = self.runs.get(run)
        if found is None:
            raise RuleBroken("run", f"{run.hex()[:12]} has no plan before this entry")
        return found

    def instance_of(self, raw: bytes) -> tuple[Instance, Run, Exchange]:
        where = instance_id(raw)
        run, exchange = self.run_of(where.run), self.shelf.get(where.run, where.exchange)
        found = exchange.instances.get(raw)
        if found is None:
            raise RuleBroken("instance", f"{where.key} was not opened before this entry")
        return found, run, exchange


@lru_cache(maxsize=256)
def instance_id(raw: bytes) -> InstanceId:
    return InstanceId.decode(raw)


def _plan(history: History, plan: kinds.RunPlan, entry: Entry) -> None:
    charter = history.keys.charter
    must(plan.consortium == charter.terms.consortium_id, "consortium", "is another one")
    must((plan.charter_version, plan.charter_sha256) == (charter.version, charter.digest), "charter_version", "is not in force here")
    members = {m.id for m in charter.members}
    must(set(plan.roster) <= members and list(plan.roster) == sorted(set(plan.roster)), "roster", "names strangers, or is out of order")
    must(plan.colluders == charter.colluders, "colluders", "is not the charter's")
    must(plan.u_min == u_min(len(plan.roster), plan.colluders), "u_min", "is not what the roster needs")
    must(plan.w_max <= charter.terms.w_max, "w_max", "is above the charter's")
    must(plan.initial is None or plan.base is None, "initial", "the first weights are drawn, or those of a base, and not both")
    must(plan.outer_step.named or charter.terms.allow_unrecomputed_bases, "outer_step", "the charter wants it named")
    history.runs.setdefault(entry.payload_sha256, Run.of(plan))
    if entry.time >= charter.expires:
        raise Expired("time", f"the run was planned after charter version {charter.version} had expired, by the coordinator's own clock")


def _approval(history: History, said: kinds.RunApproval, _entry: Entry) -> None:
    run = history.run_of(said.run)
    must(said.member in run.roster, "member", "is not in the run's roster")
    run.approvals.add(said.member)


def _open(history: History, said: kinds.InstanceOpen, entry: Entry) -> None:
    where = instance_id(said.instance)
    run = history.run_of(where.run)
    exchange = history.shelf.get(where.run, where.exchange)
    cohort = tuple(m.member for m in said.cohort)
    must(where.consortium == run.consortium and said.run == where.run, "instance", "is of another consortium or run")
    must(said.instance not in exchange.instances, "instance", f"{where.key} is opened twice")
    must(where.exchange <= run.max_exchanges, "exchange", f"{where.exchange} is above the plan's {run.max_exchanges}")
    must(len(run.approvals) >= run.u_min, "run", f"{len(run.approvals)} members approved, {run.u_min} are needed to open")
    must(list(cohort) == sorted(set(cohort)) and set(cohort) <= run.approvals, "cohort", "names somebody who has not approved")
    named = (said.charter_version, said.charter_sha256)
    must(named == (run.charter_version, run.charter_sha256), "charter_version", "is not the one the run was approved under")
    must(len(cohort) >= run.u_min and said.u_min == run.u_min, "u_min", "the cohort is too small")
    must(said.threshold == share_threshold(len(cohort), run.colluders), "threshold", "is not what the cohort needs")
    if said.scales is not None:
        _scales(exchange, said.scales, cohort)
    made = Instance(where, cohort, context(where, entry.payload_sha256), history.keys.node_keys())
    if said.category == CATEGORY and where.purpose is not Purpose.SCALES:
        made.measures = said.weights_id, said.metrics
    exchange.instances[said.instance] = made
    run.opened += 1


def _scales(exchange: Exchange, named: kinds.ScalesReference, cohort: tuple[str, ...]) -> None:
    found = exchange.instances.get(named.instance)  # of the same exchange: their exponents are of this very update
    opened = (found.survivors_sha256, found.aggregate_sha256) if found is not None else None
    must(opened == (named.survivors_sha256, named.aggregate_sha256), "scales", "are not opened before, in this exchange")
    must(found is not None and set(cohort) <= set(found.survivors), "cohort", "is not of survivors of the scales")


def _commit(history: History, said: kinds.InstanceCommit, entry: Entry) -> None:
    instance, _, exchange = history.instance_of(said.instance)
    must(said.member in instance.cohort, "member", "is not in the cohort")
    if said.usage_sha256 is not None:
        by, _ = exchange.usages.get(said.usage_sha256, ("", ()))
        must(by == said.member, "usage_sha256", f"names no usage statement of {said.member} for this exchange before")
    must(said.ctx == instance.ctx, "ctx", "is of another instance-open than the one in the log")
    before = instance.commits.get(said.member)
    must(
        before is None or before[0] == entry.payload_sha256, "instance", f"{said.member} committed to two different uploads of one instance"
    )
    must(said.member not in instance.survivors, "instance", "comes after the survivor set that has it")
    instance.commits[said.member] = (entry.payload_sha256, said.length)
    if instance.measures is not None and said.usage_sha256 is not None:
        instance.usages[said.member] = said.usage_sha256


def _survivors(history: History, said: kinds.InstanceSurvivors, entry: Entry) -> None:
    instance, run, _ = history.instance_of(said.instance)
    must(not instance.survivors, "instance", "has two survivor sets")
    must(said.ctx == instance.ctx, "ctx", "is of another instance-open")
    for survivor in said.survivors:
        found = instance.commits.get(survivor.member, (b"", 0))[0]
        must(found == survivor.commit_sha256, "survivors", f"the commit of {survivor.member} is not in the log before")
    _certificate(instance, run, said, entry.certified_by)
    instance.survivors, instance.survivors_sha256 = tuple(s.member for s in said.survivors), entry.payload_sha256


def _certificate(instance: Instance, run: Run, said: kinds.InstanceSurvivors, known: Collection[tuple[str, bytes]]) -> None:
    """A quorum of the cohort signed exactly this set. `known`: whose signatures verified when the entry was read, and under which key."""
    commits = {s.member: s.commit_sha256 for s in said.survivors}
    signers = {s.member for s in said.certificate}
    check_set(instance.cohort, commits, signers, run.u_min)
    check_signers(instance.cohort, signers, run.colluders)
    left = [s for s in said.certificate if (s.member, instance.node_keys.get(s.member)) not in known]
    payload = survivors_message(instance.id, instance.ctx, commits) if left else b""
    for by in left:
        verify_survivors_signature(payload, by.signature, member=by.member, node_keys=instance.node_keys)


def _aggregate(history: History, said: kinds.InstanceAggregate, entry: Entry) -> None:
    instance, run, exchange = history.instance_of(said.instance)
    logged = bool(instance.survivors) and said.survivors_sha256 == instance.survivors_sha256
    must(logged, "survivors_sha256", "is not the logged survivor set")
    must(not instance.aggregate_sha256, "instance", "has two aggregates")
    must(said.ctx == instance.ctx, "ctx", "is of another instance-open")
    lengths = {instance.commits[m][1] for m in instance.survivors}
    must(lengths == {said.length}, "length", "is not that of the uploads it is the sum of")
    needed = voids_needed(len(instance.cohort), run.colluders)
    must(len(instance.voids) < needed, "instance", "is opened although enough members voided it")
    instance.aggregate_sha256 = entry.payload_sha256
    if instance.measures is not None:
        instance.trailer = said.trailer
    run.aggregates += 1
    if instance.id.purpose is not Purpose.SCALES:
        run.counted.update(instance.survivors)
        run.summed += not exchange.summed
        exchange.summed = True


def _eval(history: History, said: kinds.Eval, _entry: Entry) -> None:
    run, exchange = history.run_of(said.run), history.shelf.get(said.run, said.exchange)
    found = next((i for i in exchange.instances.values() if i.measures and i.aggregate_sha256 == said.aggregate_sha256), None)
    if found is None or found.measures is None:
        raise RuleBroken("aggregate_sha256", "is of no opened sum of an evaluate exchange that stands before")
    must(not found.worded, "aggregate_sha256", "is put into words twice")
    weights_id, names = found.measures
    named = [digest for member in found.survivors for digest in exchange.usages.get(found.usages.get(member, b""), ("", ()))[1]]
    expected = evaluation(
        run=said.run,
        exchange=said.exchange,
        weights_id=weights_id,
        aggregate_sha256=said.aggregate_sha256,
        members=found.survivors,
        names=names,
        trailer=found.trailer,
        w_max=run.w_max,
        data=named,
    )
    differs = [f for f in ("weights_id", "members", "examples", "metrics", "data") if getattr(expected, f, None) != getattr(said, f)]
    must(not differs, "".join(differs[:1]), "is not what the opened sum says")
    found.worded = True


def _dropout(history: History, said: kinds.InstanceDropout, _entry: Entry) -> None:
    instance, run, _ = history.instance_of(said.instance)
    # Whoever was lost before the freeze is in no cohort, and is named all the same.
    must(said.member in run.roster, "member", "is not in the run's roster")
    must(said.member not in instance.survivors, "member", "is in the sum, and said to have dropped out")


def _void(history: History, said: kinds.InstanceVoid, _entry: Entry) -> None:
    instance, _, _ = history.instance_of(said.instance)
    must(said.member in instance.cohort, "member", "is not in the cohort")
    instance.voids.add(said.member)


def _accept(history: History, said: kinds.ExchangeAccept, _entry: Entry) -> None:
    run, exchange = history.run_of(said.run), history.shelf.get(said.run, said.exchange)
    opened = {i.aggregate_sha256 for i in exchange.instances.values() if i.aggregate_sha256}
    must(set(said.aggregates) <= opened, "aggregates", "name a sum that is not in the log before, or of another exchange")
    must(said.member not in exchange.accepts, "exchange", f"{said.member} accepted exchange {said.exchange} twice")
    bases = {base for _, base in exchange.accepts.values()} | {said.base_id}
    must(len(bases) == 1, "base_id", f"members name different next bases after exchange {said.exchange}")
    sums = {sums for sums, _ in exchange.accepts.values()} | {said.aggregates}
    must(len(sums) == 1, "aggregates", f"members accepted different sums in exchange {said.exchange}")
    exchange.accepts[said.member] = (said.aggregates, said.base_id)
    run.accepted += 1


def _usage(history: History, said: kinds.Usage, entry: Entry) -> None:
    history.run_of(said.run)
    history.shelf.get(said.run, said.exchange).usages[entry.sha256] = said.member, said.data
    history.names_data += bool(said.data)
    if said.environment_sha256 is not None:
        found = history.environments.get(said.environment_sha256)
        if found is None:
            raise RuleBroken("environment_sha256", "names no env-commitment that is in the log before")
        must(found.fact.member == said.member, "environment_sha256", f"names the environment of {found.fact.member}")
        found.named += 1


def _release(history: History, said: kinds.ReleasePublished, _entry: Entry) -> None:
    release = check_published(said, history.keys.entered)
    history.run_of(release.run)


def _allocation(history: History, said: kinds.AllocationPublished, _entry: Entry) -> None:
    allocation = check_published(said, history.keys.entered)
    check_portions(allocation)
    for run in allocation.runs:
        history.run_of(run)
    check_members(allocation, history.keys.versions)


_Judge = Callable[[History, Any, Entry], None]
_COORDINATOR, _NODE = frozenset({"coordinator"}), frozenset({"node"})
_ANYBODY: tuple[frozenset[str], _Judge | None] = (frozenset({"coordinator", "member", "node"}), None)
_JUDGES: dict[str, tuple[frozenset[str], _Judge | None]] = {
    "charter": (_COORDINATOR, None),
    "data-commitment": (frozenset({"member"}), None),
    "env-commitment": (_NODE, None),
    "node-delegation": (frozenset({"member"}), None),
    "node-revocation": (frozenset({"member"}), None),
    "run-plan": (_COORDINATOR, _plan),
    "run-approval": (_NODE, _approval),
    "instance-open": (_COORDINATOR, _open),
    "instance-commit": (_NODE, _commit),
    "instance-survivors": (_COORDINATOR, _survivors),
    "instance-aggregate": (_COORDINATOR, _aggregate),
    "eval": (_COORDINATOR, _eval),
    "instance-dropout": (_COORDINATOR, _dropout),
    "instance-void": (_NODE, _void),
    "exchange-accept": (_NODE, _accept),
    "usage": (_NODE, _usage),
    "release-published": (_COORDINATOR, _release),
    "allocation-published": (_COORDINATOR, _allocation),
}
