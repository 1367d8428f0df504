"""A charter forged, skipped, rolled back, or signed by too few: a node obeys the pinned version and those that rightly follow from it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from attacks.ports import Founded, found

from dure.charter import root
from dure.charter.consortium import ConsortiumFile
from dure.charter.draft import terms_from
from dure.charter.model import check_current
from dure.errors import BadInput, DureError, NotAuthorised, Refused
from dure.identity.member import MemberFolder
from dure.identity.node import create_node, load_node

NAMES = ("ara", "bora", "chan", "dana", "eun")
"""k = 3 of them decide, c = 1."""


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Founded:
    return found(tmp_path_factory.mktemp("charter"), NAMES)


def first(founded: Founded) -> bytes:
    return ConsortiumFile.load(founded.hub.published_path()).roots[0]


def version(
    founded: Founded, number: int, signers: tuple[str, ...], previous: bytes, now: datetime | None = None, **changes: object
) -> bytes:
    """A further version, signed by these members' real governance keys."""
    terms = replace(root.terms_of(root.parse(first(founded))), **changes)
    raw = root.propose(terms, number, now or datetime.now(UTC))
    return root.merge(raw, {name: root.sign(raw, name, founded.members[name].governance_key) for name in signers}, previous)


def pin(founded: Founded) -> bytes:
    return root.digest(root.parse(first(founded)))


def test_versions_signed_by_enough_are_walked(founded: Founded) -> None:
    one = first(founded)
    two = version(founded, 2, NAMES[:3], one, w_max=7)
    three = version(founded, 3, NAMES[2:], two, w_max=8)
    charter = root.walk([one, two, three], pin(founded))
    assert (charter.version, charter.terms.w_max) == (3, 8)


@pytest.mark.parametrize("signers", [(), ("ara",), ("ara", "bora")])
def test_a_version_signed_by_too_few_is_refused(founded: Founded, signers: tuple[str, ...]) -> None:
    """Without _signed_enough two of five could let themselves in, or the others out."""
    one = first(founded)
    with pytest.raises(NotAuthorised, match="fewer than 3"):
        root.walk([one, version(founded, 2, signers, one)], pin(founded))


def test_one_signature_given_several_times_counts_once(founded: Founded) -> None:
    """Copied under another member's key id it does not verify; without that one member could be three."""
    one = first(founded)
    body = json.loads(version(founded, 2, ("ara", "bora"), one))
    others = json.loads(one)["signed"]["roles"]["root"]["keyids"]
    missing = next(k for k in others if k not in {s["keyid"] for s in body["signatures"]})
    body["signatures"].append({"keyid": missing, "sig": body["signatures"][0]["sig"]})
    with pytest.raises(NotAuthorised):
        root.walk([one, json.dumps(body).encode()], pin(founded))


def test_new_members_cannot_vote_themselves_in(founded: Founded, tmp_path) -> None:
    """The old version's members must sign: without the previous version's threshold three strangers could replace everybody."""
    strangers = [
        MemberFolder.create(tmp_path / n, n, label="titan", display_name="", registration="", now=time.time()) for n in ("xa", "xb", "xc")
    ]
    one = first(founded)
    terms = replace(root.terms_of(root.parse(one)), members=tuple(s.member for s in strangers), k=2)
    raw = root.propose(terms, 2, datetime.now(UTC))
    raw = root.merge(raw, {s.member.id: root.sign(raw, s.member.id, s.governance_key) for s in strangers}, one)
    with pytest.raises(NotAuthorised, match="previous version's"):
        root.walk([one, raw], pin(founded))


def test_members_are_not_replaced_by_keys_whose_owners_have_not_signed(founded: Founded, tmp_path) -> None:
    """The new version's own threshold: without it the old members could hand the consortium to keys that nobody holds."""
    new = [MemberFolder.create(tmp_path / n, n, label="titan", display_name="", registration="", now=time.time()) for n in ("xa", "xb")]
    one = first(founded)
    terms = root.terms_of(root.parse(one))
    members = (terms.members[0], *(s.member for s in new))
    raw = root.propose(replace(terms, members=members, k=2), 2, datetime.now(UTC))
    raw = root.merge(raw, {n: root.sign(raw, n, founded.members[n].governance_key) for n in NAMES[:3]}, one)
    with pytest.raises(NotAuthorised, match="its own"):
        root.walk([one, raw], pin(founded))


def test_a_minority_cannot_lower_the_threshold_for_itself(founded: Founded) -> None:
    one = first(founded)
    with pytest.raises(NotAuthorised, match="fewer than 3"):
        root.walk([one, version(founded, 2, NAMES[:2], one, k=2)], pin(founded))


def test_a_version_skipped_repeated_or_out_of_order_is_refused(founded: Founded) -> None:
    """Without the count in walk a version that removed a member could be left out of the chain."""
    one = first(founded)
    two, three = version(founded, 2, NAMES[:3], one), version(founded, 3, NAMES[:3], one)
    for roots in ([one, three], [one, two, two], [one, three, two], [two, three], []):
        with pytest.raises((NotAuthorised, BadInput)):
            root.walk(roots, pin(founded))


