"""The same bits on another kind of processor: aarch64, emulated. An auditor's laptop need not be of the kind the coordinator was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.arm_machine import ArmMachine, NoArm, arm_machine

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]

BITS = Path(__file__).parents[1] / "support" / "bits_of_arithmetic.py"


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> ArmMachine:
    try:
        return arm_machine(tmp_path_factory.mktemp("arm"))
    except NoArm as why:
        pytest.skip(f"counts as not run: {why}")


def test_first_weights_outer_steps_and_masks_have_the_same_bits(arm):
    """All arithmetic that a recomputation rests on, over values of every magnitude; SHA-256 of each result."""
    there = arm.python(BITS)
    assert there.returncode == 0, there.stderr
    here = subprocess.run([sys.executable, str(BITS)], capture_output=True, text=True, check=True)
    found, wanted = json.loads(there.stdout), json.loads(here.stdout)
    assert (found.pop("machine"), wanted.pop("machine")) == ("aarch64", "x86_64")
    assert len(wanted) == 9 and found == wanted


def test_an_audit_at_level_3_says_the_same_to_the_byte(arm, tmp_path, monkeypatch):
    """From the members' seed to the release, every sum from its uploads; and a flipped bit is named there, too."""
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dure_demo.sample", "sample"], check=True, capture_output=True, timeout=240)
    pin = Path("sample/root-sha256").read_text().strip()
    ask = ["-m", "dure.cli", "audit", "verify", "sample/bundle", "--root-sha256", pin, "--level", "3", "--json"]
    here = subprocess.run([sys.executable, *ask, "--model", "sample/release"], capture_output=True, text=True, check=True)
    there = arm.python(*ask, "--model", "sample/release")
    assert there.returncode == 0, there.stdout + there.stderr
    assert json.loads(there.stdout)["holds"] and there.stdout == here.stdout
    upload = min(Path("sample/bundle/rounds").glob("*/*.update.*.upload"))
    raw = bytearray(upload.read_bytes())
    raw[-1] ^= 1
    upload.write_bytes(raw)
    flipped = arm.python(*ask)
    assert flipped.returncode == 1 and upload.name in flipped.stdout
