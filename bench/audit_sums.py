"""`python bench/audit_sums.py`: levels 2 and 3 of an audit on one exchange among n members, beside what the hardware needs for the bytes.

Level 3 reads, hashes and adds n masked uploads, makes the n opened key streams and takes them off. Level 2 reads and hashes the sum,
decodes it, and writes and hashes the next weights. Limits, in the same run and on the same files: reading, hashing and adding alone,
plus the AES key streams alone; and reading and hashing the sum, plus writing and hashing the weights. JSON: one object per level.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from measure import ROOT, write

sys.path.insert(0, str(ROOT / "tests"))

from dure.audit.cores import available
from dure.audit.level3 import add_files
from dure.blobs import BlobId, BlobStore, chunk_leaf
from dure.model.advance import next_base
from dure.model.base import BaseRecord
from dure.model.layout import Layout
from dure.recompute.sums import Finding, prepare
from dure.secagg.summing import GROUP_OF, add_chunk

REPEATS = 3
LIMIT_RATIO, LIMIT_RSS_MB = 2.0, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: python bench/audit_sums.py --params 10000000 --members 8")
    parser.add_argument("--params", type=int, default=20_000_000, help="elements of the update (default: 20 million)")
    parser.add_argument("--members", type=int, default=8, help="survivors (default: 8)")
    parser.add_argument("--json", type=Path, help="write the results here instead of standard output")
    parser.add_argument("--work", type=Path, help="folder for uploads and weights (default: the system's for temporary files)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure is not None:
        measure(asked.measure, asked.params, asked.members, asked.json)
        return
    with tempfile.TemporaryDirectory(prefix="dure-bench-", dir=asked.work) as work:
        make(Path(work), asked.params, asked.members)
        again = [sys.executable, __file__, "--measure", work, "--params", str(asked.params), "--members", str(asked.members)]
        subprocess.run([*again, *(["--json", str(asked.json)] if asked.json else [])], check=True)


def make(work: Path, params: int, members: int) -> None:
    """One opened instance with real masks, in files. In a process of its own: the one that is measured holds none of it."""
    from support.opened_instance import open_instance

    made = open_instance(n=members, elements=params)
    for member, upload in made.uploads.items():
        (work / f"{member}.upload").write_bytes(b"".join(upload.chunks))
    (work / "sum").write_bytes(b"".join(made.total.chunks))
    (work / "opened.pickle").write_bytes(pickle.dumps((made.aggregate, made.evidence.to_bytes(), made.seeds, made.trust)))


def measure(work: Path, params: int, members: int, out: Path | None) -> None:
    ready = prepare(*pickle.loads((work / "opened.pickle").read_bytes()))
    assert not isinstance(ready, Finding), ready
    opened, recovered = ready
    files = {member: work / f"{member}.upload" for member in opened.survivors}
    facts = {"params": params, "members": members, "cores": available()}
    with ThreadPoolExecutor(available()) as pool:
        level3 = timed(lambda: add_files(opened, recovered, files, pool, available()))
        level3_rss = rss_mb()
        alone = timed(lambda: list(pool.map(lambda k: _added(opened, list(files.values()), k), _chunks(opened))))
        streams = timed(lambda: list(pool.map(lambda k: recovered.unmask.ring_chunk(k, _zeros(opened, k)), _chunks(opened))))
    layout, store = Layout.build([("w", "float32", (params,))]), BlobStore(work / "store")
    base = _weights(store, params)
    sums = store.put_file(work / "sum", chunk_bytes=opened.chunk_bytes)
    e_b = store.put_bytes(np.zeros(layout.blocks, np.int8).tobytes())
    level2 = timed(lambda: _stepped(store, base, layout, sums, e_b, members))
    copied = timed(lambda: _copied(store, sums, base))
    results = [
        _result(facts, 3, level3, alone + streams, level3_rss, read_hash_add_s=round(alone, 3), key_streams_s=round(streams, 3)),
        _result(facts, 2, level2, copied, rss_mb()),
    ]
    write(out, results)


def _result(facts: dict[str, Any], level: int, took: float, limit: float, peak_mb: float, **more: float) -> dict[str, Any]:
    scale = 1e8 / facts["params"]
    return {
        **facts,
        "level": level,
        "s_per_1e8": round(took * scale, 3),
        "limit_s_per_1e8": round(limit * scale, 3),
        "ratio": round(took / limit, 2),
        "target_ratio": LIMIT_RATIO,
        "peak_rss_mb": round(peak_mb),
        "target_rss_mb": LIMIT_RSS_MB,
        **more,
    }


def timed(work: Callable[[], object]) -> float:
    """Median wall seconds."""
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return median(took)


def rss_mb() -> float:
    """This process's own peak; `getrusage` would count that of the parent it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _chunks(opened: Any) -> range:
    return range(-(-opened.length // opened.chunk_bytes))


def _zeros(opened: Any, k: int) -> Any:
    return np.zeros(min(opened.chunk_bytes, opened.length - k * opened.chunk_bytes) // 2, np.uint16)


def _added(opened: Any, files: list[Path], k: int) -> None:
    total, group = _zeros(opened, k), GROUP_OF[opened.instance.purpose]
    for path in files:
        with path.open("rb", buffering=0) as file:
            part = os.pread(file.fileno(), total.nbytes, k * opened.chunk_bytes)
        chunk_leaf(part)
        add_chunk(group, total, part)


def _weights(store: BlobStore, params: int) -> BaseRecord:
    with store.writer() as out:
        for at in range(0, params, 1 << 20):
            out.append(np.random.default_rng(at).standard_normal(min(1 << 20, params - at), np.float32).data.cast("B"))
        return BaseRecord(out.commit().id, None, {"name": "average", "t": "0"}, None, 0)


def _stepped(store: BlobStore, base: BaseRecord, layout: Layout, sums: BlobId, e_b: BlobId, members: int) -> None:
    made = next_base(
        store,
        base=base,
        layout=layout,
        opened=sums,
        e_b=e_b,
        bump=0,
        cohort_size=members,
        weight_sum=members << 30,
        outer_step={"name": "average"},
        exchange=1,
    )
    store.remove(made.record.weights)


def _copied(store: BlobStore, sums: BlobId, base: BaseRecord) -> None:
    """Reads and hashes the sum; reads the base, hashes it and writes as many bytes: what no way to a next base can do without."""
    with store.open(sums) as reader:
        for k in range(reader.manifest.chunks):
            reader.read_chunk(k)
    store.path(base.weights)
    with store.writer() as out, store.path(base.weights).open("rb", buffering=0) as file:
        part, salt = bytearray(1 << 20), os.urandom(8)
        while n := file.readinto(part):
            part[:8] = salt  # another blob each time, or the store would keep the old one
            out.append(memoryview(part)[:n])
        found = out.commit().id
    store.remove(found)


if __name__ == "__main__":
    main()
