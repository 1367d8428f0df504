"""`dure audit verify` as a process of its own, killed with SIGKILL just after so many of its findings are durable."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
import os, runpy, signal, sys, time
from dure.audit.kept import Kept
now, left, write = float(sys.argv.pop(1)), int(sys.argv.pop(1)), Kept.write
time.time = lambda: now
def then_die(self, *words):
    global left
    write(self, *words)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
Kept.write = then_die
runpy.run_module("dure.cli", run_name="__main__")
"""


def verified(*words: object, state: Path, lines: int = 0, now: float | None = None) -> subprocess.CompletedProcess[str]:
    """What came of it.

    Args:
        state: where its user's key is.
        lines: after which it is killed; 0: never.
        now: what its clock says; None: the time.
    """
    arguments = [str(time.time() if now is None else now), str(lines), "audit", "verify", *map(str, words), "--json"]
    env = {**os.environ, "XDG_STATE_HOME": str(state)}
    return subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False, env=env)
