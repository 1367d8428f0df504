"""A dishonest member against the coordinator's logic: the others get the right mean, or a failure that names it, whatever it reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from attacks.hostile import Hostile, at

from dure.secagg import epoch as keys
from dure.secagg import messages, shares, tlv
from dure.secagg.seal import commit_key, seal
from dure.statements.kinds import ExchangeAccept, InstanceCommit, InstanceVoid, RunApproval, Usage
from dure.statements.statement import read_verified
from dure.wire.messages import Report, ReportKind
from dure_coordinator.exchange.accept import split_accept
from dure_coordinator.exchange.events import Uploaded
from dure_coordinator.exchange.state import RunPhase
from dure_participant.exchange.turn import pack

K = ReportKind


def refused(reply: Any, *words: str) -> bool:
    said = f"{reply.field}: {reply.reason}"
    assert not reply.accepted and all(w in said for w in words), reply
    return True


def let_speak(world: Hostile, *silent: str) -> Hostile:
    """Whatever these members were about to do is lost on the way."""
    world.bag = [b for b in world.bag if b[1] not in silent]
    return world


# -- another member's name ---------------------------------------------------------------------------------------------


def test_an_approval_in_another_members_name_is_refused() -> None:
    """Without the member's own node key in take_approval one colluder could approve for everybody."""
    world = Hostile(up=False)
    world.connect("m01"), world.connect("m02")
    of_other = world.signed_by("m02", RunApproval(world.run, "m02", "n1"))
    by_other = world.signed_by("m01", RunApproval(world.run, "m02", "n1"))
    assert refused(world.says("m01", K.APPROVAL, of_other), "signatures")
    assert refused(world.says("m02", K.APPROVAL, by_other), "signatures")
    assert refused(world.says("m01", K.APPROVAL, by_other), "member")
    assert world.state.phase is RunPhase.APPROVING and not world.state.approvals


@pytest.mark.parametrize("kind", [K.ADVERT, K.KEM, K.GROUP])
def test_epoch_messages_of_another_sender_or_epoch_are_refused(kind: ReportKind) -> None:
    """Without the signature check in epoch._verify a member could speak for another in the key agreement."""
    world = Hostile(up=False)
    world.start()
    world.run_until(lambda w: w.state.epoch is not None and w.state.phase is RunPhase.EPOCH and w.state.epoch.phase.value == kind.value)
    for what in [b for b in world.bag if b[0] == "directive" and b[1] in ("m01", "m02")]:
        world.bag.remove(what)
        if what[1] == "m02":
            body = world.show("m02", what[2]).sent(kind)
    assert refused(world.says("m01", kind, body), "")
    assert refused(world.says("m02", kind, body, epoch=7), "epoch")
    tampered = body[:-1] + bytes([body[-1] ^ 1])
    assert refused(world.says("m02", kind, tampered), "signature")
    assert world.says("m02", kind, body).accepted
    assert refused(world.says("m02", kind, tampered), "another message")


def test_shares_signatures_reveals_and_voids_of_another_member_are_refused() -> None:
    """The certificate says who speaks; without `member=` in each check one member's word could stand for another's."""
    world = let_speak(at("share", "update"), "m01", "m02")
    body = world.show("m02", world.directive("m02")).sent(K.SHARE) or _dealt(world, "m02")
    assert refused(world.says("m01", K.SHARE, body), "")
    world = let_speak(at("survivors", "update"), "m01", "m02")
    signature = world.show("m02", world.directive("m02")).sent(K.SIGNATURE)
    assert refused(world.says("m01", K.SIGNATURE, signature), "signature")
    world = let_speak(at("reveal", "update"), "m01", "m02")
    reveal = world.show("m02", world.directive("m02")).sent(K.REVEAL)
    assert refused(world.says("m01", K.REVEAL, reveal), "")
    void = world.signed_by("m01", InstanceVoid(world.now_at.instance, "m02", ""))
    assert refused(world.says("m02", K.VOID, void), "not being voided")


