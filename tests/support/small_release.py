"""A release without any process: a real charter, log, keys and files; the run's first weights, which is all a log of plans can have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from support.signed_log import SignedLog, signed_log

from dure.provenance import check
from dure.provenance.attestation import merge, published, sign
from dure.provenance.candidate import ReleaseCa, create
from dure.provenance.facts import About
from dure.provenance.own_log import source_of, write_evidence
from dure.statements.dsse import Envelope
from dure.tlog.merkle import inclusion_proof
from dure.tlog.proof import TlogProof

NOW = datetime(2026, 11, 25, tzinfo=UTC)


@dataclass
class SmallRelease:
    """A published release and everything it was made with."""

    log: SignedLog
    folder: Path

    @property
    def pin(self) -> bytes:
        return self.log.pin

    def candidate(self, folder: Path | None = None) -> check.Candidate:
        return check.check_candidate(folder or self.folder, self.log.roots, self.pin)

    def signatures(self, members: tuple[str, ...]) -> dict[str, Envelope]:
        statement = self.candidate().statement
        return {f"{m}.sig": sign(statement, self.log.founded.members[m].governance_key) for m in members}

    def attested(self, members: tuple[str, ...]) -> Envelope:
        candidate = self.candidate()
        return merge(candidate.statement, self.signatures(members), candidate.voters)

    def twin(self, target: Path) -> Path:
        return Path(shutil.copytree(self.folder, target))


def write_model(folder: Path, seed: int = 7, dtype: str = "<f4") -> Path:
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(shape).astype(dtype) for name, shape in (("a.weight", (64, 32)), ("b.weight", (32, 8)))}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}')
    return folder


def small_candidate(folder: Path, model: Callable[[Path], object] = lambda folder: write_model(folder)) -> SmallRelease:
    """Of three members, k = 2, by nobody signed yet; `model` writes the model's files."""
    log = signed_log(folder / "log", plans=1)
    hub = log.founded.hub
    log.publish(hub.directory / "log")
    place = _place(log)
    run = _run(log)
    model(folder / "model")
    source = source_of(place, folder / "model", run, "m-1", 0, len(log.entries), About(license="Apache-2.0"))
    create(source, ReleaseCa(hub.release_root_pem, hub.release_ca_key), log.roots, folder / "m-1", NOW)
    return SmallRelease(log, folder / "m-1")


def small_release(
    folder: Path, signers: tuple[str, ...] = ("ara", "chan"), model: Callable[[Path], object] = lambda folder: write_model(folder)
) -> SmallRelease:
    """The same, signed by these and published."""
    made = small_candidate(folder, model)
    envelope = made.attested(signers)
    made.log.say(published(envelope, made.candidate().voters))
    enter(made, envelope, len(made.log.entries) - 1)
    return made


def enter(made: SmallRelease, envelope: Envelope, index: int) -> None:
    """Writes the evidence, as `dure release publish` does."""
    place = _place(made.log)
    made.log.publish(place.folder)
    tree, head = place.tree(), place.head()
    proof = TlogProof(index, tuple(inclusion_proof(tree.node, index, head.checkpoint.size)), head.note.to_bytes())
    write_evidence(made.candidate(), place, envelope, made.log.entries[index], proof.to_bytes())


def _place(log: SignedLog):
    from dure.audit.places import log_of

    return log_of(log.founded.hub.directory)


def _run(log: SignedLog) -> str:
    return Envelope.from_bytes(log.entries[-1]).payload_sha256.hex()
