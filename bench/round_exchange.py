"""`python bench/round_exchange.py`: whole rounds of one model under masks, tag and mutual TLS, beside what people use today.

Nodes return base + noise (bench/noise), distinct per node and tensor. Ours is played twice: the next base made by every member (a
plan-named average), and by stock FedAvg in the ServerApp. The peer is played once, as it ships, on the same machine in the same run.

JSON: a list of objects, one per peer and way to make the next base. `whole` is from one end of a round to the next, as the server app
sees it; `exchange` is that without the CPU time of ClientApps (over the cores they share) and ServerApp; medians over all rounds but the
first. Ratios are ours / the peer's: smaller is better. A peer that cannot be played has null in its fields; `peer_reason` says why.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import Progress, write
from rounds import dure, flare, flower
from rounds.played import Played

STEPS = {"average": "plan-named average", "none": "stock FedAvg"}
PEERS = {"flower": flower.play, "flare": flare.play}
ROLES = ("coordinator", "serverapp", "agent", "worker")


def main() -> None:
    asked = _arguments()
    progress = Progress("round_exchange")
    what = f"{asked.params:,} parameters × {asked.nodes} nodes"
    with tempfile.TemporaryDirectory(prefix="dure-bench-", dir=asked.work) as work:
        ours = {}
        for step in asked.steps:
            progress(f"{what}: ours, {STEPS[step]}, {asked.rounds} rounds")
            ours[step] = dure.play(asked.params, asked.nodes, asked.rounds, Path(work) / step, outer_step=step)
        results = []
        for peer in asked.peer:
            progress(f"{what}: peer {peer}" + ("" if peer == "none" else f", {asked.peer_rounds} rounds"))
            theirs, reason = _peer(peer, asked, Path(work) / peer)
            results += [{**_ours(asked, step, found), **_beside(peer, found, theirs, reason)} for step, found in ours.items()]
    write(asked.json, results)


def _listed(known: Sequence[str]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]}: none of {', '.join(known)}")
        return names

    return parse


def _arguments() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=form, epilog="Example: python bench/round_exchange.py --params 25000000 --peer flower,flare"
    )
    parser.add_argument("--params", type=int, default=2_500_000, help="float32 parameters of the model (default: 2.5 million)")
    parser.add_argument("--nodes", type=int, default=4, help="nodes, at least 3 (default: 4)")
    parser.add_argument("--peer", type=_listed([*PEERS, "none"]), default=["flower"], help="flower, flare or none; several with commas")
    parser.add_argument("--rounds", type=int, default=4, help="rounds on our side; the first is not counted (default: 4)")
    parser.add_argument("--peer-rounds", type=int, default=3, help="rounds on the peer's side; the first is not counted (default: 3)")
    parser.add_argument(
        "--steps",
        type=_listed(list(STEPS)),
        default=list(STEPS),
        help="who makes the next base: average (plan), none (ServerApp)",
    )
    parser.add_argument("--json", type=Path, help="write the results here instead of standard output")
    parser.add_argument("--work", type=Path, help="folder for all state (default: the system's for temporary files)")
    return parser.parse_args()


def _peer(peer: str, asked: argparse.Namespace, work: Path) -> tuple[Played | None, str]:
    if peer == "none":
        return None, "not asked for"
    try:
        return PEERS[peer](asked.params, asked.nodes, asked.peer_rounds, work), ""
    except flare.NotHere as error:
        return None, str(error)


def _ours(asked: argparse.Namespace, step: str, ours: Played) -> dict[str, Any]:
    up, down = ours.wire()
    each = asked.params * asked.nodes
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
        "cpu_s_per_round": _cpu(ours),
        "app_cpu_s": _app_cpu(ours),
    }


def _beside(peer: str, ours: Played, theirs: Played | None, reason: str) -> dict[str, Any]:
    """The peer's fields, null where there is no peer."""
    names = ("whole_round_s", "exchange_s", "coordinator_peak_rss_mb", "serverapp_peak_rss_mb", "node_peak_rss_mb", "worker_peak_rss_mb")
    if theirs is None:
        absent = dict.fromkeys([f"peer_{name}" for name in names] + ["whole_ratio", "exchange_ratio", "peer_summed_peak_rss_mb"])
        return {"peer": peer, **absent, "peer_reason": reason}
    return {
        "peer": peer,
        "peer_whole_round_s": round(theirs.whole_s, 3),
        "peer_exchange_s": round(theirs.exchange_s, 3),
        "whole_ratio": round(ours.whole_s / theirs.whole_s, 3),
        "exchange_ratio": round(ours.exchange_s / theirs.exchange_s, 3),
        **{f"peer_{'node' if role == 'agent' else role}_peak_rss_mb": round(theirs.watch.peak_mb(role)) for role in ROLES},
        "peer_summed_peak_rss_mb": round(theirs.watch.summed_rss_mb),
        "peer_rounds_s": [round(r.whole_s, 3) for r in theirs.rounds],
        "peer_cpu_s_per_round": _cpu(theirs),
        "peer_app_cpu_s": _app_cpu(theirs),
        **theirs.facts,
    }


def _cpu(played: Played) -> dict[str, float]:
    roles = dict.fromkeys(seen.role for seen in played.watch.seen.values())
    return {role: round(played.cpu_of(role), 3) for role in sorted(roles)}


def _app_cpu(played: Played) -> dict[str, float]:
    return {"clients": round(played.counted[-1].client_cpu_s, 3), "server": round(played.counted[-1].server_cpu_s, 3)}


if __name__ == "__main__":
    main()
