"""A release says which earlier runs its weights go back to: in its facts, its model card and its bills of materials."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.made_runs import MadeRuns
from support.some_facts import FILES, some_facts

from dure.audit.reading import verified
from dure.charter.root import walk_all
from dure.provenance.candidate import documents
from dure.provenance.drawn_from_log import DRAWN, SENT, run_in, training_run
from dure.provenance.facts import MOST_ANCESTORS, Ancestor, Facts


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """a; b from a's model; c from a file that is one of b's."""
    log = MadeRuns(tmp_path_factory.mktemp("runs"), seed=2)
    a = log.begin()
    b = log.begin(base=log.named(a, 2), flat=a.models[2][1])
    c = log.begin(base=log.named(b, 1, file=True), flat=b.models[1][1])
    return log, a, b, c


def drawn(log, run):
    found = run_in(verified(log.made, walk_all(log.roots, None)), run.run.hex())
    return training_run(found, 1, 1)


def test_a_releases_facts_name_every_earlier_run_nearest_first(runs):
    log, a, b, c = runs
    assert drawn(log, a).ancestors == ()
    assert drawn(log, b).ancestors == (Ancestor(a.run, "digits", SENT),)
    assert drawn(log, c).ancestors == (Ancestor(b.run, "digits", f"run {a.run.hex()[:12]}"), Ancestor(a.run, "digits", SENT))


def test_what_a_member_says_that_it_spent_puts_no_release_out_of_form():
    """Two usage statements of the most tokens there can be came to more than `release.json` could say, and no member could sign it."""
    facts, most = some_facts(), 255 * 2**48 * 2**48
    members = tuple(replace(m, tokens=most, steps=most, milliseconds=most) for m in facts.members)
    facts = replace(facts, members=members, compute=replace(facts.compute, tokens=most, device_ms={"": most}))
    assert Facts.from_json(facts.to_json()) == facts
    assert f"{most:,}" in documents(facts, FILES, None)["README.md"].decode()


def test_card_and_bills_of_materials_say_what_the_run_goes_back_to():
    one = (Ancestor(b"\xab" * 32, "pretrain", "run cd (pretrain), after round 4"), Ancestor(b"\xcd" * 32, "pretrain", DRAWN))
    facts = some_facts()
    facts = replace(facts, run=replace(facts.run, begins="run ab, after round 2", ancestors=one))
    assert Facts.from_json(facts.to_json()) == facts
    assert len(one) <= MOST_ANCESTORS
    told = (
        f"run {'ab' * 6} (pretrain), which began with run cd (pretrain), after round 4; run {'cd' * 6} (pretrain), which began with {DRAWN}"
    )
    made = {name: raw.decode() for name, raw in documents(facts, FILES, None).items()}
    assert f"| goes back to | {told} |" in made["README.md"]
    for name in ("bom.cdx.json", "bom.spdx.json", "training-content-summary.md"):
        text = json.dumps(json.loads(made[name])) if name.endswith(".json") else made[name]
        assert f"run ab, after round 2, which goes back to {told}" in text, name
    assert "goes back to" not in documents(some_facts(), FILES, None)["README.md"].decode()
