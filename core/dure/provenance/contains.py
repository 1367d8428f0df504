"""Which exchanges and releases contain a member's work, or a data set: a pure function of verified entries, the same for everybody.

An exchange contains a member's work if the member is in the survivor set whose sum was opened: its commit, the survivor set that names the
commit, and the aggregate that names the set are the evidence. A release contains it if one of its run's train exchanges up to the
release's does, or one of a run whose model it began with. An exchange contains a data set if such a commit names a usage statement of its
member that names the data commitment: the member's own word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dure.provenance.ancestry import Ancestry
from dure.provenance.attestation import read_statement
from dure.secagg.ids import InstanceId, Purpose
from dure.statements import kinds
from dure.statements.statement import Signed


@dataclass(frozen=True)
class InExchange:
    """An opened sum that contains it."""

    run: bytes
    app: str
    exchange: int
    category: str
    """train | evaluate | query; only train changes weights."""
    members: tuple[str, ...]
    """Whose work it is."""
    entries: tuple[int, ...]
    """Indices: usage statements where data was asked for, the commits, the survivor set, the aggregate."""


@dataclass(frozen=True)
class InRelease:
    """A published release that contains it."""

    name: str
    run: bytes
    exchange: int
    through: bytes
    """The run whose sums brought it in: its own, or one that it began with the model of."""
    entry: int


@dataclass(frozen=True)
class Answer:
    data: tuple[int, ...]
    """Indices of the data commitments asked about."""
    exchanges: tuple[InExchange, ...]
    releases: tuple[InRelease, ...]

    @property
    def entries(self) -> tuple[int, ...]:
        """Every entry that is evidence, in order."""
        return tuple(sorted({*self.data, *(i for e in self.exchanges for i in e.entries), *(r.entry for r in self.releases)}))


@dataclass
class _Open:
    """An instance whose sum is not opened yet."""

    category: str
    commits: dict[str, tuple[int, Any]] = field(default_factory=dict)
    survivors: tuple[int, tuple[str, ...]] | None = None


@dataclass
class _Search:
    member: str
    data: str
    ancestry: Ancestry = field(default_factory=Ancestry)
    open: dict[bytes, _Open] = field(default_factory=dict)
    commitments: dict[bytes, tuple[int, str]] = field(default_factory=dict)
    """Payload digests of the data commitments asked about -> (index, member)."""
    usages: dict[bytes, int] = field(default_factory=dict)
    """Envelope digests of usage statements that name one of them -> index."""
    exchanges: list[InExchange] = field(default_factory=list)
    releases: list[InRelease] = field(default_factory=list)

    def take(self, index: int, signed: Signed[Any]) -> None:
        fact = signed.fact
        self.ancestry.take(signed)
        if isinstance(fact, kinds.InstanceOpen):
            self.open[fact.instance] = _Open(fact.category)
        elif isinstance(fact, kinds.InstanceCommit) and fact.instance in self.open:
            self.open[fact.instance].commits[fact.member] = (index, fact)
        elif isinstance(fact, kinds.InstanceSurvivors) and fact.instance in self.open:
            self.open[fact.instance].survivors = (index, tuple(s.member for s in fact.survivors))
        elif isinstance(fact, kinds.InstanceAggregate):
            self._opened(index, fact)
        elif isinstance(fact, kinds.ReleasePublished):
            self._release(index, fact)
        elif isinstance(fact, kinds.DataCommitment) and self.data:
            self._commitment(index, signed)
        elif isinstance(fact, kinds.Usage) and any(self.commitments.get(d, (0, ""))[1] == fact.member for d in fact.data):
            self.usages[signed.envelope.sha256] = index

    def _opened(self, index: int, fact: kinds.InstanceAggregate) -> None:
        known = self.open.pop(fact.instance, None)
        where = InstanceId.decode(fact.instance)
        plan = self.ancestry.plans.get(where.run)
        if known is None or known.survivors is None or plan is None or where.purpose is Purpose.SCALES:
            return
        at, survivors = known.survivors
        mine = tuple(m for m in survivors if m in known.commits and self._asked(m, known.commits[m][1]))
        if mine:
            evidence = (*self._usages(known, mine), *(known.commits[m][0] for m in mine), at, index)
            self.exchanges.append(InExchange(where.run, plan.app_name, where.exchange, known.category, mine, evidence))

    def _asked(self, member: str, commit: Any) -> bool:
        return member == self.member if self.member else commit.usage_sha256 in self.usages

    def _usages(self, known: _Open, mine: tuple[str, ...]) -> list[int]:
        """Where data was asked for: the members' words that they used it."""
        return [] if self.member else [self.usages[known.commits[m][1].usage_sha256] for m in mine]

    def _commitment(self, index: int, signed: Signed[Any]) -> None:
        digests, asked = (signed.envelope.payload_sha256, signed.envelope.sha256, signed.fact.root), self.data.lower()
        if signed.fact.name == self.data or (len(asked) >= 8 and any(d.hex().startswith(asked) for d in digests)):
            self.commitments[signed.envelope.payload_sha256] = index, signed.fact.member

    def _release(self, index: int, fact: kinds.ReleasePublished) -> None:
        release = read_statement(fact.statement.encode(), kinds.Release)
        for run in (release.run, *self.ancestry.chain(release.run)):
            last = release.exchange if run == release.run else None
            if any(e.run == run and e.category == "train" and (last is None or e.exchange <= last) for e in self.exchanges):
                self.releases.append(InRelease(release.name, release.run, release.exchange, run, index))
                return


def contains(entries: Iterable[Signed[Any]], *, member: str = "", data: str = "") -> Answer:
    """Where the work of `member`, or else the data set `data`, is.

    Args:
        entries: verified, in the order of the log.
        member: its id.
        data: a data commitment's name, or eight or more first digits of a digest that is in it or of it.
    """
    search = _Search(member, data)
    for index, signed in enumerate(entries):
        search.take(index, signed)
    return Answer(tuple(sorted(index for index, _ in search.commitments.values())), tuple(search.exchanges), tuple(search.releases))
