"""What a member never does (secure-aggregation.md, section 5): each attack fails because of one check."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dure.secagg import epoch as keys
from dure.secagg import instance as sums
from dure.secagg import messages, shamir, shares, tlv
from dure.secagg.errors import BadSignature, BelowThreshold, Convicted, Malformed, PairMismatch, Refused
from dure.secagg.recover import Recovered, check_recovered, check_reveal
from dure.secagg.seal import commit_key, seal
from dure.secagg.thresholds import share_threshold, voids_needed


def refused(rule, call, *args, **kwargs):
    with pytest.raises(Refused) as e:
        call(*args, **kwargs)
    assert e.value.rule == rule, e.value


def deal_again(s, m, known, cohort=None):
    return sums.deal(
        instance=s.instance,
        cohort=cohort or s.members,
        me=m,
        epoch=s.epochs[m],
        colluders=s.c,
        node_key=s.private[m],
        rng=s.rng,
        known=known,
    )


def test_rule_0_a_second_deal_gives_identical_bytes_and_none_to_another_cohort(sim):
    s = sim(5, 1)
    s.deal()
    m = s.members[0]
    assert deal_again(s, m, s.state[m])[1] == s.shares[m]
    refused(0, deal_again, s, m, s.state[m], cohort=s.members[:4])
    refused(0, deal_again, s, m, sums.void(s.state[m]))


def test_rule_0_other_share_messages_after_opening_are_refused(sim):
    s, other = sim(5, 1).ready(), sim(5, 1, seed=9)
    other.deal()
    m = s.members[0]
    assert sums.receive_shares(s.state[m], s.shares, s.public) == s.state[m]
    refused(0, sums.receive_shares, s.state[m], {**s.shares, s.members[1]: other.shares[s.members[1]]}, s.public)
    fresh = sim(5, 1)
    fresh.deal()
    refused(0, sums.receive_shares, fresh.state[m], {**fresh.shares, m: other.shares[m]}, s.public)


def test_rule_1_one_upload_per_instance(sim):
    s = sim(5, 1).ready()
    m = s.members[0]
    refused(1, sums.masks, s.state[m], s.ctx)
    s.upload([m], commit=False)
    state = s.state[m]
    same = sums.start_upload(state, ctx=s.ctx, upload_digest=state.upload_digest)
    assert same == state
    refused(1, sums.start_upload, state, ctx=s.ctx, upload_digest=bytes(32))
    refused(1, sums.start_upload, state, ctx=bytes(32), upload_digest=state.upload_digest)
    refused(1, sums.masks, state, bytes(32))
    state = sums.committed(state, b"1" * 32)
    assert sums.committed(state, b"1" * 32) == state
    refused(1, sums.committed, state, b"2" * 32)


def test_rule_2_voids_and_an_opened_sum_exclude_each_other(sim):
    s = sim(5, 1).ready()
    s.upload(s.members)
    signatures = s.sign(s.members)
    voided = [sums.void(s.state[m]) for m in s.members[: voids_needed(5, 1)]]
    for state in voided:
        assert state.erased and not (state.b or state.bundle_key or state.pair_secrets or state.self_shares or state.bundle_shares)
        assert b"".join([s.state[state.me].b]) not in state.to_bytes()
        s.state[state.me] = state
        refused(4, s.reveal, [state.me], signatures)
        refused(3, s.sign, [state.me])
        refused(1, sums.masks, state, s.ctx)
    rest = [m for m in s.members if not s.state[m].erased]
    assert len(rest) < share_threshold(5, 1)
    with pytest.raises(BelowThreshold):
        s.recover(s.reveal(rest, signatures))
    refused(2, sums.void, s.state[rest[0]])


def test_rule_3_one_survivor_set(sim):
    s = sim(5, 1).ready()
    s.upload(s.members)
    a, b = s.members[:2]
    signed = s.sign([a])[a]
    assert s.sign([a])[a] == signed
    without_b = {m: h for m, h in s.commits.items() if m != b}
    refused(3, s.sign, [a], without_b)
    refused(3, s.sign, [b], without_b)  # it has committed
    refused(3, s.sign, [b], {m: s.commits[m] for m in s.members[:3]})  # below u_min
    refused(3, s.sign, [b], {**s.commits, b: bytes(32)})  # not its commit
    s.ctx = bytes(32)
    refused(3, s.sign, [b])


def test_rule_3_who_has_not_committed_is_in_no_set_it_signs(sim):
    s = sim(5, 1).ready()
    s.upload(s.members[:4])
    s.upload(s.members[4:], commit=False)
    refused(3, s.sign, s.members[4:], {**s.commits, s.members[4]: bytes(32)})
    s.sign(s.members[4:])
    refused(1, sums.committed, s.state[s.members[4]], b"1" * 32)


def test_rule_4_no_share_without_a_certificate_for_exactly_this_set(sim):
    s = sim(5, 1).ready()
    s.upload(s.members)
    a, b = s.members[:2]
    signatures = s.sign(s.members)
    few = dict(list(signatures.items())[: share_threshold(5, 1) - 1])
    with pytest.raises(BelowThreshold):
        s.reveal([a], few)
    with pytest.raises(BadSignature):
        s.reveal([a], {**few, b: bytes(64)})
    with pytest.raises(BadSignature):  # one signature under several names
        s.reveal([a], dict.fromkeys(s.members, signatures[a]))
    without = {m: h for m, h in s.commits.items() if m != s.members[4]}
    with pytest.raises((Refused, BadSignature)):
        s.reveal([a], signatures, commits=without)
    first = s.reveal([a], signatures)
    assert s.reveal([a], signatures) == first


def test_rule_4_never_both_kinds_of_share_even_against_colluders_signatures(sim):
    """c colluders and one deceived member sign a second set; nobody who signed or revealed the first answers it."""
    s = sim(5, 1).ready()
    s.upload(s.members)
    signatures = s.sign(s.members)
    s.reveal(s.members, signatures)
    without = {m: h for m, h in s.commits.items() if m != s.members[4]}
    payload = sums.survivors_message(s.instance, s.ctx, without)
    forged = {m: s.private[m].sign(payload) for m in s.members[:4]}  # more than c liars: still refused
    refused(4, s.reveal, [s.members[0]], forged, commits=without)


def test_rule_4_nothing_of_a_members_own_is_in_a_reveal_of_one_outside_the_set(sim):
    s = sim(5, 1).ready()
    outside = s.members[4]
    s.upload(s.members[:4])
    s.upload([outside], commit=False)
    before = s.state[outside]
    data = s.reveal([outside], s.sign(s.members[:4]), not_opening=())[outside]
    for secret in (before.b, before.bundle_key, *before.pair_secrets.values()):
        assert secret not in data and secret not in s.state[outside].to_bytes()
    part = check_reveal(data, instance=s.instance, ctx=s.ctx, cohort=s.members, survivors=s.members[:4], member=outside, node_keys=s.public)
    assert part.own == b"" and outside not in part.bundle_shares and not part.pair_secrets


def test_rule_4_pair_secrets_of_survivors_are_never_given(sim):
    s = sim(5, 1).ready()
    s.upload(s.members)
    refused(4, s.reveal, [s.members[0]], s.sign(s.members), not_opening=(s.members[1],))


def test_rule_5_keys_of_a_closed_exchange_are_gone(sim):
    s = sim(5, 1)
    m = s.members[0]
    later = s.epochs[m].advanced_past(s.instance.exchange)
    refused(5, later.exchange_key, s.members[1], s.instance.exchange)
    assert later.exchange_key(s.members[1], 9) == s.epochs[m].exchange_key(s.members[1], 9) == s.epochs[s.members[1]].exchange_key(m, 9)
    assert later.advanced_past(0) == later


def test_a_verified_instance_holds_no_secret(sim):
    s = sim(5, 1).ready()
    s.upload(s.members)
    s.reveal(s.members, s.sign(s.members))
    m = s.members[0]
    state = s.state[m]
    done = sums.verified(state)
    for secret in (state.b, state.bundle_key, *state.pair_secrets.values(), *state.self_shares.values()):
        assert secret not in done.to_bytes()
        assert secret.hex() not in repr(state) and repr(secret)[2:-1] not in repr(state)


def spoilt(s, dealer, **changes):
    """The dealer's message with some columns changed, signed again."""
    message = shares.read_share(s.shares[dealer], member=dealer, node_keys=s.public)
    return messages.signed(s.private[dealer], shares.SHARE, *replace(message, **changes).parts())


