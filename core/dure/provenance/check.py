"""A release folder checked offline: first as a candidate (files, signature, signer), then as published (k members, an entry of the log).

Each check that does not hold raises, by name and with an exit code of its own (errors.py); what holds is one row of the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dure.audit.bundle import TRUST
from dure.audit.report import PROVED, SIGNED, UNCHECKED, Row
from dure.charter import root as charter_root
from dure.charter.log_keys import judging
from dure.charter.model import Charter
from dure.errors import Refused
from dure.identity import tls
from dure.identity.files import read
from dure.provenance.attestation import Voters, check_enough, check_published, envelope_of, signers_of, statement_of
from dure.provenance.candidate import ROOT, base_of
from dure.provenance.documents.words import start
from dure.provenance.errors import ContentDiffers, ExtraFiles, NotSigned
from dure.provenance.facts import FACTS, Facts
from dure.provenance.model_signature import EVIDENCE, SIGNATURE, SignedFiles, check_names, digests_of, file_names, open_signature
from dure.provenance.weight_files import SUFFIX, TENSORS, WeightFiles, describe, tensor_digests, what_changed
from dure.statements.dsse import Envelope
from dure.statements.kinds import CharterVersion, Release, ReleasePublished
from dure.statements.statement import open_statement
from dure.tlog.checkpoint import Head
from dure.tlog.proof import TlogProof

ATTESTATION, ENTRY, PROOF = "release.dsse.json", "entry.json", "release.tlog-proof"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A folder whose files are as its signature says, under the release CA that the charter names."""

    folder: Path
    facts: Facts
    signed: SignedFiles
    charter: Charter
    """The version it was made under."""
    versions: tuple[Charter, ...]
    """Every version that was at hand, 1 first."""

    @property
    def voters(self) -> Voters:
        """Whose signatures count where the newest of these versions is in force."""
        return Voters.of(self.charter.version, self.versions)

    @property
    def release(self) -> Release:
        facts = self.facts
        return Release(
            name=facts.name,
            consortium=facts.consortium_id,
            charter_version=facts.charter_version,
            charter_sha256=facts.charter_sha256,
            run=facts.run.run,
            exchange=facts.run.exchange,
            weights_id=facts.tensors.weights_id,
            files_sha256=self.signed.payload_sha256,
            signer_sha256=self.signed.signer_sha256,
            log_size=facts.log.size,
            log_root=facts.log.root,
        )

    @property
    def statement(self) -> bytes:
        """What members sign."""
        return statement_of(self.release)


def roots_of(folder: Path) -> list[bytes]:
    """The charter versions beside the release, 1 first; nothing is believed of them yet.

    Raises:
        BadInput: there is none, or the folder has a link, a pipe or a device in it, which is not to be read.
    """
    file_names(folder)
    trust = folder / EVIDENCE / TRUST
    numbers = sorted(int(found[1]) for p in trust.glob("*") if (found := re.fullmatch(r"([1-9][0-9]{0,5})\.root\.json", p.name)))
    return [read(trust / f"{n}.root.json", "a charter version of the release") for n in range(1, max(numbers, default=1) + 1)]


def check_candidate(folder: Path, roots: list[bytes], pin: bytes, progress: Progress = lambda _name: None) -> Candidate:
    """Everything that does not need the members' signatures.

    Args:
        pin: SHA-256 of the signed bytes of charter version 1.

    Raises:
        DureError: what does not hold, by name.
    """
    versions = charter_root.walk_all(roots, pin)
    root_pem = versions[-1].terms.coordinator.release_ca_pem.encode()
    signed = open_signature(read(folder / SIGNATURE, "the release's signature"), tls.load_certificate(root_pem, ROOT))
    check_names(signed, folder)
    check_content(signed, folder, progress)
    if read(folder / ROOT, "the release CA's root") != root_pem:
        raise NotSigned(f"{ROOT}: is not the release CA that the charter names")
    facts = Facts.from_json(read(folder / FACTS, "the release's facts"))
    _check_facts(facts, folder, signed)
    if not 1 <= facts.charter_version <= len(roots):
        raise NotSigned(f"{FACTS}: names charter version {facts.charter_version}, which is not in {EVIDENCE}/{TRUST}")
    charter = versions[facts.charter_version - 1]
    if (facts.charter_sha256, facts.consortium_id) != (charter.digest, charter.terms.consortium_id):
        raise NotSigned(f"{FACTS}: is of another consortium or charter than the pinned one")
    return Candidate(folder, facts, signed, charter, versions)


