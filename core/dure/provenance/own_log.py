"""A release's facts from the log on this machine: drawn by whoever makes it, and again by each member before it signs."""

from __future__ import annotations

from pathlib import Path

from dure.audit.bundle import TRUST, is_charter
from dure.audit.places import LogPlace
from dure.audit.reading import verified
from dure.charter.log_keys import origin_of
from dure.errors import Unavailable
from dure.identity.files import write_atomic
from dure.provenance.candidate import MADE, Source, architecture_of, base_of, documents, facts_of
from dure.provenance.check import ATTESTATION, ENTRY, PROOF, Candidate, version_files
from dure.provenance.drawn_from_log import run_in
from dure.provenance.errors import ContentDiffers
from dure.provenance.facts import FACTS, About, LogPoint
from dure.provenance.model_signature import EVIDENCE
from dure.provenance.weight_files import WeightFiles
from dure.statements.dsse import Envelope
from dure.tlog.merkle import inclusion_proof, root_at
from dure.tlog.proof import TlogProof

DRAWN = ("log", "run", "binding", "members", "metrics", "compute")
"""Fields of the facts that the log gives, by itself or with the weights."""


def source_of(place: LogPlace, model: Path, run: str, name: str, number: int | None, size: int, about: About) -> Source:
    """What a release is made of, by the first `size` entries of the log here.

    Raises:
        BadInput: no such run is in it.
        Refused: names the first entry that does not hold.
    """
    tree = place.tree()
    log = run_in(verified(tree.entries(0, size), place.charters), run)
    point = LogPoint(origin_of(place.charter.terms), size, root_at(tree.node, size), log.time)
    return Source(model, log, point, place.charter, name, number, about)


def same_facts(candidate: Candidate, place: LogPlace) -> None:
    """That a member's own log gives the very facts, and this version of `dure` the very documents.

    Raises:
        Unavailable: the mirror has not so many entries yet.
        ContentDiffers: names the fact, or the document.
    """
    told, folder = candidate.facts, candidate.folder
    there, size = place.head().checkpoint.size, told.log.size
    if there < size:
        raise Unavailable(f"{place.directory} has mirrored {there} entries, the release is drawn from {size}; let the node catch up")
    source = source_of(place, folder, told.run.run.hex(), told.name, told.run.round, size, told.about)
    own = facts_of(source, told.tensors, base_of(folder, WeightFiles.open(folder)))
    for field in DRAWN:
        if getattr(own, field) != getattr(told, field):
            raise ContentDiffers(f"{FACTS}: {field} is not what your own mirror of the log gives; do not sign, ask the administrator")
    if own.made_with == told.made_with:
        _same_documents(candidate)


def _same_documents(candidate: Candidate) -> None:
    theirs = {name: digest for name, digest in candidate.signed.files.items() if name not in MADE}
    for name, raw in documents(candidate.facts, theirs, architecture_of(candidate.folder)).items():
        if (candidate.folder / name).read_bytes() != raw:
            raise ContentDiffers(f"{name}: is not what the facts give; do not sign, ask the administrator")


def write_evidence(candidate: Candidate, place: LogPlace, envelope: Envelope, entry: bytes, proof: bytes) -> None:
    """Puts what shows that a release is published into its folder; again, the same and what is newer.

    Args:
        envelope: the members' attestation.
        entry, proof: of the release in the log, as the coordinator gave them.
    """
    evidence, made_under = candidate.folder / EVIDENCE, candidate.charter.version
    for version, raw in enumerate(place.roots[:made_under], 1):
        write_atomic(evidence / TRUST / f"{version}.root.json", raw)
    if len(place.roots) > made_under:
        _write_later_versions(evidence, place, made_under)
    write_atomic(evidence / ATTESTATION, envelope.to_bytes())
    write_atomic(evidence / ENTRY, entry)
    write_atomic(evidence / PROOF, proof)


def _write_later_versions(evidence: Path, place: LogPlace, made_under: int) -> None:
    """The versions after the release's own that are entries, and where they are."""
    tree, head = place.tree(), place.head()
    entered = [index for index, raw in enumerate(tree.entries(0, head.checkpoint.size)) if is_charter(raw)]
    for version, index in list(enumerate(entered, 1))[made_under:]:
        said, shown = version_files(version)
        path = inclusion_proof(tree.node, index, head.checkpoint.size)
        write_atomic(evidence / TRUST / f"{version}.root.json", place.roots[version - 1])
        write_atomic(evidence / said, tree.entry(index))
        write_atomic(evidence / shown, TlogProof(index, tuple(path), head.note.to_bytes()).to_bytes())