def test_a_share_that_does_not_open_convicts_its_dealer_before_everyone(sim):
    s = sim(5, 1)
    s.deal()
    dealer, victim = s.members[1], s.members[0]
    message = shares.read_share(s.shares[dealer], member=dealer, node_keys=s.public)
    s.shares[dealer] = spoilt(s, dealer, sealed={**message.sealed, victim: bytes(80)})
    with pytest.raises(Convicted) as e:
        sums.receive_shares(s.state[victim], s.shares, s.public)
    assert e.value.member == dealer
    assert sums.judge_share(e.value.evidence, share=s.shares[dealer], node_keys=s.public) == dealer


def test_an_accuser_cannot_frame_an_honest_dealer_with_a_made_up_key(sim):
    s = sim(5, 1)
    s.deal()
    dealer, accuser = s.members[1], s.members[0]
    for key in (bytes(32), s.state[accuser].channel_keys[dealer]):
        evidence = shares.accuse_share(dealer, accuser, key)
        assert sums.judge_share(evidence, share=s.shares[dealer], node_keys=s.public) is None


def test_pair_commitments_that_differ_name_both(sim):
    s = sim(5, 1)
    s.deal()
    dealer = s.members[1]
    message = shares.read_share(s.shares[dealer], member=dealer, node_keys=s.public)
    for target in (s.members[0], s.members[3]):
        changed = spoilt(s, dealer, pair_commitments={**message.pair_commitments, target: bytes(32)})
        with pytest.raises(PairMismatch) as e:
            sums.receive_shares(s.state[s.members[0]], {**s.shares, dealer: changed}, s.public)
        assert {e.value.a, e.value.b} == {dealer, target}


