"""docs/performance.md is what bench/results gives, and says so where a target is missed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
_spec = importlib.util.spec_from_file_location("bench_report", ROOT / "bench" / "report.py")
assert _spec is not None and _spec.loader is not None
report = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(report)


def test_every_table_of_the_document_is_made_from_the_committed_results():
    """Nobody edits a number by hand: `python bench/report.py` gives the very document."""
    text = report.DOCUMENT.read_text()
    assert all(f"<!-- {name} -->\n" in text for name in report.TABLES)
    assert report.filled(text, report.load(report.RESULTS)) == text


@pytest.mark.parametrize(
    ("value", "target", "most", "said"),
    [
        (0.30, 1 / 3, True, "≤ 0.333: met"),
        (0.50, 1 / 3, True, "≤ 0.333: **missed, 1.50×**"),
        (15.0, 12, False, "≥ 12: met"),
        (10.0, 12, False, "≥ 12: **missed, 1.20×**"),
    ],
)
def test_a_missed_target_is_said_with_how_much_it_is_missed_by(value, target, most, said):
    assert report.verdict(value, target, most=most) == said


def test_a_peer_that_could_not_be_played_is_a_dash_and_no_number():
    ours = {"params": 10, "nodes": 4, "next_base": "stock FedAvg", "whole_round_s": 1.0, "exchange_s": 0.5}
    row = report.rounds({"round_exchange": [{**ours, "peer": "flare", "peer_whole_round_s": None}]}).splitlines()[-1]
    assert row.count("–") == 4 and "None" not in row
