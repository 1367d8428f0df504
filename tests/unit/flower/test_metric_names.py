"""Metric records as public names, and back; what the one reply holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.errors import Refused
from dure.model.metrics import gather, spread
from dure_coordinator.flower.convert import metric_record

keys = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.dictionaries(keys, finite | st.lists(finite, min_size=1, max_size=12), max_size=5)
records = st.just("metrics") | keys.filter(lambda k: "/" not in k)


@given(records, values)
def test_what_was_spread_is_gathered_again(record, record_values):
    try:
        flat = spread(record, record_values)
    except Refused as refused:
        assert "name of a list element" in str(refused)
        return
    assert all(isinstance(v, float) for v in flat.values())
    assert gather(flat) == (record if flat else "metrics", record_values)


def test_usual_metrics_keep_their_names_and_others_say_where_they_stand():
    assert spread("metrics", {"loss": 1, "train/acc": 2}) == {"loss": 1, "train/acc": 2}
    assert spread("answers", {"n": 1, "h": [3, 4]}) == {"@answers/n": 1, "@answers/h[0/2]": 3, "@answers/h[1/2]": 4}
    assert spread("metrics", {"@x": 1}) == {"@metrics/@x": 1}


def test_lists_of_other_lengths_have_other_names():
    assert set(spread("metrics", {"h": [1, 2]})) & set(spread("metrics", {"h": [1, 2, 3]})) == set()


@pytest.mark.parametrize(
    ("record", "metrics", "named"),
    [
        ("a/b", {"x": 1}, "'a/b'"),
        ("metrics", {"x[0/3]": 1}, "name of a list element"),
        ("metrics", {"x": []}, "empty list"),
        ("metrics", {"x": [0] * 65}, "at most 64"),
        ("metrics", {"x" * 129: 1}, "at most 128 characters"),
        ("r" * 100, {"x" * 40: 1}, "at most 128 characters"),
        ("metrics", {"a\nb": 1}, "printable"),
    ],
)
def test_what_cannot_be_a_public_name_is_refused(record, metrics, named):
    with pytest.raises(Refused, match=named):
        spread(record, metrics)


def test_a_reply_of_sums_holds_whole_numbers_where_members_brought_whole_numbers():
    for members in (3, 5, 7, 49, 97):
        totals = {"@answers/n": 41.0, "@answers/h[0/2]": 7.0, "@answers/h[1/2]": 1e9 + 1, "@answers/x": 2.5}
        means = {name: total / members for name, total in totals.items()}
        name, record = metric_record(means, "num-examples", float(members), sums=True)
        assert name == "answers" and dict(record) == {"n": 41.0, "h": [7.0, 1e9 + 1], "x": pytest.approx(2.5), "num-examples": members}
        _, plain = metric_record(means, "num-examples", float(members))
        assert plain["n"] == 41.0 / members
