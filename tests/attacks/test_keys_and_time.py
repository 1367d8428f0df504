"""Keys and time: a man in the middle of the key agreement, generations that come back, nodes restored from a backup (rule 7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from attacks.hostile import Hostile, at
from sim.exchange_world import World

from dure.errors import Refused
from dure.secagg import epoch as keys
from dure.secagg import tlv
from dure.statements.kinds import ExchangeAccept, InstanceCommit, NodeDelegation
from dure.statements.statement import Chain, read_verified, seal
from dure.wire.messages import ReportKind
from dure_coordinator.exchange.events import Seen
from dure_coordinator.exchange.state import RunPhase
from dure_participant.exchange.site import History
from dure_participant.exchange.state import NodeRunState
from dure_participant.exchange.step import begin

K = ReportKind


def agreeing(phase: str) -> Hostile:
    """A world whose first epoch is in this phase; nobody has heard of it yet."""
    world = Hostile(up=False)
    world.start()
    world.run_until(lambda w: w.state.phase is RunPhase.EPOCH and w.state.epoch is not None and w.state.epoch.phase.value == phase)
    return world


# -- the key agreement ------------------------------------------------------------------------------------------------


def substitute(world: Hostile, member: str, signer: str) -> bytes:
    """An advert in this member's name with keys the coordinator knows, signed by whoever helps it."""
    _, advert = keys.begin_epoch(
        consortium=world.facts.consortium,
        run=world.run,
        epoch=1,
        members=world.members,
        me=member,
        node_key=world.nodes[signer].site.node_key,
        generation=1,
        last_accepted=0,
        rng=world.bytes,
    )
    return advert


def test_substituted_keys_in_an_advert_are_refused_unless_their_own_member_signed_them() -> None:
    """Without the node key from the delegation in verify_advert the coordinator would sit in the middle of every pair."""
    world = agreeing("kem")
    shown = world.directive("m00")
    payload = tlv.decode(substitute(world, "m01", "m01"))[0]
    resigned = tlv.encode(payload, world.nodes["m02"].site.node_key.sign(payload))  # type: ignore[arg-type]
    for advert in (substitute(world, "m01", "m02"), substitute(world, "m02", "m01"), resigned):
        assert world.show("m00", replace(shown, parts={**shown.parts, "m01": advert})).refused("")
    stolen = world.signed_by("m02", NodeDelegation("m01", "n1", b"k" * 32, 2, 0, 2**40))
    assert world.show("m00", replace(shown, documents={**shown.documents, "delegation/m01": stolen})).refused("signatures")


def test_a_colluder_that_adverts_different_keys_to_different_members_is_noticed_and_both_are_named() -> None:
    """m04 gives the coordinator two adverts of itself. Without adverts_hash in `agree` two groups of members would agree on two keys."""
    world = agreeing("kem")
    second = substitute(world, "m04", "m04")
    shown = world.directive("m00")
    assert world.show("m00", replace(shown, parts={**shown.parts, "m04": second})).sent(K.KEM)
    mine = world.show("m00", replace(shown, parts={**shown.parts, "m04": second})).sent(K.KEM)
    world.bag = [b for b in world.bag if b[1] != "m00"]
    world.says("m00", K.KEM, mine)
    world.run_until(lambda w: w.state.epoch is not None and w.state.epoch.phase.value == "group")
    lost = world.show("m01", world.directive("m01")).sent(K.LOST)
    assert b"m01 and m00 disagree" in lost


def test_different_group_messages_to_different_members_make_no_complete_key() -> None:
    """Without the transcript in `complete` members could hold different group keys, and the tag would bind nobody."""
    world = agreeing("join")
    shown = world.directive("m00")
    missing = {m: part for m, part in shown.parts.items() if m != "m01"}
    assert world.show("m00", replace(shown, parts=missing)).refused("groups")
    assert world.show("m00", replace(shown, parts={**shown.parts, "m01": shown.parts["m02"]})).refused("")
    assert world.show("m00", shown).sent(K.JOINED) == b"" and world.state_of("m00").epoch.keys  # type: ignore[union-attr]


def test_an_epoch_is_not_begun_twice_nor_gone_back_to_nor_with_other_members() -> None:
    """Without `last_epoch` keys of one epoch could be agreed again with a hand-picked set."""
    world = at()
    for number, members, why in ((1, world.members[:4], "members"), (0, world.members, "over"), (2, world.members[:3], "at least 4")):
        assert world.show("m00", world.directive("m00", "advert", epoch=number, members=members)).refused(why)
    assert world.show("m00", world.directive("m00", "advert", epoch=2, members=world.members)).sent(K.ADVERT)
    assert world.show("m00", world.directive("m00", "advert", epoch=1, members=world.members)).refused("over")


# -- generations --------------------------------------------------------------------------------------------------------


