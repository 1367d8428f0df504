"""The sum is the plain integer sum of the survivors, or nothing is opened: over purposes, cohorts and dropouts at every phase."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dure.secagg import field as fp
from dure.secagg.encode import decode_mean_chunk, decode_trailer, encode_update_chunk, rounding_streams, weight_of
from dure.secagg.errors import BelowThreshold, Malformed, Refused, TagMismatch
from dure.secagg.ids import Purpose
from dure.secagg.instance import InstanceSecret
from dure.secagg.recover import Recovered, check_recovered
from dure.secagg.scales import encode_scales_chunk, level_streams, summed_exponents
from dure.secagg.shares import read_shares
from dure.secagg.tag import check_totals


def plain_sum(s, survivors):
    w = weight_of(1000).w_hat
    if s.instance.purpose is Purpose.SCALES:
        total = np.zeros(24 * -(-s.elements // 4096), np.uint64)
        for m in survivors:
            fp.add_into(total, encode_scales_chunk(s.deltas[m][: s.elements], w, level_streams(sha256(b"round" + m.encode()).digest()), 0))
        return total
    total = np.zeros(s.elements, np.uint16)
    if s.elements:
        for m in survivors:
            rounding = sha256(b"round" + m.encode()).digest()
            total = total + encode_update_chunk(s.deltas[m], w, np.zeros(1, np.int8), len(s.members), rounding_streams(rounding), 0)[0]
    return total


@pytest.mark.parametrize("purpose", list(Purpose))
@pytest.mark.parametrize("drop", [(), (0,), (4,), (2, 7)])
def test_the_opened_sum_is_the_survivors_plain_sum_and_its_tag_holds(sim, purpose, drop):
    s = sim(8, 2, purpose=purpose).ready()
    survivors = tuple(m for i, m in enumerate(s.members) if i not in drop)
    s.upload(survivors)
    reveals = s.reveal(survivors, s.sign(survivors))
    found = s.recover(reveals)
    assert Recovered.from_bytes(found.to_bytes()).to_bytes() == found.to_bytes()
    check_recovered(found, s.shares)
    total, trailer, tag = s.open(found)
    s.verify(total, trailer, tag, survivors)
    if purpose is not Purpose.SCALARS:
        assert np.array_equal(total, plain_sum(s, survivors))
    if purpose is Purpose.SCALES:
        assert trailer == (1 * len(survivors),) and -40 <= summed_exponents(total)[0] <= 6
    else:
        totals = decode_trailer(trailer, ["loss"])
        assert totals.members == len(survivors) and totals.metrics["loss"] == 0.5
    if purpose is Purpose.UPDATE:
        mean = decode_mean_chunk(total, np.zeros(1, np.int8), 8, trailer[1])
        want = np.mean([s.deltas[m] for m in survivors], axis=0)
        assert np.abs(mean - want).max() < 2.0**-11 / weight_of(1000).w_hat


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whoever_drops_at_any_phase_the_sum_is_right_or_nothing_opens(sim, data):
    n = data.draw(st.integers(4, 7))
    c = data.draw(st.integers(1, max(1, (n - 1) // 3)))
    purpose = data.draw(st.sampled_from([Purpose.UPDATE, Purpose.SCALARS, Purpose.SCALES]))
    s = sim(n, c, purpose=purpose, seed=data.draw(st.integers(0, 2**32))).ready()
    uploads = data.draw(st.sets(st.sampled_from(s.members)))
    commits = data.draw(st.sets(st.sampled_from(sorted(uploads)))) if uploads else set()
    s.upload(sorted(uploads - commits), commit=False)
    s.upload(sorted(commits))
    for m in s.members:  # restart at every state
        s.state[m] = InstanceSecret.from_bytes(s.state[m].to_bytes())
    if len(commits) < s.u_min:
        for m in sorted(commits):
            with pytest.raises(Refused):
                s.sign([m])
        return
    signers = sorted(data.draw(st.sets(st.sampled_from(sorted(commits)))))
    signatures = s.sign(signers)
    revealers = sorted(data.draw(st.sets(st.sampled_from(sorted(uploads)))))
    try:
        reveals = s.reveal(revealers, signatures)
    except BelowThreshold:
        return
    try:
        total, trailer, tag = s.open(s.recover(reveals))
    except BelowThreshold:
        return
    s.verify(total, trailer, tag, commits)
    assert np.array_equal(total, plain_sum(s, sorted(commits)))


def test_a_garbage_bundle_is_named_and_survivors_pair_secrets_replace_it(sim):
    import dure.secagg.instance as sums

    s = sim(5, 1)
    original = sums._seal_bundle
    try:
        sums._seal_bundle = lambda secret: bytes(len(original(secret))) if secret.me == s.members[1] else original(secret)
        s.deal()
    finally:
        sums._seal_bundle = original
    s.receive()
    survivors = [m for m in s.members if m != s.members[1]]
    s.upload(survivors)
    signatures = s.sign(survivors)
    found = s.recover(s.reveal(survivors, signatures))
    assert found.not_opening == (s.members[1],)
    with pytest.raises(Malformed):
        found.unmask  # noqa: B018
    found = s.recover(s.reveal(survivors, signatures, not_opening=found.not_opening))
    total, trailer, tag = s.open(found)
    s.verify(total, trailer, tag, survivors)
    assert np.array_equal(total, plain_sum(s, survivors))


def test_tampered_sums_fail_their_tag(sim):
    s = sim(5, 1).ready()
    s.upload(s.members)
    total, trailer, tag = s.open(s.recover(s.reveal(s.members, s.sign(s.members))))
    s.verify(total, trailer, tag, s.members)
    zero, one = np.zeros_like(total), np.uint16(1)
    changed = total.copy()
    changed[7] += one
    negated = tuple(-v for v in trailer)
    bad = {
        "zero": (zero, (0,) * len(trailer), 0),
        "zero with count": (zero, (5, *(0,) * (len(trailer) - 1)), 0),
        "negated": ((0 - total).astype(np.uint16), negated, -tag % fp.P),
        "negated with count": ((0 - total).astype(np.uint16), (5, *negated[1:]), -tag % fp.P),
        "doubled": (total * np.uint16(2), tuple(2 * v for v in trailer), 2 * tag % fp.P),
        "doubled with count": (total * np.uint16(2), (5, *(2 * v for v in trailer[1:])), 2 * tag % fp.P),
        "one element": (changed, trailer, tag),
        "trailer + p": (total, (*trailer[:3], trailer[3] + fp.P), tag),
        "trailer - p": (total, (*trailer[:3], trailer[3] - fp.P), tag),
        "tag + p": (total, trailer, tag + fp.P),
        "partial": (total, trailer[:3], tag),
    }
    for name, (vector, words, value) in bad.items():
        with pytest.raises(TagMismatch):
            s.verify(vector, words, value, s.members)
            pytest.fail(name)
    with pytest.raises(TagMismatch):
        s.verify(total, trailer, tag, s.members[:4])


def test_without_pads_a_zero_sum_would_verify(sim):
    """Why the pads are there: the linear part of the tag of nothing is nothing."""
    s = sim(5, 1).ready()
    key = s.tag_key(s.members[0])
    assert key.ring_chunk(0, np.zeros(300, np.uint16)) == 0 and key.trailer((0, 0, 0)) == 0
    assert key.pad(s.members[0]) != key.pad(s.members[1]) != 0


def test_tags_add_up(sim):
    s = sim(5, 1)
    key, rng = s.tag_key(s.members[0]), np.random.default_rng(1)
    a, b = (rng.integers(-3000, 3000, 70_000).astype(np.int16) for _ in range(2))
    parts = [key.ring_chunk(2, x.view(np.uint16)) for x in (a, b, a + b)]
    assert (parts[0] + parts[1]) % fp.P == parts[2]
    v, u = key._v.astype(object), key._u.at(2)[0].elements(18).astype(object)
    assert parts[0] == sum(int(u[i // 4096]) * int(v[i % 4096]) * int(q) for i, q in enumerate(a)) % fp.P
    x, y = (rng.integers(0, fp.P, 98_304).astype(np.uint64) for _ in range(2))
    assert (key.field_chunk(1, x) + key.field_chunk(1, y)) % fp.P == key.field_chunk(1, fp.add(x, y))


def test_totals_that_so_many_members_cannot_have_sent_are_refused_whatever_the_tag_says():
    one = 1 << 40
    check_totals((5,), 5, Purpose.SCALES)
    check_totals((5, 5 * one, 0, -7), 5, Purpose.UPDATE)
    for values, purpose in (
        ((4,), Purpose.SCALES),
        ((5, 0), Purpose.SCALES),
        ((), Purpose.SCALES),
        ((5, one), Purpose.UPDATE),
        ((4, one, 0), Purpose.UPDATE),
        ((5, 0, 0), Purpose.UPDATE),
        ((5, -one, 0), Purpose.SCALARS),
        ((5, 5 * one + 1, 0), Purpose.SCALARS),
        ((5, one, -1), Purpose.UPDATE),
        ((5, one, 0, 1 << 59), Purpose.UPDATE),
        ((5, one, 0, -(1 << 59)), Purpose.UPDATE),
        ((5, one, 0) + (0,) * 300, Purpose.UPDATE),
    ):
        with pytest.raises(TagMismatch):
            check_totals(values, 5, purpose)


def test_share_messages_have_the_size_the_specification_allows_for(sim):
    s = sim(8, 2)
    s.deal()
    assert len(s.shares[s.members[0]]) < 2600  # key commitments add 32 bytes a peer to the 2.2 kB of the design
    with pytest.raises(Malformed):
        read_shares(s.instance, s.members, {m: s.shares[m] for m in s.members[1:]}, s.public)
    assert set(read_shares(s.instance, s.members, s.shares, s.public)) == set(s.members)
