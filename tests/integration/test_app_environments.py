"""Environments as real virtual environments and workers: offline, whole or not at all, and apart from each other."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.tiny_wheels import make_wheel

from dure.environments import place
from dure.environments.lock import read_lock
from dure.environments.prepare import prepare
from dure.environments.runtime import command_in, lend
from dure.environments.wheels import lock_of, read_wheels
from dure.errors import BadInput
from dure.model.content import ConfigItem, Instruction
from dure_demo.consortium import dure_command
from dure_participant.worker_host import Task, WorkerHost

APP = """
import importlib.util, os, subprocess, sys
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
import helper

app, server = ClientApp(), ServerApp()

@app.query()
def query(message, context):
    def has(name): return int(importlib.util.find_spec(name) is not None)
    found = {"helper": helper.NUMBER, "only-one": has("only_one"), "torch": has("torch"), "pytest": has("pytest"), "dure": has("dure")}
    found["intruder"] = has("intruder")
    return Message(RecordDict({"metrics": MetricRecord({**found, "num-examples": 1})}), reply_to=message)
"""
PYPROJECT = """
[project]
name = "helped"
[tool.flwr.app.components]
serverapp = "mine:server"
clientapp = "mine:app"
"""


@pytest.fixture
def app(tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "mine.py").write_text(APP)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    return folder


def locked(wheels: Path):
    return read_lock("requirements.lock", lock_of(read_wheels(wheels)).encode())


async def answers(host: WorkerHost, folder: Path) -> dict[str, float]:
    instruction = Instruction("query", "", 600.0, (ConfigItem("config", {"what": "ask"}),)).to_json()
    result = await host.run(Task(5, 9, 1, instruction, out_path=folder / "out.f32", state_path=folder / "state"))
    await host.kill()
    assert result.status == "ok", result.error
    return dict(result.metrics)


@pytest.mark.timeout(240)
async def test_workers_of_two_environments_see_their_own_packages_and_nothing_of_each_other_or_of_the_agent(app, tmp_path, monkeypatch):
    intruder = tmp_path / "intruder"
    intruder.mkdir()
    (intruder / "intruder.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(intruder))
    found = []
    for number in (1, 2):
        wheels = tmp_path / f"wheels{number}"
        make_wheel(wheels, "helper", f"{number}.0", f"NUMBER = {number}")
        if number == 1:
            make_wheel(wheels, "only_one", "1.0", "")
        environment = prepare(tmp_path / "node", locked(wheels), wheels, ["helper"], lambda _line: None)
        host = WorkerHost(app, tmp_path / f"scratch{number}", launcher=command_in(environment))
        found.append(await answers(host, tmp_path))
    apart = {"torch": 0, "pytest": 0, "dure": 1, "intruder": 0}
    assert found == [{"helper": 1, "only-one": 1, **apart}, {"helper": 2, "only-one": 0, **apart}]
    assert len(place.all_prepared(tmp_path / "node")) == 2
    host = WorkerHost(app, tmp_path / "scratch3")
    assert "No module named 'helper'" in (await host.run(_any(tmp_path))).error
    await host.kill()


def _any(folder: Path) -> Task:
    instruction = Instruction("query", "", 600.0, (ConfigItem("config", {"what": "ask"}),)).to_json()
    return Task(5, 9, 1, instruction, out_path=folder / "out.f32", state_path=folder / "state")


def env_command(node: Path, *words: object) -> tuple[int, str, str]:
    """`dure node env …` as a person runs it: exit code, output, errors."""
    command = [*dure_command(), "node", "env", *map(str, words), "--dir", str(node)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": ""})
    return done.returncode, done.stdout, done.stderr


def left_behind(node: Path) -> list[str]:
    return sorted(p.name for p in (node / "envs").glob("*") if p.name != "lock") if (node / "envs").exists() else []


@pytest.mark.deep
@pytest.mark.timeout(240)
def test_the_command_says_what_is_wrong_in_one_line_and_leaves_nothing_behind(app, tmp_path):
    node, wheels = tmp_path / "node", tmp_path / "wheels"
    make_wheel(wheels, "other", "1.0", "")
    code, _, said = env_command(node, "prepare", app, "--wheels", wheels)
    assert code == 2 and said.count("\n") == 1 and "`import helper`: ModuleNotFoundError" in said
    assert left_behind(node) == []

    make_wheel(wheels, "helper", "1.0", "NUMBER = 1\nimport numpy.does_not_exist")
    code, _, said = env_command(node, "prepare", app, "--wheels", wheels)
    assert code == 2 and "No module named 'numpy.does_not_exist'" in said and left_behind(node) == []

    make_wheel(wheels, "helper", "1.0", "NUMBER = 1", requires=("missing-part>=2",))
    code, _, said = env_command(node, "prepare", app, "--wheels", wheels)
    assert code == 2 and said.count("\n") == 1 and "lacks missing-part" in said and left_behind(node) == []

    make_wheel(wheels, "helper", "1.0", "NUMBER = 1")
    (app / "requirements.lock").write_text(lock_of(read_wheels(wheels)))
    (wheels / "other-1.0-py3-none-any.whl").unlink()
    code, _, said = env_command(node, "prepare", app, "--wheels", wheels)
    assert code == 2 and said.count("\n") == 1 and "no wheel of other 1.0, which requirements.lock names" in said
    assert left_behind(node) == []

    make_wheel(wheels, "other", "1.0", "")
    code, out, said = env_command(node, "prepare", app, "--wheels", wheels, "--json")
    assert code == 0, said
    facts = json.loads(out)
    assert facts["packages"] == {"helper": "1.0", "other": "1.0"}
    assert env_command(node, "prepare", app, "--wheels", wheels)[1].splitlines()[0] == "prepared already"
    assert facts["env_sha256"][:16] in env_command(node, "list")[1]
    assert env_command(node, "remove", facts["env_sha256"][:12])[0] == 0
    assert left_behind(node) == []


def test_a_half_made_environment_of_a_crash_is_not_used_and_made_anew(tmp_path):
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "helper", "1.0", "NUMBER = 1")
    lock = locked(wheels)
    folder = place.folder_of(tmp_path / "node", lock.sha256)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("half")
    assert place.prepared(tmp_path / "node", lock.sha256) is None
    prepare(tmp_path / "node", lock, wheels, ["helper"], lambda _line: None)
    assert place.prepared(tmp_path / "node", lock.sha256) is not None


def test_a_package_of_the_lock_that_the_workers_own_code_cannot_use_is_named(tmp_path):
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "click", "1.0", "")
    with pytest.raises(BadInput, match=r"the lock has click 1\.0, but .* needs click.*; lock another version of click"):
        prepare(tmp_path / "node", locked(wheels), wheels, [], lambda _line: None)
    assert left_behind(tmp_path / "node") == []


def test_what_is_lent_is_dure_and_flwrs_closure_as_links(tmp_path):
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "helper", "1.0", "NUMBER = 1")
    environment = prepare(tmp_path / "node", locked(wheels), wheels, [], lambda _line: None)
    lent = lend(environment)
    assert lent == lend(environment)
    names = {path.name for path in lent.iterdir()}
    assert {"dure", "dure_participant", "flwr", "numpy", "grpc"} <= names
    assert not names & {"torch", "pytest", "sklearn", "safetensors"}
