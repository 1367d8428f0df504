"""Apps in the shape of those `flwr new` offers for 1.41, as they are, under real masks: only their data is made on this machine.

`flwr new` fetches its apps from a hub; these (tests/apps) were written anew after reading them. Members share one process here;
tests/e2e/test_any_app.py runs some of them as a consortium of processes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.one_process import OneProcess, run_folder

from dure.apps import read_app
from dure_coordinator.flower.backend import GridRefused

APPS = Path(__file__).parents[1] / "apps"
MEMBERS = ("alpha", "beta", "delta", "gamma")
AVERAGE = {"name": "average"}
NESTEROV = {"name": "nesterov", "lr": "0.9", "momentum": "0.3"}
ADAM = {"name": "adam", "lr": "0.02", "beta1": "0.9", "beta2": "0.99", "eps": "0.001"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs an app with the folder of its ServerApp process as the current one; its modules are forgotten afterwards."""
    before = set(sys.modules)
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(name: str, *overrides: str, outer_step=None) -> OneProcess:
        done = run_folder(APPS / name, MEMBERS, tmp_path, overrides, outer_step=outer_step)
        assert not any(done.out.values()), done.out
        return done

    yield run
    for name in {m for m in set(sys.modules) - before if "shape" in m.split(".")[0]}:
        del sys.modules[name]


@pytest.mark.parametrize("outer_step", [None, AVERAGE])
def test_the_numpy_app_runs_as_it_is(run, outer_step):
    done = run("app-numpy", outer_step=outer_step)
    array = done.result.arrays["0"].numpy()
    assert array.dtype == np.float64 and array.shape == (1, 1) and 1.3 < array.item() < 4
    assert np.load("final_model.npz")["arr_0"] == array
    for number in (1, 2, 3):
        assert 0 < done.result.train_metrics_clientapp[number]["random_metric"] < 1
        assert len(done.result.evaluate_metrics_clientapp[number]["random_metric"]) == 3


@pytest.mark.parametrize("outer_step", [None, NESTEROV, ADAM], ids=["strategy", "nesterov", "adam"])
def test_the_pytorch_app_learns_and_counts_its_batches(run, outer_step):
    done = run("app-torch", "fraction-evaluate=1.0", "num-server-rounds=2", outer_step=outer_step)
    result = done.result
    assert result.evaluate_metrics_serverapp[2]["accuracy"] > 0.5 > 2 * result.evaluate_metrics_serverapp[0]["accuracy"]
    tracked = result.arrays["norm.num_batches_tracked"].numpy()
    assert tracked.shape == () and tracked == 2 * 12, "359 or 360 digits in batches of 32, two rounds"
    layout = done.requests[0].instruction.arrays.layout
    assert layout["norm.num_batches_tracked"].dtype == "int64"
    assert [r.instruction.arrays.layout for r in done.requests] == [layout] * 4


def test_the_pytorch_app_as_shipped_evaluates_on_too_few_and_is_refused_with_the_arithmetic_before_it_trains(run):
    with pytest.raises(GridRefused, match=r"fraction_evaluate = 0.5 of 4 members picks 2, and 3 .* set it to 0.75 or more"):
        run("app-torch")
    assert read_app(APPS / "app-torch").config["fraction-evaluate"] == 0.5


@pytest.mark.parametrize("outer_step", [None, AVERAGE])
def test_the_scikit_learn_app_fits_its_irises(run, outer_step):
    done = run("app-sklearn", outer_step=outer_step)
    assert {a.dtype for a in done.result.arrays.values()} == {"float64"}
    losses = [done.result.evaluate_metrics_clientapp[n]["test_logloss"] for n in (1, 2, 3, 4)]
    assert losses == sorted(losses, reverse=True) and done.result.evaluate_metrics_clientapp[4]["accuracy"] > 0.6
    assert Path("logreg_model.pkl").exists()


@pytest.mark.parametrize("outer_step", [None, AVERAGE])
def test_the_hugging_face_app_trains_and_the_model_that_comes_with_its_evaluation_stays_at_the_site(run, outer_step):
    pytest.importorskip("transformers", reason="transformers is no dependency of ours; docs/flower-apps.md says how it was tried")
    done = run("app-hf", "fraction-train=1.0", "fraction-evaluate=1.0", outer_step=outer_step)
    assert done.result.evaluate_metrics_clientapp[1]["loss"] > 0 and dict(done.result.train_metrics_clientapp[1]) == {}
    assert not any(r.result.flat_path for r in done.replies[2].values())


def test_the_odd_app_finds_what_it_expects_and_each_failing_node_is_named(tmp_path, run):
    """Queries that are summed, values per node, bfloat16, a scalar count, state, and a node that fails in another way each round."""
    done = run_folder(APPS / "app-odd", MEMBERS, tmp_path, ("faults=none raise metrics no-weight heavy none",), quorum=3, w_max=1024)
    trained = [r.seq for r in done.requests if r.instruction.message_type == "train"]
    reasons = {seq: done.out[seq] for seq in trained if done.out[seq]}
    faulty = {m for out in reasons.values() for m in out}
    assert len(faulty) == 1
    said = [next(iter(out.values())) for out in reasons.values()]
    wanted = ("ValueError: no such data", "seen, shard, extra", "must be above 0", "exceeds w_max")
    assert len(said) == len(wanted) and all(part in why for part, why in zip(wanted, said, strict=True)), said
    seen = [{m: r.result.metrics["seen"] for m, r in done.replies[seq].items()} for seq in trained]
    assert seen[-1] == {m: 4 if m in faulty else 6 for m in MEMBERS}, (
        "a training that raised, or whose reply the worker refused, leaves the state as it was"
    )