def delegated(world: World, who: str, generation: int, **change: Any) -> bytes:
    """This member's word for its node key, or for what is changed of it."""
    key = world.nodes[who].site.node_key.public_key().public_bytes_raw()
    word = NodeDelegation(who, "n1", key, generation, 0, 2**40)
    return seal(replace(word, **change), world.signing[who], Chain(), world.now)[0].to_bytes()


@pytest.mark.parametrize("seen", ["in this run", "in another run"])
def test_a_lower_generation_coming_back_is_refused_by_peers(seen: str) -> None:
    """Without `generations` a key that was replaced because it leaked could be brought back by the coordinator."""
    world = agreeing("kem")
    if seen == "in this run":
        world.nodes["m00"].state = replace(world.state_of("m00"), generations={"m01": 2}).to_bytes()
    else:
        fresh = begin(world.run, {"m01": 2})
        world.nodes["m00"].state = replace(world.state_of("m00"), generations=fresh.generations).to_bytes()
    assert world.show("m00", world.directive("m00")).refused("delegation/m01", "older generation")


def test_a_lower_generation_or_a_second_key_of_one_is_refused_by_the_coordinator() -> None:
    """Without the comparison in take_seen a node restored from a backup could speak for its member again."""
    world = at()
    key = world.nodes["m01"].site.node_key.public_key().public_bytes_raw()
    assert world.apply(Seen("m01", key, 3, delegated(world, "m01", 3))).accepted
    for generation, other in ((2, key), (3, b"k" * 32)):
        said = world.apply(Seen("m01", other, generation, delegated(world, "m01", generation, node_key=other)))
        assert not said.accepted and said.field == "generation"


@pytest.mark.parametrize("change", [{"not_after": 1}, {"not_before": 2**40 - 1}, {"member": "m02"}])
def test_a_delegation_that_has_run_out_or_is_of_another_member_is_refused(change: dict[str, Any]) -> None:
    """Without the dates a key would speak for its member for ever."""
    world = agreeing("kem")
    documents = {"delegation/m01": delegated(world, "m01", 1, **change)}
    assert world.show("m00", world.directive("m00", documents=documents)).refused("delegation/m01")


# -- numbers of statements -----------------------------------------------------------------------------------------------


def commits(world: Hostile, **other: bytes) -> Any:
    return world.directive("m00", "survivors", parts={**world.now_at.commits, **other})


def renumbered(world: Hostile, seq: int, **change: Any) -> bytes:
    """m01's commit again, under another number of its chain."""
    return world.signed_by("m01", replace(read_verified(world.now_at.commits["m01"], InstanceCommit), **change), seq=seq)


@pytest.mark.parametrize("how", ["back", "twice"])
def test_a_statement_chain_that_goes_back_or_forks_has_its_member_refused_for_the_epoch(how: str) -> None:
    """Without `_judge_number` a member restored from a backup would contribute again, its history forgotten."""
    world = at("survivors", "update")
    scales = next(i for i in world.state.exchange.instances if i.purpose == "scales")  # type: ignore[union-attr]
    from dure.statements.statement import open_statement

    key = world.nodes["m01"].site.node_key.public_key().public_bytes_raw()
    seen = open_statement(scales.commits["m01"], InstanceCommit, [key]).seq
    assert world.state_of("m00").seqs[key.hex()] == seen
    answer = world.show("m00", commits(world, m01=renumbered(world, seen - (how == "back"))))
    assert not answer.sent(K.SIGNATURE) and "rule 7" in answer.note
    assert not world.show("m00", commits(world)).sent(K.SHARE)
    again = world.another(world.now_at.instance, attempt=1)
    assert world.show("m00", world.directive("m00", "share", instance=again, members=world.members)).refused("m01 is refused for epoch 1")


def test_an_open_that_says_a_members_number_went_back_is_refused() -> None:
    """Without the line in _judge_member a node restored before it was ready would be counted in."""
    world = at("upload", "update")
    honest = world.now_at.open_statement
    cohort = tuple(replace(m, seq=0) if m.member == "m01" else m for m in honest.cohort)
    evil = world.seal(replace(honest, cohort=cohort))
    assert world.show("m00", world.directive("m00", documents={"open": evil})).refused("m01.seq", "rule 7")


def test_a_number_the_coordinator_claims_for_a_member_locks_nobody_out_later() -> None:
    """Only what a member's own key signed is remembered: a claim of 2^40 in one open must not make its true numbers "go back"."""
    world = at("upload", "scales")
    honest = world.now_at.open_statement
    evil = world.seal(replace(honest, cohort=tuple(replace(m, seq=2**40) if m.member == "m01" else m for m in honest.cohort)))
    assert world.show("m00", world.directive("m00", documents={"open": evil})).uploads
    assert 2**40 not in world.state_of("m00").seqs.values()


# -- restored nodes --------------------------------------------------------------------------------------------------------


