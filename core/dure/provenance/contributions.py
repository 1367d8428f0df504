"""Who did what: per member and run, from the signed statements alone. A pure function of verified entries, so anybody gets the same table.

What a member says of itself (tokens, steps, seconds, bytes) counts only where its signed commit names that very statement, and is marked as
its own word. Exchanges that failed before anything was opened leave no statement and are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dure.provenance.spent import Spent, spent
from dure.recompute.joint_seed import is_draw
from dure.secagg.ids import InstanceId, Purpose
from dure.statements import kinds
from dure.statements.statement import Signed

COMPUTE = ("flop_formula", "flop_measured", "flop_hardware", "kwh")
SELF_DECLARED = ("tokens", "steps", "seconds", "bytes_up", "bytes_down", "devices", *COMPUTE)
"""Columns that are the member's own word."""


@dataclass(frozen=True)
class LeftOut:
    """An exchange a member was asked in and is not in the sum of."""

    exchange: int
    phase: str
    reason: str
    late: bool
    """It was there and missed a deadline."""


@dataclass(frozen=True)
class Row:
    """One member in one run. invited = counted + late + left out for other reasons + unsummed."""

    run: bytes
    app: str
    member: str
    invited: int
    """Exchanges that began with it and in which something was opened; signed by the coordinator."""
    counted: int
    """In the final sum, by a quorum's certificate."""
    left_out: tuple[LeftOut, ...]
    unsummed: int
    """Exchanges that ended without a sum, for everybody."""
    accepted: int
    """Exchanges whose sums it verified and signed for."""
    tokens: int
    steps: int
    milliseconds: int
    bytes_up: int
    bytes_down: int
    devices: tuple[str, ...]
    usages: int
    """Usage statements that tokens, …, devices and `spent` are of."""
    spent: Spent

    @property
    def late(self) -> int:
        return sum(x.late for x in self.left_out)

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1000


@dataclass
class _Exchange:
    began: int
    """Unix seconds of its first instance-open, by the coordinator's clock."""
    invited: set[str] = field(default_factory=set)
    counted: frozenset[str] = frozenset()
    summed: bool = False
    dropouts: dict[str, LeftOut] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    named: dict[str, bytes] = field(default_factory=dict)
    """member -> envelope digest of the usage statement its commit names."""
    usages: dict[bytes, kinds.Usage] = field(default_factory=dict)

    def left_out(self, number: int, member: str) -> LeftOut:
        return self.dropouts.get(member) or LeftOut(number, "", "is not in the sum", False)


@dataclass
class _Run:
    plan: kinds.RunPlan
    exchanges: dict[int, _Exchange] = field(default_factory=dict)


@dataclass
class _Reading:
    """Statements in the order of the log. One that refers to nothing before it says nothing here: the audit names it."""

    runs: dict[bytes, _Run] = field(default_factory=dict)
    survivors: dict[bytes, frozenset[str]] = field(default_factory=dict)

    def take(self, signed: Signed[Any]) -> None:
        judge = _TAKE.get(type(signed.fact))
        if judge is not None:
            judge(self, signed)

    def exchange(self, run: bytes, number: int) -> _Exchange | None:
        found = self.runs.get(run)
        return found.exchanges.get(number) if found else None

    def of_instance(self, raw: bytes) -> _Exchange | None:
        where = InstanceId.decode(raw)
        return self.exchange(where.run, where.exchange)


def _plan(reading: _Reading, signed: Signed[kinds.RunPlan]) -> None:
    reading.runs[signed.envelope.payload_sha256] = _Run(signed.fact)


def _open(reading: _Reading, signed: Signed[kinds.InstanceOpen]) -> None:
    where = InstanceId.decode(signed.fact.instance)
    run = reading.runs.get(where.run)
    if run is not None and not is_draw(signed.fact):  # nobody trains anything in the draw of the first weights
        exchange = run.exchanges.setdefault(where.exchange, _Exchange(signed.time))
        exchange.invited |= {m.member for m in signed.fact.cohort}


