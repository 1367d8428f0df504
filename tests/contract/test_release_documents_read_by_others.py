"""CycloneDX's strict validator, spdx-python-model and a YAML parser accept the documents of a release, and reject tampered twins."""

from __future__ import annotations

import base64
import copy
import io
import json

import numpy as np
import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from securesystemslib.dsse import Envelope as StockEnvelope
from securesystemslib.exceptions import VerificationError
from spdx_python_model import v3_0_1 as model
from support.small_release import small_release
from support.some_facts import FILES, nothing_said, some_facts

from dure.charter import root
from dure.provenance.documents.cyclonedx import cyclonedx
from dure.provenance.documents.model_card import model_card
from dure.provenance.documents.spdx import spdx
from dure.provenance.documents.training_content import QUESTIONS, training_summary
from dure.provenance.facts import Facts

EVERYTHING_AND_NOTHING = pytest.mark.parametrize("facts", [some_facts(), nothing_said()], ids=["declared", "nothing-declared"])
STRICT = JsonStrictValidator(SchemaVersion.V1_6)


@EVERYTHING_AND_NOTHING
def test_cyclonedx_strict_validator_accepts_the_ml_bom(facts: Facts):
    raw = cyclonedx(facts, FILES, "GPT2LMHeadModel").decode()
    assert STRICT.validate_str(raw) is None
    body = json.loads(raw)
    refs = {c["bom-ref"] for c in body["components"]} | {"model"}
    assert set(body["dependencies"][0]["dependsOn"]) < refs, "everything the model depends on is in the BOM"
    assert {c["hashes"][0]["content"] for c in body["components"] if c["type"] == "file"} == {d.hex() for d in FILES.values()}


@pytest.mark.parametrize(
    ("what", "then"),
    [
        ('"bomFormat": "CycloneDX"', '"bomFormat": "Other"'),
        ('"machine-learning-model"', '"machine"'),
        ('"SHA-256"', '"SHA256"'),
        ('"modelParameters"', '"modelParams"'),
        ('"serialNumber": "urn:uuid:', '"serialNumber": "urn:'),
    ],
)
def test_cyclonedx_strict_validator_rejects_the_twin(what: str, then: str):
    raw = cyclonedx(some_facts(), FILES, None).decode()
    assert what in raw
    assert STRICT.validate_str(raw.replace(what, then)) is not None


def read(raw: bytes) -> model.SHACLObjectSet:
    """Decodes, and encodes again: cardinalities are checked then."""
    found = model.SHACLObjectSet()
    model.JSONLDDeserializer().read(io.BytesIO(raw), found)
    model.JSONLDSerializer().write(found, io.BytesIO())
    return found


@EVERYTHING_AND_NOTHING
def test_spdx_python_model_reads_the_ai_and_dataset_profiles(facts: Facts):
    found = read(spdx(facts, FILES))
    ai = list(found.foreach_type("ai_AIPackage"))
    data = list(found.foreach_type("dataset_DatasetPackage"))
    assert [a.name for a in ai] == [facts.name]
    assert sorted(d.name for d in data) == [f"data of {m.member}" for m in facts.members]
    trained = [r for r in found.foreach_type("Relationship") if r.relationshipType.endswith("trainedOn")]
    assert trained[0].from_ is ai[0] and set(trained[0].to) == set(data)
    assert not found.missing_ids, "every reference is to an element of the document"


@pytest.mark.parametrize(
    ("what", "then"),
    [
        ('"ai_limitation"', '"ai_limits"'),
        ('"trainedOn"', '"trainedBy"'),
        ('"dataset_datasetType": [\n        "noAssertion"\n      ]', '"dataset_datasetType": []'),
        ('"created": "2026', '"created": "26'),
        ('"noAssertion"', '"perhaps"'),
    ],
)
def test_spdx_python_model_rejects_the_twin(what: str, then: str):
    raw = spdx(some_facts(), FILES).decode()
    assert what in raw
    with pytest.raises((ValueError, KeyError, TypeError)):
        read(raw.replace(what, then).encode())


@EVERYTHING_AND_NOTHING
def test_front_matter_is_yaml_and_unknown_things_are_not_made_up(facts: Facts):
    _, matter, text = model_card(facts, "GPT2LMHeadModel").decode().split("---\n", 2)
    said = yaml.safe_load(matter)
    assert said["license"] == ("apache-2.0" if facts.about.license else "unknown")
    assert said["library_name"] == "transformers"
    assert "not declared" in text and "<script>" not in text.replace("\\<script\\>", "")
    assert all(m.display_name.split()[0] in text for m in facts.members)


def test_the_training_content_draft_has_every_question_and_answers_none_by_itself():
    quiet, spoken = nothing_said(), some_facts()
    draft = training_summary(quiet).decode()
    assert all(f"{question}: not declared" in draft for _, question in QUESTIONS.values())
    assert "Size: not declared" in draft
    assert "less than 1 billion tokens processed (3,000" in training_summary(spoken).decode()


@EVERYTHING_AND_NOTHING
def test_the_same_facts_give_the_same_bytes_and_read_back(facts: Facts):
    assert Facts.from_json(facts.to_json()) == facts
    assert cyclonedx(facts, FILES, None) == cyclonedx(Facts.from_json(facts.to_json()), FILES, None)


def test_securesystemslib_verifies_the_attestation_with_threshold_k_and_rejects_k_minus_1(tmp_path):
    made = small_release(tmp_path)
    charter = made.candidate().charter
    keys = [root.tuf_key(m.governance_key) for m in charter.members]
    raw = json.loads((made.folder / "evidence" / "release.dsse.json").read_bytes())
    assert len(StockEnvelope.from_dict(copy.deepcopy(raw)).verify(keys, charter.terms.k)) == 2
    fewer = {**raw, "signatures": raw["signatures"][:1]}
    other = {**raw, "payload": base64.b64encode(base64.b64decode(raw["payload"]).replace(b"m-1", b"m-2")).decode()}
    for twin in (fewer, other):
        with pytest.raises(VerificationError):
            StockEnvelope.from_dict(copy.deepcopy(twin)).verify(keys, charter.terms.k)


@pytest.mark.deep
def test_transformers_loads_a_release_and_a_cut_file_is_refused(tmp_path):
    """The demo's architecture, as `dure run export` and the app's own config leave it; other files in the folder do not disturb."""
    from transformers import AutoModelForCausalLM

    from dure_demo.recipe import Recipe, initial_weights, write_model

    recipe = Recipe.of_app(("games",), vocabulary=64)
    weights = initial_weights(recipe)
    made = small_release(tmp_path / "made", model=lambda folder: write_model(folder, weights, recipe))
    loaded = AutoModelForCausalLM.from_pretrained(made.folder)
    assert loaded.config.vocab_size == 64
    assert np.array_equal(loaded.transformer.wte.weight.detach().numpy(), weights["transformer.wte.weight"])
    path = made.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(Exception, match=r"(?i)safetensor|header|incomplete|metadata"):
        AutoModelForCausalLM.from_pretrained(made.folder)
