"""A malicious coordinator against rules 0, 1, 3 and 4: one deal, one upload, one survivor set, one kind of share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from attacks.hostile import Hostile, at

from dure.secagg import instance as sums
from dure.secagg.ids import InstanceId, Purpose
from dure.statements.dsse import Envelope
from dure.statements.kinds import InstanceCommit, InstanceSurvivors, Survivor, SurvivorSignature
from dure.statements.statement import read_verified
from dure.wire.messages import ReportKind


def commit_of(world: Hostile, member: str) -> bytes:
    return world.now_at.commits[member]


def certificate(world: Hostile, members: tuple[str, ...], signers: tuple[str, ...]) -> bytes:
    """instance-survivors over these members' real commits, signed by these nodes' real keys, whoever they belong to."""
    instance = world.now_at
    hashes = {m: Envelope.from_bytes(instance.commits[m]).payload_sha256 for m in members}
    payload = sums.survivors_message(InstanceId.decode(instance.instance), instance.ctx, hashes)
    signed = tuple(SurvivorSignature(m, world.nodes[m].site.node_key.sign(payload)) for m in signers)
    said = InstanceSurvivors(instance.instance, instance.ctx, tuple(Survivor(m, hashes[m]) for m in members), signed)
    return world.seal(said)


# -- rule 0: one deal ----------------------------------------------------------------------------------------------


def test_a_re_deal_with_another_cohort_is_refused_and_the_same_again_gives_identical_bytes() -> None:
    """Without the comparison of cohorts in `follow_share` this is not refused."""
    world = at("open", "scales")
    again = world.show("m00", world.directive("m00", "share", members=world.now_at.cohort))
    assert again.sent(ReportKind.SHARE) == world.now_at.shares["m00"]
    assert world.show("m00", world.directive("m00", "share", members=world.now_at.cohort[:4])).refused("rule 0")


def test_a_re_deal_under_a_new_attempt_is_refused_once_a_byte_has_left() -> None:
    """Without `sent_bytes` in share._judge the second attempt is dealt, and both attempts' sums may be opened."""
    world = at("survivors", "scales")
    again = world.another(world.now_at.instance, attempt=1)
    asked = world.directive("m00", "share", members=world.now_at.cohort[:4], instance=again)
    assert world.show("m00", asked).refused("voided first")


def test_a_cohort_below_u_min_or_with_a_stranger_is_not_dealt_to() -> None:
    """Without the cohort check in share._judge three members' sum could be opened where four must stand."""
    world = at("execute")
    world.run_until(lambda w: len(w.state.exchange.ready) == 4)  # type: ignore[union-attr]
    member = next(iter(world.state.exchange.ready))  # type: ignore[union-attr]
    others = [m for m in world.members if m != member]
    for cohort in (tuple(sorted([member, *others[:2]])), tuple(sorted([member, *others[:3], "stranger"]))):
        instance = InstanceId(world.facts.consortium, world.run, 1, Purpose.SCALES, epoch=1).tlv()
        asked = world.directive(member, "share", members=cohort, instance=instance)
        assert world.show(member, asked).refused("members: must be at least 4 members of epoch 1")


@pytest.mark.parametrize("change", [{"exchange": 2}, {"epoch": 9}, {"fragment": 1}, {"purpose": "update"}, {"purpose": "scalars"}])
def test_an_instance_id_that_is_not_this_exchanges_is_not_dealt_in(change: dict[str, object]) -> None:
    """Without share._judge keys of one exchange could be made for another (rule 5), or the update dealt before its scales."""
    world = at("share", "scales")
    world.bag = [b for b in world.bag if b[0] != "directive" or b[1] != "m00"]
    strange = world.another(world.now_at.instance, **change)
    assert world.show("m00", world.directive("m00", instance=strange)).note.startswith("refused: ")
    assert not world.state_of("m00").exchange.instances  # type: ignore[union-attr]


# -- rule 1: one upload ----------------------------------------------------------------------------------------------


def test_a_second_instance_open_for_a_member_that_has_begun_to_upload_is_refused() -> None:
    """Without the comparison in `follow_open` another ctx would give another upload under the same secrets."""
    world = at("upload", "scales")
    first = world.show("m00", world.directive("m00"))
    assert first.uploads
    other = world.seal(replace(world.now_at.open_statement, upload_deadline=world.now_at.open_statement.upload_deadline + 1))
    assert world.show("m00", world.directive("m00", documents={"open": other})).refused("open", "rule 1")
    again = world.show("m00", world.directive("m00"))
    assert again.state.exchange == first.state.exchange and again.uploads


