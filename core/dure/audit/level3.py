"""Level 3: every opened sum whose uploads were kept, added up again from what each survivor committed to and what was opened.

    commit's root ← the upload's bytes;  Σ uploads − masks of the opened seeds = the sum, whose root the log names

Where the uploads are gone (the challenge window closed, and the plan did not keep them), signatures, seeds, trailer and tag are still
checked, and the report says so. One pass over the files, chunk by chunk, on all cores; memory O(chunk), and 32 bytes per chunk for the
leaves. Source: ledger.md, section 7; secure-aggregation.md, section 4.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from dure.audit.bundle import Bundle
from dure.audit.cores import available
from dure.audit.kept import Kept, Question
from dure.audit.level1 import BROKEN, INCOMPLETE, Finding
from dure.audit.level2 import Traced
from dure.audit.lineage import trust_of
from dure.audit.parts import ROUNDS, Opened, RunRecord, sum_name
from dure.audit.report import PROVED, UNCHECKED, Row
from dure.blobs import chunk_leaf, chunks_of, read_all_at
from dure.errors import Refused
from dure.recompute import evidence as judged
from dure.recompute.sums import Finding as Verdict
from dure.recompute.sums import prepare
from dure.secagg.recover import Recovered
from dure.secagg.summing import DTYPE, GROUP_OF, add_chunk, unmask_chunk
from dure.tlog.merkle import merkle_root

AHEAD = 4
"""Chunks per thread that may wait for their turn."""
NOT_COMMITTED = "is not the upload this member committed to"
Progress = Callable[[int, int], None]
"""(sums looked at, sums in all)."""


@dataclass
class Summed:
    """What level 3 found."""

    levels: dict[tuple[bytes, int], int] = field(default_factory=dict)
    """(run, exchange) -> 3 where all its sums were added up again, else how far it is shown."""
    findings: list[Finding] = field(default_factory=list)
    bytes: int = 0
    """Of uploads, read and added."""
    missing: list[str] = field(default_factory=list)
    """Sums of runs that keep their uploads for good, which are not here all the same: leaving them out would hide a wrong sum."""

    @property
    def exit_code(self) -> int:
        return BROKEN if self.findings else INCOMPLETE if self.missing else 0


def add_up(
    bundle: Bundle,
    traced: Traced,
    *,
    threads: int | None = None,
    kept: Kept | None = None,
    progress: Progress = lambda _done, _all: None,
) -> Summed:
    """Every opened sum of every run the bundle has parts of.

    Args:
        traced: what level 2 found of this bundle.
        threads: that add; None: as many as cores.
        kept: what was established before, and where more is written down; None: nothing was, nothing is.
    """
    found = Summed()
    runs = [record for record in traced.records.values() if record.run in traced.touched]
    jobs = [(record, trust_of(record, traced.versions), opened) for record in runs for opened in record.aggregates.values()]
    known = {} if kept is None else _known(bundle, kept, jobs)
    with ThreadPoolExecutor(threads or available(), thread_name_prefix="sum") as pool:
        for done, (record, trust, opened) in enumerate(jobs):
            progress(done, len(jobs))
            key, wrong = (record.run, opened.where.exchange), len(found.findings)
            if done in known:
                level, found.bytes = 3, found.bytes + known[done]
            else:
                asked, before = None if kept is None else _asked(bundle, kept, record, trust, opened), found.bytes
                level = _one(bundle, record, trust, opened, pool, found, threads or available())
                if kept is not None and asked is not None and level == 3:
                    kept.write(asked, {"bytes": found.bytes - before})
            found.levels[key] = min(found.levels.get(key, 3), level)
            if level < 3 and record.plan.keep_uploads == "all" and wrong == len(found.findings):
                found.missing.append(
                    f"uploads, evidence or seeds of {ROUNDS}/{record.run.hex()}/{sum_name(opened)}, kept by the run's plan"
                )
    progress(len(jobs), len(jobs))
    found.missing += _left_out(traced)
    return found


def _left_out(traced: Traced) -> list[str]:
    """Ancestors of runs in the bundle whose plans keep uploads, and of which it has no part."""
    line = {ancestor: run for run in traced.records if run in traced.touched for ancestor in traced.ancestry.chain(run)}
    gone = [traced.records[a] for a in line if a not in traced.touched and a in traced.records]
    return [
        f"all of {ROUNDS}/{record.run.hex()}, kept by the run's plan: run {line[record.run].hex()[:12]} descends from it; export it, too"
        for record in gone
        if record.plan.keep_uploads == "all" and record.aggregates
    ]


_Job = tuple[RunRecord, judged.Trust, Opened]


def _known(bundle: Bundle, kept: Kept, jobs: Sequence[_Job]) -> dict[int, int]:
    """Sums that were added up before, by the same statements and keys and from files that nobody has written to since; bytes of uploads."""
    known = {}
    for number, job in enumerate(jobs):
        if (said := kept.answer(_asked(bundle, kept, *job))) is not None:
            known[number] = int(said["bytes"])
    left = {(record.run, opened.where.exchange) for number, (record, _, opened) in enumerate(jobs) if number not in known}
    total = len({(record.run, opened.where.exchange) for record, _, opened in jobs})
    if known:
        kept.tell(f"sums: resumed at exchange {min(total - len(left) + 1, total)} of {total}")
    return known


def _asked(bundle: Bundle, kept: Kept, record: RunRecord, trust: judged.Trust, opened: Opened) -> Question:
    """By all that decides a sum: the statements, the keys they are judged by, and the files it is put together from."""
    name = bundle.folder / ROUNDS / record.run.hex() / sum_name(opened)
    keys = [[member, *(key.hex() for key in of)] for member, of in sorted(trust.signing_keys.items())]
    coordinators = [key.hex() for key in trust.coordinator_keys]
    judges = (trust.consortium, trust.run, coordinators, keys, trust.colluders, trust.u_min)
    inputs = ("sum", record.run, opened.open_sha256, sha256(opened.envelope).digest(), list(opened.survivors), *judges)
    parts = ("evidence", "seeds", *(f"{member}.upload" for member in opened.survivors))
    return kept.ask(inputs, (name.with_name(f"{name.name}.{part}") for part in parts))


def _one(
    bundle: Bundle, record: RunRecord, trust: judged.Trust, opened: Opened, pool: ThreadPoolExecutor, found: Summed, threads: int
) -> int:
    """How far this sum is shown: 3 added up again, 2 not."""
    name = f"{ROUNDS}/{record.run.hex()}/{sum_name(opened)}"
    judges = [f"{name}.{what}" for what in ("evidence", "seeds")]
    if absent := [part for part in judges if not (bundle.folder / part).is_file()]:
        uploads = [f"{name}.{member}.upload" for member in opened.survivors]
        there = [part for part in (*judges, *uploads) if (bundle.folder / part).is_file()]
        found.findings += [Finding(part, f"cannot be checked: {absent[0]} is missing") for part in there]
        return 2
    ready = prepare(opened.envelope, bundle.read(f"{name}.evidence"), bundle.read(f"{name}.seeds"), trust)
    if isinstance(ready, Verdict):
        found.findings.append(Finding(f"{name}.{'seeds' if ready.kind == 'seeds' else 'evidence'}", ready.words))
        return 2
    known, recovered = ready
    files = {member: bundle.folder / f"{name}.{member}.upload" for member in known.survivors}
    here = {member: path for member, path in files.items() if path.is_file()}
    try:
        if known.length and len(here) < len(files):
            check_files(known, here)  # too few to add up; what is there must be what it says all the same
            return 2
        if known.length:
            add_files(known, recovered, files, pool, threads)
            found.bytes += known.length * len(files)
    except Refused as wrong:
        found.findings.append(Finding(f"{name}{'.' + wrong.field + '.upload' if wrong.field in files else ''}", wrong.why))
        return 2
    return 3


def check_files(opened: judged.Opened, files: Mapping[str, Path]) -> None:
    """Each file by itself; raises Refused, naming the member whose file is not what it committed to."""
    for member, path in files.items():
        _check_size(member, path, opened)
        leaves: list[bytes] = []
        with path.open("rb", buffering=0) as file:
            part = memoryview(bytearray(opened.chunk_bytes))
            while size := read_all_at(file.fileno(), part, len(leaves) * opened.chunk_bytes):
                leaves.append(chunk_leaf(part[:size]))
        if merkle_root(leaves) != opened.commits[member].root:
            raise Refused(member, NOT_COMMITTED)


def _check_size(member: str, path: Path, opened: judged.Opened) -> None:
    """Before it is read: a file of nothing but holes can be of any size."""
    if (size := path.stat().st_size) != opened.length:
        raise Refused(member, f"has {size} bytes, {opened.length} were committed to")


def add_files(opened: judged.Opened, recovered: Recovered, files: Mapping[str, Path], pool: ThreadPoolExecutor, threads: int) -> None:
    """Adds the uploads up; raises Refused, naming the member whose file is not what it committed to, or `sum`."""
    fds = {}
    try:
        for member, path in files.items():
            _check_size(member, path, opened)
            fds[member] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        leaves: dict[str, list[bytes]] = {name: [] for name in (*files, "")}
        for row in _rows(opened, recovered, fds, pool, threads * AHEAD):
            for member, leaf in row.items():
                leaves[member].append(leaf)
    finally:
        for fd in fds.values():
            os.close(fd)
    for member in files:
        if merkle_root(leaves[member]) != opened.commits[member].root:
            raise Refused(member, NOT_COMMITTED)
    if merkle_root(leaves[""]) != opened.aggregate.root:
        raise Refused("sum", "the uploads, unmasked with the opened seeds, do not add up to the sum the coordinator signed")


def _rows(
    opened: judged.Opened, recovered: Recovered, fds: Mapping[str, int], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[dict[str, bytes]]:
    """Per chunk, in order: leaf of each member's upload, and under "" of the sum."""
    group, unmask = GROUP_OF[opened.instance.purpose], recovered.unmask

    def chunk(k: int) -> dict[str, bytes]:
        size = min(opened.chunk_bytes, opened.length - k * opened.chunk_bytes)
        total, part, row = np.zeros(size // DTYPE[group].itemsize, DTYPE[group]), memoryview(bytearray(size)), {}
        for member, fd in fds.items():
            if read_all_at(fd, part, k * opened.chunk_bytes) != size:
                raise Refused(member, "ends too early")
            row[member] = chunk_leaf(part)
            add_chunk(group, total, part)
        unmask_chunk(group, unmask, k, total)
        row[""] = chunk_leaf(total.data.cast("B"))
        return row

    waiting: deque[Future[dict[str, bytes]]] = deque()
    try:
        for k in range(chunks_of(opened.length, opened.chunk_bytes)):
            waiting.append(pool.submit(chunk, k))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # nobody reads from a file that is closed by then
        for left in waiting:
            left.cancel()
        wait(waiting)


def row(summed: Summed) -> Row:
    """The line of the report that levels 1 and 2 leave open."""
    count = Counter(summed.levels.values())
    words = f"{count[3]} of {sum(count.values())} exchanges added up again from the uploads, {summed.bytes:,} bytes"
    if count[2]:
        words += f"; of {count[2]} the uploads were not kept, or are not here: shown to level 2"
    how = PROVED if count[3] and not count[2] and not summed.findings else UNCHECKED
    return Row("the sums follow from the uploads", how, words)
