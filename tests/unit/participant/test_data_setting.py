"""Which data a usage statement names: the operator's word on the run, else the setting; what is registered, and nothing else."""

from __future__ import annotations

import pytest

from dure.errors import BadInput
from dure_participant import named_data, settings
from dure_participant.settings import NodeSettings
from dure_participant.store import Decision, NodeStore

ONE, OTHER = "ab" * 32, "cd" * 32
NEWS, LAW = bytes.fromhex(ONE), bytes.fromhex(OTHER)
REGISTERED = {NEWS: "news-2026", LAW: "law"}


def test_the_digests_are_read_in_order_and_none_is_the_default(tmp_path):
    assert settings.load(tmp_path).commitments == ()
    settings.assign(tmp_path, {"data_commitments": f"{ONE},{OTHER}"})
    assert settings.load(tmp_path).commitments == (b"\xab" * 32, b"\xcd" * 32)
    settings.assign(tmp_path, {"data_commitments": ""})
    assert settings.load(tmp_path).commitments == ()


@pytest.mark.parametrize("bad", ["news", ONE[:-2], ONE.upper(), f"{ONE},", f"{ONE} {OTHER}", ",".join([ONE] * 17), ONE + "\n"])
def test_anything_else_is_refused_and_the_file_stays_as_it_was(tmp_path, bad):
    settings.assign(tmp_path, {"data_commitments": ONE})
    with pytest.raises(BadInput, match="up to 16 digests"):
        settings.assign(tmp_path, {"data_commitments": bad})
    assert settings.load(tmp_path).data_commitments == ONE


def test_data_is_asked_for_by_name_or_by_first_digits_and_nothing_stands_for_none():
    assert named_data.find(["law", ONE[:8], "news-2026"], REGISTERED, "ara") == (LAW, NEWS)
    assert named_data.find([""], REGISTERED, "ara") == named_data.find([], REGISTERED, "ara") == ()


@pytest.mark.parametrize("asked", ["other", "ef" * 32, ONE[:7], ""])
def test_data_that_the_log_does_not_have_of_this_member_is_refused_with_what_to_do(asked):
    with pytest.raises(BadInput, match=r"ara has registered no such data.*there are law, news-2026.*dure coordinator enter"):
        named_data.find(["law", asked], REGISTERED, "ara")


def test_a_run_names_what_its_operator_said_and_only_another_one_follows_the_setting(tmp_path):
    store = NodeStore(tmp_path / "node.sqlite")
    one, other, none = b"1" * 32, b"2" * 32, b"3" * 32
    store.decide(one, allowed=True, reason="", how="operator", data=(LAW,))
    store.decide(other, allowed=True, reason="", how="operator")
    store.decide(none, allowed=True, reason="", how="operator", data=())
    setting = NodeSettings(data_commitments=ONE)
    named = {run: named_data.of_run(store.decision(run), setting, REGISTERED) for run in (one, other, none)}
    assert named == {one: ((LAW,), ()), other: ((NEWS,), ()), none: ((), ())}


def test_what_the_log_does_not_have_is_named_by_no_usage_whoever_said_it():
    """A rule allows a run without a person, and the setting may name data that was never entered, or another member's."""
    said = Decision(True, "", "operator", 0.0, data=(LAW, NEWS))
    assert named_data.of_run(said, NodeSettings(), {NEWS: "news-2026"}) == ((NEWS,), (LAW,))
    assert named_data.of_run(None, NodeSettings(data_commitments=OTHER), {}) == ((), (LAW,))