def _dealt(world: Hostile, member: str) -> bytes:
    """The share message this node owes once it has verified the scales."""
    for action in world.show(member, world.directive(member)).actions:
        world._action(member, action)
    return world.show(member, world.directive(member)).sent(K.SHARE)


def test_a_commit_in_another_members_name_is_refused() -> None:
    """Without commit.member and the key a colluder could put its own upload in the place of another's."""
    world = let_speak(at("upload", "scales"), "m01", "m02")
    world.run_until(lambda w: len(w.now_at.commits) >= 1)
    mine = read_verified(next(iter(world.now_at.commits.values())), InstanceCommit)
    for member, signer, named in (("m02", "m01", "m02"), ("m01", "m01", "m02"), ("m01", "m02", "m01")):
        envelope = world.signed_by(signer, replace(mine, member=named))
        assert not world.apply(Uploaded(member, world.now_at.instance, envelope)).accepted


def accepted(world: Hostile, member: str) -> tuple[ExchangeAccept, bytes]:
    """(the acceptance this node would send, its usage envelope)."""
    for action in world.show(member, world.directive(member)).actions:
        world._action(member, action)
    envelope, usage = split_accept(world.show(member, world.directive(member)).sent(K.ACCEPT))
    return read_verified(envelope, ExchangeAccept), usage


def test_an_acceptance_forged_for_another_member_or_of_another_sum_is_refused() -> None:
    """Without the comparisons in take_accept one member could close an exchange for all, or name a base nobody computed."""
    world = let_speak(at("step"), "m01", "m02")
    world.run_until(lambda w: bool(w.state.exchange.step_result) and len(w.state.exchange.accepts) == 3)  # type: ignore[union-attr]
    fact, usage = accepted(world, "m01")
    as_other = pack(world.signed_by("m01", replace(fact, member="m02")), b"")
    assert refused(world.says("m02", K.ACCEPT, as_other), "signatures")
    assert refused(world.says("m01", K.ACCEPT, as_other), "another run, exchange or member")
    for change in ({"exchange": 9}, {"run": b"x" * 32}, {"aggregates": (b"x" * 32, b"y" * 32)}, {"base_id": None}):
        assert refused(world.says("m01", K.ACCEPT, pack(world.signed_by("m01", replace(fact, **change)), usage)), "accept")
    assert refused(world.says("m01", K.ACCEPT, pack(world.signed_by("m01", fact), world.signed_by("m02", fact))), "")
    spent = read_verified(usage, Usage)
    for change in ({"exchange": 9}, {"run": b"x" * 32}, {"member": "m02"}):  # a usage becomes an entry with the acceptance that brings it
        forged = world.signed_by("m01", replace(spent, **change))
        assert refused(world.says("m01", K.ACCEPT, pack(world.signed_by("m01", fact), forged)), "usage")
    assert world.says("m01", K.ACCEPT, pack(world.signed_by("m01", fact), usage)).accepted


def test_another_next_base_than_the_coordinators_own_freezes_the_run_naming_who_said_it() -> None:
    world = let_speak(at("step"), "m01")
    world.run_until(lambda w: bool(w.state.exchange.step_result))  # type: ignore[union-attr]
    fact, usage = accepted(world, "m01")
    world.says("m01", K.ACCEPT, pack(world.signed_by("m01", replace(fact, base_id=b"x" * 32)), usage))
    assert world.state.phase is RunPhase.ABORTED and "m01" in world.state.reason and "frozen" in world.state.reason


# -- replayed, reordered, repeated -----------------------------------------------------------------------------------------


def test_messages_of_an_earlier_instance_are_not_taken_in_a_later_one() -> None:
    """Replay: share, commit and reveal of the scales offered again in the update. Without the instance in each they would count."""
    world = at("upload", "update")
    scales = next(i for i in world.state.exchange.instances if i.purpose == "scales")  # type: ignore[union-attr]
    here = let_speak(world, "m01").now_at.instance
    assert refused(world.says("m01", K.SHARE, scales.shares["m01"]), "kept")
    assert refused(world.apply(Uploaded("m01", here, scales.commits["m01"])), "commit.instance")
    assert refused(world.apply(Uploaded("m01", scales.instance, scales.commits["m01"])), "not being run")
    assert refused(world.says("m01", K.REVEAL, scales.reveals.get("m01", next(iter(scales.reveals.values())))), "phase")
    assert refused(world.says("m01", K.SIGNATURE, bytes(64)), "")


