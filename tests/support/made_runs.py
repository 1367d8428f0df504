"""Runs whose sums are files and whose bases follow from them, in a log that holds at level 1: what level 2 recomputes, made in a second.

Nobody trained: the sums are drawn, and every base is what the plan's step makes of them. A run may begin with another's model, as
`dure run start --from` has it, or lie about it: the maker has every key.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from support.synthetic_log import SyntheticLog

from dure.audit.parts import export_runs, records
from dure.audit.reading import verified
from dure.blobs import BlobId, BlobStore
from dure.charter.root import walk_all
from dure.model.advance import next_base, opened_exponents
from dure.model.base import BaseRecord
from dure.model.layout import Layout
from dure.model.weights import open_flat, weights_id
from dure.secagg.ids import InstanceId, Purpose
from dure.secagg.summing import shape_of
from dure.statements import kinds
from dure.statements.dsse import Envelope

LAYOUT = Layout.build([("w", "float32", (1_200,)), ("b", "float32", (1_196,))])
"""2,412 elements with the padding: as many as a synthetic upload has bytes for."""


@dataclass
class MadeRun:
    """A run and the weights it had: `models[k]` after k rounds, `exchanges[k]` that made them."""

    run: bytes
    models: list[tuple[bytes, BlobId]] = field(default_factory=list)
    """(weights id, flat vector)"""
    exchanges: list[int] = field(default_factory=list)


class MadeRuns(SyntheticLog):
    """Four members, one charter.

    Args:
        folder: where the sums and bases are, as in a coordinator's `blobs`.
    """

    def __init__(self, folder: Path, *, seed: int = 1) -> None:
        super().__init__(members=4, exchanges_per_run=4, seed=seed)
        self.folder, self.store = folder, BlobStore(folder)
        self.layout_blob = self.store.put_bytes(LAYOUT.to_json())
        self._next: Iterator[Envelope] = chain([self._charter_entry()], map(self._delegation, self.members))
        self.made = list(self.entries(MOST))

    # -- what a test asks for ------------------------------------------------------------------------------------------

    def begin(self, *, base: kinds.NamedBase | None = None, flat: BlobId | None = None, keep_uploads: str = "none") -> MadeRun:
        """One more run of two rounds.

        Args:
            base: what its plan says of the first weights.
            flat: the first weights; drawn here if None.
        """
        self._named, self._keep = base, keep_uploads
        self._first = flat or self.store.put_bytes(np.random.default_rng(self.size).standard_normal(LAYOUT.elements, np.float32).tobytes())
        before, self._next = len(self.made), self._run()
        self.made += self.entries(MOST)
        return MadeRun(Envelope.from_bytes(self.made[before]).payload_sha256, self._models, self._exchanges)

    def named(self, made: MadeRun, round_number: int, *, run: bytes | None = None, file: bool = False) -> kinds.NamedBase:
        """A plan's words for a model of a run; of another `run` than it is for a lie, of a file with `file`."""
        wid = made.models[round_number][0]
        who = None if file else (run or made.run)
        words = f"run {(who or b'').hex()[:12]}" if who else "file model.safetensors"
        return kinds.NamedBase(wid, LAYOUT.tensors_sha256, LAYOUT.parameters, words, who, sha256(b"file").digest() if file else None, ())

    def bundle(self, folder: Path, *runs: MadeRun) -> Path:
        """A bundle with the parts of these runs."""
        shutil.rmtree(folder, ignore_errors=True)
        self.write(folder, self.made)
        found = records(verified(self.made, walk_all(self.roots, None)))
        assert not [part.missing for part in export_runs(self.store, ((found[r.run], b"") for r in runs), folder) if part.missing]
        return folder

    def _story(self) -> Iterator[Envelope]:
        return self._next

    # -- what the log says ----------------------------------------------------------------------------------------------

    def _plan(self, roster: tuple[str, ...]) -> kinds.RunPlan:
        plan = replace(super()._plan(roster), base=self._named, keep_uploads=self._keep)
        self._step, self._cap = plan.outer_step, plan.e_cap
        self._record = BaseRecord.first(self._first, plan.outer_step.config)
        self._models, self._exchanges = [(self.wid(self._first), self._first)], [0]
        return plan

    def wid(self, flat: BlobId) -> bytes:
        return weights_id(open_flat(self.store.path(flat), LAYOUT), LAYOUT)

    def told(self, fact: Any) -> Any:
        where = InstanceId.decode(fact.instance)
        if isinstance(fact, kinds.InstanceAggregate):
            made = self._drawn(where, fact.length)
            return fact if made is None else replace(fact, root=made.root, trailer=(1, WEIGHT, 0, *fact.trailer[3:])[: len(fact.trailer)])
        scales, self._cohort = fact.scales, len(fact.cohort)
        return replace(
            fact,
            weights_id=self._models[-1][0],
            base_id=self._record.id,
            layout_sha256=sha256(LAYOUT.to_json()).digest(),
            elements=LAYOUT.elements,
            scales=None if scales is None else replace(scales, e_b_sha256=sha256(self._e_b[1]).digest()),
        )

    def _drawn(self, where: InstanceId, length: int) -> BlobId | None:
        """A sum of the instance's form, in the store."""
        if where.purpose is Purpose.SCALARS:
            return None
        random = np.random.default_rng(self.rng.getrandbits(32))
        levels, words = np.zeros(length // 8, np.uint64), random.integers(-900, 900, length // 2, np.int16)
        levels[:17] = 1 + random.integers(0, 9, 17).astype(np.uint64)  # everybody stays below 2^-6
        _, chunk = shape_of(where.purpose, LAYOUT.elements)
        with self.store.writer(chunk_bytes=chunk) as out:
            out.append((levels if where.purpose is Purpose.SCALES else words).data.cast("B"))
            made = out.commit().id
        if where.purpose is Purpose.SCALES:
            self._e_b = opened_exponents(self.store, made, self._record.e_b, self._cap)
        else:
            self._move(where.exchange, made)
        return made

    def _move(self, exchange: int, update: BlobId) -> None:
        after = next_base(
            self.store,
            base=self._record,
            layout=LAYOUT,
            opened=update,
            e_b=self._e_b[0],
            bump=0,
            cohort_size=self._cohort,
            weight_sum=WEIGHT,
            outer_step=self._step.config,
            exchange=exchange,
            averaged=self._step.averaged,
        )
        self._record = after.record
        self._models.append((after.weights_id, after.record.weights))
        self._exchanges.append(exchange)

    def _accepts(self, run: bytes, number: int, names: list[str], sums: list[bytes], train: bool, late: Any) -> Iterator[Envelope]:
        for name in names:
            base = self._record.id if train else None
            yield self.member(name).node.say(kinds.ExchangeAccept(run, number, name, tuple(sums), (), base), self.now)


MOST = 1 << 20
"""Entries; more than any story here has."""
WEIGHT = 3 << 40
"""Σŵ of every update."""
