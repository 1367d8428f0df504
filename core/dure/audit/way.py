"""How far a run's bases were recomputed before the audit was ended, and what of that may be believed now (kept.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from dure.audit.bundle import Bundle
from dure.audit.kept import Kept, Question
from dure.audit.parts import ROUNDS, RunRecord, Step, sum_name
from dure.blobs import BlobDamaged, BlobMissing, BlobStore
from dure.model.base import BaseRecord


@dataclass(frozen=True)
class Reached:
    """A base of the run, as recomputed."""

    done: int
    """Exchanges that led to it."""
    base: BaseRecord
    weights_id: bytes
    models: dict[bytes, int]
    """weights id -> exchange, of every base up to it."""


@dataclass(frozen=True)
class Way:
    """One run's way from base to base.

    Args:
        seed: of the first weights, put together from the bundle anew; empty where nobody drew them.
        kept: None: nothing was established before, and nothing is written down.
    """

    bundle: Bundle
    record: RunRecord
    steps: Sequence[Step]
    seed: bytes
    kept: Kept | None

    def taken_up(self, store: BlobStore) -> Reached | None:
        """The newest base that is still here, reached over exchanges whose sums are still those that were read; None: begin at the first.

        What is not of that base is removed from the store.
        """
        if self.kept is None:
            return None
        found, short = self._reached(), self.record.run.hex()[:12]
        if found is not None and found.done == len(self.steps):
            self.kept.tell(f"run {short}: all {found.done} exchanges were recomputed before")
            return found
        wanted = set() if found is None else {blob for blob in (found.base.weights, found.base.outer_state, found.base.e_b) if blob}
        try:
            for blob in wanted:
                store.verify(blob)
        except (BlobMissing, BlobDamaged) as wrong:
            self.kept.tell(f"run {short}: begun anew, the base it had come to is not in {self.kept.folder} as it was left: {wrong}")
            found, wanted = None, set()
        store.sweep()
        for blob in set(store.ids()) - wanted:
            store.remove(blob)
        if found is not None:
            self.kept.tell(f"run {short}: resumed at exchange {found.done + 1} of {len(self.steps)}")
        return found

    def _reached(self) -> Reached | None:
        said = self._answer(self.first())
        found = None if said is None else _base(said, self.record.first_base_id)
        if found is None:
            return None
        base, wid = found
        models, done = {wid: 0}, 0
        for step in self.steps:
            said = self._answer(self.step(base, step))
            found = None if said is None else _base(said, step.base_id)
            if found is None:
                break
            base, wid = found
            models[wid], done = step.exchange, done + 1
        return Reached(done, base, wid, models)

    def first(self) -> Question | None:
        """Of the first weights."""
        record = self.record
        inputs = ("first", record.run, record.layout_sha256, record.first_base_id, self.seed)
        return self._ask(inputs, () if self.seed else ("first.f32",))

    def step(self, before: BaseRecord, step: Step) -> Question | None:
        """Of one exchange: every statement that says how its sums become a base is named by digest, and so are the sums."""
        opened = (step.scales, step.update)
        digests = [digest for one in opened for digest in (one.open_sha256, sha256(one.envelope).digest())]
        return self._ask(("step", self.record.run, before.id, step.base_id, *digests), map(sum_name, opened))

    def write(self, question: Question | None, base: BaseRecord, weights_id: bytes) -> None:
        """Keeps what came of it; its blobs are in the store, durably."""
        if self.kept is not None and question is not None:
            self.kept.write(question, {"base": base.to_json().decode(), "weights_id": weights_id.hex()})

    def _ask(self, inputs: Sequence[object], names: Any) -> Question | None:
        home: Path = self.bundle.folder / ROUNDS / self.record.run.hex()
        return None if self.kept is None else self.kept.ask(inputs, (home / name for name in names))

    def _answer(self, question: Question | None) -> dict[str, Any] | None:
        return None if self.kept is None or question is None else self.kept.answer(question)


def _base(said: Mapping[str, Any], wanted: bytes | None) -> tuple[BaseRecord, bytes] | None:
    """What was kept, if it is the base that the log names."""
    base = BaseRecord.from_json(str(said["base"]).encode())
    return (base, bytes.fromhex(said["weights_id"])) if base.id == wanted else None