def test_forged_senders_and_messages_of_other_instances_are_refused(sim):
    s, other = sim(5, 1), sim(5, 1, exchange=4)
    s.deal()
    other.deal()
    m, a = s.members[:2]
    forged = messages.signed(s.private[m], shares.SHARE, *shares.read_share(s.shares[a], member=a, node_keys=None).parts())
    with pytest.raises(BadSignature):
        sums.receive_shares(s.state[m], {**s.shares, a: forged}, s.public)
    with pytest.raises(Malformed):
        sums.receive_shares(s.state[m], {**s.shares, a: other.shares[a]}, s.public)
    for cut in range(0, len(s.shares[a]), 97):
        with pytest.raises(Malformed):
            sums.receive_shares(s.state[m], {**s.shares, a: s.shares[a][:cut]}, s.public)


def test_wrong_shares_are_left_out_and_their_holder_named(sim):
    s = sim(8, 1).ready()
    survivors = s.members[:7]
    s.upload(survivors)
    signatures = s.sign(survivors)
    liar = survivors[0]
    good = s.state[liar]
    s.state[liar] = replace(
        good,
        b=bytes(32),
        bundle_shares=dict.fromkeys(good.bundle_shares, bytes(32)),
        self_shares={**good.self_shares, survivors[1]: bytes(32)},
    )
    reveals = s.reveal(survivors, signatures)
    found = s.recover(reveals)
    assert found.wrong == {liar: (liar, s.members[7])}
    total, trailer, tag = s.open(found)
    s.verify(total, trailer, tag, survivors)
    del reveals[survivors[1]]
    assert s.recover(reveals).wrong == {liar: (liar, survivors[1], s.members[7])}


