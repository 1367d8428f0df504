"""The coordinator daemon's memory does not follow the model's size or the number of nodes: everything goes by in chunks."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from support.echo_app import echo_app
from support.founded import Founded

from dure_demo.consortium import Consortium

MEMBERS = ("ara", "bora", "chan", "dan", "eun", "fay")
STEP = "nesterov,lr=0.8,momentum=0.5"
SLACK_MB = 64
"""For the buffers of streams, which fill up to their windows when a model is large enough; the models differ by 112 MB of weights, and as
much again of momentum, so whoever held or kept mapped one of them whole would be found out."""


def peak_mb(consortium: Consortium) -> float:
    """VmHWM of the coordinator process alone: its ServerApp is another process."""
    status = Path(f"/proc/{consortium.processes['coordinator'].pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def peak_of(folder: Path, members: tuple[str, ...], elements: int) -> float:
    """Peak of a fresh coordinator over a run of two rounds."""
    made = Founded(folder / "c", members)
    made.found()
    try:
        made.serve()
        for member in members:
            made.start_node(member)
        run, plan = made.run_start(
            echo_app(folder / "app"), rounds=2, settings={"elements": str(elements)}, outer_step="nesterov,lr=0.8,momentum=0.5"
        )
        for member in members:
            made.allow(member, plan)
        deadline = time.monotonic() + 200
        while (shown := made.run_show(run))["state"] == "running":
            assert time.monotonic() < deadline, shown
            time.sleep(0.3)
        assert shown["state"] == "finished", shown["reason"]
        assert {facts["exchanges_counted"] for facts in shown["members"].values()} == {2}
        return peak_mb(made)
    finally:
        made.stop()


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_peak_memory_is_flat_in_parameters_and_nodes(tmp_path):
    small = peak_of(tmp_path / "small", MEMBERS[:3], 4_000_000)
    large = peak_of(tmp_path / "large", MEMBERS[:3], 32_000_000)
    many = peak_of(tmp_path / "many", MEMBERS, 4_000_000)
    said = f"peak RSS of the coordinator: {small:.0f} MB at 3 nodes x 4 M, {large:.0f} MB at 3 x 32 M, {many:.0f} MB at 6 x 4 M"
    print(said)
    assert large < small + SLACK_MB, said
    assert many < small + SLACK_MB, said
    assert max(small, large, many) < 512, said
