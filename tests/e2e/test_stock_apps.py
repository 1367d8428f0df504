"""A stock Flower app on real processes: with and without a plan-named step, and on a node where it goes wrong."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.echo_app import ADDED, echo_app
from support.founded import Founded

from dure.model.content import flower_run_id

MEMBERS = ("ara", "bora", "chan", "dan")
LIMIT_S = 90.0
MEAN = ADDED * np.mean([1, 2, 3, 4])


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    """Four members whose charter lets a ServerApp choose the bases; one of them may drop out."""
    made = Founded(tmp_path_factory.mktemp("stock") / "c", MEMBERS)
    made.found(edit_charter=lambda text: text.replace("allow_unrecomputed_bases = false", "allow_unrecomputed_bases = true"))
    made.serve()
    try:
        for member in MEMBERS:
            made.start_node(member)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return echo_app(tmp_path_factory.mktemp("apps") / "echo")


def run_to_end(consortium, app, outer_step, rounds=2, **settings):
    """A run that every operator allows, when it is over."""
    chosen = {key: str(value) for key, value in settings.items()}
    run, plan = consortium.run_start(app, rounds=rounds, settings=chosen, outer_step=outer_step)
    for member in MEMBERS:
        consortium.allow(member, plan)
    deadline = time.monotonic() + LIMIT_S
    while (shown := consortium.run_show(run))["state"] == "running":
        assert time.monotonic() < deadline, json.dumps(shown, indent=1)
        time.sleep(0.2)
    assert shown["state"] == "finished", shown["reason"]
    return shown


def moved(consortium, run):
    """How far each weight of the exported model is from the first one."""
    out = consortium.root / f"model-{run[:12]}"
    consortium.export(run, out)
    found = load_file(out / "model.safetensors")
    assert {found["big"].dtype, found["small"].dtype} == {np.dtype(np.float32)}
    first = np.random.default_rng(flower_run_id(bytes.fromhex(run))).standard_normal(found["big"].size, np.float32)
    return found["big"] - first, found["small"]


def gave(consortium, run, member="dan"):
    printed = consortium.dure("node", "gave", "--json", "--dir", consortium.dir_of(f"{member}/node"))
    return [row for row in json.loads(printed)["exchanges"] if row["run"] == run]


@pytest.mark.timeout(240)
def test_fedavg_gives_the_same_model_with_a_named_step_and_without_where_every_base_is_shipped(consortium, app):
    """Without a named step what the ServerApp makes next travels in full every round, and the lineage says who vouches for it."""
    D = 100_000
    named = run_to_end(consortium, app, "average", rounds=3, elements=D)
    free = run_to_end(consortium, app, "none", rounds=3, elements=D)
    for shown in (named, free):
        big, small = moved(consortium, shown["run"])
        assert np.abs(big - 3 * MEAN).max() < 1e-4 and np.abs(small - 3 * MEAN).max() < 1e-4
    received = {step: shown["members"]["dan"]["bytes_down"] for step, shown in (("named", named), ("free", free))}
    sums = 2 * (2 * D)  # of the first two exchanges; the last one's comes after the last usage statement
    assert 4 * D + sums < received["named"] < 4 * D + sums + 100_000
    assert 3 * 4 * D + sums < received["free"] < 3 * 4 * D + sums + 100_000
    assert named["lineage"] == "recomputed by every member (average)"
    assert free["lineage"] == "signed by the coordinator, not recomputed"
    text = consortium.dure("run", "show", free["run"], "--dir", consortium.dir_of("coordinator"))
    assert "bases: signed by the coordinator, not recomputed" in text
    assert {row["lineage"] for row in gave(consortium, free["run"])} == {"signed by the coordinator, not recomputed"}
    assert {row["lineage"] for row in gave(consortium, named["run"])} == {"recomputed by every member (average)"}
    assert audited(consortium, named["run"], "2") == ("proved", [False, True])
    assert audited(consortium, free["run"], "3") == ("signed", [False])


def audited(consortium, run, level):
    """What an auditor hears of the weights of a bundle exported with this run, and of which runs in it bases were recomputed."""
    out = consortium.root / f"bundle-{run[:12]}"
    where = ("--dir", consortium.dir_of("coordinator"))
    made = json.loads(consortium.dure("audit", "export", "--run", run, "--level", level, "--out", out, "--json", *where))
    ask = ("audit", "verify", out, "--root-sha256", made["root_sha256"], "--level", level, "--json")
    found = json.loads(consortium.dure(*ask, timeout_s=60))
    assert found["holds"], found
    shown = {row["claim"]: row["how"] for row in found["table"]}["the released weights follow from the sums"]
    return shown, sorted(one["recomputed"] for one in found["lineage"])


@pytest.mark.timeout(120)
def test_fedadam_makes_the_next_base_from_the_masked_mean(consortium, app):
    shown = run_to_end(consortium, app, "none", strategy="FedAdam")
    big, _ = moved(consortium, shown["run"])
    m = v = wanted = 0.0
    for number in (1, 2):
        m, v = 0.9 * m + 0.1 * MEAN, 0.99 * v + 0.01 * MEAN**2
        rate = 0.1 * np.sqrt(1 - 0.99 ** (number + 1.0)) / (1 - 0.9 ** (number + 1.0))
        wanted += rate * m / (np.sqrt(v) + 1e-3)
    assert np.abs(big - wanted).max() < 1e-3 * wanted


FAULTS = {
    "nan": "tensor 'big': holds nan at flat index 7; training diverged, look at its loss",
    "shape": "tensor 'small': is float32[3, 2], must be float32[2, 3]",
    "dtype": "tensor 'small': is float64[2, 3], must be float32[2, 3]",
    "renamed": "tensor 'small': is in the layout and not among the weights",
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_node_whose_update_cannot_be_summed_sits_out_and_says_why(consortium, app, fault):
    """The others go on without it, and nothing of it left the site."""
    shown = run_to_end(consortium, app, "average", rounds=1, fault=fault, faulty=3)
    reason = f"app: {FAULTS[fault]}"
    assert shown["dropouts"] == [{"exchange": 1, "member": "dan", "phase": "execute", "reason": reason}]
    big, _ = moved(consortium, shown["run"])
    assert np.abs(big - ADDED * 2).max() < 1e-4
    assert gave(consortium, shown["run"]) == []
    assert reason in consortium.dure("node", "status", "--dir", consortium.dir_of("dan/node"))


@pytest.mark.timeout(120)
def test_a_round_in_which_nobody_can_contribute_fails_with_the_reason_and_leaves_the_first_weights(consortium, app):
    shown = run_to_end(consortium, app, "average", rounds=1, fault="nan", faulty=-1)
    (exchange,) = shown["history"]
    assert exchange["status"] == "failed" and "members can contribute, 3 are needed" in exchange["reason"]
    big, _ = moved(consortium, shown["run"])
    assert not big.any()
