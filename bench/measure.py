"""What every benchmark here shares: processes watched from outside, the machine described, results written with date and commit.

Only /proc and `ss` are read, so that a peer is measured exactly as we are.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOAD_AT_START = os.getloadavg()[0]
"""Of the machine, one minute, before this bench did anything: above 0.3 on a quiet machine, somebody else was measured, too."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LOOK_EVERY_S = 0.1
SETTLED_AFTER = 3
"""Looks after which a process's role stands; before, it may still be the copy of its parent that it was forked as."""


@dataclass
class Seen:
    """One process: what it is, its CPU time over the clock, its memory."""

    role: str
    pid: int
    cpu_s: list[tuple[float, float]] = field(default_factory=list)
    """(unix time, user + system seconds so far)."""
    peak_rss_mb: float = 0.0

    def cpu_between(self, first: float, last: float) -> float:
        """CPU seconds from `first` to `last`, by the samples nearest to them."""
        return self._at(last) - self._at(first)

    def _at(self, when: float) -> float:
        before = [cpu for at, cpu in self.cpu_s if at <= when]
        return before[-1] if before else (self.cpu_s[0][1] if self.cpu_s else 0.0)


class Watch:
    """Looks at a tree of processes ten times a second, until `stop`.

    Args:
        roles: called with (pid, command line, parent's role) of every process below this one; the name it is counted under, or "".
    """

    def __init__(self, roles: Callable[[int, str, str], str], port: int = 0) -> None:
        self._roles, self._port = roles, port
        self.seen: dict[int, Seen] = {}
        self.summed_rss_mb = 0.0
        """Largest sum of resident memory over all watched processes; shared pages count in each."""
        self.wire: list[tuple[float, int, int]] = []
        """(unix time, bytes the server on `port` received, sent) over its connections so far."""
        self._streams: dict[str, tuple[int, int]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_ended: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        turn = 0
        while not self._end.wait(LOOK_EVERY_S):
            now, total = time.time(), 0.0
            for pid, role in self._below():
                seen = self.seen.setdefault(pid, Seen(role, pid))
                total += self._sample(seen, now)
            self.summed_rss_mb = max(self.summed_rss_mb, total)
            if self._port and turn % 3 == 0:
                self._count_wire(now)
            turn += 1

    def _below(self) -> Iterable[tuple[int, str]]:
        """(pid, role) of every process under this one; where one has no role, nothing below it is looked at."""
        children: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    parent = int(Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1])
                except OSError:
                    continue
                children.setdefault(parent, []).append(int(entry))
        waiting = [(pid, "bench") for pid in children.get(os.getpid(), [])]
        while waiting:
            pid, above = waiting.pop()
            if role := self._role(pid, above):
                yield pid, role
                waiting += [(child, role) for child in children.get(pid, [])]

    def _role(self, pid: int, above: str) -> str:
        known = self.seen.get(pid)
        if known is not None and len(known.cpu_s) >= SETTLED_AFTER:
            return known.role
        role = self._roles(pid, command_of(pid), above)
        if known is not None and role:
            known.role = role
        return role

    def _sample(self, seen: Seen, now: float) -> float:
        try:
            fields = Path(f"/proc/{seen.pid}/stat").read_text().rsplit(")", 1)[1].split()
            status = Path(f"/proc/{seen.pid}/status").read_text()
        except OSError:
            return 0.0
        seen.cpu_s.append((now, (int(fields[11]) + int(fields[12])) / TICKS_PER_S))
        peak, resident = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmHWM", "VmRSS"))
        if peak:
            seen.peak_rss_mb = max(seen.peak_rss_mb, int(peak[1]) / 1024)
        return int(resident[1]) / 1024 if resident else 0.0

    def _count_wire(self, now: float) -> None:
        shown = subprocess.run(["ss", "-tinH", f"sport = :{self._port}"], capture_output=True, text=True, check=False).stdout
        for block in re.split(r"\n(?=\S)", shown):
            peer = re.search(r"\S+:\d+\s+(\S+:\d+)", block)
            if peer is None:
                continue
            sent, received = (re.search(rf"\b{name}:(\d+)", block) for name in ("bytes_acked", "bytes_received"))
            self._streams[peer[1]] = (int(received[1]) if received else 0, int(sent[1]) if sent else 0)
        self.wire.append((now, sum(r for r, _ in self._streams.values()), sum(s for _, s in self._streams.values())))

    def wire_between(self, first: float, last: float) -> tuple[int, int]:
        """(received, sent) by the server between two moments."""

        def at(when: float) -> tuple[int, int]:
            after = [(r, s) for t, r, s in self.wire if t >= when] or [self.wire[-1][1:]]
            return after[0]

        (r0, s0), (r1, s1) = at(first), at(last)
        return r1 - r0, s1 - s0

    def peak_mb(self, role: str) -> float:
        """Largest peak of resident memory of one process of this role."""
        return max((s.peak_rss_mb for s in self.seen.values() if s.role == role), default=0.0)

    def cpu_of(self, role: str, first: float, last: float) -> float:
        """CPU seconds of all processes of this role between two moments."""
        return sum(s.cpu_between(first, last) for s in self.seen.values() if s.role == role)


def command_of(pid: int) -> str:
    """A process's command line, spaces between the words; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


class Progress:
    """Lines on standard error, with seconds since the start and the bench's name, so that standard output stays JSON."""

    def __init__(self, name: str) -> None:
        self._name, self._began = name, time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s] {self._name}: {line}", file=sys.stderr, flush=True)


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, least and most of repeated measurements."""
    return {"median": round(median(values), digits), "least": round(min(values), digits), "most": round(max(values), digits)}


def machine() -> dict[str, Any]:
    """Where a result comes from."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory[1]) / 1e6) if memory else 0,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit measured; "+" follows where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "core", "coordinator", "participant", "bench", ":(exclude)bench/results")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def write(path: Path | None, results: Sequence[Mapping[str, Any]]) -> None:
    """The results as JSON, to a file or to standard output; each object says when, where, of which commit and by which command."""
    command = " ".join(["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]])
    stamp = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "command": command,
        "machine": machine(),
        "load_at_start": round(LOAD_AT_START, 2),
    }
    text = json.dumps([{**result, **stamp} for result in results], indent=1) + "\n"
    if path is None:
        print(text, end="")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