def test_shares_that_give_another_secret_convict_their_dealer_when_it_stays_silent(sim, monkeypatch):
    s = sim(5, 1)
    honest = shamir.split
    liar = s.members[1]
    state = {"calls": 0}

    def split(secret, **kwargs):
        state["calls"] += 1
        return honest(bytes(32) if state["calls"] == 3 else secret, **kwargs)  # the second member's b

    monkeypatch.setattr(shamir, "split", split)
    s.deal()
    s.receive()
    s.upload(s.members)
    reveals = s.reveal(s.members, s.sign(s.members))
    s.verify(*s.open(s.recover(reveals)), s.members)
    del reveals[liar]
    with pytest.raises(Convicted) as e:
        s.recover(reveals)
    assert e.value.member == liar


def test_a_reveal_for_another_set_or_context_is_refused(sim):
    s = sim(5, 1).ready()
    s.upload(s.members)
    m = s.members[0]
    data = s.reveal([m], s.sign(s.members))[m]
    base = dict(instance=s.instance, ctx=s.ctx, cohort=s.members, survivors=s.members, member=m, node_keys=s.public)
    check_reveal(data, **base)
    for change in (
        {"ctx": bytes(32)},
        {"survivors": s.members[:4]},
        {"instance": replace(s.instance, attempt=1)},
        {"member": s.members[1]},
    ):
        with pytest.raises((Malformed, BadSignature)):
            check_reveal(data, **{**base, **change})


def test_epoch_a_garbage_group_share_convicts_and_cannot_frame(epoch, sim):
    """The recipient publishes the sealing key; a made-up key shows nothing."""
    s = sim(4, 1)
    private, public, _ = epoch(4)
    secrets, adverts, kems, groups = {}, {}, {}, {}
    for m in s.members:
        secrets[m], adverts[m] = keys.begin_epoch(
            consortium=bytes(16),
            run=bytes(32),
            epoch=1,
            members=s.members,
            me=m,
            node_key=private[m],
            generation=0,
            last_accepted=0,
            rng=s.rng,
        )
    for m in s.members:
        secrets[m], kems[m] = keys.encapsulate(secrets[m], adverts, public, s.rng)
        assert keys.encapsulate(secrets[m], adverts, public, s.rng)[1] == kems[m]
    for m in s.members:
        secrets[m], groups[m] = keys.agree(secrets[m], kems, s.rng)
        assert secrets[m].x25519 == secrets[m].mlkem == b"" and not secrets[m].kem_secrets
        assert keys.agree(secrets[m], kems, s.rng)[1] == groups[m]
    liar, victim = s.members[0], s.members[2]
    key = keys._seal_key(secrets[liar].roots[victim], liar, victim)
    said = keys.verify_group(groups[liar], member=liar, members=s.members, node_keys=public)
    sealed = commit_key(key) + seal(key, bytes(32), "group/seal", said.transcript, liar, victim)
    table = tuple((m, sealed if m == victim else said.sealed[m]) for m in s.members if m != liar)
    bad = messages.signed(private[liar], keys.GROUP, said.consortium, said.run, said.epoch, liar, said.transcript, table)
    with pytest.raises(Convicted) as e:
        keys.complete(secrets[victim], {**groups, liar: bad})
    judge = dict(advert=adverts[liar], members=s.members, node_keys=public)
    assert e.value.member == liar == keys.judge_group(e.value.evidence, group=bad, **judge)
    assert keys.judge_group(e.value.evidence, group=groups[liar], **judge) is None
    made_up = tlv.encode("accuse-group", liar, victim, bytes(32))
    assert keys.judge_group(made_up, group=groups[liar], **judge) is None
    with pytest.raises(BadSignature):
        again = replace(secrets[victim], phase="begun")
        keys.encapsulate(again, adverts, {**public, liar: bytes(32)}, s.rng)