def check_content(signed: SignedFiles, folder: Path, progress: Progress = lambda _name: None) -> None:
    """Every file byte for byte; of weights that differ, which tensor and how, if the list of tensors can be believed.

    Raises:
        ContentDiffers, OtherDtype, OtherShape: name the first file that is not what was signed.
    """
    listed = folder / TENSORS
    known = TENSORS in signed.files and digests_of(folder, [TENSORS])[TENSORS] == signed.files[TENSORS]
    for name, wanted in sorted(signed.files.items()):
        found = digests_of(folder, [name], progress)[name]
        if found == wanted:
            continue
        if known and name.endswith(SUFFIX) and (why := what_changed(listed.read_bytes(), folder)) is not None:
            raise why
        raise ContentDiffers(f"{name}: is not what was signed (SHA-256 {found.hex()[:16]}…, signed {wanted.hex()[:16]}…)")


def _check_facts(facts: Facts, folder: Path, signed: SignedFiles) -> None:
    """That the facts are of these weights."""
    weights = WeightFiles.open(folder)
    tensors, listed = describe(weights, tensor_digests(weights))
    if tensors != facts.tensors or listed != read(folder / TENSORS, "the list of tensors"):
        raise ContentDiffers(f"{FACTS}, {TENSORS}: are of other weights than those beside them")
    if facts.name != signed.name:
        raise ContentDiffers(f"{FACTS}: the release is named {facts.name}, {SIGNATURE} says {signed.name}")
    if facts.binding.base_id is not None and base_of(folder, weights) != facts.binding.base_id:
        raise ContentDiffers(f"{FACTS}: names a base that is not of these weights")


@dataclass(frozen=True)
class Published:
    """A release that holds."""

    candidate: Candidate
    voters: Voters
    signers: tuple[str, ...]
    index: int
    """Of its entry."""
    size: int
    """Of the log at the head that shows it."""
    cosigned: tuple[str, ...]


def check_release(folder: Path, pin: bytes, progress: Progress = lambda _name: None) -> Published:
    """Everything; offline, nothing believed but the pin.

    Raises:
        DureError: what does not hold, by name.
    """
    roots = roots_of(folder)
    candidate = check_candidate(folder, roots, pin, progress)
    if not (folder / EVIDENCE / ATTESTATION).exists():
        raise NotSigned(f"{folder} is a candidate: no member's signature is in it yet (`dure release sign`, `dure release publish`)")
    envelope = Envelope.from_bytes(read(folder / EVIDENCE / ATTESTATION, "the members' signatures"))
    if envelope.payload != candidate.statement:
        raise NotSigned(f"{EVIDENCE}/{ATTESTATION}: members signed another release than this folder holds")
    published = _check_logged(folder, candidate, envelope)
    _check_evidence_names(folder, candidate)
    return published


def _check_logged(folder: Path, candidate: Candidate, envelope: Envelope) -> Published:
    raw = read(folder / EVIDENCE / ENTRY, "the release's entry of the log")
    proof = TlogProof.from_bytes(read(folder / EVIDENCE / PROOF, "the proof that the release is in the log"))
    head = _shown(proof, raw, candidate)
    charters = candidate.versions[: _in_force(folder, candidate, proof.index)]
    entry = open_statement(raw, ReleasePublished, [charters[-1].terms.coordinator.signing_key]).fact
    voters = Voters.of(candidate.charter.version, charters)
    signers = signers_of(envelope, voters)
    check_enough(signers, voters)
    if check_published(entry, charters) != candidate.release or envelope_of(entry, voters) != envelope:
        raise NotSigned(f"{EVIDENCE}/{ENTRY}: publishes another release, or other signatures")
    if candidate.facts.log.size > proof.index:
        raise Refused(f"{EVIDENCE}/{PROOF}", "the release is in the log before the entries that it is drawn from")
    cosigned = tuple(sorted(head.cosigned))
    return Published(candidate, voters, signers, proof.index, head.checkpoint.size, cosigned)