def test_a_stale_ready_is_not_taken_for_the_next_exchange() -> None:
    """Without weights, content and seq in take_ready the answer to one instruction would stand for another."""
    world = at()
    weights = world.exchange(1, "train", world.first_weights()).blob
    stale = world.state_of("m01").exchange.ready  # type: ignore[union-attr]
    world.reach("execute", seq=2, weights=weights)
    let_speak(world, "m01")
    assert refused(world.says("m01", K.READY, stale, exchange=1), "not being run")
    assert refused(world.says("m01", K.READY, stale), "")
    now = json.loads(stale) | {
        "content_id": world.state.exchange.content_id.hex(),  # type: ignore[union-attr]
        "weights_id": world.state.exchange.weights_id.hex(),  # type: ignore[union-attr]
    }
    assert refused(world.says("m01", K.READY, json.dumps(now).encode()), "seq", "went back")


def test_messages_that_come_too_early_are_refused_and_change_nothing() -> None:
    """Reordered: nothing is kept for a phase that has not begun."""
    world = let_speak(at("share", "scales"), "m01")
    before = world.state
    for kind, body in ((K.SIGNATURE, bytes(64)), (K.REVEAL, b""), (K.ACCEPT, pack(b"", b"")), (K.VOID, b"{}"), (K.JOINED, b"")):
        assert kind is K.JOINED or refused(world.says("m01", kind, body), "")
    assert not world.apply(Uploaded("m01", world.now_at.instance, b"{}")).accepted
    assert world.says("m01", K.JOINED, b"").accepted and world.state == before


def test_an_upload_that_comes_after_its_member_was_left_out_does_not_count() -> None:
    """Without the phase in take_commit a late commit would change the survivor set that others have signed."""
    world = let_speak(at("upload", "update", n=6), "m05")
    world.run_until(lambda w: len(w.now_at.commits) == 5)
    late = world.show("m05", world.directive("m05"))
    upload = next(a for a in late.actions if hasattr(a, "update_root"))
    commit = world.feed("m05", world.upload("m05", upload)).actions[0].envelope  # type: ignore[union-attr]
    world.kill("m05")
    world.run_until(lambda w: w._there("survivors", "update"))
    assert refused(world.apply(Uploaded("m05", world.now_at.instance, commit)), "too late")
    assert "m05" not in world.now_at.survivors


FLOODS: dict[str, tuple[tuple[str, str], Callable[[Hostile, int], tuple[ReportKind, bytes]]]] = {
    "ready": (("execute", ""), lambda w, i: (K.READY, _ready(w, seq=100 + i))),
    "lost": (("execute", ""), lambda w, i: (K.LOST, json.dumps({"reason": f"lie {i}"}).encode())),
    "sit-out": (("execute", ""), lambda w, i: (K.SIT_OUT, json.dumps({"reason": f"lie {i}"}).encode())),
    "reveal": (("reveal", "update"), lambda w, i: (K.REVEAL, _wrong_reveal(w, i))),
    "signature": (("survivors", "update"), lambda w, i: (K.SIGNATURE, bytes([i]) * 64)),
}


def _ready(world: Hostile, **change: Any) -> bytes:
    exchange = world.state.exchange
    assert exchange is not None
    from hashlib import sha256

    told = {
        "content_id": exchange.content_id.hex(),
        "weights_id": exchange.weights_id.hex(),
        "layout": sha256(exchange.layout).hexdigest(),
        "metrics": ["acc", "loss"],
        "protocol": 1,
        "seq": 5,
        "prev": "00" * 32,
    }
    return json.dumps(told | change).encode()


