"""Allocations: whole parts that add up, made again from the log; and what is changed in one, seen."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import dure
from support.synthetic_log import SyntheticLog

from dure.audit.bundle import Bundle
from dure.audit.level1 import verify
from dure.audit.reading import verified
from dure.charter import root as charter_root
from dure.errors import BadInput
from dure.provenance.allocation import differs, shared_out, sums, table_sha256
from dure.provenance.attestation import Voters, entry_of, merge, sign, statement_of
from dure.provenance.contributions import contributions
from dure.statements.dsse import key_id, seal_payload
from dure.statements.kinds import Allocation, AllocationPublished, MemberSignature, Portion
from dure.statements.statement import Chain
from dure.tlog.merkle import Frontier, leaf_hash

ENTRIES = 200


@given(st.integers(1, 10**9), st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 2**60), min_size=1))
def test_the_parts_are_whole_add_up_and_are_in_proportion(whole, among):
    if not sum(among.values()):
        with pytest.raises(BadInput, match="nothing"):
            shared_out(whole, among)
        return
    parts = {portion.member: portion.parts for portion in shared_out(whole, among)}
    assert (sum(parts.values()), list(parts)) == (whole, sorted(among))
    assert all(abs(parts[m] * sum(among.values()) - whole * among[m]) < sum(among.values()) for m in among)


def test_of_equal_remainders_the_first_member_gets_the_part():
    assert shared_out(10, {"b": 1, "a": 1, "c": 1}) == (Portion("a", 4), Portion("b", 3), Portion("c", 3))


def test_portions_by_a_column_that_nobody_has_anything_in_do_not_follow():
    """k members can sign such a one; whoever checks it is told what is wrong, not to choose other options."""
    made = Made()
    rows = tuple(replace(row, tokens=0) for row in contributions(verified(made.entries, made.charters), span=(0, 2**48)))
    said = replace(made.said, basis="tokens", table_sha256=table_sha256(rows))
    assert differs(said, rows) == "its portions follow from nothing: nobody in the table has any tokens"
    assert differs(replace(said, basis="agreed"), rows) == ""


class Made:
    """A made-up log with an allocation that everybody signed, and how to change either."""

    def __init__(self) -> None:
        self.log = SyntheticLog(exchanges_per_run=8, seed=7)
        self.entries = list(self.log.entries(ENTRIES))
        self.charters = charter_root.walk_all(self.log.roots, self.log.pin)
        own = key_id(self.log.coordinator.public).encode()
        self.chain = Chain.after(next(entry for entry in reversed(self.entries) if own in entry))
        rows = contributions(verified(self.entries, self.charters), span=(0, 2**48))
        charter = self.charters[-1]
        self.said = Allocation(
            name="a-2026",
            consortium=charter.terms.consortium_id,
            charter_version=charter.version,
            charter_sha256=charter.digest,
            purpose="수익 배분: revenue of 2026",
            runs=tuple(sorted({row.run for row in rows})),
            begun_from=0,
            begun_before=2**48,
            log_size=ENTRIES,
            log_root=Frontier().extend(map(leaf_hash, self.entries)).root(),
            table_sha256=table_sha256(rows),
            basis="counted",
            whole=1_000_000,
            portions=shared_out(1_000_000, sums(rows, "counted")),
        )

    def bundle(self, folder, *said, signers=5, entry=lambda e: e):
        """The log and then these allocations, each signed by so many members."""
        self.log.coordinator.chain = self.chain
        facts = [entry(self.fact(one, signers)) for one in said or (self.said,)]
        return self.log.write(folder, [*self.entries, *(self.log.coordinator.say(fact, self.log.now).to_bytes() for fact in facts)])

    def fact(self, said, signers):
        statement, charter = statement_of(said), self.charters[-1]
        signed = {m.name: sign(statement, m.governance) for m in self.log.members[:signers]}
        voters = Voters.of(charter.version, self.charters, "allocation")
        envelope = merge(statement, signed, voters)
        by = {m.name: e.signatures[0][1] for m, e in zip(self.log.members, signed.values(), strict=False)}
        fact = AllocationPublished(statement.decode(), tuple(MemberSignature(m, s) for m, s in sorted(by.items())))
        assert signers < charter.terms.k or fact == entry_of(envelope, voters, AllocationPublished)
        return fact


@pytest.fixture(scope="module")
def made():
    return Made()


def findings(made, bundle):
    return [f"{f.where}: {f.why}" for f in verify(Bundle.open(bundle), made.log.pin, now=made.log.now, cores=1).findings]


def check(made, bundle, asked="a-2026"):
    return dure("audit", "contributions", bundle, "--root-sha256", made.log.pin.hex(), "--check", asked, "--json")


def test_an_auditor_makes_table_and_shares_again(made, tmp_path):
    bundle = made.bundle(tmp_path / "b")
    assert findings(made, bundle) == []
    told = json.loads(check(made, bundle).out)
    assert (told["holds"], told["entry"], told["signed_by"]) == (True, ENTRIES, [m.name for m in made.log.members])
    assert (sum(told["portions"].values()), told["shown"]) == (1_000_000, "table and portions are proved")
    (tmp_path / "x.json").write_bytes(statement_of(made.said))
    assert json.loads(check(made, bundle, tmp_path / "x.json").out)["entry"] == ENTRIES
    agreed = replace(made.said, basis="agreed", portions=(Portion("ara", 400_000), Portion("bora", 600_000)))
    assert "what members agreed on" in json.loads(check(made, made.bundle(tmp_path / "agreed", agreed)).out)["shown"]


def test_a_name_that_two_allocations_have_says_neither_holds(made, tmp_path):
    """Members may publish a corrected one under the same name: "holds" would be read of that one, and was said of the first."""
    bundle = made.bundle(tmp_path / "b", made.said, replace(made.said, portions=moved(made.said)))
    assert findings(made, bundle) == []
    told = check(made, bundle)
    assert told.code == 2 and f"several allocations, entries {ENTRIES}, {ENTRIES + 1}; give the file" in told.err
    (tmp_path / "x.json").write_bytes(statement_of(made.said))
    assert json.loads(check(made, bundle, tmp_path / "x.json").out)["entry"] == ENTRIES


def moved(said: Allocation) -> tuple[Portion, ...]:
    first, second, *rest = said.portions
    return (replace(first, parts=first.parts - 1), replace(second, parts=second.parts + 1), *rest)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda said: {"table_sha256": bytes(32)}, "another one than it cites"),
        (lambda said: {"portions": moved(said)}, "not the whole in proportion to counted"),
        (lambda said: {"basis": "tokens"}, "not the whole in proportion to tokens"),
        (lambda said: {"begun_from": 2**47}, "another one than it cites"),
    ],
    ids=["table", "portions", "basis", "span"],
)
def test_what_members_signed_and_the_log_does_not_give_is_named(made, tmp_path, change, why):
    """All of them may agree on it: then it is signed, and it does not match."""
    bundle = made.bundle(tmp_path / "b", replace(made.said, **change(made.said)))
    assert findings(made, bundle) == []
    told = check(made, bundle)
    assert told.code == 1
    assert why in told.err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda said: {"portions": said.portions[1:]}, "portions: add up to"),
        (lambda said: {"portions": (*said.portions[::-1],)}, "portions: must name each member once"),
        (lambda said: {"portions": (*said.portions, Portion("stranger", 0))}, "portions: name somebody who never was a member"),
        (lambda said: {"runs": (bytes(32), *said.runs)}, "run: 000000000000 has no plan"),
        (lambda said: {"begun_before": 0}, "begun_before: must be after"),
        (lambda said: {"log_size": said.log_size + 1}, "log_size: 201 entries are cited"),
        (lambda said: {"log_size": said.log_size - 1}, "log_root: is of another history"),
        (lambda said: {"log_root": bytes(32)}, "log_root: is of another history"),
        (lambda said: {"consortium": bytes(16)}, "charter_sha256: the allocation is of another consortium"),
    ],
)
def test_an_allocation_that_cannot_be_is_found_by_level_1(made, tmp_path, change, why):
    (told,) = findings(made, made.bundle(tmp_path / "b", replace(made.said, **change(made.said))))
    assert f"entry {ENTRIES}: {why}" in told


def test_one_that_fewer_than_k_signed_or_whose_words_were_changed_is_found(made, tmp_path):
    k = made.charters[-1].terms.k
    (told,) = findings(made, made.bundle(tmp_path / "few", signers=k - 1))
    assert f"signed by {k - 1} of 5 members" in told
    changed = made.bundle(tmp_path / "changed", entry=lambda e: replace(e, statement=e.statement.replace("2026", "2027")))
    assert "does not verify" in findings(made, changed)[0]
    stranger = seal_payload(statement_of(made.said), made.log.members[0].node.key).signatures[0][1]
    other = made.bundle(
        tmp_path / "s", entry=lambda e: replace(e, signatures=(replace(e.signatures[0], signature=stranger), *e.signatures[1:]))
    )
    assert "does not verify" in findings(made, other)[0]
