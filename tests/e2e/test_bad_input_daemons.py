"""What goes wrong around running processes: each says in one line what it is and what to do, and nothing is lost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from support.commands import Ran, files, founded, refused, shifted
from support.echo_app import echo_app
from support.founded import Founded

from dure.charter.root import LIFE
from dure_demo import consortium as consortium_module
from dure_demo.consortium import dure_command, node_environment

MEMBERS = ("ara", "bora", "chan")
LIMIT_S = 90.0
TEN_MINUTES = 600.0


def ran(command, *arguments):
    """A command that must end by itself."""
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=60, env=node_environment(), check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


def until(what, found):
    """Poll until `found()` is true, and return that."""
    deadline = time.monotonic() + LIMIT_S
    while not (value := found()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return value


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A coordinator that serves, and three founded nodes that do not run."""
    made = Founded(tmp_path_factory.mktemp("daemons") / "c", MEMBERS)
    made.found()
    made.serve()
    try:
        yield made
    finally:
        made.stop()


def test_a_port_in_use_is_named_and_the_folder_stays_as_it_was(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        hub = founded(tmp_path, MEMBERS, port=port)
        before = files(hub)
        said = ran(dure_command(), "coordinator", "serve", "--dir", hub)
    refused(said, f"port 127.0.0.1:{port}", "already in use", "--listen")
    assert before.items() <= files(hub).items()


def test_a_second_coordinator_and_a_second_node_on_one_folder_are_refused(served):
    hub, node = served.dir_of("coordinator"), served.dir_of("ara/node")
    refused(ran(dure_command(), "coordinator", "serve", "--dir", hub), "another process serves", "stop it first")
    served.start_node("ara")
    until("ara is connected", lambda: "ara" in json.loads(served.dure("coordinator", "status", "--json", "--dir", hub))["connected"])
    refused(ran(dure_command(), "node", "run", "--dir", node), "another process runs the node", "stop it first")


@pytest.mark.parametrize("off", ["ahead", "behind"])
def test_a_node_whose_clock_is_ten_minutes_off_says_so_and_ends(served, off, monkeypatch):
    node, command = served.dir_of("bora/node"), dure_command()
    if off == "ahead":
        command = shifted(TEN_MINUTES)
    else:  # seen from the node that is right: grpc would take its own deadlines from a clock that was set back
        served.kill("coordinator")
        monkeypatch.setattr(consortium_module, "dure_command", lambda: shifted(TEN_MINUTES))
        served.serve()
    said = ran(command, "node", "run", "--dir", node)
    line = next(line for line in said.err.splitlines() if line.startswith("error: "))
    assert said.code == 5 and "600 s apart" in line and "(NTP)" in line, said
    monkeypatch.undo()
    assert "600 s apart" in served.dure("node", "status", "--dir", node)
    if off == "behind":
        served.kill("coordinator")
        served.serve()


def test_a_coordinator_whose_clock_is_behind_its_own_folder_does_not_serve(tmp_path):
    said = ran(shifted(-TEN_MINUTES), "coordinator", "serve", "--dir", founded(tmp_path, MEMBERS))
    refused(said, "this machine's clock is", "before", "set it (NTP)")


def broken_app(folder: Path, *, old: str, new: str) -> Path:
    app = echo_app(folder)
    (app / "pyproject.toml").write_text((app / "pyproject.toml").read_text().replace(old, new))
    return app


def test_a_wrong_app_folder_is_named_and_starts_nothing(served, tmp_path):
    hub = served.dir_of("coordinator")
    (tmp_path / "empty").mkdir()
    flwr = broken_app(tmp_path / "a", old="[tool.flwr.app]", new="[tool.flwr.ap]")
    flwr.joinpath("pyproject.toml").write_text("[project]\nname = 'x'\n")
    module = broken_app(tmp_path / "b", old="echo.client_app:app", new="echo.client:app")
    for app, *words in (
        (tmp_path / "gone", "gone is not a folder", "pyproject.toml"),
        (tmp_path / "empty", "empty has no pyproject.toml", "[tool.flwr.app]"),
        (flwr, "pyproject.toml has no [tool.flwr.app]", "flwr new"),
        (module, "no module echo.client in", "echo/client.py"),
    ):
        refused(ran(dure_command(), "run", "start", app, "--outer-step", "average", "--dir", hub), *words)
    refused(ran(dure_command(), "run", "start", echo_app(tmp_path / "c"), "--dir", hub), "allow_unrecomputed_bases", "--outer-step average")
    bad_step = ("run", "start", tmp_path / "c", "--outer-step", "nesterov,lr=fast,momentum=0.5", "--dir", hub)
    refused(ran(dure_command(), *bad_step), "--outer-step nesterov,lr=fast", "lr: must be a decimal", "write nesterov,lr=0.8,momentum=0.5")
    assert json.loads(served.dure("run", "list", "--json", "--dir", hub))["runs"] == []


# -- a run while something is wrong ---------------------------------------------------------------------------------------


def begin(made, app, rounds=2, **settings):
    chosen = {key: str(value) for key, value in settings.items()}
    return made.run_start(app, rounds=rounds, settings=chosen, outer_step="average")


def end_of(made, run):
    shown = until(f"run {run[:12]} ends", lambda: (s := made.run_show(run))["state"] != "running" and s)
    assert shown["state"] == "finished", shown["reason"]
    return shown


@pytest.mark.timeout(180)
@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted over the spools, which takes root")
def test_a_disk_that_fills_up_during_a_spool_is_said_and_the_run_goes_on_once_there_is_room(tmp_path):
    made = Founded(tmp_path / "c", MEMBERS)
    made.found()
    spools = made.dir_of("coordinator") / "spools"
    spools.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(spools)], check=True)
    try:
        made.serve()
        for member in MEMBERS:
            made.start_node(member)
        run, plan = begin(made, echo_app(tmp_path / "app"), elements=500_000)  # three uploads of 1 MB
        for member in MEMBERS:
            made.allow(member, plan)
        full = until("the full disk is said", lambda: made.run_show(run)["trouble"])
        assert "no space left" in full and "free some" in full
        assert "no space left" in made.dure("coordinator", "status", "--dir", made.dir_of("coordinator"))
        assert made.run_show(run)["state"] == "running"
        subprocess.run(["mount", "-o", "remount,size=32m", str(spools)], check=True)
        shown = end_of(made, run)
        assert shown["dropouts"] == [] and shown["trouble"] == ""
        assert {facts["exchanges_counted"] for facts in shown["members"].values()} == {2}
    finally:
        made.stop()
        subprocess.run(["umount", "-l", str(spools)], check=True)


