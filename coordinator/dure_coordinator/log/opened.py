"""Which instances were opened, for a commit that comes by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dure.errors import Refused
from dure.secagg.certificate import context
from dure.secagg.ids import InstanceId
from dure.statements.dsse import Envelope
from dure.statements.kinds import InstanceCommit, InstanceOpen
from dure.statements.statement import read_verified
from dure_coordinator.exchange.common import all_exchanges
from dure_coordinator.exchange.state import RunState
from dure_coordinator.storage.store import Store

RUNS_KEPT = 32
"""Runs whose openings are held in memory, some hundred bytes each."""


class Opening(NamedTuple):
    """What a commit is judged by."""

    ctx: bytes
    cohort: Sequence[str]


class Openings:
    """One log's. A member may ask without end about instances that never were: each run is read from the database once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[bytes, dict[bytes, Opening]] = {}

    async def check(self, said: InstanceCommit, state: RunState) -> None:
        """That a commit is to an instance the log has, as the log has it, by one of its cohort. One that ends an upload the run's own state
        judges; this one may be of any exchange before.

        Args:
            state: of the run the instance is of.

        Raises:
            Refused: names the field.
        """
        where = InstanceId.decode(said.instance)
        found = _in_state(state, where.exchange, said.instance) or (await self._in_log(where.run)).get(said.instance)
        if found is None:
            raise Refused("instance", f"{where.key} was not opened")
        if said.member not in found.cohort:
            raise Refused("member", f"is not in the cohort of {where.key}")
        if said.ctx != found.ctx:
            raise Refused("ctx", f"is of another opening of {where.key} than the log's")

    async def _in_log(self, run: bytes) -> dict[bytes, Opening]:
        """Those the log had when it was asked first: later ones are in the run's state, where all are but of a log that was restored."""
        if run not in self._read:
            found = {}
            for row in await self._store.statements(run=run, kind=InstanceOpen.kind):
                opened = read_verified(row.envelope, InstanceOpen)
                ctx = context(InstanceId.decode(opened.instance), Envelope.from_bytes(row.envelope).payload_sha256)
                found[opened.instance] = Opening(ctx, tuple(one.member for one in opened.cohort))
            self._read[run] = found
            for old in list(self._read)[:-RUNS_KEPT]:
                del self._read[old]
        return self._read[run]


def _in_state(state: RunState, number: int, instance: bytes) -> Opening | None:
    for exchange in all_exchanges(state):
        for one in exchange.instances if exchange.number == number else ():
            if one.instance == instance and one.ctx:
                return Opening(one.ctx, one.cohort)
    return None