def _shown(proof: TlogProof, entry: bytes, candidate: Candidate) -> Head:
    """The head under which an entry is shown; judged by the newest version under which it counts."""
    by = judging(candidate.versions[candidate.charter.version - 1 :], proof.checkpoint)
    return proof.verify(entry, by.log, by.keys, quorum=by.quorum)


def _in_force(folder: Path, candidate: Candidate, index: int) -> int:
    """How many charter versions were in force at this index of the log, of those in the folder.

    A version counts from its entry on, which the folder shows (`version_files`); one that it does not show counts.
    """
    count = candidate.charter.version
    for charter in candidate.versions[count:]:
        entry, proof = (folder / EVIDENCE / name for name in version_files(charter.version))
        if entry.exists() and proof.exists() and _entered_at(charter, entry, proof, candidate) > index:
            break
        count = charter.version
    return count


def _entered_at(charter: Charter, entry: Path, proof: Path, candidate: Candidate) -> int:
    """Index of a charter version's entry."""
    raw = read(entry, "a charter version's entry of the log")
    said = open_statement(raw, CharterVersion, [charter.terms.coordinator.signing_key]).fact
    if (said.version, said.charter_sha256) != (charter.version, charter.digest):
        raise NotSigned(f"{EVIDENCE}/{TRUST}/{entry.name}: is the entry of another charter version")
    shown = TlogProof.from_bytes(read(proof, "the proof that a charter version is in the log"))
    _shown(shown, raw, candidate)
    return shown.index


def version_files(version: int) -> tuple[str, str]:
    """Where a release shows since when a charter version later than its own is in force: entry, and its proof."""
    return f"{TRUST}/{version}.entry.json", f"{TRUST}/{version}.tlog-proof"


def _check_evidence_names(folder: Path, candidate: Candidate) -> None:
    known = {ATTESTATION, ENTRY, PROOF} | {f"{TRUST}/{charter.version}.root.json" for charter in candidate.versions}
    known |= {name for charter in candidate.versions[candidate.charter.version :] for name in version_files(charter.version)}
    there = {p.relative_to(folder / EVIDENCE).as_posix() for p in (folder / EVIDENCE).rglob("*") if p.is_file()}
    if extra := sorted(there - known):
        raise ExtraFiles(f"{EVIDENCE}/{extra[0]}: is no part of a release; remove it, or do not use this copy")


def rows(found: Published) -> list[Row]:
    """The table of a release that holds."""
    facts, charter = found.candidate.facts, found.candidate.charter
    files = len(found.candidate.signed.files)
    return [
        Row("the charter descends from the pinned version", PROVED, f"version {charter.version} of {charter.terms.name}"),
        Row("every file is as it was signed, and there is no other", PROVED, f"{files} files, {facts.tensors.parameters:,} parameters"),
        Row("the signer is under the release CA that the charter names", PROVED, found.candidate.signed.signer_sha256.hex()[:16] + "…"),
        Row("enough members signed the release", SIGNED, f"{', '.join(found.signers)}; {found.voters.needed} needed{_later(found.voters)}"),
        Row("it is an entry of the consortium's log", PROVED, f"entry {found.index} of {found.size}, {len(found.cosigned)} cosigned"),
        _origin(facts),
        Row("what the run began with", SIGNED, f"{start(facts.run)}; `dure audit lineage` of a bundle recomputes it"),
    ]


def _later(voters: Voters) -> str:
    """Where the release was entered under a later version than it was made under."""
    made, now = voters.made_under.version, voters.in_force.version
    return f"; by keys that were theirs from charter version {made} to {now}, in force at its entry" if now > made else ""


def _origin(facts: Facts) -> Row:
    """What shows, by the facts that members signed, that the run made these weights."""
    claim, binding = "the weights are those the run made", facts.binding
    if binding.base_id is not None:
        return Row(claim, SIGNED, f"base {binding.base_id.hex()[:16]}…, computed and accepted by {', '.join(binding.accepted_by)}")
    if binding.opened_in:
        return Row(claim, SIGNED, f"the coordinator's opening of exchange {binding.opened_in[0]} names them")
    return Row(claim, UNCHECKED, "no statement in the log names these very weights")
