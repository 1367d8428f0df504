"""`python bench/idle.py`: what a hundred enrolled nodes cost an idle coordinator, and how soon all of them hear of an event.

The coordinator is the real daemon; the nodes are light (bench/crowd.py): real certificates and streams, no agent behind them. The event
is `dure run abort` of a run that waits for its operators: the time from the administrator's call until each node has the directive.
Before it, the offer of the plan is timed as well, from the call of `dure run start`, which plans first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from crowd import Crowd, QuickConsortium
from dure.wire.messages import DirectiveKind
from dure_coordinator.admin_client import call
from measure import Progress, Watch, write
from rounds.dure import role_of
from rounds.played import APP

SETTLE_S = 4.0
"""After the last node came, before idling is measured: the head that their arrival made is cosigned by then."""


def main() -> None:
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="dure-bench-", dir=asked.work) as work:
        write(asked.json, [asyncio.run(measure(asked, Path(work), Progress("idle")))])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: python bench/idle.py --nodes 10 --idle 5")
    parser.add_argument("--nodes", type=int, default=100, help="members, each with one node (default: 100)")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds to look at the idle coordinator (default: 20)")
    parser.add_argument("--events", type=int, default=10, help="events to time (default: 10)")
    parser.add_argument("--json", type=Path, help="write the result here instead of standard output")
    parser.add_argument("--work", type=Path, help="folder for the consortium's state (default: the system's for temporary files)")
    return parser.parse_args()


async def measure(asked: argparse.Namespace, work: Path, progress: Progress) -> dict[str, Any]:
    """Found, connect, idle, events."""
    consortium = QuickConsortium(work / "c", tuple(f"member-{i:03d}" for i in range(asked.nodes)))
    progress(f"founding a consortium of {asked.nodes}")
    consortium.found()
    progress("connecting everybody, then idling")
    with Watch(role_of, consortium.port) as watch:
        try:
            await asyncio.to_thread(consortium.serve)
            alone_mb = resident_mb(consortium)
            crowd = Crowd.of(consortium)
            began = time.monotonic()
            await crowd.start()
            connected_s = time.monotonic() - began
            idle = await _idle(asked.idle, watch, consortium)
            progress(f"{asked.events} events")
            latencies = await _events(asked.events, crowd, consortium)
            await crowd.stop()
        finally:
            consortium.stop()
    return {
        "nodes": asked.nodes,
        "connect_all_s": round(connected_s, 2),
        "idle_s": asked.idle,
        "resident_alone_mb": round(alone_mb),
        **idle,
        "peak_rss_mb": round(watch.peak_mb("coordinator")),
        "cosignatures": crowd.cosigned,
        "events": asked.events,
        **{f"{name}_ms": _spread(found) for name, found in latencies.items()},
    }


def resident_mb(consortium: QuickConsortium) -> float:
    status = Path(f"/proc/{consortium.processes['coordinator'].pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


async def _idle(seconds: float, watch: Watch, consortium: QuickConsortium) -> dict[str, float]:
    await asyncio.sleep(SETTLE_S)
    first = time.time()
    await asyncio.sleep(seconds)
    last = time.time()
    received, sent = watch.wire_between(first, last)
    return {
        "idle_cpu_percent": round(100 * watch.cpu_of("coordinator", first, last) / seconds, 2),
        "idle_rss_mb": round(resident_mb(consortium)),
        "idle_bytes_per_node_s": round((received + sent) / seconds / len(consortium.members)),
    }


async def _events(count: int, crowd: Crowd, consortium: QuickConsortium) -> dict[str, list[float]]:
    """Milliseconds from each call until each node had the directive."""
    hub = consortium.dir_of("coordinator")
    found: dict[str, list[float]] = {"offer": [], "event": []}
    for i in range(count):
        began = time.monotonic()
        size = ("--outer-step", "average", "--parameters", "1000", "--set", f"params={1000 + i}")
        words = ("run", "start", APP, *size, "--json", "--dir", hub)
        run = json.loads((await asyncio.to_thread(consortium.dure, *words)).strip().splitlines()[-1])["run"]
        got = await crowd.all_got(bytes.fromhex(run), DirectiveKind.APPROVE)
        found["offer"] += [1000 * (at - began) for at in got.values()]
        began = time.monotonic()
        calling = asyncio.create_task(asyncio.to_thread(call, hub, "run-abort", {"run": run, "reason": "the bench is done with it"}))
        got = await crowd.all_got(bytes.fromhex(run), DirectiveKind.FINISHED)
        await calling
        found["event"] += [1000 * (at - began) for at in got.values()]
    return found


def _spread(found: list[float]) -> dict[str, float]:
    return {"median": round(median(found), 1), "p99": round(quantiles(found, n=100)[98], 1), "most": round(max(found), 1)}


if __name__ == "__main__":
    main()
