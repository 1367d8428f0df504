"""A run whose first weights all members draw together: nobody chose them, everybody makes them, and an auditor makes them again."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from e2e.stage import Stage
from safetensors.numpy import load_file, save_file
from support import killed_audit

from dure.audit.report import FIRST
from dure_coordinator.admin_client import call
from dure_demo.consortium import StepFailed

MEMBERS = ("ara", "bora", "chan", "dan")
STEP = "nesterov,lr=0.8,momentum=0.5"
RULES = 'initial = ["*.bias constant 0", "* normal 0.17"]\n'


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    made = Stage.set_up(tmp_path_factory.mktemp("seed"), MEMBERS)
    made.everybody_up()
    try:
        yield made
    finally:
        made.consortium.stop()


def drawing_app(folder: Path) -> Path:
    """digits, with rules for its first weights."""
    shutil.copytree(Path(__file__).parents[2] / "apps" / "digits", folder, ignore=shutil.ignore_patterns("__pycache__"))
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace("w-max = 1797\n", f"w-max = 1797\n{RULES}"))
    return folder


@pytest.mark.timeout(180)
def test_members_draw_the_first_weights_in_an_exchange_of_its_own(stage, tmp_path):
    run, plan = stage.consortium.run_start(drawing_app(tmp_path / "app"), rounds=2, settings={}, outer_step="average")
    for member in MEMBERS:
        stage.consortium.allow(member, plan)
    shown = stage.wait(run)
    assert [line["category"] for line in shown["history"]] == ["query", "train", "evaluate", "train", "evaluate"]
    assert {facts["exchanges_counted"] for facts in shown["members"].values()} == {4}, "in the draw nobody trains"
    out = tmp_path / "first"
    call(stage.consortium.dir_of("coordinator"), "run-export", {"run": run, "out": str(out), "round": 0}, timeout_s=30.0)
    first = load_file(out / "model.safetensors")
    assert not first["hidden.bias"].any() and abs(float(first["hidden.weight"].std()) / 0.17 - 1) < 0.1
    assert not np.array_equal(first["hidden.weight"].ravel()[:10], first["output.weight"].ravel()[:10])
    audited(stage, run, tmp_path)
    added_up(stage, run, tmp_path)


def added_up(stage: Stage, run: str, tmp_path: Path) -> None:
    """Level 3: every sum again from the uploads; each damaged kind of file is named, and what was not kept is said."""
    hub, bundle = stage.consortium.dir_of("coordinator"), tmp_path / "bundle3"
    made = json.loads(stage.consortium.dure("audit", "export", "--run", run[:12], "--level", "3", "--out", bundle, "--json", "--dir", hub))
    assert made["uploads"] == 2 * 2 * len(MEMBERS), "scales and update of two rounds"
    ask = ("audit", "verify", bundle, "--root-sha256", made["root_sha256"], "--level", "3", "--json")
    found = json.loads(stage.consortium.dure(*ask))
    assert found["holds"] and [(e["exchange"], e["level"]) for e in found["exchanges"]] == [(n, 3) for n in range(1, 6)]
    assert {r["claim"]: r["how"] for r in found["table"]}["the sums follow from the uploads"] == "proved"
    killed_and_back(ask[2:-1], found, tmp_path)
    home = bundle / "rounds" / run
    for name in ("000002.update.bora.upload", "000004.scales.ara.upload", "000003.scalars.seeds", "000002.update.evidence"):
        whole = (home / name).read_bytes()
        (home / name).write_bytes(whole[:-5] + bytes([whole[-5] ^ 4]) + whole[-4:])
        with pytest.raises(StepFailed, match=re.escape(name.removesuffix(".evidence"))):
            stage.consortium.dure(*ask)
        (home / name).write_bytes(whole)
    (home / "000002.update.bora.upload").unlink()
    for name, twin in (("000002.update.ara.upload", b"x"), ("000003.scalars.seeds", None)):  # what is left is checked all the same
        whole = (home / name).read_bytes()
        (home / name).unlink()
        if twin is not None:
            (home / name).write_bytes(twin + whole[1:])
        with pytest.raises(StepFailed, match="is not the upload this member committed to" if twin else "seeds is missing"):
            stage.consortium.dure(*ask)
        (home / name).write_bytes(whole)
    found = json.loads(stage.consortium.dure(*ask))
    assert found["holds"] and [e["exchange"] for e in found["exchanges"] if e["level"] == 2] == [2]
    assert {r["claim"]: r["how"] for r in found["table"]}["the sums follow from the uploads"] == "not checked"


def killed_and_back(words, found, state):
    """The audit killed in the middle of the models, then in the middle of the sums; it goes on, twice, and says what it said in one go."""
    assert killed_audit.verified(*words, state=state, lines=2).returncode == -signal.SIGKILL
    assert killed_audit.verified(*words, state=state, lines=4).returncode == -signal.SIGKILL
    last = killed_audit.verified(*words, state=state)
    assert "all 2 exchanges were recomputed before" in last.stderr and "sums: resumed at exchange 3 of 5" in last.stderr
    assert json.loads(last.stdout) == found


def audited(stage: Stage, run: str, tmp_path: Path) -> None:
    """A stranger recomputes the run from its bundle alone; a bit flipped anywhere in it is found, and named."""
    hub, bundle, final = stage.consortium.dir_of("coordinator"), tmp_path / "bundle", tmp_path / "final"
    call(hub, "run-export", {"run": run, "out": str(final)}, timeout_s=30.0)
    made = json.loads(stage.consortium.dure("audit", "export", "--run", run[:12], "--out", bundle, "--json", "--dir", hub))
    assert made["missing"] == [] and made["parts"] == 3 + 2 * 2
    ask = ("audit", "lineage", bundle, "--root-sha256", made["root_sha256"])
    said = json.loads(stage.consortium.dure(*ask, "--model", final / "model.safetensors", "--json"))
    assert said["model"]["exchange"] == 4
    assert said["runs"][0]["first_weights"] == "drawn by the members" and said["runs"][0]["exchanges"] == [2, 4]
    text = stage.consortium.dure(*ask)
    assert said["runs"][0]["seed"] in text and "2 exchanges recomputed" in text
    report = tmp_path / "report.html"
    level2 = ("audit", "verify", bundle, "--root-sha256", made["root_sha256"], "--level", "2", "--model", final, "--html", report)
    found = json.loads(stage.consortium.dure(*level2, "--json"))
    assert found["holds"] and found["level"] == 2 and found["model"] == {**said["model"], "file": str(final / "model.safetensors")}
    assert {r["claim"]: r["how"] for r in found["table"]}["the released weights follow from the sums"] == "proved"
    assert said["runs"][0]["seed"] in report.read_text() and "모든 검사를 통과함" in report.read_text()
    for path in sorted((bundle / "rounds" / run).iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        with pytest.raises(StepFailed, match=re.escape(path.name)):
            stage.consortium.dure(*ask)
        path.write_bytes(whole)
    (bundle / "rounds" / run / "000099.update").write_bytes(b"x")
    with pytest.raises(StepFailed, match=re.escape("000099.update: is no part of this bundle")):
        stage.consortium.dure(*ask)
    (bundle / "rounds" / run / "000099.update").unlink()
    other = dict(load_file(final / "model.safetensors"))
    other["output.bias"] = other["output.bias"] + np.float32(2**-30)
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(StepFailed, match="exited with 9"):
        stage.consortium.dure(*ask, "--model", tmp_path / "other.safetensors")


@pytest.mark.deep
@pytest.mark.timeout(240)
def test_a_second_run_is_proved_to_go_back_to_the_first_ones_seed_up_to_its_uploads(stage, tmp_path):
    hub, app, runs = stage.consortium.dir_of("coordinator"), drawing_app(tmp_path / "app"), []
    for more in ((), ("--from",)):
        words = ("run", "start", app, "--rounds", "1", "--outer-step", STEP, *more, *(runs if more else ()), "--json", "--dir", hub)
        told = json.loads(stage.consortium.dure(*words).strip().splitlines()[-1])
        for member in MEMBERS:
            node = stage.consortium.dir_of(f"{member}/node")
            stage.consortium.dure("node", "allow", told["plan_digest"], "--yes", "--consent", "--dir", node)
        stage.wait(told["run"])
        runs.append(told["run"])
    bundle, last = tmp_path / "bundle", tmp_path / "last"
    call(hub, "run-export", {"run": runs[1], "out": str(last)}, timeout_s=30.0)
    made = json.loads(stage.consortium.dure("audit", "export", "--run", runs[1], "--level", "3", "--out", bundle, "--json", "--dir", hub))
    ask = ("audit", "verify", bundle, "--root-sha256", made["root_sha256"], "--level", "3", "--model", last, "--json")
    found = json.loads(stage.consortium.dure(*ask))
    assert found["holds"] and found["model"]["run"] == runs[1]
    rows = {r["claim"]: r for r in found["table"]}
    assert (
        rows[FIRST]["how"] == "proved" and f"run {runs[1][:12]}: from run {runs[0][:12]}, exchange 2, recomputed" in rows[FIRST]["detail"]
    )
    assert rows["the sums follow from the uploads"]["how"] == "proved" and {e["run"] for e in found["exchanges"]} == set(runs)
    alone = tmp_path / "alone"
    stage.consortium.dure("audit", "export", "--run", runs[1], "--without-ancestors", "--out", alone, "--dir", hub)
    found = json.loads(stage.consortium.dure("audit", "verify", alone, *ask[3:5], "--level", "2", "--json"))
    assert {r["claim"]: r["how"] for r in found["table"]}[FIRST] == "not checked" and found["not_shown"]


@pytest.mark.timeout(120)
def test_nobody_trains_on_first_weights_that_the_draw_did_not_make(stage, tmp_path):
    """The ServerApp is its author's code: it may send anything. Without the node's own look this run would train on a chosen start."""
    app = drawing_app(tmp_path / "app")
    server = app / "digits" / "server_app.py"
    server.write_text(server.read_text() + CHEAT)
    run, plan = stage.consortium.run_start(app, rounds=1, settings={}, outer_step="average")
    for member in MEMBERS:
        stage.consortium.allow(member, plan)
    shown = stage.wait(run, lambda s: len(s["history"]) >= 2 or s["state"] != "running")
    said = {d["member"]: d["reason"] for d in shown["dropouts"] if d["exchange"] == 2}
    assert set(said.values()) == {"app: weights: the first ones offered are not those of the seed the members drew"}
    assert shown["history"][1]["status"] == "failed" and len(said) >= 2, "too few are left for any sum"


CHEAT = """

_honest = FedAvg.configure_train


def _chosen(self, server_round, arrays, config, grid):
    import numpy as np
    from flwr.app import Array, ArrayRecord

    moved = {name: Array(a.numpy() + np.float32(2**-20)) for name, a in arrays.items()}
    return _honest(self, server_round, ArrayRecord(moved), config, grid)


FedAvg.configure_train = _chosen
"""
