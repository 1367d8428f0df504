"""Every benchmark plays at a tiny size and writes the fields that docs/performance.md, and whoever compares runs, reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAMP = {"date", "commit", "command", "machine", "load_at_start"}
ROUND = {
    "params", "nodes", "peer", "whole_round_s", "peer_whole_round_s", "whole_ratio", "exchange_ratio", "coordinator_peak_rss_mb",
    "serverapp_peak_rss_mb", "node_peak_rss_mb", "bytes_up_per_param", "bytes_down_per_param",
}  # fmt: skip


def bench(tmp_path: Path, words: str) -> list[dict[str, object]]:
    """One benchmark's results."""
    out = tmp_path / "results.json"
    command = [sys.executable, *f"bench/{words}".split(), "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found and all(set(result) >= STAMP for result in found)
    return found


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_round_exchange_has_the_fields_of_the_issue_and_ratios_against_flower(tmp_path):
    found = bench(tmp_path, "round_exchange.py --params 100000 --nodes 3 --peer flower --rounds 3 --peer-rounds 2")
    assert {result["next_base"] for result in found} == {"plan-named average", "stock FedAvg"}
    for result in found:
        assert set(result) >= ROUND
        assert result["peer"] == "flower" and result["peer_summed_peak_rss_mb"] > 0
        assert result["whole_ratio"] == pytest.approx(result["whole_round_s"] / result["peer_whole_round_s"], abs=2e-3)
        assert all(result[f"{role}_peak_rss_mb"] > 0 for role in ("coordinator", "serverapp", "node", "worker"))
        # Of the two rounds that count, one may have its bytes down outside the time that is looked at.
        assert result["bytes_up_per_param"] > 2 and result["bytes_down_per_param"] > 1


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_round_exchange_without_a_peer_has_null_and_a_reason(tmp_path):
    (result,) = bench(tmp_path, "round_exchange.py --params 50000 --nodes 3 --peer none --rounds 2 --steps average")
    assert set(result) >= ROUND
    assert result["peer_whole_round_s"] is result["whole_ratio"] is result["exchange_ratio"] is None
    assert result["peer_reason"]


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("secagg.py --elements 600000 --members 4 --repeats 1", {"times_flower_1", "times_flower_2", "keystream_share_1", "seconds"}),
        ("transport.py --params 600000 --clients 2 --repeats 1", {"share_of_raw", "ours_gb_per_s", "raw_gb_per_s", "place"}),
        ("idle.py --nodes 4 --idle 1 --events 1", {"idle_cpu_percent", "idle_rss_mb", "event_ms", "offer_ms"}),
        ("log.py --appends 64 --nodes 3 --rounds 2 --params 50000", {"what"}),
    ],
)
def test_the_others_write_what_the_report_reads(tmp_path, words, fields):
    assert all(fields <= set(result) for result in bench(tmp_path, words))