def _wrong_reveal(world: Hostile, i: int) -> bytes:
    """A reveal of m01 with shares that open nothing, rightly signed."""
    from dure.secagg.ids import InstanceId

    instance = world.now_at
    others = [m for m in instance.cohort if m != "m01"]
    where = InstanceId.decode(instance.instance).parts()
    wrong = tuple((m, bytes([i]) * 32) for m in others if m in instance.survivors)
    return messages.signed(world.nodes["m01"].site.node_key, "instance-reveal", where, instance.ctx, "m01", bytes([i]) * 32, wrong, (), ())


@pytest.mark.parametrize("what", FLOODS)
def test_a_member_that_says_ever_new_things_adds_a_bounded_number_of_events(what: str) -> None:
    """Each event that is kept is written to the log for ever; without "another one was kept" a member could fill the disk."""
    (phase, purpose), make = FLOODS[what]
    world = let_speak(at(phase, purpose), "m01")
    before = len(world.log)
    for i in range(30):
        world.says("m01", *make(world, i))
    assert len(world.log) - before <= 2


def test_refusals_and_epochs_given_up_again_and_again_are_bounded_too() -> None:
    """Without the count in take_lost one member could begin a new epoch with every message, and none would ever be complete."""
    world = Hostile(up=False)
    world.connect("m01")
    before = len(world.log)
    for i in range(30):
        world.says("m01", K.REFUSAL, f"no {i}".encode())
    assert len(world.log) - before == 1
    world = Hostile(up=False)
    world.lie = lambda m, r: replace(r, kind=K.LOST, body=b'{"reason":"m00 and m01 disagree"}') if m == "m01" and r.kind is K.KEM else r
    world.start()
    world.run_until(lambda w: w.idle())
    assert world.state.epochs == 3 and world.state.left_out == ("m01",)
    assert world.exchange(1, "train", world.first_weights()).status == "ok"


# -- garbage that is rightly signed ---------------------------------------------------------------------------------------


def garbage_group(world: Hostile, liar: str, victim: str, body: bytes) -> bytes:
    """The liar's group message with a share of the group key, sealed under the right key, that is not the one it committed to."""
    site = world.nodes[liar].site
    secret = keys.EpochSecret.from_bytes(world.state_of(liar).epoch.secret)  # type: ignore[union-attr]
    said = keys.verify_group(body, member=liar, members=secret.members, node_keys=secret.node_keys)
    key = keys._seal_key(secret.roots[victim], liar, victim)
    sealed = commit_key(key) + seal(key, bytes(32), "group/seal", said.transcript, liar, victim)
    table = tuple((m, sealed if m == victim else said.sealed[m]) for m in secret.members if m != liar)
    return messages.signed(site.node_key, keys.GROUP, said.consortium, said.run, said.epoch, liar, said.transcript, table)


def test_a_garbage_group_seal_convicts_its_author_before_everyone_and_the_others_go_on() -> None:
    """The victim publishes the sealing key; without judge_group the epoch would fail for ever, or the accuser be believed."""
    world = Hostile(up=False)
    world.lie = lambda m, r: replace(r, body=garbage_group(world, m, "m03", r.body)) if (m, r.kind) == ("m01", K.GROUP) else r
    world.start()
    world.run_until(lambda w: w.idle())
    assert set(world.state.convicted) == {"m01"} and world.state.epoch.members == ("m00", "m02", "m03", "m04")  # type: ignore[union-attr]
    assert world.exchange(1, "train", world.first_weights()).status == "ok"


def respelt(world: Hostile, liar: str, body: bytes, **columns: Any) -> bytes:
    """The liar's share message with other columns, rightly signed."""
    message = shares.read_share(body, member=liar, node_keys=None)
    changed = {name: make(message) for name, make in columns.items()}
    return messages.signed(world.nodes[liar].site.node_key, shares.SHARE, *replace(message, **changed).parts())


