"""Which exchanges and releases contain a member's work or a data set: counted a second way, and every answer proved."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import pytest
from support.synthetic_log import SyntheticLog
from typer.testing import CliRunner

from dure.audit.log_cli import app
from dure.audit.reading import verified
from dure.charter import root
from dure.charter.log_keys import log_key, witness_keys, witness_quorum
from dure.provenance.attestation import statement_of
from dure.provenance.contains import contains
from dure.provenance.contributions import contributions
from dure.statements import kinds
from dure.tlog.proof import TlogProof

ENTRIES = 700


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(log, its bundle, its verified entries)"""
    log = SyntheticLog(members=4, exchanges_per_run=6, versions_at=(200,), seed=5)
    entries = list(log.entries(ENTRIES))
    versions = [root.walk(log.roots[:n], log.pin) for n in range(1, len(log.roots) + 1)]
    return log, log.write(tmp_path_factory.mktemp("log") / "bundle", entries), list(verified(entries, versions))


def test_a_members_exchanges_are_those_that_count_for_its_contributions(made):
    for member in ("ara", "dana"):
        rows = contributions(made[2], span=(0.0, float(2**48)))
        counted = {row.run: row.counted for row in rows if row.member == member and row.counted}
        found = contains(made[2], member=member)
        assert {run: sum(e.run == run for e in found.exchanges) for run in counted} == counted
        assert len(found.exchanges) == sum(counted.values()) > 5


def test_the_command_answers_from_a_bundle_with_proofs_that_need_no_trust(made):
    log, bundle, _ = made
    done = CliRunner().invoke(app, ["contains", "--member", "ara", "--bundle", str(bundle), "--root-sha256", log.pin.hex(), "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and told["size"] == ENTRIES
    by_index = {p["index"]: p for p in told["proofs"]}
    for exchange in told["exchanges"]:
        assert len(exchange["entries"]) == 3 and set(exchange["entries"]) <= by_index.keys()
    for index, proof in by_index.items():
        parsed = TlogProof.from_bytes(proof["tlog_proof"].encode())
        assert parsed.index == index
        terms = log.terms
        parsed.verify(proof["entry"].encode(), log_key(terms), witness_keys(terms), quorum=witness_quorum(terms))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give --member ID or --data NAME"),
        (["--member", "ara", "--data", "x"], "one of the two"),
        (["--member", "nobody"], "no charter version has such a member; there are ara, bora, chan, dana"),
        (["--data", "corpus"], "no data commitment of that name or digest"),
    ],
)
def test_a_question_that_has_no_answer_is_one_line(made, words, says):
    log, bundle, _ = made
    done = CliRunner().invoke(app, ["contains", *words, "--bundle", str(bundle), "--root-sha256", log.pin.hex()])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and says in done.stderr


def publication(run: bytes, exchange: int) -> SimpleNamespace:
    zero = bytes(32)
    release = kinds.Release("m-1", bytes(16), 1, zero, run, exchange, zero, zero, zero, 9, zero)
    return entry(kinds.ReleasePublished(statement_of(release).decode(), ()))


def entry(fact: object) -> SimpleNamespace:
    """As `verified` gives it, as far as the search looks."""
    digest = sha256(repr(fact).encode()).digest()
    return SimpleNamespace(fact=fact, envelope=SimpleNamespace(payload_sha256=digest, sha256=digest))


def test_a_release_contains_what_its_run_counted_until_then_and_what_its_first_model_held(made):
    entries = made[2]
    mine = [e for e in contains(entries, member="ara").exchanges if e.category == "train"]
    first = mine[0]
    assert [r.name for r in contains([*entries, publication(first.run, first.exchange)], member="ara").releases] == ["m-1"]
    assert not contains([*entries, publication(first.run, first.exchange - 1)], member="ara").releases
    plan = next(s.fact for s in entries if isinstance(s.fact, kinds.RunPlan))
    base = kinds.NamedBase(bytes(32), bytes(32), 9, "run, round 3", first.run, None, ())
    later = entry(replace(plan, base=base))
    run = later.envelope.payload_sha256
    found = contains([*entries, later, publication(run, 4)], member="ara").releases
    assert [(r.run, r.through) for r in found] == [(run, first.run)]


def registered(member: str) -> SimpleNamespace:
    return entry(kinds.DataCommitment(member, "news-2026", b"d" * 32, 1, 1, None, None, "MIT", None, None))


def test_exchanges_of_a_data_set_are_those_whose_counted_commits_name_a_usage_that_names_it(made):
    entries = list(made[2])
    commit = next(s.fact for s in entries if isinstance(s.fact, kinds.InstanceCommit) and s.fact.member == "ara" and s.fact.usage_sha256)
    at = next(i for i, s in enumerate(entries) if s.envelope.sha256 == commit.usage_sha256)
    theirs, others = registered("ara"), registered("bora")

    def with_usage_of(data: SimpleNamespace) -> list:
        said = replace(entries[at].fact, data=(data.envelope.payload_sha256,))
        return [theirs, others, *entries[:at], SimpleNamespace(fact=said, envelope=entries[at].envelope), *entries[at + 1 :]]

    for asked in ("news-2026", theirs.envelope.payload_sha256.hex()[:12]):
        found = contains(with_usage_of(theirs), data=asked)
        assert [(e.members, len(e.entries)) for e in found.exchanges] == [(("ara",), 4)]
        assert found.exchanges[0].entries[0] == at + 2 and 0 in found.data
    assert not contains(with_usage_of(others), data="news-2026").exchanges, "nobody claims another member's data"
    assert contains(with_usage_of(theirs), data="other").data == ()
