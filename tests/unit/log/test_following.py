"""What a member's mirror reads out of the log: charter versions it verified itself, node keys that ended, its own statements."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.tiny_charter import charter, key_of, public

from dure.audit.entry import read_entry
from dure.audit.keys import KeyRefused, Keys
from dure.charter.log_keys import in_force
from dure.charter.succession import barred, changes, signing_keys
from dure.statements.kinds import CharterVersion, DataCommitment, NodeDelegation
from dure.statements.statement import Chain, seal
from dure.tlog.witness import WitnessRefused
from dure_participant.log.following import Followed, Follower, ended_keys

ONE = charter()
NEW_SIGNING = {"signing_key": public(key_of("bora again")), "ca_pem": "bora's other"}
TWO = charter(version=2, changed={"bora": NEW_SIGNING})
THREE = charter(("ara", "bora", "dana"), version=3, changed={"bora": NEW_SIGNING})


class Hub:
    """Seals entries as their signers would."""

    def __init__(self) -> None:
        self.chains: dict[str, Chain] = {}
        self.entries: list[bytes] = []

    def add(self, key: str, fact) -> bytes:
        envelope, self.chains[key] = seal(fact, key_of(key), self.chains.get(key, Chain()), 1_700_000_000)
        self.entries.append(envelope.to_bytes())
        return self.entries[-1]

    def version(self, of, digest: bytes | None = None) -> None:
        self.add("hub signing", CharterVersion(of.version, digest or of.digest, bytes(32)))

    def delegate(self, member: str, generation: int, by: str) -> bytes:
        node = public(key_of(f"{member} node {generation}"))
        self.add(by, NodeDelegation(member, "n1", node, generation, 0, 2**40))
        return node


def follow(entries, charters, so_far=None) -> Followed:
    follower = Follower("ara", public(key_of("me")), lambda _number: None, lambda: charters)
    followed = so_far or Followed()
    for entry in entries:
        followed = follower.take(followed, entry)
    return followed


def test_a_replaced_signing_key_ends_the_node_keys_it_delegated_and_a_new_one_begins():
    hub = Hub()
    hub.version(ONE)
    ara, bora = hub.delegate("ara", 1, "ara signing"), hub.delegate("bora", 1, "bora signing")
    hub.version(TWO)
    again = hub.delegate("bora", 65_537, "bora again")
    followed = follow(hub.entries, (ONE, TWO))
    assert followed.ended == {bora} and followed.versions == (0, 3)
    assert {m: held[0] for m, held in followed.nodes.items()} == {"ara": ara, "bora": again}
    assert Followed.from_json(json.loads(json.dumps(followed.to_json()))) == followed
    # The newest version is obeyed before its entry is read.
    assert ended_keys(follow(hub.entries[:3], (ONE, TWO)), TWO) == {bora}


def test_the_data_its_own_member_registered_is_known_and_nobody_elses():
    hub = Hub()
    hub.version(ONE)
    for member in ("ara", "bora"):
        hub.add(f"{member} signing", DataCommitment(member, f"{member}s", b"d" * 32, 1, 1, None, None, "MIT", None, None))
    hub.add("bora again", DataCommitment("ara", "forged", b"d" * 32, 1, 1, None, None, "MIT", None, None))
    followed = follow(hub.entries, (ONE,))
    assert list(followed.data.values()) == ["aras"]
    assert Followed.from_json(json.loads(json.dumps(followed.to_json()))) == followed


def test_a_charter_entry_this_node_has_not_verified_is_not_cosigned():
    """Otherwise a quorum of witnesses would put its name under whatever the coordinator calls a charter."""
    hub = Hub()
    hub.version(ONE)
    hub.version(TWO)
    with pytest.raises(WitnessRefused, match="not known to this node yet") as unknown:
        follow(hub.entries, (ONE,))
    assert not unknown.value.evidence
    forged = Hub()
    forged.version(ONE)
    forged.version(TWO, digest=b"x" * 32)
    with pytest.raises(WitnessRefused, match="not the one this node verified") as caught:
        follow(forged.entries, (ONE, TWO))
    assert caught.value.evidence
    skipped = Hub()
    skipped.version(ONE)
    skipped.version(THREE)
    with pytest.raises(WitnessRefused, match="not the one this node verified"):
        follow(skipped.entries, (ONE, TWO, THREE))


def test_delegations_by_a_key_that_is_not_valid_at_their_index_change_nothing():
    hub = Hub()
    hub.version(ONE)
    hub.delegate("bora", 9, "bora again")
    hub.version(TWO)
    hub.delegate("bora", 10, "bora signing")
    assert follow(hub.entries, (ONE, TWO)).nodes == {}


def test_a_head_is_judged_by_the_version_whose_entry_it_covers():
    assert [in_force((ONE, TWO, THREE), (0, 5, 9), size).version for size in (0, 1, 5, 6, 9, 10)] == [1, 1, 1, 2, 2, 3]
    assert in_force((ONE, TWO), (0,), 7).version == 1


def test_an_auditor_finds_keys_valid_by_index_only():
    """A node's key ends at the index of the version that replaces or removes whoever delegated to it, not a line before or after."""
    hub = Hub()
    hub.version(ONE)
    hub.delegate("bora", 1, "bora signing")
    hub.delegate("chan", 1, "chan signing")
    hub.version(TWO)
    hub.version(THREE)
    keys = Keys((ONE, TWO, THREE))
    nodes = []
    for entry in hub.entries:
        read = read_entry(entry)
        _, party = keys.signer(read.key_id)
        keys.follow(read, party)
        nodes.append(sorted(keys.node_keys()))
    assert nodes == [[], ["bora"], ["bora", "chan"], ["chan"], []]
    with pytest.raises(KeyRefused):
        keys.signer(read_entry(hub.entries[1]).key_id)


def test_a_run_goes_on_as_approved_unless_the_newest_version_does_not_allow_it():
    from sim.exchange_world import make_plan

    names = ("ara", "bora", "chan", "dana", "eun")
    one = charter(names)
    plan = make_plan(names, 1, "average", w_max=1000)

    def why(newest, **changes) -> str:
        return barred(replace(plan, **changes), (one, newest))

    assert why(charter(names[:4], 2)) == "" and why(charter((*names, "fen"), 2, w_max=1000)) == ""
    assert "removes dana, eun: 3 members of the run are left, 4 are needed" in why(charter(names[:3], 2))
    assert "assumes 2 colluders" in why(charter(names, 2, colluders=2))
    assert "weights up to 999" in why(charter(names, 2, w_max=999))
    assert "does not allow bases" in why(charter(names, 2), outer_step=replace(plan.outer_step, name="none"))
    assert why(charter(names, 2, coordinator={"signing_key": bytes(32), "log_key": bytes(32)})) == ""
    assert "another organisation" in why(charter(names, 2, coordinator={"member": "ara"}))
    assert barred(plan, (one,)) == ""


def test_changes_are_said_in_words_and_keys_since_a_version_are_all_there():
    assert changes(ONE.terms, TWO.terms) == ["REPLACES bora's signing key, ca"]
    assert changes(TWO.terms, replace(THREE.terms, w_max=7)) == ["REMOVES chan", "ADDS dana", "w_max: 65536 becomes 7"]
    old, new = public(key_of("bora signing")), NEW_SIGNING["signing_key"]
    assert signing_keys((ONE, TWO, THREE), 1)["bora"] == (old, new) and signing_keys((ONE, TWO, THREE), 2)["bora"] == (new,)
    assert "chan" not in signing_keys((ONE, TWO, THREE), 3)