def with_shares(n: int, purpose: str, liar: str, **columns: Any) -> Hostile:
    world = at(n=n)

    def lie(member: str, report: Report) -> Report:
        if (member, report.kind) != (liar, K.SHARE) or world.now_at.purpose != purpose or world.now_at.attempt:
            return report
        return replace(report, body=respelt(world, liar, report.body, **columns))

    world.lie = lie
    return world


def test_wrong_shares_convict_their_dealer_and_the_base_is_used_again_without_it() -> None:
    """Others have sent bytes by then, so the instance is voided. Without judge_share the dealer would be back and spoil the next one."""
    world = with_shares(5, "scales", "m01", sealed=lambda m: {**m.sealed, "m03": bytes(80)})
    weights = world.first_weights()
    assert world.exchange(1, "train", weights).status == "failed" and set(world.state.convicted) == {"m01"}
    reply = world.exchange(2, "train", weights)
    assert reply.status == "ok" and reply.survivors == ("m00", "m02", "m03", "m04")
    world.check_mean(reply, 2, weights)
    world.check_secrets()


def test_a_garbage_bundle_of_a_member_that_drops_is_got_round_by_the_survivors_pair_secrets() -> None:
    """Without `not_opening` a member could spoil every sum by dealing garbage and leaving."""
    world = with_shares(6, "update", "m01", bundle=lambda m: bytes(len(m.bundle)))
    weights = world.first_weights()

    asked: set[tuple[str, ...]] = set()

    def leave(w: Any) -> None:
        if w._there("upload", "update") and w.nodes["m01"].alive:
            w.kill("m01")
        if w._there("reveal", "update"):
            asked.add(w.now_at.unopened)

    reply = world.exchange(1, "train", weights, hook=leave)
    assert reply.status == "ok" and "m01" not in reply.survivors
    assert ("m01",) in asked, "the survivors were asked for their pair secrets"
    world.check_mean(reply, 1, weights)
    world.check_secrets()


def test_pair_commitments_that_differ_name_both_and_nobody_deals_on() -> None:
    """A man in the middle shows here at the latest: R_01,03 at both ends is not the same."""
    world = with_shares(5, "scales", "m01", pair_commitments=lambda m: {**m.pair_commitments, "m03": bytes(32)})
    reply = world.exchange(1, "train", world.first_weights())
    assert reply.status == "failed" and "m01 and m03 disagree" in reply.reason
    assert world.state.renew or world.state.epochs == 2
    assert not any(s.run == world.run for node in world.nodes.values() for s in node.history.sent), "nobody sent a byte"


def test_a_reveal_of_wrong_values_is_left_out_and_its_giver_named() -> None:
    """Each opened value is checked against its commitment; without that one liar would turn the sum into noise."""
    world = let_speak(at("reveal", "update"), "m01")
    assert world.says("m01", K.REVEAL, _wrong_reveal(world, 9)).accepted
    world.run_until(lambda w: w._there("sum", "update"))
    assert "m01" in world.now_at.recovered.wrong
    world.run_until(lambda w: bool(w.answers))
    assert world.answers[1].status == "ok"
    world.check_mean(world.answers[1], 1, world.state.exchange.asked.weights)  # type: ignore[union-attr]


@pytest.mark.parametrize("evidence", ["made up", "a true key of an honest dealer", "not hex", "of nobody"])
def test_false_evidence_convicts_nobody(evidence: str) -> None:
    """Without the key commitment in judge_share an accuser could show any key and have an honest member thrown out."""
    world = let_speak(at("upload", "scales"), "m01")
    from dure.secagg.instance import InstanceSecret

    state = world.state_of("m01").exchange.instances[-1]  # type: ignore[union-attr]
    key = bytes(32) if evidence == "made up" else InstanceSecret.from_bytes(state.secret).channel_keys.get("m03", bytes(32))
    accused = "stranger" if evidence == "of nobody" else "m03"
    proof = "zz" if evidence == "not hex" else tlv.encode("accuse-share", accused, "m01", key).hex()
    body = json.dumps({"reason": "m03 lies", "convicts": accused, "evidence": proof}).encode()
    assert world.says("m01", K.SIT_OUT, body).accepted
    assert not world.state.convicted
