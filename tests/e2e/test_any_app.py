"""Apps as they are on a consortium of processes: the PyTorch shape under a plan-named Adam across a lost node, the numpy shape with
nothing named, and an app that does everything else. tests/integration/test_template_apps.py plays more of them in one process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.founded import Founded

from dure.apps import pack_app
from dure_coordinator.admin_client import call
from dure_demo.consortium import Consortium

APPS = Path(__file__).parents[1] / "apps"
MEMBERS = ("ara", "bora", "chan", "dan")
LIMIT_S = 120.0


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    made = Founded(tmp_path_factory.mktemp("any") / "c", MEMBERS)
    made.found(edit_charter=lambda text: text.replace("allow_unrecomputed_bases = false", "allow_unrecomputed_bases = true"))
    made.serve()
    try:
        for member in MEMBERS:
            made.start_node(member)
        yield made
    finally:
        made.stop()


def start(consortium: Consortium, app: str, step: str, *sets: str, **deadlines: int) -> str:
    """A run that every operator allows."""
    packed = pack_app(APPS / app)
    wanted = {"app_sha256": packed.digest.hex(), "set": list(sets), "outer_step": step, "deadlines": deadlines}
    found = call(consortium.dir_of("coordinator"), "run-start", wanted, packed.archive, timeout_s=30.0)
    for member in MEMBERS:
        consortium.allow(member, found["plan_digest"])
    return str(found["run"])


def wait(consortium: Consortium, run: str, until: Callable[[Any], bool] = lambda shown: shown["state"] == "finished") -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not until(shown := consortium.run_show(run)):
        assert shown["state"] == "running" and time.monotonic() < deadline, json.dumps(shown, indent=1)
        time.sleep(0.2)
    return shown


def model(consortium: Consortium, run: str) -> dict[str, np.ndarray]:
    out = consortium.root / f"model-{run[:12]}"
    consortium.export(run, out)
    return load_file(out / "model.safetensors")


@pytest.mark.deep
@pytest.mark.timeout(240)
def test_the_pytorch_app_under_a_plan_named_adam_goes_on_with_a_node_that_missed_an_exchange(consortium):
    """Every member makes the next base and both moments itself; the one that was away fetches them and makes the same ones again."""
    step = "adam,lr=0.02,beta1=0.9,beta2=0.99,eps=1e-3"
    run = start(consortium, "app-torch", step, "fraction-evaluate=1.0", "num-server-rounds=4")
    wait(consortium, run, lambda s: s["exchanges_closed"] >= 1)
    consortium.kill("chan")
    missed = consortium.run_show(run)["exchanges_closed"] + 2  # at least one exchange begins and ends without it
    wait(consortium, run, lambda s: s["exchanges_closed"] >= missed)
    consortium.start_node("chan")
    shown = wait(consortium, run)
    counted = {m: facts["exchanges_counted"] for m, facts in shown["members"].items()}
    assert counted["ara"] == counted["bora"] == counted["dan"] == 8 and 0 < counted["chan"] < 8
    assert shown["lineage"] == "recomputed by every member (adam)"
    assert shown["metrics"]["eval_acc"] > 0.5
    tensors = model(consortium, run)
    assert tensors["norm.num_batches_tracked"].dtype == np.int64 and tensors["norm.num_batches_tracked"] == 4 * 12
    assert (tensors["norm.running_var"] > 0).all()


@pytest.mark.deep
@pytest.mark.timeout(120)
def test_the_numpy_app_runs_as_it_is_where_the_charter_lets_the_serverapp_choose_the_bases(consortium):
    run = start(consortium, "app-numpy", "none")
    shown = wait(consortium, run)
    assert shown["dropouts"] == [] and shown["exchanges_closed"] == 6
    assert {"random_metric[0/3]", "random_metric[1/3]", "random_metric[2/3]"} <= set(shown["metrics"])
    array = model(consortium, run)["0"]
    assert array.dtype == np.float64 and 1 < array.item() < 4


@pytest.mark.deep
@pytest.mark.timeout(240)
def test_an_app_that_fails_on_one_node_in_every_way_goes_on_with_the_others_and_each_failure_is_named(consortium):
    """Queries, values per node, bfloat16, counts and state besides: the app's own ServerApp checks what comes of them."""
    run = start(consortium, "app-odd", "none", execute=12)
    shown = wait(consortium, run)
    said = [(d["member"], d["phase"], d["reason"]) for d in shown["dropouts"]]
    assert {member for member, _, _ in said} == {"dan"} and len(said) == 5, said
    wanted = ("ValueError", "metrics", "num-examples", "num-examples", "app: not done in time")
    assert all(word in reason for (_, _, reason), word in zip(said, wanted, strict=True)), said
    status = consortium.dure("node", "status", "--dir", consortium.dir_of("dan/node"))
    assert all(word in status for word in ("above 0", "exceeds w_max = 1024")), status
    assert "the task took longer than" in status, status