def test_an_upload_after_the_member_was_left_out_is_never_committed() -> None:
    """Who signed a set without itself commits nothing any more: without the phase in `committed` its late upload would count."""
    from dure_participant.exchange.inputs import UploadReady

    world = at("upload", "update", n=6)
    late = "m05"
    shown = world.show(late, world.directive(late))
    upload = next(a for a in shown.actions if type(a).__name__ == "Upload")
    world.bag = [b for b in world.bag if b[1] != late]
    world.run_until(lambda w: len(w.now_at.commits) == 5)
    commits = {m: commit_of(world, m) for m in world.members[:5]}
    survivors = world.directive(late, "survivors", parts=commits)
    assert world.show(late, survivors).sent(ReportKind.SIGNATURE)
    ready = UploadReady(world.now_at.instance, b"r" * 32, upload.length, (0,) * 5, 0)
    assert world.feed(late, ready).refused("another commit")


# -- rule 3: one survivor set ----------------------------------------------------------------------------------------


def survivors_of(world: Hostile, member: str, members: tuple[str, ...], **other: bytes):
    return world.directive(member, "survivors", parts={m: commit_of(world, m) for m in members} | other)


def test_a_second_survivor_set_in_one_instance_is_not_signed() -> None:
    """Without `secret.survivors` in sign_survivors two certificates could be made of one instance."""
    world = at("survivors", "update")
    assert world.show("m00", survivors_of(world, "m00", world.members)).sent(ReportKind.SIGNATURE)
    assert world.show("m00", survivors_of(world, "m00", world.members[:4])).refused("rule 3")


def test_a_survivor_set_without_a_member_that_committed_is_not_signed_by_it() -> None:
    """Without `commit_hash` in sign_survivors an upload could be both dropped and summed."""
    world = at("survivors", "update")
    assert world.show("m00", survivors_of(world, "m00", world.members[1:])).refused("rule 3")


def test_a_survivor_set_below_u_min_is_not_signed() -> None:
    """Without u_min in sign_survivors three of five could be summed, and two honest ones isolated by difference."""
    world = at("survivors", "update")
    assert world.show("m00", survivors_of(world, "m00", world.members[:3])).refused("rule 3")


def test_a_survivor_set_that_names_a_dropped_node_is_not_signed() -> None:
    """m05 never committed: neither a colluder's signature nor its commit of the scales, nor one to another instance, stands in for it."""
    world = at("upload", "update", n=6)
    world.bag = [b for b in world.bag if b[1] != "m05"]
    world.run_until(lambda w: len(w.now_at.commits) == 5)
    mine = read_verified(commit_of(world, "m01"), InstanceCommit)
    forged = world.signed_by("m01", replace(mine, member="m05"))
    of_scales = next(i for i in world.state.exchange.instances if i.purpose == "scales").commits["m05"]  # type: ignore[union-attr]
    elsewhere = world.signed_by("m05", replace(mine, member="m05", instance=world.another(mine.instance, attempt=1)))
    tried = ((forged, "signatures"), (of_scales, "m05.instance"), (elsewhere, "m05.instance"), (commit_of(world, "m01"), "signatures"))
    for commit, why in tried:
        assert world.show("m00", survivors_of(world, "m00", world.members[:5], m05=commit)).refused(why)


def test_a_commit_to_another_context_is_in_no_set() -> None:
    """Without the comparison of ctx members that saw different opens could be made to certify one set."""
    world = at("survivors", "update")
    other = world.signed_by("m01", replace(read_verified(commit_of(world, "m01"), InstanceCommit), ctx=b"x" * 32))
    assert world.show("m00", survivors_of(world, "m00", world.members, m01=other)).refused("ctx", "another instance-open")


def test_a_survivor_set_of_an_instance_that_is_over_is_not_signed() -> None:
    """A stale directive is ignored, not judged: rule 7 must not take an older commit for a second history."""
    world = at("survivors", "update")
    scales = next(i for i in world.state.exchange.instances if i.purpose == "scales")  # type: ignore[union-attr]
    stale = world.directive("m00", "survivors", parts=dict(scales.commits), instance=scales.instance)
    assert world.show("m00", stale).refused("is over")


# -- rule 4: one kind of share ---------------------------------------------------------------------------------------


def reveal_of(world: Hostile, member: str, envelope: bytes, **more: object):
    return world.directive(member, "reveal", documents={"survivors": envelope, "proof": world.proof(envelope)}, **more)


