"""A run goes on from an earlier run's model or a file; what was summed before is shown to operators, who must consent."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from e2e.stage import TALLY, Stage, task
from safetensors.numpy import load_file, save_file

from dure.model.content import flower_run_id
from dure_demo.consortium import dure_command, node_environment

MEMBERS = ("ara", "bora", "chan")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    made = Stage.set_up(tmp_path_factory.mktemp("from"), MEMBERS)
    made.everybody_up()
    try:
        yield made
    finally:
        made.consortium.stop()


@pytest.fixture(scope="module")
def trained(stage):
    """A finished run of two rounds."""
    run = stage.begin(rounds=2)
    stage.wait(run)
    return run


def dure(folder, *words, answer=""):
    command = [*dure_command(), *map(str, words), "--dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=node_environment(), input=answer)
    return done.returncode, done.stdout, done.stderr


def start(stage, source, *options, app=TALLY):
    hub = stage.consortium.dir_of("coordinator")
    words = ("run", "start", app, "--rounds", 1, "--outer-step", "average", "--from", source, *options, "--json")
    code, out, said = dure(hub, *words)
    return code, json.loads(out)["run"] if code == 0 else said


def refused(outcome):
    code, said = outcome
    assert code != 0
    assert said.count("\n") == 1 and said.startswith("error: "), said
    return said


def node_of(stage, member):
    return stage.consortium.dir_of(f"{member}/node")


def offered(stage, run):
    """Until every node was shown the plan."""
    for member in MEMBERS:
        stage.until(lambda m=member: run in dure(node_of(stage, m), "node", "allow", "--list")[1])


def model_of(stage, run, *options):
    out = stage.consortium.root / f"out-{run[:12]}{''.join(map(str, options))}"
    code, _, said = dure(stage.consortium.dir_of("coordinator"), "run", "export", run, "--out", out, *options)
    assert code == 0, said
    return load_file(out / "model.safetensors")["w"]


def one_round():
    """What one round adds to whatever weights it starts from."""
    count = len(MEMBERS)
    total = sum(task.examples(p) for p in range(count))
    return sum(task.examples(p) * task.delta(p, count, 1, 1).astype(np.float64) for p in range(count)) / total


@pytest.mark.timeout(240)
def test_a_run_from_a_final_model_needs_no_consent_and_adds_to_it(stage, trained):
    code, run = start(stage, trained)
    assert code == 0, run
    offered(stage, run)
    for member in MEMBERS:
        code, out, said = dure(node_of(stage, member), "node", "allow", run[:16], answer="y\n")
        assert code == 0, said
    assert f"first weights: run {trained[:12]} (tally), the ServerApp's result" in out
    assert "no sum was ever opened on these weights" in out
    assert f"taken part in run {trained[:12]} before, on a model of the same shape" in out
    stage.wait(run)
    assert np.abs(model_of(stage, run) - (model_of(stage, trained) + one_round())).max() < 1e-3
    audited(stage, run, trained)


def audited(stage, run, ancestor):
    """The bundle of a run brings the run it began with, and an auditor follows its first weights into that run's last base."""
    hub, bundle = stage.consortium.dir_of("coordinator"), stage.consortium.root / "bundle"
    code, out, said = dure(hub, "audit", "export", "--run", run[:16], "--out", bundle, "--json")
    made = json.loads(out)
    assert code == 0 and made["missing"] == [], said
    assert [(one["run"], one["ancestor_of"]) for one in made["runs"]] == [(run, None), (ancestor, run)]
    ask = ("audit", "lineage", bundle, "--root-sha256", made["root_sha256"])
    found = {one["run"]: one for one in json.loads(stage.consortium.dure(*ask, "--json"))["runs"]}
    last = found[ancestor]["exchanges"][-1]
    assert found[run]["from"] == {"run": ancestor, "exchange": last, "how": "recomputed"} and found[ancestor]["from"] is None
    assert f"first weights from run {ancestor[:12]}, exchange {last}, recomputed: proved" in stage.consortium.dure(*ask)


@pytest.mark.timeout(240)
def test_weights_summed_on_before_take_every_operators_consent(stage, trained):
    code, run = start(stage, trained, "--round", 1)
    assert code == 0, run
    offered(stage, run)
    ara = node_of(stage, "ara")
    code, out, said = dure(ara, "node", "allow", run[:16], answer="y\nn\n")
    assert code != 0 and "no consent, nothing decided" in said
    assert f"train update, exchange 2 of run {trained[:12]}: the sum of ara, bora, chan" in out
    assert "this node will sign only a sum of exactly the same members again" in out
    code, out, said = dure(ara, "node", "allow", run[:16], "--yes")
    assert code != 0 and "--consent" in said and said.count("\n") == 1
    shown = stage.consortium.run_show(run)
    assert not shown["members"]["ara"]["approved"]
    for member in MEMBERS:
        code, out, said = dure(node_of(stage, member), "node", "allow", run[:16], "--yes", "--consent", "--json")
        assert (code, json.loads(out)["consented_sums"]) == (0, 2), said
    stage.wait(run)
    assert np.abs(model_of(stage, run) - (model_of(stage, trained, "--round", 1) + one_round())).max() < 1e-3


@pytest.mark.timeout(240)
def test_a_safetensors_file_is_known_by_its_weights_whatever_it_is_called(stage, trained, tmp_path):
    """The file holds the first weights of the run before, so the sum on them is shown here, too."""
    file = tmp_path / "bought.safetensors"
    save_file({"w": task.initial(flower_run_id(bytes.fromhex(trained)))}, file)
    code, run = start(stage, file)
    assert code == 0, run
    offered(stage, run)
    for member in MEMBERS:
        code, out, said = dure(node_of(stage, member), "node", "allow", run[:16], "--consent", answer="y\n")
        assert code == 0, said
    assert "first weights: file bought.safetensors, SHA-256 " in out
    assert f"train update, exchange 1 of run {trained[:12]}: the sum of ara, bora, chan" in out
    stage.wait(run)
    assert np.abs(model_of(stage, run) - task.model(flower_run_id(bytes.fromhex(trained)), 1, 3)).max() < 1e-3


@pytest.mark.timeout(120)
def test_what_cannot_be_started_from_is_one_clear_line_and_starts_nothing(stage, trained, tmp_path):
    before = stage.runs()
    save_file({"w": np.zeros((2, 3), np.float32)}, tmp_path / "shape.safetensors")
    save_file({"v": np.zeros(600_000, np.float32)}, tmp_path / "name.safetensors")
    save_file({"w": np.full(600_000, np.nan, np.float32)}, tmp_path / "nan.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here, only text")
    assert "tensor 'w' is float32[2, 3] there and float32[600000] in the app's model" in refused(
        start(stage, tmp_path / "shape.safetensors")
    )
    assert "it has no tensor 'w'" in refused(start(stage, tmp_path / "name.safetensors"))
    assert "tensor 'w'" in refused(start(stage, tmp_path / "nan.safetensors"))
    assert "header" in refused(start(stage, tmp_path / "text.safetensors"))
    assert "no such file" in refused(start(stage, tmp_path / "none.safetensors"))
    assert "no run 'nosuch'" in refused(start(stage, "nosuch"))
    assert "has no model of round 9" in refused(start(stage, trained, "--round", 9))
    hub = stage.consortium.dir_of("coordinator")
    code, _, said = dure(hub, "run", "start", TALLY, "--outer-step", "average", "--round", 1)
    assert code != 0 and "--from" in said
    assert stage.runs() == before
