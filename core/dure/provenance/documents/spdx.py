"""bom.spdx.json: SPDX 3.0.1 with the AI and Dataset profiles, as JSON-LD. Source: SPDX specification 3.0.1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dure.provenance.documents.words import energy, flop, rounded, said, start, title, when
from dure.provenance.facts import Facts, MemberFacts

SPDX = "bom.spdx.json"
CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
_CREATION = "_:creation"


def spdx(facts: Facts, files: Mapping[str, bytes]) -> bytes:
    """The document's bytes; the same facts and files give the same.

    Args:
        files: name -> SHA-256 of the model's own files.
    """
    at = f"urn:dure:release:{facts.run.run.hex()}:{facts.tensors.weights_id.hex()}"
    elements = [
        _element(at, "Organization", "consortium", name=facts.consortium),
        _element(at, "Tool", "tool", name=facts.made_with),
        *(_element(at, "Organization", f"member/{m.member}", name=m.display_name) for m in facts.members),
        _model(at, facts),
        *(_dataset(at, facts, m) for m in facts.members),
        *(_file(at, n, name, digest) for n, (name, digest) in enumerate(files.items())),
        _app(at, facts),
        _related(at, "trainedOn", "trained-on", [f"{at}/data/{m.member}" for m in facts.members]),
        _related(at, "contains", "contains", [f"{at}/file/{n}" for n in range(len(files))]),
        _related(at, "usesTool", "trained-by", [f"{at}/app"]),
    ]
    creation = {
        "type": "CreationInfo",
        "@id": _CREATION,
        "specVersion": "3.0.1",
        "created": when(facts.log.time),
        "createdBy": [f"{at}/consortium"],
        "createdUsing": [f"{at}/tool"],
    }
    profiles = ["core", "software", "ai", "dataset"]
    document = _element(
        at, "SpdxDocument", "document", rootElement=[f"{at}/model"], element=[e["spdxId"] for e in elements], profileConformance=profiles
    )
    body = {"@context": CONTEXT, "@graph": [creation, document, *elements]}
    return json.dumps(body, indent=2, ensure_ascii=False).encode() + b"\n"


def _element(at: str, kind: str, name_: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "spdxId": f"{at}/{name_}", "creationInfo": _CREATION, **fields}


def _entries(pairs: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"type": "DictionaryEntry", "key": key, "value": value} for key, value in pairs.items()]


def _model(at: str, facts: Facts) -> dict[str, Any]:
    compute, spent, run = facts.compute, facts.compute.spent, facts.run
    training = (
        f"Rounds of local training at {len(facts.members)} members, summed under secure aggregation; run {run.run.hex()}, "
        f"round {run.round} of {run.rounds}, outer step {run.outer_step}; bases: {run.lineage}; "
        f"began with {start(run)}. Compute: "
        f"formula {flop(spent.formula_flop, compute)}, measured {flop(spent.measured_flop, compute)}, "
        f"hardware {flop(spent.hardware_flop, compute)}; energy {energy(compute)}."
    )
    metrics = {f"{m.category}:{m.exchange}:{m.name}": rounded(m.value) for m in facts.metrics}
    optional: dict[str, Any] = {"ai_metric": _entries(metrics)} if metrics else {}
    if run.settings:
        optional["ai_hyperparameter"] = _entries(run.settings)
    return _element(
        at,
        "ai_AIPackage",
        "model",
        name=facts.name,
        description=title(facts),
        software_packageVersion=facts.tensors.weights_id.hex(),
        software_primaryPurpose="model",
        software_downloadLocation=f"{at}/model",
        releaseTime=when(facts.log.time),
        suppliedBy=f"{at}/consortium",
        ai_informationAboutTraining=training,
        ai_informationAboutApplication=said(facts.about.intended_use),
        ai_limitation=said(facts.about.limitations),
        ai_useSensitivePersonalInformation="noAssertion",
        **optional,
    )


def _dataset(at: str, facts: Facts, member: MemberFacts) -> dict[str, Any]:
    return _element(
        at,
        "dataset_DatasetPackage",
        f"data/{member.member}",
        name=f"data of {member.member}",
        description=said(member.data),
        software_primaryPurpose="data",
        software_downloadLocation=f"{at}/data/{member.member}",
        builtTime=when(facts.log.time),
        releaseTime=when(facts.log.time),
        originatedBy=[f"{at}/member/{member.member}"],
        dataset_datasetType=["noAssertion"],
        dataset_dataCollectionProcess=said(member.data),
        dataset_hasSensitivePersonalInformation="noAssertion",
        comment="The data never left its member; locations are names, and times are the release's, since none was declared.",
    )


def _file(at: str, number: int, name: str, digest: bytes) -> dict[str, Any]:
    hashed = {"type": "Hash", "algorithm": "sha256", "hashValue": digest.hex()}
    return _element(at, "software_File", f"file/{number}", name=name, verifiedUsing=[hashed])


def _app(at: str, facts: Facts) -> dict[str, Any]:
    hashed = {"type": "Hash", "algorithm": "sha256", "hashValue": facts.run.app_sha256.hex()}
    return _element(
        at,
        "Tool",
        "app",
        name=f"{facts.run.app_name} {facts.run.app_version}",
        verifiedUsing=[hashed],
    )


def _related(at: str, kind: str, name: str, to: list[str]) -> dict[str, Any]:
    return _element(at, "Relationship", f"relation/{name}", relationshipType=kind, **{"from": f"{at}/model", "to": to})
