"""Which earlier run a run's first weights are of, as far as the log tells: a pure function of verified entries.

A plan that starts from weights names them by their id, and the run whose model they are (`dure run start --from RUN`) or a file's digest.
A file is traced by its weights id alone: to the earlier run that a release of these weights names, or that opened an exchange on them.
A parent is always planned before its child, in the one order of the log, so there are no cycles. None of this shows that the weights are
what the earlier run made: that is for whoever recomputes it (dure.audit.lineage).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dure.errors import DureError
from dure.provenance.attestation import read_statement
from dure.statements import kinds
from dure.statements.statement import Signed


@dataclass
class Ancestry:
    """Takes entries in the order of the log."""

    plans: dict[bytes, kinds.RunPlan] = field(default_factory=dict)
    """Every run, oldest first."""
    _order: dict[bytes, int] = field(default_factory=dict)
    _released: dict[bytes, list[bytes]] = field(default_factory=dict)
    """Weights id -> runs that a release says made them."""
    _opened: dict[bytes, list[bytes]] = field(default_factory=dict)
    """Weights id -> runs that opened an exchange on them."""

    def take(self, signed: Signed[Any]) -> None:
        fact = signed.fact
        if isinstance(fact, kinds.RunPlan):
            run = signed.envelope.payload_sha256
            self._order.setdefault(run, len(self._order))
            self.plans.setdefault(run, fact)
        elif isinstance(fact, kinds.InstanceOpen):
            _note(self._opened, fact.weights_id, fact.run)
        elif isinstance(fact, kinds.ReleasePublished):
            try:
                release = read_statement(fact.statement.encode(), kinds.Release)
            except DureError:
                return  # the audit of the log names it
            _note(self._released, release.weights_id, release.run)

    def following(self, entries: Iterable[Signed[Any]]) -> Iterator[Signed[Any]]:
        """The entries, as somebody else reads them."""
        for signed in entries:
            self.take(signed)
            yield signed

    def parent(self, run: bytes) -> bytes:
        """The earlier run whose weights this one began with; b"" where the log names none."""
        base = self.plans[run].base if run in self.plans else None
        if base is None:
            return b""
        if base.run is not None:
            return base.run if self.earlier(base.run, run) else b""
        return next((r for r in self._makers(base.weights_id) if self.earlier(r, run)), b"")

    def stranger(self, run: bytes) -> bytes:
        """What a plan names as the run it began with, although the log has no such run before it; b"" for an honest plan."""
        base = self.plans[run].base
        return base.run if base is not None and base.run is not None and not self.earlier(base.run, run) else b""

    def chain(self, run: bytes) -> tuple[bytes, ...]:
        """Its ancestors, nearest first."""
        found: list[bytes] = []
        while run := self.parent(run):
            found.append(run)
        return tuple(found)

    def earlier(self, one: bytes, other: bytes) -> bool:
        """Whether `one` was planned before `other`."""
        return self._order.get(one, len(self._order)) < self._order[other]

    def _makers(self, weights_id: bytes) -> Iterator[bytes]:
        """Runs that may have made these weights: not those that themselves began with them as somebody else's."""
        for run in (*self._released.get(weights_id, ()), *self._opened.get(weights_id, ())):
            base = self.plans[run].base if run in self.plans else None
            if base is None or base.weights_id != weights_id:
                yield run


def _note(where: dict[bytes, list[bytes]], weights_id: bytes, run: bytes) -> None:
    runs = where.setdefault(weights_id, [])
    if run not in runs:
        runs.append(run)
