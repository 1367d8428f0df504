"""`make bench` and `make bench-quick`: every benchmark in turn, with what is left to wait for; results as JSON, then docs/performance.md.

On a quiet machine only: whatever else runs is measured, too (`load_at_start` in the results tells). `--quick` plays everything at sizes
that say nothing, to see that it works, and writes to .bench/quick.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from measure import ROOT

RESULTS = ROOT / "bench" / "results"
QUICK = ROOT / ".bench" / "quick"


@dataclass(frozen=True)
class Step:
    """One command, and how long it takes on two quiet cores."""

    name: str
    words: str
    estimate_s: float


PEERS = "--peer flower,flare"
FULL = (
    Step("secagg", "secagg.py", 40),
    Step("transport", "transport.py", 90),
    Step("log", "log.py", 70),
    Step("audit_log", "audit_log.py --entries 1000000", 300),
    Step("audit_sums", "audit_sums.py", 20),
    Step("round_exchange-2.5M", f"round_exchange.py --params 2500000 {PEERS} --rounds 8 --peer-rounds 4", 150),
    Step("round_exchange-25M", f"round_exchange.py --params 25000000 {PEERS}", 180),
    Step("round_exchange-25M-3nodes", "round_exchange.py --params 25000000 --nodes 3 --peer none --rounds 3 --steps average", 35),
    Step("round_exchange-25M-8nodes", "round_exchange.py --params 25000000 --nodes 8 --peer none --rounds 3 --steps average", 60),
    Step("round_exchange-100M", f"round_exchange.py --params 100000000 {PEERS}", 420),
    Step("idle", "idle.py", 120),
)
SMOKE = (
    Step("secagg", "secagg.py --elements 1000000 --members 8 --repeats 1", 8),
    Step("transport", "transport.py --params 2000000 --repeats 1", 20),
    Step("audit_log", "audit_log.py --entries 20000", 8),
    Step("audit_sums", "audit_sums.py --params 2000000", 5),
    Step("log", "log.py --appends 128 --rounds 2 --params 100000", 25),
    Step("round_exchange", f"round_exchange.py --params 100000 --nodes 3 {PEERS} --rounds 2 --peer-rounds 2", 120),
    Step("idle", "idle.py --nodes 10 --idle 3 --events 2", 25),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: python bench/everything.py --only secagg,transport")
    parser.add_argument("--quick", action="store_true", help="small sizes, results to .bench/quick")
    parser.add_argument("--only", help="steps whose names begin so, with commas between them (default: all)")
    asked = parser.parse_args()
    steps = [step for step in (SMOKE if asked.quick else FULL) if asked.only is None or step.name.startswith(tuple(asked.only.split(",")))]
    failed = play(steps, QUICK if asked.quick else RESULTS)
    if not asked.quick:
        subprocess.run([sys.executable, str(ROOT / "bench" / "report.py")], check=True)
    if failed:
        sys.exit(f"error: {', '.join(failed)}: see above; the others are in {(QUICK if asked.quick else RESULTS).relative_to(ROOT)}")


def play(steps: list[Step], results: Path) -> list[str]:
    """Run them; the names of those that failed."""
    left, failed, began = sum(step.estimate_s for step in steps), [], time.monotonic()
    say(began, f"{len(steps)} benchmarks, about {left / 60:.0f} minutes on two quiet cores; nothing else should run meanwhile")
    for step in steps:
        say(began, f"{step.name}, about {step.estimate_s:.0f} s ({left / 60:.0f} minutes left): python bench/{step.words}")
        out = (results / f"{step.name}.json").relative_to(ROOT)
        done = subprocess.run([sys.executable, *f"bench/{step.words} --json {out}".split()], cwd=ROOT, check=False)
        if done.returncode:
            failed.append(step.name)
        left -= step.estimate_s
    say(began, "done")
    return failed


def say(began: float, line: str) -> None:
    print(f"== [{time.monotonic() - began:6.1f} s] {line}", flush=True)


if __name__ == "__main__":
    main()
