"""`python bench/round_exchange.py`: whole rounds of one model under masks and mutual TLS, watched from outside.

Four nodes return base + noise (bench/noise). JSON: a list of objects, one per way to make the next base. Peers are not played yet.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from measure import write
from rounds import dure
from rounds.played import Played

STEPS = {"average": "plan-named average", "none": "stock FedAvg"}


def main() -> None:
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="dure-bench-", dir=asked.work) as work:
        results = []
        for step in asked.steps.split(","):
            ours = dure.play(asked.params, asked.nodes, asked.rounds, Path(work) / step, outer_step=step)
            results.append(_result(asked, step, ours))
    write(asked.json, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: python bench/round_exchange.py --params 25000000")
    parser.add_argument("--params", type=int, default=2_500_000, help="float32 parameters of the model (default: 2.5 million)")
    parser.add_argument("--nodes", type=int, default=4, help="nodes, at least 3 (default: 4)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds on each side; the first is not counted (default: 4)")
    parser.add_argument("--steps", default="average,none", help="who makes the next base: average (plan-named), none (the ServerApp)")
    parser.add_argument("--json", type=Path, help="write the results here instead of standard output")
    parser.add_argument("--work", type=Path, help="folder for the consortium's state (default: the system's for temporary files)")
    return parser.parse_args()


def _result(asked: argparse.Namespace, step: str, ours: Played) -> dict[str, Any]:
    up, down = ours.wire()
    each = asked.params * asked.nodes
    roles = ("coordinator", "serverapp", "agent", "worker")
    return {
        "params": asked.params,
        "nodes": asked.nodes,
        "next_base": STEPS[step],
        "whole_round_s": round(ours.whole_s, 3),
        "exchange_s": round(ours.exchange_s, 3),
        "coordinator_peak_rss_mb": round(ours.watch.peak_mb("coordinator")),
        "serverapp_peak_rss_mb": round(ours.watch.peak_mb("serverapp")),
        "node_peak_rss_mb": round(ours.watch.peak_mb("agent")),
        "worker_peak_rss_mb": round(ours.watch.peak_mb("worker")),
        "summed_peak_rss_mb": round(ours.watch.summed_rss_mb),
        "bytes_up_per_param": round(up / each, 3),
        "bytes_down_per_param": round(down / each, 3),
        "rounds_s": [round(r.whole_s, 3) for r in ours.rounds],
        "cpu_s_per_round": {role: round(ours.cpu_of(role), 3) for role in roles},
        "app_cpu_s": {"clients": round(ours.counted[-1].client_cpu_s, 3), "server": round(ours.counted[-1].server_cpu_s, 3)},
    }


if __name__ == "__main__":
    main()
