"""A run in an environment of its own: a node without it says so, the others go on, and it joins once it is prepared."""

from __future__ import annotations

import json
import shutil

import pytest
from e2e.stage import TALLY, Stage
from support.tiny_wheels import make_wheel

from dure.apps import app_lock, pack_app
from dure.environments.prepare import prepare
from dure.environments.wheels import lock_of, read_wheels
from dure.errors import DureError
from dure_coordinator.admin_client import call
from dure_participant.app import open_store

MEMBERS = ("ara", "bora", "chan", "dan", "eun")
LATE, SLEEPY = "dan", "bora"


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    made = Stage.set_up(tmp_path_factory.mktemp("envs"), MEMBERS)
    made.everybody_up()
    try:
        yield made
    finally:
        made.consortium.stop()


@pytest.fixture
def locked(tmp_path):
    """The tally app, which now needs `helper`, with its lock; and the wheels. One member sleeps in the third round."""
    app, wheels = tmp_path / "app", tmp_path / "wheels"
    shutil.copytree(TALLY, app, ignore=shutil.ignore_patterns("__pycache__"))
    client = app / "tally" / "client_app.py"
    sleeps = f"    time.sleep(helper.LONG if (partition, number) == ({MEMBERS.index(SLEEPY)}, 3) else 0)\n    weights = message"
    client.write_text(client.read_text().replace("    weights = message", sleeps).replace("import numpy", "import helper\nimport numpy"))
    make_wheel(wheels, "helper", "1.0", "LONG = 600")
    (app / "requirements.lock").write_text(lock_of(read_wheels(wheels)))
    return app, wheels


def begin(stage, app):
    packed = pack_app(app)
    arguments = {"app_sha256": packed.digest.hex(), "set": [], "rounds": 4, "outer_step": "average", "deadlines": {"execute": 12}}
    return call(stage.consortium.dir_of("coordinator"), "run-start", arguments, packed.archive, timeout_s=30.0)["run"]


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_a_node_without_the_environment_says_so_and_joins_later_and_a_sleeper_is_left_behind(stage, locked):
    app, wheels = locked
    with pytest.raises(DureError, match="is not prepared here; first: dure coordinator env prepare"):
        begin(stage, app)
    for role in ("coordinator", *(f"{m}/node" for m in MEMBERS if m != LATE)):
        prepare(stage.consortium.dir_of(role), app_lock(app), wheels, ["helper"], lambda _line: None)
    run = begin(stage, app)
    for member in MEMBERS:
        store = open_store(stage.consortium.dir_of(f"{member}/node"))
        store.decide(bytes.fromhex(run), allowed=True, reason="", how="test")
        store.close()
    shown = stage.wait(run, lambda s: s["exchanges_closed"] >= 1 or (s["state"] == "running" and s["exchange"] == 2))
    call(stage.consortium.dir_of("coordinator"), "run-pause", {"run": run, "reason": "while dan prepares"}, timeout_s=30.0)
    how = f"dure node env prepare {run[:16]} --wheels FOLDER"
    assert [(d["member"], d["phase"], how in d["reason"]) for d in shown["dropouts"]][:1] == [(LATE, "execute", True)]

    node = stage.consortium.dir_of(f"{LATE}/node")
    words = stage.consortium.dure("node", "allow", run[:12], "--yes", "--dir", node)
    assert "NOT prepared here; next: dure node env prepare" in words
    made = json.loads(stage.consortium.dure("node", "env", "prepare", run[:16], "--wheels", wheels, "--json", "--dir", node, timeout_s=120))
    assert made["env_sha256"] == app_lock(app).sha256.hex()
    assert "prepared here: helper 1.0" in stage.consortium.dure("node", "allow", run[:12], "--yes", "--dir", node)
    before = stage.consortium.run_show(run)
    call(stage.consortium.dir_of("coordinator"), "run-resume", {"run": run}, timeout_s=30.0)

    shown = stage.wait(run)
    late = [d["exchange"] for d in shown["dropouts"] if d["member"] == LATE]
    assert late == list(range(1, int(before["exchanges_closed"]) + 1))
    assert [d["exchange"] for d in shown["dropouts"] if d["member"] == SLEEPY] == [3]
    counted = {m: facts["exchanges_counted"] for m, facts in shown["members"].items()}
    assert counted == {**dict.fromkeys(MEMBERS, 4), LATE: 4 - len(late), SLEEPY: 3}
