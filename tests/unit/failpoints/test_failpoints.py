"""A fail point ends the process there and nowhere else; one that does not exist is an error, not a test that proves nothing."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dure import failpoints
from dure.errors import BadInput
from dure.failpoints import Point

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
from dure.failpoints import Point, arm, reach
arm(sys.argv[1])
for _ in range(3):
    reach(Point.SUM_WRITTEN)
    print("passed", flush=True)
"""


def run(armed: str) -> tuple[int, int]:
    """(exit code, how often the point was passed)"""
    done = subprocess.run([sys.executable, "-c", PROGRAM, armed], capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout.count("passed")


@pytest.mark.parametrize(
    ("armed", "ended"),
    [
        ("", (0, 3)),
        ("coordinator.sum.written", (-signal.SIGKILL, 0)),
        ("coordinator.sum.written:3", (-signal.SIGKILL, 2)),
        ("coordinator.sum.written:4", (0, 3)),
        ("coordinator.step.stored", (0, 3)),
    ],
)
def test_the_process_dies_the_nth_time_it_reaches_the_armed_point(armed, ended):
    assert run(armed) == ended


@pytest.mark.parametrize("text", ["coordinator.sum.writen", "coordinator.sum.written:0", "coordinator.sum.written:x", ":1"])
def test_a_point_or_count_that_cannot_be_is_named(text):
    with pytest.raises(BadInput, match="DURE_KILL_AT"):
        failpoints.arm(text)
    assert failpoints._armed is None


@pytest.mark.parametrize("point", Point)
def test_every_point_is_reached_by_the_side_its_name_says(point):
    side = ROOT / ("coordinator/dure_coordinator" if point.startswith("coordinator.") else "participant/dure_participant")
    name = re.compile(rf"Point\.{point.name}\b")
    assert [p for p in side.rglob("*.py") if name.search(p.read_text())]