@pytest.mark.deep
@pytest.mark.timeout(240)
def test_an_expired_charter_blocks_new_runs_and_approvals_and_none_that_began(tmp_path, monkeypatch):
    """The charter lives for another hour; then every clock goes on by two, in the middle of a run."""
    made = Founded(tmp_path / "c", MEMBERS)
    hub, app = made.dir_of("coordinator"), echo_app(tmp_path / "app")
    monkeypatch.setattr(made, "dure", proposing(made.dure, shifted(3600.0 - LIFE.total_seconds())))
    made.found()
    try:
        made.serve()
        for member in MEMBERS:
            made.start_node(member)
        began, plan = begin(made, app)
        for member in MEMBERS[:2]:
            made.allow(member, plan)
        waiting, waiting_plan = begin(made, app)
        offered = ("node", "allow", "--list", "--dir", made.dir_of("chan/node"))
        until("the plan was offered", lambda: waiting in made.dure(*offered))
        made.allow("chan", plan)
        end_of(made, began)
        late, late_plan = begin(made, app, rounds=12)
        for member in MEMBERS:
            made.allow(member, late_plan)
        until("the run began", lambda: made.run_show(late)["run_phase"] != "approving")
        made.stop()
        monkeypatch.setattr(consortium_module, "dure_command", lambda: shifted(7200.0))
        made.serve()
        assert made.run_show(late)["state"] == "running"
        starting = ("run", "start", app, "--outer-step", "average", "--dir", hub)
        refused(ran(shifted(7200.0), *starting), "charter version 1 has expired", "dure charter propose")
        allowing = ("node", "allow", waiting_plan, "--yes", "--dir", made.dir_of("ara/node"))
        refused(ran(shifted(7200.0), *allowing), "charter version 1 has expired")
        for member in MEMBERS:
            made.start_node(member)
        end_of(made, late)
    finally:
        made.stop()


def proposing(dure, command):
    """`dure`, but for `charter propose`, which is typed on a machine with another clock."""

    def run(*arguments, **how):
        if arguments[:2] == ("charter", "propose"):
            done = ran(command, *arguments)
            assert done.code == 0, done.err
            return done.out
        return dure(*arguments, **how)

    return run
