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


@pytest.mark.timeout(240)
def test_a_plan_says_what_a_run_will_take_and_show_puts_it_beside_what_it_took(stage):
    words = (TALLY, "--rounds", 3, "--outer-step", "average")
    code, plan, said = dure(stage, "run", "plan", *words, "--up-mbps", 10, "--down-mbps", 20)
    assert code == 0, said
    assert (plan["must_finish"], plan["may_drop_out"], plan["missing_now"]) == (3, 0, [])
    assert plan["parameters"] == 600_000, "asked of the app itself"
    assert plan["time"]["transfer_s_round"] == pytest.approx(8 * (1.25 / 10 + 1.3 / 20), rel=0.05)
    run = stage.begin(rounds=3)
    stage.wait(run)
    code, shown, said = dure(stage, "run", "show", run)
    assert code == 0, said
    beside = shown["forecast"]
    assert beside["member_up"]["most"] == pytest.approx(beside["member_up"]["forecast"], rel=0.05)
    assert beside["uploads"]["now"] == pytest.approx(beside["uploads"]["forecast"], rel=0.05)
    for name, most in (("coordinator_disk", 1.0), ("member_down", 1.0)):
        happened = beside[name].get("now", beside[name].get("most"))
        assert 0.5 * beside[name]["forecast"] < happened <= most * beside[name]["forecast"]
    again = dure(stage, "run", "plan", *words)[1]
    assert again["time"]["training_s_round"] is not None, "as the run before took"
    assert again["time"]["run_s"] > 3 * again["time"]["training_s_round"]


@pytest.mark.timeout(120)
def test_a_run_that_would_not_fit_the_disk_is_refused_before_it_opens(stage):
    before = dure(stage, "run", "list")[1]
    words = ("run", "start", TALLY, "--outer-step", "average", "--parameters", 10**12)
    said = one_line(dure(stage, *words))
    assert "of masked uploads would be kept at once, the quota is 200.0 GB" in said and "--ignore-disk" in said
    assert dure(stage, "run", "list")[1] == before
    code, found, said = dure(stage, *words, "--ignore-disk")
    assert code == 0, said
    assert dure(stage, "run", "abort", found["run"])[0] == 0


@pytest.mark.timeout(120)
def test_a_misspelt_setting_is_refused_with_the_nearest_one_and_nothing_is_started(stage):
    before = dure(stage, "run", "list")[1]
    for command in ("plan", "start"):
        said = one_line(dure(stage, "run", command, TALLY, "--outer-step", "average", "--set", "trains=1"))
        assert "has no config key 'trains'; did you mean 'train-s'?" in said
    assert dure(stage, "run", "list")[1] == before
