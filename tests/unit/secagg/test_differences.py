"""Which survivor sets may follow one another on one base, whatever their order and number."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.secagg import differences, thresholds

MEMBERS = [f"m{i}" for i in range(9)]
sets = st.lists(st.sets(st.sampled_from(MEMBERS), min_size=5).map(frozenset), max_size=12)


@given(wanted=sets, c=st.integers(1, 3))
@settings(max_examples=300)
def test_whatever_is_asked_for_at_most_two_sets_are_signed_and_they_are_equal_or_c_plus_2_apart(wanted, c):
    signed = []
    for u in wanted:
        if not differences.why_not(u, signed, c):
            signed.append(u)
    assert len(set(signed)) <= 2
    for one, other in combinations(set(signed), 2):
        assert len(one ^ other) >= c + 2


@given(wanted=sets, c=st.integers(1, 3), order=st.randoms())
@settings(max_examples=200)
def test_no_combination_of_the_sums_signed_leaves_one_honest_member_alone(wanted, c, order):
    """Colluders know what they sent themselves: of a difference of sums only the honest part is a secret."""
    signed = []
    for u in wanted:
        if not differences.why_not(u, signed, c):
            signed.append(u)
    colluders = set(order.sample(MEMBERS, c))
    honest = [m for m in MEMBERS if m not in colluders]
    for weights in product(range(-2, 3), repeat=len(set(signed))):
        counted = [sum(w for w, u in zip(weights, sorted(set(signed), key=sorted), strict=True) if m in u) for m in honest]
        assert sum(count != 0 for count in counted) != 1


@given(committed=st.sets(st.sampled_from(MEMBERS), min_size=5), earlier=sets, c=st.integers(1, 3))
@settings(max_examples=300)
def test_what_is_chosen_would_be_signed_and_is_among_those_who_committed(committed, earlier, c):
    signed = []
    for u in earlier:
        if not differences.why_not(u, signed, c):
            signed.append(u)
    chosen = differences.choose(tuple(sorted(committed)), signed, c, 5)
    if chosen is None:
        assert differences.why_not(committed, signed, c)
        assert not any(u <= committed for u in signed)
    else:
        assert set(chosen) <= committed
        assert not differences.why_not(chosen, signed, c)


def test_below_six_members_only_the_same_set_is_ever_signed():
    """As the specification says, and for every other size by counting out."""
    for r, c in ((3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (7, 2), (8, 2), (9, 2)):
        u = thresholds.u_min(r, c)
        every = [frozenset(s) for k in range(u, r + 1) for s in combinations(range(r), k)]
        alike = all(a == b or not thresholds.difference_allowed(a, b, c) for a, b in combinations(every, 2))
        assert differences.one_set_only(r, u, c) == alike
    assert [differences.one_set_only(r, thresholds.u_min(r, 1), 1) for r in (3, 4, 5, 6)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("candidate", "earlier", "says"),
    [("abcd", ["abcde"], "by e only"), ("abcdef", ["abcde", "abcdefghi"[:9]], "by f only"), ("abcghi", ["abcdef", "abcjkl"], "a third")],
)
def test_the_refusal_names_the_members_or_the_third_set(candidate, earlier, says):
    assert says in differences.why_not(candidate, earlier, 1)
