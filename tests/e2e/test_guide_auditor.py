"""docs/guide-auditor.md, typed as it stands, in the sample that `make sample-bundle` makes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dure_demo.sample import build

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guide-auditor.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.S) for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    out = tmp_path_factory.mktemp("guide") / "sample-bundle"
    build(out, lambda _line: None)
    return out


@pytest.mark.timeout(240)
def test_every_command_of_the_guide_does_what_it_says(sample, tmp_path):
    """As an auditor's shell would: `dure` is this checkout's, everything else the machine's own."""
    (tmp_path / "dure").write_text(f'#!/bin/sh\nexec {sys.executable} -m dure.cli "$@"\n')
    (tmp_path / "dure").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert len(LINES) >= 12
    for line in LINES:
        command, _, said = line.partition("   # exit ")
        done = subprocess.run(["bash", "-c", command], cwd=sample, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == int(said or 0), f"{line}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, line
    assert "감사 보고서" in (sample / "report.html").read_text()
    assert "tensor 'hidden.weight' holds other values" in _said(sample, env, "dure release verify changed --root-sha256 $(cat root-sha256)")


def _said(folder: Path, env: dict[str, str], command: str) -> str:
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr
