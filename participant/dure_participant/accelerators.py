"""What a node trains on, by kind: as its site declares it, or as far as it can be looked up. Nothing that tells one device of a kind from
another: no serial number, no address, no place in the machine.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from dure.errors import BadInput
from dure.statements.kinds import Accelerators

LOOK_S = 20.0
"""Longest wait for a program that knows the machine; nvidia-smi takes seconds where no daemon keeps the driver loaded."""
MOST_KINDS = 16
NVIDIA = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
_NAME = r"[A-Za-z0-9][A-Za-z0-9 ()@+.,_-]{0,63}?"
_DECLARED = re.compile(
    rf"(?:(?P<count>[1-9][0-9]{{0,4}}) x )?(?P<kind>cpu|gpu|npu|other) (?P<name>{_NAME})"
    r"(?: (?P<memory>[1-9][0-9]{0,6}) GiB)?(?: driver (?P<driver>[A-Za-z0-9][A-Za-z0-9.+_-]{0,31}))?"
)
FORM = "`8 x npu Rebellions ATOM-Max 64 GiB driver 1.1.67`; count, memory and driver may be left out, kinds are cpu, gpu, npu, other"


def ask(command: Sequence[str]) -> str | None:
    """A program's output; None where it is not there, fails, or does not answer in time."""
    if shutil.which(command[0]) is None:
        return None
    bare = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_S, env=bare, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def declared(said: Iterable[str]) -> tuple[Accelerators, ...]:
    """What a site says it has.

    Raises:
        BadInput: names what is out of form, and the form.
    """
    found = tuple(_declared(text) for text in said)
    if len(found) > MOST_KINDS:
        raise BadInput(f"accelerators: {len(found)} kinds, at most {MOST_KINDS}")
    return found


def _declared(text: str) -> Accelerators:
    told = _DECLARED.fullmatch(text)
    count = int(told["count"] or 1) if told else 0
    memory = int(told["memory"]) if told and told["memory"] else None
    if told is None or count > 65_536 or (memory or 0) > 2**20:
        raise BadInput(f"accelerators: {text[:80]!r} is not of the form {FORM}")
    return Accelerators(told["kind"], told["name"], count, memory, told["driver"])


@lru_cache(maxsize=2)
def looked_up(device: str) -> tuple[Accelerators, ...]:
    """What can be found out without an accelerator's library: the cpu, and, where the worker's device is another, what nvidia-smi lists."""
    return (cpu(), *(nvidia(ask(NVIDIA) or "") if device != "cpu" else ()))[:MOST_KINDS]


def cpu() -> Accelerators:
    """The hardware threads this process may use, and the machine's memory."""
    try:
        told = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.M)
    except OSError:
        told = None
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return Accelerators("cpu", _plain(told[1] if told else platform.machine()), len(os.sched_getaffinity(0)), memory_gib or None, None)


def nvidia(table: str) -> tuple[Accelerators, ...]:
    """One line per device, `name, MiB, driver`, as kinds; a line that reads otherwise is passed over."""
    lines = (re.fullmatch(r"(.+), ([0-9]{1,9}), ([A-Za-z0-9][A-Za-z0-9.+_-]{0,31})", line.strip()) for line in table.splitlines())
    kinds = Counter((_plain(told[1]), int(told[2]) >> 10, told[3]) for told in lines if told)
    return tuple(Accelerators("gpu", name, count, gib or None, driver) for (name, gib, driver), count in sorted(kinds.items()))


def _plain(name: str) -> str:
    """A product's name as statements may hold it."""
    kept = re.sub(r"[^A-Za-z0-9 ()@+.,_-]", "", name)
    return re.sub(r"\A[^A-Za-z0-9]+", "", " ".join(kept.split()))[:64].strip() or "unnamed"
