"""`python bench/transport.py`: the product's bulk streams against sockets with TLS and nothing else, in one run, taking turns.

Four clients, each a process, fetch the base (4 bytes a parameter) and send an upload (2 bytes a parameter); the server adds the uploads.
Ours: gRPC with mutual TLS, every chunk hashed and checked at both ends, blob and spools on the disk, durable before anything is answered,
then the sum from the spools. The yardstick: a TLS socket and a thread per client, the same adds, nothing checked and nothing stored.

JSON: one object per place for files: the disk, and memory (/dev/shm) to see what the disk costs.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from measure import Progress, spread, write
from streams import bulk, raw
from streams.common import Credentials, Go, Gone, go

TARGET = 0.6
MEMORY = Path("/dev/shm")


def main() -> None:
    asked = _arguments()
    progress = Progress("transport")
    results = []
    for place, parent in _places(asked):
        progress(f"{asked.clients} clients, {asked.params:,} parameters, files on {place}, {asked.repeats} repetitions")
        results.append(measure(asked, place, parent))
    write(asked.json, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: python bench/transport.py --params 5000000 --repeats 3")
    parser.add_argument("--params", type=int, default=25_000_000, help="parameters of the model (default: 25 million)")
    parser.add_argument("--clients", type=int, default=4, help="clients at once (default: 4)")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of each side, taking turns (default: 5)")
    parser.add_argument("--place", choices=("disk", "memory", "both"), default="both", help="where the files are (default: both)")
    parser.add_argument("--json", type=Path, help="write the results here instead of standard output")
    parser.add_argument("--work", type=Path, help="folder on the disk (default: the system's for temporary files)")
    return parser.parse_args()


def _places(asked: argparse.Namespace) -> list[tuple[str, Path | None]]:
    places: list[tuple[str, Path | None]] = [("disk", asked.work), ("memory", MEMORY)]
    needed = (asked.clients + 1) * 6 * asked.params
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * needed
    return [(name, where) for name, where in places if asked.place in (name, "both") and (name == "disk" or roomy)]


def measure(asked: argparse.Namespace, place: str, parent: Path | None) -> dict[str, Any]:
    """Both sides in turn; the first turn warms up and is not counted."""
    gone: dict[str, list[Gone]] = {"ours": [], "raw": []}
    for turn in range(asked.repeats + 1):
        for name, side in (("ours", bulk), ("raw", raw)):
            with tempfile.TemporaryDirectory(prefix="dure-bench-", dir=parent) as folder:
                one = Go(asked.clients, asked.params, Path(folder), Credentials.make(Path(folder)))
                found = go(side.server, side.client, one)
            if turn:
                gone[name].append(found)
    return _result(one, place, gone)


def _result(what: Go, place: str, gone: dict[str, list[Gone]]) -> dict[str, Any]:
    rates = {name: [what.moved_bytes / each.seconds / 1e9 for each in found] for name, found in gone.items()}
    return {
        "params": what.params,
        "clients": what.clients,
        "place": place,
        "moved_mb": round(what.moved_bytes / 1e6),
        "ours_gb_per_s": spread(rates["ours"], 3),
        "raw_gb_per_s": spread(rates["raw"], 3),
        "share_of_raw": round(median(rates["ours"]) / median(rates["raw"]), 3),
        "target": TARGET,
        "ours": _of(gone["ours"]),
        "raw": _of(gone["raw"]),
    }


def _of(gone: list[Gone]) -> dict[str, float]:
    """Medians: how long fetching took of the whole, and CPU seconds at both ends."""
    names = ("seconds", "pull_s", "server_cpu_s", "client_cpu_s")
    return {name: round(median(getattr(each, name) for each in gone), 3) for name in names}


if __name__ == "__main__":
    main()
