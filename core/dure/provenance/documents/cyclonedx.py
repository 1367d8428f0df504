"""bom.cdx.json: a CycloneDX 1.6 ML-BOM. Source: CycloneDX specification 1.6, "modelCard"; its strict validator reads it in tests."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from dure.provenance.documents.words import NOT_DECLARED, energy, flop, rounded, said, start, title, when
from dure.provenance.facts import Facts, MemberFacts

CDX = "bom.cdx.json"
_NAMESPACE = uuid.UUID("0d3d8b5e-6b7c-5f51-9f0e-6c2f6f4d7572")
"""For serial numbers that are a function of the facts."""


def cyclonedx(facts: Facts, files: Mapping[str, bytes], architecture: str | None) -> bytes:
    """The BOM's bytes; the same facts and files give the same.

    Args:
        files: name -> SHA-256 of the model's own files.
    """
    body = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, facts.to_json().hex())}",
        "version": 1,
        "metadata": {
            "timestamp": when(facts.log.time),
            "tools": {"components": [{"type": "application", "name": "dure", "version": facts.made_with.removeprefix("dure ")}]},
            "manufacturer": {"name": facts.consortium},
            "component": _model(facts, architecture),
        },
        "components": [_app(facts), *(_file(name, digest) for name, digest in files.items()), *map(_data, facts.members)],
        "dependencies": [
            {"ref": "model", "dependsOn": ["app", *(f"file:{n}" for n in files), *(f"data:{m.member}" for m in facts.members)]},
        ],
    }
    return json.dumps(body, indent=2, ensure_ascii=False).encode() + b"\n"


def _model(facts: Facts, architecture: str | None) -> dict[str, Any]:
    about = facts.about
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": facts.name,
        "version": facts.tensors.weights_id.hex(),
        "description": title(facts),
        "modelCard": _card(facts, architecture),
        "properties": _properties(facts),
    }
    if about.license is not None:
        model["licenses"] = [{"license": {"name": about.license}}]
    return model


def _card(facts: Facts, architecture: str | None) -> dict[str, Any]:
    parameters: dict[str, Any] = {"datasets": [{"ref": f"data:{m.member}"} for m in facts.members]}
    if architecture is not None:
        parameters["modelArchitecture"] = architecture
    if facts.about.pipeline_tag is not None:
        parameters["task"] = facts.about.pipeline_tag
    considerations: dict[str, Any] = {}
    if facts.about.intended_use:
        considerations["useCases"] = [facts.about.intended_use]
    if facts.about.limitations:
        considerations["technicalLimitations"] = [facts.about.limitations]
    card: dict[str, Any] = {"modelParameters": parameters}
    if facts.metrics:
        metrics = [{"type": m.name, "value": rounded(m.value), "slice": m.category} for m in facts.metrics]
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return {**card, **({"considerations": considerations} if considerations else {})}


def _properties(facts: Facts) -> list[dict[str, str]]:
    pairs = {
        "dure:consortium": facts.consortium_id.hex(),
        "dure:run": facts.run.run.hex(),
        "dure:round": str(facts.run.round),
        "dure:exchange": str(facts.run.exchange),
        "dure:weights-id": facts.tensors.weights_id.hex(),
        "dure:parameters": str(facts.tensors.parameters),
        "dure:lineage": facts.run.lineage,
        "dure:base": start(facts.run),
        "dure:log-size": str(facts.log.size),
        "dure:log-root": facts.log.root.hex(),
        "dure:tokens-self-declared": str(facts.compute.tokens),
        "dure:flop-formula": flop(facts.compute.spent.formula_flop, facts.compute),
        "dure:flop-measured": flop(facts.compute.spent.measured_flop, facts.compute),
        "dure:flop-hardware": flop(facts.compute.spent.hardware_flop, facts.compute),
        "dure:energy-self-declared": energy(facts.compute),
    }
    return [{"name": name, "value": value} for name, value in pairs.items()]


def _app(facts: Facts) -> dict[str, Any]:
    run = facts.run
    lock = run.env_sha256.hex() if run.env_sha256 else NOT_DECLARED
    return {
        "type": "application",
        "bom-ref": "app",
        "name": run.app_name,
        "version": run.app_version,
        "hashes": [{"alg": "SHA-256", "content": run.app_sha256.hex()}],
        "properties": [{"name": "dure:env-lock-sha256", "value": lock}],
    }


def _file(name: str, digest: bytes) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [{"alg": "SHA-256", "content": digest.hex()}]}


def _data(member: MemberFacts) -> dict[str, Any]:
    owner = {"organization": {"name": member.display_name}}
    described = {"type": "dataset", "name": f"data of {member.member}", "description": said(member.data), "governance": {"owners": [owner]}}
    return {"type": "data", "bom-ref": f"data:{member.member}", "name": f"data of {member.member}", "data": [described]}
