"""docs/guide-auditor.md, typed as it stands, in the sample that `make sample-bundle` makes."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.founded import Founded
from support.remembered import remembered_signatures
from support.tampered_rounds import CHANGES, Rounds, masked_anew

from dure_demo.sample import build

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guide-auditor.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.S) for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    out = tmp_path_factory.mktemp("guide") / "sample-bundle"
    build(out, lambda _line: None, Founded)
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


# -- the same sample with parts that were tampered with --------------------------------------------------------------------


@pytest.fixture(scope="module")
def rounds(sample):
    with remembered_signatures():
        found = Rounds.of(sample / "bundle", bytes.fromhex((sample / "root-sha256").read_text()))
        assert found.result.holds and found.findings() == []
        yield found


@pytest.mark.parametrize("some", [slice(0, None, 4), pytest.param(slice(None), marks=pytest.mark.deep)], ids=["some", "all"])
@pytest.mark.timeout(400)
def test_no_part_of_a_run_can_be_changed_or_left_out_unseen(rounds, some):
    """Every file, changed in every way: what is said names the file, or the sum it belongs to."""
    twins = [(part, how) for part in rounds.parts for how in (*CHANGES, None)][some]
    unseen, unnamed = [], []
    for part, how in twins:
        raw = rounds.path(part).read_bytes()
        changed = None if how is None else CHANGES[how](raw)
        if changed == raw:
            continue
        with rounds.written({part: changed}):
            found = rounds.findings()
        exchange = int(part.split("/")[-1][:6]) if part.split("/")[-1][:6].isdigit() else 1
        named = (part.split("/")[-1], part.split("/")[-1].split(".")[0], f"exchange {exchange}")
        (unseen if not found else unnamed if not any(n in line for line in found for n in named) else []).append((part, how, found))
    assert len(twins) >= 90
    assert unseen == [] and unnamed == []


def test_parts_that_change_places_are_seen(rounds):
    """An upload under another member's name, a sum of another exchange, seeds of another instance: each whole, and in the wrong place."""
    alike: dict[str, list[str]] = {}
    for part in rounds.parts:
        place, kind = re.fullmatch(r"rounds/\w+/(\w+)\.(.*)", part).groups()  # type: ignore[union-attr]
        alike.setdefault(f"every {kind}", []).append(part)
        if kind.endswith("upload"):
            alike.setdefault(f"uploads of {place}.{kind.split('.')[0]}", []).append(part)
        if kind.endswith("seeds"):
            alike.setdefault("seeds of all kinds", []).append(part)
    swaps = [(a, b) for parts in alike.values() for a, b in itertools.pairwise(parts)]
    assert len(swaps) >= 12
    for a, b in swaps:
        with rounds.written({a: rounds.path(b).read_bytes(), b: rounds.path(a).read_bytes()}):
            assert rounds.findings(), (a, b)


def test_uploads_masked_anew_so_that_their_sum_stays_the_same_are_each_named(rounds):
    parts = [p for p in rounds.parts if "/000002.update." in p and p.endswith(".upload")][:2]
    for given in (parts, parts[:1]):
        anew = masked_anew([rounds.path(p).read_bytes() for p in parts])
        with rounds.written(dict(zip(given, anew, strict=False))):
            assert any("is not the upload this member committed to" in line for line in rounds.findings())