def test_another_first_version_than_the_pinned_one_is_refused(founded: Founded) -> None:
    """Without the pin whoever hands out the consortium file would be the root of trust."""
    other = version(founded, 1, NAMES, first(founded), name="titan2")
    with pytest.raises(NotAuthorised, match="pinned"):
        root.walk([other], pin(founded))


def test_a_later_version_of_another_consortium_is_refused(founded: Founded) -> None:
    one = first(founded)
    with pytest.raises(Refused, match="another consortium"):
        root.walk([one, version(founded, 2, NAMES, one, consortium_id=b"x" * 16)], pin(founded))


def test_a_key_used_twice_is_refused(founded: Founded) -> None:
    """Without check_terms one key could be two members' vote, or sign both statements and charters."""
    members = root.terms_of(root.parse(first(founded))).members
    ara, bora = members[0], members[1]
    for changed in (
        replace(bora, governance_key=ara.governance_key),
        replace(bora, signing_key=ara.signing_key),
        replace(bora, signing_key=bora.governance_key),
        replace(bora, witness_key=ara.signing_key),
    ):
        with pytest.raises(BadInput, match="key"):
            root.propose(replace(root.terms_of(root.parse(first(founded))), members=(ara, changed, *members[2:])), 2, datetime.now(UTC))


def test_roles_that_say_another_threshold_or_keys_than_the_terms_are_refused(founded: Founded) -> None:
    """People read the terms; TUF counts the role's keys. Without the comparison in terms_of the two could differ."""
    for spoil in (
        lambda s: s["roles"]["root"].update(threshold=1),
        lambda s: s["roles"]["root"]["keyids"].pop(),
        lambda s: s["keys"][next(iter(s["keys"]))]["keyval"].update(public="00" * 32),
        lambda s: s["roles"].pop("timestamp"),
        lambda s: s["x-dure"].pop("colluders"),
        lambda s: s["x-dure"].update(colluders="1"),
    ):
        body = json.loads(first(founded))
        spoil(body["signed"])
        with pytest.raises(DureError):
            root.terms_of(root.parse(json.dumps(body).encode()))


def test_a_tampered_version_is_refused(founded: Founded) -> None:
    one = first(founded)
    body = json.loads(version(founded, 2, NAMES, one))
    body["signed"]["x-dure"]["w_max"] = 9
    with pytest.raises(NotAuthorised):
        root.walk([one, json.dumps(body).encode()], pin(founded))


def test_an_expired_version_begins_nothing_new_and_still_verifies(founded: Founded) -> None:
    """Expiry blocks new runs, never an audit: walk takes it, check_current does not."""
    one = first(founded)
    old = version(founded, 2, NAMES, one, now=datetime.now(UTC) - root.LIFE - timedelta(days=1))
    charter = root.walk([one, old], pin(founded))
    with pytest.raises(BadInput, match="expired"):
        check_current(charter, time.time())


def test_an_older_consortium_file_is_not_gone_back_to(founded: Founded, tmp_path) -> None:
    """Rollback: without MemberFolder.remember a partner's next node would obey the version from before someone was voted out."""
    one = first(founded)
    two = version(founded, 2, NAMES[:3], one, w_max=7)
    files = {}
    for name, roots in (("old", (one,)), ("new", (one, two))):
        files[name] = tmp_path / f"{name}.json"
        ConsortiumFile("titan", "127.0.0.1:1", roots).write(files[name])
    member = founded.members["ara"].directory
    made = create_node(member, tmp_path / "n1", "n1", files["new"], now=time.time())
    assert made.charter.version == 2 and load_node(tmp_path / "n1").charter.version == 2
    with pytest.raises(NotAuthorised, match="older than version 2"):
        create_node(member, tmp_path / "n2", "n2", files["old"], now=time.time())
    assert not (tmp_path / "n2" / "node.json").exists()


def test_a_nodes_own_file_put_in_place_of_another_consortiums_is_refused(founded: Founded, tmp_path) -> None:
    """load_node walks anew from the pin at every start."""
    other = version(founded, 1, NAMES, first(founded), name="titan2")
    node = create_node(founded.members["bora"].directory, tmp_path / "n1", "n1", founded.hub.published_path(), now=time.time())
    ConsortiumFile("titan", "127.0.0.1:1", (other,)).write(node.directory / "consortium.json")
    with pytest.raises(NotAuthorised, match="pinned"):
        load_node(node.directory)


def test_the_coordinator_publishes_nothing_that_too_few_signed(founded: Founded) -> None:
    raw = root.propose(terms_from(founded.hub), 2, datetime.now(UTC))
    before = founded.hub.published_path().read_bytes()
    signatures = {n: root.sign(raw, n, founded.members[n].governance_key) for n in NAMES[:2]}
    with pytest.raises(NotAuthorised, match="not yet signed by chan, dana, eun"):
        founded.hub.publish(raw, signatures)
    assert founded.hub.published_path().read_bytes() == before
