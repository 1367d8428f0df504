"""Thresholds, counted exhaustively for up to 100 members (secure-aggregation.md, section 9)."""

from __future__ import annotations

import pytest

from dure.secagg import thresholds as th
from dure.secagg.errors import BelowThreshold, OutOfRange


def test_the_table_of_the_specification():
    table = {(3, 1): (3, 0), (4, 1): (3, 1), (5, 1): (4, 1), (6, 1): (4, 2), (8, 2): (6, 2), (16, 5): (11, 5), (32, 10): (22, 10)}
    table[100, 33] = (67, 33)
    for (r, c), want in table.items():
        assert (th.u_min(r, c), th.dropouts_survived(r, c)) == want
    assert [th.default_colluders(r) for r in (3, 4, 7, 8, 16, 32, 100)] == [1, 1, 2, 2, 5, 10, 33]


def test_every_roster_cohort_and_number_of_colluders_counts_out():
    for r in range(3, 101):
        for c in range(1, r):
            u = th.u_min(r, c)
            if u > r:
                continue
            assert 2 * u > r + c and u >= c + 2
            for m in range(u, r + 1):
                t, v = th.share_threshold(m, c), th.voids_needed(m, c)
                assert 2 * t > m + c and c < t <= u <= m and v <= u
                # V voids, c of them lies: honest members left plus liars cannot open
                assert (m - v) + c < t


def test_differences_below_c_plus_2_isolate_somebody():
    assert th.difference_allowed("abc", "cba", 1)
    assert not th.difference_allowed("abcd", "abc", 1) and not th.difference_allowed("abcd", "abef"[:3], 2)
    assert th.difference_allowed("abcd", "abce"[:3] + "x", 0)
    assert th.difference_allowed("abcde", "ab", 1) and not th.difference_allowed("abcde", "ab", 2)


def test_votes_and_cohorts_out_of_range_are_refused_by_name():
    th.check_votes(2, 4, 1)
    for k in (1, 4):
        with pytest.raises(OutOfRange):
            th.check_votes(k, 4, 1)
    th.check_cohort(3, 3, 1)
    with pytest.raises(BelowThreshold):
        th.check_cohort(2, 2, 1)
    with pytest.raises(OutOfRange):
        th.check_cohort(101, 101, 1)
