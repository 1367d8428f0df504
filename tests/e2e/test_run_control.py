"""An administrator steers a run of real processes by the commands, and is told clearly what cannot be done."""

from __future__ import annotations

import json
import subprocess
import time

import numpy as np
import pytest
from e2e.stage import TALLY, Stage
from safetensors.numpy import load_file

from dure_demo.consortium import dure_command, node_environment


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    made = Stage.set_up(tmp_path_factory.mktemp("control"), ("ara", "bora", "chan"))
    made.everybody_up()
    try:
        yield made
    finally:
        made.consortium.stop()


def dure(stage, *words):
    """(exit code, the JSON object or None, standard error)"""
    hub = stage.consortium.dir_of("coordinator")
    command = [*dure_command(), *map(str, words), "--json", "--dir", str(hub)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=node_environment())
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else None, done.stderr


def one_line(outcome):
    code, _, said = outcome
    assert code != 0
    assert said.count("\n") == 1 and said.startswith("error: "), said
    return said


def weights_of(stage, run, *options):
    out = stage.consortium.root / f"out-{time.monotonic_ns()}"
    code, found, said = dure(stage, "run", "export", run, "--out", out, *options)
    assert code == 0, said
    return found, load_file(out / "model.safetensors")["w"]


@pytest.mark.timeout(240)
def test_a_run_is_paused_across_a_restart_resumed_stopped_and_its_models_exported(stage):
    run = stage.begin(rounds=60, settings={"train-s": "0.2"})
    hub = stage.consortium.dir_of("coordinator")
    watching = subprocess.Popen(
        [*dure_command(), "run", "watch", run, "--json", "--dir", str(hub)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=node_environment(),
    )
    stage.wait(run, lambda s: s["exchanges_closed"] >= 2)
    for _ in range(2):  # saying it twice is no error
        code, found, _ = dure(stage, "run", "pause", run, "--reason", "night")
        assert (code, found["paused"], found["state"]) == (0, True, "running")
    shown = stage.wait(run, lambda s: s["run_phase"] == "idle")
    stage.consortium.kill("coordinator")
    stage.everybody_up()
    shown = stage.wait(run, lambda s: s["reason"] == "paused: night" and len(s["connected"]) == 3)
    time.sleep(2.0)
    again = stage.wait(run, lambda s: True)
    assert again["exchanges_closed"] == shown["exchanges_closed"]
    assert "paused" in stage.consortium.dure("run", "list", "--dir", stage.consortium.dir_of("coordinator"))

    found, first = weights_of(stage, run, "--round", 1)
    assert found["what"] == "after round 1"
    _, before = weights_of(stage, run, "--round", 0)
    _, newest = weights_of(stage, run)
    assert not np.array_equal(first, before)
    assert not np.array_equal(first, newest)
    assert f"0 (its first) to {again['exchanges_closed']}" in one_line(
        dure(stage, "run", "export", run, "--out", stage.consortium.root / "none", "--round", 99)
    )

    code, found, _ = dure(stage, "run", "resume", run)
    assert (code, found["paused"]) == (0, False)
    stage.wait(run, lambda s: s["exchanges_closed"] > again["exchanges_closed"])
    code, found, _ = dure(stage, "run", "stop", run, "--reason", "good enough")
    assert code == 0
    shown = stage.wait(run)
    assert shown["reason"] == f"stopped after round {shown['exchanges_closed']}: good enough"
    assert all(facts["exchanges_counted"] == shown["exchanges_closed"] for facts in shown["members"].values())
    ended, lines = watching.communicate(timeout=60)  # it outlived the coordinator's restart
    assert (watching.returncode, json.loads(ended)["state"]) == (0, "finished")
    assert "exchange 1 (train): 3 of 3 members counted" in lines
    assert lines.rstrip().endswith("good enough")
    found, last = weights_of(stage, run)
    assert found["round"] == shown["exchanges_closed"]
    assert not np.array_equal(last, newest)

    assert dure(stage, "run", "stop", run)[0] == 0, "it has ended as asked"
    for command in ("pause", "resume", "abort"):
        assert "is finished already (stopped after round" in one_line(dure(stage, "run", command, run))


@pytest.mark.timeout(120)
def test_a_misspelt_setting_is_refused_with_the_nearest_one_and_nothing_is_started(stage):
    before = dure(stage, "run", "list")[1]
    for command in ("plan", "start"):
        said = one_line(dure(stage, "run", command, TALLY, "--outer-step", "average", "--set", "trains=1"))
        assert "has no config key 'trains'; did you mean 'train-s'?" in said
    assert dure(stage, "run", "list")[1] == before
