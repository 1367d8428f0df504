"""`dure` as a user meets it: arguments in; exit code, standard output and standard error out."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from dure.cli import main

STATE = tempfile.TemporaryDirectory(prefix="dure-state-")
"""What an auditor's home has, for as long as this process lives: no test writes into the home of whoever runs it."""


@dataclass(frozen=True)
class Ran:
    """One command that ended."""

    code: int
    out: str
    err: str


def dure(*arguments: object, answers: str = "") -> Ran:
    """Run one command in this process: the very function the `dure` script calls, without a second interpreter's start."""
    done = CliRunner(env={"XDG_STATE_HOME": STATE.name}).invoke(main, [str(a) for a in arguments], input=answers, prog_name="dure")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ran(done.exit_code, done.stdout, done.stderr)


def worked(*arguments: object) -> str:
    """What a command printed that must succeed."""
    ran = dure(*arguments)
    assert ran.code == 0, ran.err
    return ran.out


def refused(ran: Ran, *words: str) -> str:
    """The one line with which a command ended: it names each of these words."""
    lines = ran.err.strip().splitlines()
    assert ran.code not in (0, None), ran
    assert len(lines) == 1 and lines[0].startswith("error: "), ran.err
    for word in words:
        assert word in lines[0], (word, lines[0])
    return lines[0]


SHIFTED = """
import sys, time
real, shift = time.time, float(sys.argv[1])
time.time = lambda: real() + shift
from dure.cli import main
main(sys.argv[2:], prog_name="dure")
"""


def shifted(seconds: float) -> list[str]:
    """How to start `dure` on a machine whose clock is so far ahead (or, negative, behind)."""
    return [sys.executable, "-c", SHIFTED, str(seconds)]


def files(folder: Path) -> dict[str, str]:
    """Every file below a folder by digest: equal before and after means nothing was lost, nothing half-written."""
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def founded(root: Path, members: tuple[str, ...], *, port: int = 7443, label: str = "titan") -> Path:
    """A published consortium of these members, each with its keys in `root/<member>/keys`; returns the coordinator's folder."""
    hub = root / "hub"
    worked("coordinator", "init", "--name", label, "--advertise", f"127.0.0.1:{port}", "--dir", hub)
    for member in members:
        worked("member", "init", member, "--dir", root / member / "keys")
    worked("charter", "draft", *(root / m / "keys" / f"{m}.join.json" for m in members), "--dir", hub)
    worked("charter", "propose", "--dir", hub)
    for member in members:
        worked("member", "sign", hub / "1.root.json", "--yes", "--dir", root / member / "keys")
    worked("charter", "publish", *(root / m / "keys" / f"1.root.{m}.sig" for m in members), "--dir", hub)
    return hub