def _commit(reading: _Reading, signed: Signed[kinds.InstanceCommit]) -> None:
    exchange = reading.of_instance(signed.fact.instance)
    if exchange is not None and signed.fact.usage_sha256 is not None:
        exchange.named[signed.fact.member] = signed.fact.usage_sha256


def _survivors(reading: _Reading, signed: Signed[kinds.InstanceSurvivors]) -> None:
    reading.survivors[signed.fact.instance] = frozenset(s.member for s in signed.fact.survivors)


def _aggregate(reading: _Reading, signed: Signed[kinds.InstanceAggregate]) -> None:
    exchange = reading.of_instance(signed.fact.instance)
    final = InstanceId.decode(signed.fact.instance).purpose is not Purpose.SCALES
    if exchange is not None and final and signed.fact.instance in reading.survivors:
        exchange.counted, exchange.summed = reading.survivors[signed.fact.instance], True


def _dropout(reading: _Reading, signed: Signed[kinds.InstanceDropout]) -> None:
    said = signed.fact
    exchange = reading.of_instance(said.instance)
    if exchange is not None:
        exchange.invited.add(said.member)
        number = InstanceId.decode(said.instance).exchange
        exchange.dropouts.setdefault(said.member, LeftOut(number, said.phase, said.reason, said.late))


def _accept(reading: _Reading, signed: Signed[kinds.ExchangeAccept]) -> None:
    exchange = reading.exchange(signed.fact.run, signed.fact.exchange)
    if exchange is not None:
        exchange.accepted.add(signed.fact.member)


def _usage(reading: _Reading, signed: Signed[kinds.Usage]) -> None:
    run = reading.runs.get(signed.fact.run)
    if run is not None and signed.fact.exchange in run.exchanges:
        run.exchanges[signed.fact.exchange].usages[signed.envelope.sha256] = signed.fact


_TAKE: dict[type, Callable[[_Reading, Signed[Any]], None]] = {
    kinds.RunPlan: _plan,
    kinds.InstanceOpen: _open,
    kinds.InstanceCommit: _commit,
    kinds.InstanceSurvivors: _survivors,
    kinds.InstanceAggregate: _aggregate,
    kinds.InstanceDropout: _dropout,
    kinds.ExchangeAccept: _accept,
    kinds.Usage: _usage,
}


def contributions(
    entries: Iterable[Signed[Any]], *, runs: Callable[[bytes, kinds.RunPlan], bool] = lambda _run, _plan: True, span: tuple[float, float]
) -> tuple[Row, ...]:
    """One row per run and roster member, in the order of the plans.

    Args:
        entries: verified, in the order of the log: each signed by a key that was valid there.
        runs: which runs to count.
        span: unix seconds [from, to) in which an exchange must have begun, by the coordinator's clock.
    """
    reading = _Reading()
    for signed in entries:
        reading.take(signed)
    chosen = [(run, known) for run, known in reading.runs.items() if runs(run, known.plan)]
    return tuple(_row(run, known, member, span) for run, known in chosen for member in known.plan.roster)


def _row(run: bytes, known: _Run, member: str, span: tuple[float, float]) -> Row:
    mine = {n: e for n, e in sorted(known.exchanges.items()) if member in e.invited and span[0] <= e.began < span[1]}
    counted = {n: e for n, e in mine.items() if member in e.counted}
    out = tuple(e.left_out(n, member) for n, e in mine.items() if e.summed and n not in counted)
    used = [e.usages[e.named[member]] for e in counted.values() if e.named.get(member) in e.usages]
    used = [u for u in used if u.member == member]
    return Row(
        run=run,
        app=known.plan.app_name,
        member=member,
        invited=len(mine),
        counted=len(counted),
        left_out=out,
        unsummed=sum(not e.summed for e in mine.values()),
        accepted=sum(member in e.accepted for e in mine.values()),
        tokens=sum(u.tokens for u in used),
        steps=sum(u.steps for u in used),
        milliseconds=sum(u.milliseconds for u in used),
        bytes_up=sum(u.bytes_up for u in used),
        bytes_down=sum(u.bytes_down for u in used),
        devices=tuple(sorted({u.device for u in used if u.device})),
        usages=len(used),
        spent=spent(used),
    )