def test_nothing_is_revealed_below_a_quorum_certificate_or_on_a_forged_one() -> None:
    """Without `verify_certificate` in reveal the coordinator alone would open whatever set it likes."""
    world = at("survivors", "update")
    everyone = world.members
    t = world.now_at.threshold
    assert world.show("m00", reveal_of(world, "m00", certificate(world, everyone, everyone[: t - 1]))).refused(f"{t} needed")
    one_for_all = world.nodes["m01"].site.node_key.sign(b"whatever")
    good = read_verified(certificate(world, everyone, everyone), InstanceSurvivors)
    forged = replace(good, certificate=tuple(SurvivorSignature(m, one_for_all) for m in everyone))
    assert world.show("m00", reveal_of(world, "m00", world.seal(forged))).refused("valid signature")
    not_the_coordinators = world.signed_by("m01", good)
    assert world.show("m00", reveal_of(world, "m00", not_the_coordinators)).refused("signatures")


def test_nothing_is_revealed_for_a_set_the_witnesses_have_not_seen() -> None:
    """Without judge_proof two halves of the cohort could be shown two histories, and the sum be opened in the dark."""
    world = at("survivors", "update")
    envelope = certificate(world, world.members, world.members)
    few = world.sim_log.covering(envelope, world.members[: world.sim_log.quorum], world.now)
    other = world.proof(certificate(world, world.members, world.members))
    world.sim_log.quorum -= 1
    too_few = world.sim_log.covering(envelope, world.members[: world.sim_log.quorum], world.now)
    for proof in (None, b"", other, too_few):
        documents = {"survivors": envelope} | ({} if proof is None else {"proof": proof})
        assert world.show("m00", world.directive("m00", "reveal", documents=documents)).refused("")
    assert world.show("m00", world.directive("m00", "reveal", documents={"survivors": envelope, "proof": few})).sent(ReportKind.REVEAL)


def test_both_kinds_of_share_are_never_given_not_even_on_two_real_certificates() -> None:
    """More members than c sign a second set without m04: without `secret.revealed` in reveal its b and its B would both be open."""
    world = at("survivors", "update")
    everyone = world.members
    assert not world.state_of("m00").exchange.instances[-1].signature, "who signed one set is held by its signature, too"  # type: ignore[union-attr]
    assert world.show("m00", reveal_of(world, "m00", certificate(world, everyone, everyone))).sent(ReportKind.REVEAL)
    second = certificate(world, everyone[:4], everyone)
    assert world.show("m00", reveal_of(world, "m00", second)).refused("rule 4")


def test_who_signed_one_set_reveals_for_no_other_one() -> None:
    """The first certificate is withheld: without `secret.survivors` in reveal the first answer would be for the second set."""
    world = at("survivors", "update")
    assert world.show("m00", survivors_of(world, "m00", world.members)).sent(ReportKind.SIGNATURE)
    second = certificate(world, world.members[:4], world.members[1:])
    assert world.show("m00", reveal_of(world, "m00", second)).refused("rule 4")


def test_a_dropped_member_asked_to_reveal_gives_nothing_of_its_own_and_has_forgotten_b() -> None:
    """Everyone else opens its R: without the erasure in reveal its b, asked later, would open an upload that arrived late."""
    world = at("upload", "update", n=6)
    dropped = "m05"
    world.show(dropped, world.directive(dropped))
    world.bag = [b for b in world.bag if b[1] != dropped]
    world.run_until(lambda w: len(w.now_at.commits) == 5)
    secret = sums.InstanceSecret.from_bytes(world.state_of(dropped).exchange.instances[-1].secret)  # type: ignore[union-attr]
    envelope = certificate(world, world.members[:5], world.members[:5])
    revealed = world.show(dropped, reveal_of(world, dropped, envelope, members=(dropped,))).sent(ReportKind.REVEAL)
    assert revealed
    for own in (secret.b, secret.bundle_key, *secret.pair_secrets.values()):
        assert own and own not in revealed and own.hex() not in world.nodes[dropped].state.decode()


def test_pair_secrets_of_survivors_are_given_to_nobody() -> None:
    """Without the check of `not_opening` a survivor's masks could be opened beside its b."""
    world = at("survivors", "update")
    envelope = certificate(world, world.members, world.members)
    assert world.show("m00", reveal_of(world, "m00", envelope, members=("m01",))).refused("rule 4")


def test_a_reveal_after_a_void_and_a_void_after_a_reveal_are_refused() -> None:
    """Without the phases in `void` and `reveal`, V voids and an opened sum would no longer exclude each other."""
    world = at("reveal", "update")
    revealing = reveal_of(world, "m00", world.now_at.survivors_envelope)
    voiding = world.directive("m00", "void")
    assert world.show("m00", revealing).sent(ReportKind.REVEAL)
    assert world.show("m00", voiding).refused("rule 2")
    assert world.show("m01", voiding).sent(ReportKind.VOID)
    assert world.show("m01", reveal_of(world, "m01", world.now_at.survivors_envelope)).refused("rule 4")
    assert world.show("m01", survivors_of(world, "m01", world.members)).refused("rule 3")