def test_a_node_stops_for_good_on_its_own_later_statement_and_only_on_that() -> None:
    """Restored from a backup it would contribute twice on one base. Without `own_word` nothing tells it; a peer's word must not."""
    world = at()
    weights = world.first_weights()
    base = world.exchange(1, "train", weights).blob
    restored, older = world.nodes["m00"], before_the_first_exchange(world)
    restored.state, restored.history, restored.chain = older.to_bytes(), History(), Chain(1, b"p" * 32)
    world.reach("execute", seq=2, weights=base)
    shown = world.directive("m00")
    forged = world.signed_by("m01", ExchangeAccept(world.run, 1, "m00", (b"a" * 32, b"b" * 32), (), b"x" * 32), seq=99)
    assert not world.show("m00", replace(shown, documents={**shown.documents, "accept/m00": forged})).state.stopped
    restored.state = older.to_bytes()
    stopped = world.show("m00", shown)
    assert "restored from an older copy" in stopped.state.stopped and not stopped.uploads
    assert not world.show("m00", shown).actions and not world.show("m00", world.directive("m00", "advert", epoch=9)).actions


def before_the_first_exchange(world: Hostile) -> NodeRunState:
    """m00's memory as a backup from before the first exchange has it: approved, keys agreed, nothing sent."""
    now = world.state_of("m00")
    return replace(
        begin(now.run), **{name: getattr(now, name) for name in ("plan_envelope", "decision", "approval", "epoch", "last_epoch")}
    )


X_CASES: dict[str, tuple[tuple[int, ...], int]] = {
    "c liars cannot raise it": ((0, 0, 0, 0, 9), 0),
    "c + 1 reach it": ((0, 0, 7, 7, 9), 7),
    "all at once": ((3, 3, 3, 3, 0), 3),
}


@pytest.mark.parametrize("case", X_CASES)
def test_the_exchange_a_younger_key_starts_above_is_what_c_plus_one_adverts_reach(case: str) -> None:
    """X of rule 7. The highest alone would let one colluder lock a restored node out for ever; the lowest would let it contribute twice."""
    accepted, expected = X_CASES[case]
    world = agreeing("kem")
    node = world.nodes["m00"]
    node.site = replace(node.site, generation=2, delegation=delegated(world, "m00", 2))
    adverts = dict(world.state.epoch.adverts)  # type: ignore[union-attr]
    for member, number in zip(world.members[1:], accepted[1:], strict=True):
        site = world.nodes[member].site
        common = dict(consortium=site.consortium, run=world.run, epoch=1, members=world.members, me=member, generation=1, rng=world.bytes)
        adverts[member] = keys.begin_epoch(node_key=site.node_key, last_accepted=number, **common)[1]  # type: ignore[arg-type]
    documents = {"delegation/m00": node.site.delegation}
    shown = world.directive("m00", documents=documents)
    assert world.show("m00", replace(shown, parts=adverts)).state.above == expected


@pytest.mark.parametrize(("later_s", "young"), [(0, True), (200, True), (-400, False)])
def test_a_key_delegated_before_the_run_began_is_not_held_up(later_s: float, young: bool) -> None:
    """A member whose second node joins a new run has nothing to be afraid of; clocks a few minutes apart make it wait one exchange."""
    world = agreeing("kem")
    node = world.nodes["m00"]
    world.now += later_s
    node.site = replace(node.site, generation=2, delegation=delegated(world, "m00", 2))
    shown = world.directive("m00", documents={"delegation/m00": node.site.delegation})
    assert (world.show("m00", shown).state.above is not None) is young


def test_a_younger_key_answers_no_message_without_arrays_and_no_first_base() -> None:
    """What its older key answered is not known to it: without `_may_take_part` it would answer a second time."""
    world = at()
    world.nodes["m00"].state = replace(world.state_of("m00"), above=0).to_bytes()
    for message, weights in (("query", ""), ("train", world.first_weights())):
        copy = _asked(world, message, weights)
        assert copy.show("m00", copy.directive("m00")).sits_out("younger than the run")


def _asked(world: Hostile, message: str, weights: str) -> Hostile:
    import copy

    other = copy.deepcopy(world)
    other.reach("execute", message=message, weights=weights)
    return other


def test_a_state_that_was_damaged_is_refused_naming_the_field_and_never_half_read() -> None:
    """A store that lost a field must not be read as one that never had it: absent is not zero."""
    import json

    state = json.loads(at("upload", "scales").nodes["m00"].state)
    damage: list[Callable[[dict[str, Any]], Any]] = [
        lambda s: s["state"].pop("seqs"),
        lambda s: s["state"].update(above=-1),
        lambda s: s["state"]["exchange"].update(number="1"),
        lambda s: s["state"]["exchange"]["instances"][0].pop("ctx"),
        lambda s: s.update(v=2),
    ]
    for spoil in damage:
        copy = json.loads(json.dumps(state))
        spoil(copy)
        with pytest.raises(Refused):
            NodeRunState.from_bytes(json.dumps(copy).encode())