def test_rule_6_a_cohort_that_is_too_small_or_holds_strangers_is_not_dealt_to(sim):
    s = sim(5, 1)
    m = s.members[0]
    with pytest.raises(BelowThreshold):
        deal_again(s, m, None, cohort=s.members[:2])
    for cohort in ((*s.members[:3], "stranger"), s.members[1:], tuple(reversed(s.members)), (*s.members, s.members[4])):
        with pytest.raises(Malformed):
            deal_again(s, m, None, cohort=cohort)
    s.instance = replace(s.instance, epoch=2)
    with pytest.raises(Malformed):
        deal_again(s, m, None)


def test_a_commitment_to_another_channel_key_is_a_mismatch_and_convicts_nobody(sim):
    s = sim(5, 1)
    s.deal()
    dealer, me = s.members[1], s.members[0]
    message = shares.read_share(s.shares[dealer], member=dealer, node_keys=s.public)
    s.shares[dealer] = spoilt(s, dealer, key_commitments={**message.key_commitments, me: bytes(32)})
    with pytest.raises(PairMismatch):
        sums.receive_shares(s.state[me], s.shares, s.public)


def test_survivor_sets_and_certificates_naming_strangers_are_refused(sim):
    s = sim(5, 1).ready()
    s.upload(s.members)
    strange = {**s.commits, "stranger": bytes(32)}
    with pytest.raises(Malformed):
        s.sign([s.members[0]], strange)
    signatures = s.sign(s.members)
    base = dict(instance=s.instance, ctx=s.ctx, cohort=s.members, node_keys=s.public, colluders=1, u_min=4)
    sums.verify_certificate(commits=s.commits, signatures=signatures, **base)
    with pytest.raises(Malformed):
        sums.verify_certificate(commits=strange, signatures=signatures, **base)
    with pytest.raises(Malformed):
        sums.verify_certificate(commits=s.commits, signatures={**signatures, "stranger": bytes(64)}, **base)
    with pytest.raises(BelowThreshold):
        sums.verify_certificate(commits=dict(list(s.commits.items())[:3]), signatures=signatures, **base)


def test_steps_out_of_order_are_refused(sim):
    s = sim(5, 1)
    s.deal()
    m = s.members[0]
    refused(1, sums.start_upload, s.state[m], ctx=s.ctx, upload_digest=bytes(32))
    refused(1, sums.committed, s.state[m], bytes(32))
    s.receive()
    refused(3, s.sign, [m], dict.fromkeys(s.members, bytes(32)))
    with pytest.raises(Malformed):
        sums.start_upload(s.state[m], ctx=b"", upload_digest=bytes(32))
    refused(4, sums.verified, sums.void(s.state[m]))
    s.upload(s.members)
    signatures = s.sign(s.members[1:])
    s.reveal([m], signatures)
    refused(3, s.sign, [m])
    refused(1, sums.start_upload, s.state[m], ctx=s.ctx, upload_digest=s.state[m].upload_digest)


def test_a_damaged_state_is_refused(sim):
    s = sim(5, 1).ready()
    data = s.state[s.members[0]].to_bytes()
    for bad in (data[:-1], data + b"x", tlv.encode("other", 1), data.replace(b"opened", b"OPENED")):
        with pytest.raises(Malformed):
            sums.InstanceSecret.from_bytes(bad)


def test_seeds_that_nobody_committed_to_are_refused(sim):
    s = sim(5, 1).ready()
    survivors = s.members[:4]
    s.upload(survivors)
    found = s.recover(s.reveal(survivors, s.sign(survivors)))
    check_recovered(found, s.shares)
    pair = (s.members[4], s.members[0])
    for bad in (
        replace(found, self_seeds={**found.self_seeds, s.members[0]: bytes(32)}),
        replace(found, pair_secrets={**found.pair_secrets, pair: bytes(32)}),
    ):
        with pytest.raises(Malformed):
            check_recovered(bad, s.shares)
        assert Recovered.from_bytes(bad.to_bytes()).survivors == survivors
    missing = replace(found, pair_secrets={k: v for k, v in found.pair_secrets.items() if k != pair})
    for bad_bytes in (missing.to_bytes(), found.to_bytes()[:-1], replace(found, cohort=survivors).to_bytes()):
        with pytest.raises(Malformed):
            Recovered.from_bytes(bad_bytes)
