"""A release made under one charter version and entered under a later one: a key counts if nobody took it out on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.small_release import SmallRelease, enter, small_candidate

from dure.audit.bundle import Bundle, export
from dure.audit.level1 import verify
from dure.audit.places import log_of
from dure.provenance import check
from dure.provenance.attestation import Voters, check_enough, check_published, merge, published
from dure.provenance.errors import NotSigned
from dure.statements.dsse import Envelope
from dure.statements.kinds import MemberSignature, ReleasePublished


def other_keys(made: SmallRelease, *members: str):
    """The charter's members, these with new governance keys."""
    fresh = {m: Ed25519PrivateKey.generate().public_key().public_bytes_raw() for m in members}
    return tuple(replace(m, governance_key=fresh.get(m.id, m.governance_key)) for m in made.log.charter.members)


def forged(envelope: Envelope, members: tuple[str, ...]) -> ReleasePublished:
    """The entry of a coordinator that checks nothing."""
    lines = zip(members, (signature for _, signature in envelope.signatures), strict=True)
    return ReleasePublished(envelope.payload.decode(), tuple(MemberSignature(m, s) for m, s in lines))


def findings(made: SmallRelease, folder) -> list[str]:
    place = log_of(made.log.founded.hub.directory)
    export(place.tree(), place.head(), place.roots, folder)
    return [f"{f.where}: {f.why}" for f in verify(Bundle.open(folder), made.pin, cores=1).findings]


def say(made: SmallRelease, entry: ReleasePublished, envelope: Envelope) -> int:
    made.log.say(entry)
    index = len(made.log.entries) - 1
    enter(made, envelope, index)
    return index


def test_a_candidate_signed_before_a_version_that_left_the_keys_alone_is_published_after_it(tmp_path):
    made = small_candidate(tmp_path)
    envelope = made.attested(("ara", "chan"))
    made.log.new_version(("ara", "bora"), w_max=7)
    entry = published(envelope, Voters.of(1, log_of(made.log.founded.hub.directory).charters))
    say(made, entry, envelope)
    found = check.check_release(made.folder, made.pin)
    assert found.signers == ("ara", "chan") and (found.voters.made_under.version, found.voters.in_force.version) == (1, 2)
    row = next(r for r in check.rows(found) if r.claim == "enough members signed the release")
    assert row.detail == "ara, chan; 2 needed; by keys that were theirs from charter version 1 to 2, in force at its entry"
    assert findings(made, tmp_path / "bundle") == []


def test_a_signature_by_a_key_that_was_replaced_meanwhile_counts_for_nothing(tmp_path):
    """Whoever stole ara's old key signs after its removal; a coordinator that enters it all the same is found by every reader."""
    made = small_candidate(tmp_path)
    made.log.new_version(("bora", "chan"), members=other_keys(made, "ara"))
    charters = log_of(made.log.founded.hub.directory).charters
    voters = Voters.of(1, charters)
    signed = made.signatures(("ara", "chan"))
    late = merge(made.candidate().statement, signed, Voters.of(1, charters[:1]))
    with pytest.raises(NotSigned, match=r"ara\.sig: is by a governance key of ara that is in force no more: by version 2 it was taken out"):
        merge(late.payload, signed, voters)
    with pytest.raises(NotSigned, match="of ara by a key that was taken out before it was entered"):
        published(late, voters)
    entry = forged(late, ("ara", "chan"))
    with pytest.raises(NotSigned, match="signed by ara, who is no member or whose key was taken out"):
        check_published(entry, charters)
    index = say(made, entry, late)
    with pytest.raises(NotSigned, match="of ara by a key that was taken out before it was entered"):
        check.check_release(made.folder, made.pin)
    assert [line.split(":")[0] for line in findings(made, tmp_path / "bundle")] == [f"entry {index}"]
    say(made, published(made.attested(("bora", "chan")), voters), made.attested(("bora", "chan")))
    assert check.check_release(made.folder, made.pin).signers == ("bora", "chan"), "the others' keys were left alone"


def test_a_release_entered_before_a_key_was_replaced_holds_after_it(tmp_path):
    """The folder shows that the release is the older entry; a copy that does not show it is not believed."""
    made = small_candidate(tmp_path)
    envelope = made.attested(("ara", "chan"))
    index = say(made, published(envelope, made.candidate().voters), envelope)
    made.log.new_version(("bora", "chan"), members=other_keys(made, "ara"))
    enter(made, envelope, index)
    found = check.check_release(made.folder, made.pin)
    assert found.signers == ("ara", "chan") and found.voters.in_force.version == 1 and len(found.candidate.versions) == 2
    assert findings(made, tmp_path / "bundle") == []
    twin = made.twin(tmp_path / "twin")
    (twin / "evidence/trust/2.tlog-proof").unlink()
    with pytest.raises(NotSigned, match="of ara by a key that was taken out"):
        check.check_release(twin, made.pin)
    (made.folder / "evidence/trust/2.entry.json").write_bytes(made.log.entries[0])
    with pytest.raises(NotSigned, match=r"2\.entry\.json: is the entry of another charter version"):
        check.check_release(made.folder, made.pin)


def test_a_key_that_was_away_for_one_version_does_not_come_back_for_what_was_made_before(tmp_path):
    made = small_candidate(tmp_path)
    before = made.log.charter.members
    made.log.new_version(("bora", "chan"), members=other_keys(made, "ara"))
    made.log.new_version(("bora", "chan"), members=before)
    assert list(Voters.of(1, log_of(made.log.founded.hub.directory).charters).keys) == ["bora", "chan"]


def test_where_too_few_keys_are_left_the_way_on_is_said_and_the_stricter_version_counts(tmp_path):
    made = small_candidate(tmp_path)
    one = made.log.charter
    two = replace(one, version=2, terms=replace(one.terms, k=3))
    with pytest.raises(NotSigned, match="signed by 2 of 3 members, 3 are needed; not yet by bora"):
        check_enough(("ara", "chan"), Voters.of(1, (one, two)))
    three = replace(one, version=2, terms=replace(one.terms, members=other_keys(made, "ara", "bora")))
    with pytest.raises(NotSigned, match="ara, bora were taken out by charter version 2; make the release anew under it"):
        check_enough(("chan",), Voters.of(1, (one, three)))
