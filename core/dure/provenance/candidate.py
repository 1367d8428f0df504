"""A release candidate: a folder with weights, documents and `model.sig`, which members look at and sign.

    model.safetensors config.json …   the model, as `dure run export` and the app left it
    release.json tensors.json         the facts; each tensor by its digest
    README.md bom.cdx.json bom.spdx.json training-content-summary.md    made from the facts
    release-root.pem model.sig        the release CA's root; the signature over everything above
    evidence/                         after that: charter versions, members' signatures, log entry and proof

Making it twice from the same log, model and words gives the same files but for `model.sig`, whose key is thrown away.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key

from dure.audit.bundle import TRUST
from dure.charter.model import Charter
from dure.errors import BadInput, Conflict
from dure.identity import tls
from dure.identity.files import read, write_atomic
from dure.model.base import BaseRecord
from dure.provenance import drawn_from_log as drawn
from dure.provenance.documents.cyclonedx import CDX, cyclonedx
from dure.provenance.documents.model_card import CARD, model_card
from dure.provenance.documents.spdx import SPDX, spdx
from dure.provenance.documents.training_content import SUMMARY, training_summary
from dure.provenance.facts import FACTS, About, Facts, LogPoint, Tensors
from dure.provenance.model_signature import EVIDENCE, SIGNATURE, digests_of, file_names, sign_files
from dure.provenance.weight_files import TENSORS, WeightFiles, describe, flat_id, tensor_digests

ROOT = "release-root.pem"
BASE, LAYOUT = "base.json", "layout.json"
MADE = (FACTS, TENSORS, CARD, CDX, SPDX, SUMMARY, ROOT, SIGNATURE)
"""Files that are made here, and must not be the model's own."""


@dataclass(frozen=True)
class Source:
    """What a release is made of: a model's folder, and the log's word on it."""

    model: Path
    log: drawn.LogOfRun
    point: LogPoint
    charter: Charter
    name: str
    round: int | None
    about: About


@dataclass(frozen=True)
class ReleaseCa:
    """Who signs."""

    root_pem: bytes
    key: EllipticCurvePrivateKey

    @property
    def root(self) -> x509.Certificate:
        return tls.load_certificate(self.root_pem, ROOT)


def run_of_model(model: Path) -> tuple[str, int | None]:
    """(run id, round) that `dure run export` wrote into the weights; "" and None where it did not."""
    said = WeightFiles.open(model).metadata
    number = said.get("dure.round", "")
    return said.get("dure.run", ""), int(number) if re.fullmatch(r"[0-9]{1,9}", number) else None


def create(source: Source, ca: ReleaseCa, roots: Iterable[bytes], out: Path, now: datetime) -> Facts:
    """Makes the folder, whole or not at all.

    Raises:
        Conflict: `out` is there already.
        BadInput: the model's folder has a file that is made here, or something that is no plain file; the log has no such run or round.
    """
    if out.exists():
        raise Conflict(f"{out} is there already; choose another name, or remove it")
    scratch = out.with_name(f".{out.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _copy(source.model, scratch)
        facts = _write_facts(source, scratch)
        write_atomic(scratch / ROOT, ca.root_pem)
        key = generate_private_key(SECP256R1())
        certificate = tls.issue_release_signer(ca.root, ca.key, key.public_key(), source.name, now.astimezone(UTC))
        signed = sign_files(source.name, digests_of(scratch, file_names(scratch)), key, certificate)
        write_atomic(scratch / SIGNATURE, signed)
        for number, raw in enumerate(roots, 1):
            write_atomic(scratch / EVIDENCE / TRUST / f"{number}.root.json", raw)
        scratch.replace(out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return facts


def _copy(model: Path, target: Path) -> None:
    names = [name for name in file_names(model) if name != LAYOUT]
    for name in names:
        if name in MADE:
            raise BadInput(f"{model / name}: is made with the release; move it away")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / name, target / name)


def _write_facts(source: Source, folder: Path) -> Facts:
    model_files = file_names(folder)
    weights = WeightFiles.open(folder)
    tensors, listed = describe(weights, tensor_digests(weights))
    base = base_of(folder, weights)
    facts = facts_of(source, tensors, base)
    write_atomic(folder / TENSORS, listed)
    write_atomic(folder / FACTS, facts.to_json())
    for name, raw in documents(facts, digests_of(folder, model_files), architecture_of(folder)).items():
        write_atomic(folder / name, raw)
    return facts


def documents(facts: Facts, files: Mapping[str, bytes], architecture: str | None) -> dict[str, bytes]:
    """Every document by name, a pure function of the facts and the digests of the model's own files."""
    return {
        CARD: model_card(facts, architecture),
        CDX: cyclonedx(facts, files, architecture),
        SPDX: spdx(facts, files),
        SUMMARY: training_summary(facts),
    }


def architecture_of(folder: Path) -> str | None:
    """What `transformers` loads the model as, from config.json."""
    with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        return str(json.loads((folder / "config.json").read_bytes())["architectures"][0])[:80]
    return None


def base_of(folder: Path, weights: WeightFiles) -> bytes | None:
    """Digest of the base record in the folder, if the weights are the very ones it names; only float32 can show that.

    Raises:
        BadInput: there is a record, and it names other weights.
        BaseRefused: it is no record.
    """
    if not (folder / BASE).exists():
        return None
    record = BaseRecord.from_json(read(folder / BASE, "the base record that `dure run export` wrote"))
    layout = weights.layout
    if any(e.dtype != "float32" for e in layout.entries):
        return None
    if flat_id(weights, [e.name for e in layout.entries]) != record.weights:
        raise BadInput(f"{folder / BASE}: names other weights than those beside it; export the model again")
    return record.id


def facts_of(source: Source, tensors: Tensors, base_id: bytes | None) -> Facts:
    """The facts: from the log, from the weights, and from people's words."""
    log, charter = source.log, source.charter
    number, exchange = drawn.exchange_of_round(log, source.round)
    members = drawn.member_facts(log, charter, exchange)
    return Facts(
        v=1,
        name=source.name,
        made_with=f"dure {version('dure')}",
        consortium=charter.terms.name,
        consortium_id=charter.terms.consortium_id,
        charter_version=charter.version,
        charter_sha256=charter.digest,
        log=source.point,
        run=drawn.training_run(log, number, exchange),
        tensors=tensors,
        binding=drawn.binding(log, exchange, tensors.weights_id, base_id),
        members=members,
        metrics=drawn.metrics_of(log, exchange, tensors.weights_id),
        compute=drawn.compute(log, exchange, source.about),
        about=source.about,
    )
