"""`python bench/audit_log.py`: level 1 of an audit on a made-up log with real signatures, and what the hardware needs for its parts.

JSON: one object per size: core-seconds for 10^6 entries, wall time, peak resident memory; beside them, measured in the same run, what
only the Ed25519 verifications, hashing and JSON parsing of such a log take.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import ROOT, Watch, write

sys.path.insert(0, str(ROOT / "tests"))

from support.synthetic_log import SyntheticLog

from dure import ed25519
from dure.statements.dsse import Envelope, pae

SAMPLE = 2_000
"""Entries on which the limits are measured."""


def main() -> None:
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="dure-bench-", dir=asked.work) as work:
        results = []
        for entries in sorted({min(100_000, asked.entries), asked.entries}):
            print(f"making {entries} entries …", file=sys.stderr, flush=True)
            log = SyntheticLog(versions_at=tuple(entries * i // 4 for i in (1, 2, 3)), evaluations=True)
            bundle = log.write(Path(work) / str(entries), log.entries(entries))
            results.append(_result(asked, log, bundle, entries))
    write(asked.json, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: python bench/audit_log.py --entries 1000000 --json level1.json")
    parser.add_argument("--entries", type=int, default=100_000, help="entries of the log (default: 100,000); 100,000 are measured besides")
    parser.add_argument("--cores", type=int, default=0, help="processes that verify (default: all cores)")
    parser.add_argument("--json", type=Path, help="write the results here instead of standard output")
    parser.add_argument("--work", type=Path, help="folder for the logs (default: the system's for temporary files); 3.5 GB at 10^6")
    return parser.parse_args()


def _result(asked: argparse.Namespace, log: SyntheticLog, bundle: Path, entries: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "dure.cli", "audit", "verify", str(bundle), "--root-sha256", log.pin.hex(), "--json"]
    cores = ["--cores", str(asked.cores)] if asked.cores else []
    began, before = time.monotonic(), _children_cpu_s()
    with Watch(lambda _pid, _command, _parent: "audit") as watch:
        done = subprocess.run([*words, *cores], capture_output=True, text=True, check=True)
    cpu, wall = _children_cpu_s() - before, time.monotonic() - began
    assert json.loads(done.stdout)["holds"], "the log made for this does not verify"
    million = 1e6 / entries
    return {
        "entries": entries,
        "signatures_per_entry": round(log.signatures / entries, 3),
        "bytes_per_entry": round(sum(p.stat().st_size for p in (bundle / "log/tile/entries").rglob("*") if p.is_file()) / entries),
        "core_s_per_million": round(cpu * million, 1),
        "wall_s": round(wall, 1),
        "cores": asked.cores or os.cpu_count(),
        "peak_rss_mb": round(watch.peak_mb("audit")),
        "summed_peak_rss_mb": round(watch.summed_rss_mb),
        "limits_core_s_per_million": _limits(bundle, log.signatures / entries),
    }


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _limits(bundle: Path, signatures: float) -> dict[str, float]:
    """What the parts take alone, in seconds of one core for 10^6 entries: each done once per entry with the same libraries."""
    from dure.tlog.tiles import ENTRIES, WIDTH, Tile, decode_entries

    entries = []
    for index in range(-(-SAMPLE // WIDTH)):
        tile = Tile(ENTRIES, index, WIDTH)
        entries += decode_entries(tile, (bundle / "log" / tile.path).read_bytes())
    envelopes = [Envelope.from_bytes(e) for e in entries]
    key = SyntheticLog(seed=1).log
    messages = [pae(e.payload_type, e.payload) for e in envelopes]
    signed = [(key.sign(m), m) for m in messages]
    public = key.public_key().public_bytes_raw()
    verify = _s_per_million(lambda: [ed25519.verifies(public, s, m) for s, m in signed], len(signed))
    return {
        "ed25519": round(verify * signatures, 1),
        "sha256": round(_s_per_million(lambda: [hashlib.sha256(e).digest() for e in entries], len(entries)), 1),
        "json": round(_s_per_million(lambda: [json.loads(e.payload) for e in envelopes], len(entries)), 1),
    }


def _s_per_million(work: Callable[[], object], count: int) -> float:
    """The best of three, so that a neighbour on the machine counts as little as can be."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best / count * 1e6


if __name__ == "__main__":
    main()
