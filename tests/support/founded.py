"""A consortium of real daemons whose commands that end by themselves run in the test's process: most of their time is Python's start."""

from __future__ import annotations

from pathlib import Path

from support.commands import dure

from dure_demo.consortium import Consortium, StepFailed


class Founded(Consortium):
    """As `Consortium`, which the demo, `make sample-bundle` and the README's test start as processes throughout."""

    def dure(self, *arguments: str | Path, timeout_s: float = 30.0) -> str:
        """Run one `dure` command to its end and return what it printed; `timeout_s` is the test's own here."""
        ran = dure(*arguments)
        if ran.code != 0:
            tail = "\n".join((ran.out + ran.err).strip().splitlines()[-6:])
            raise StepFailed(f"`dure {' '.join(map(str, arguments))}` exited with {ran.code}:\n{tail}")
        return ran.out
