"""What lies in deploy/ is well-formed and says only commands that exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from dure.cli import main
from dure_coordinator.settings import CoordinatorSettings

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
IMAGES = sorted((DEPLOY / "images").glob("*.Dockerfile"))


def parse(words: list[str]) -> None:
    """Parses `dure WORDS…` with the real commands without running anything; click.UsageError names what is wrong."""
    command: click.Command = main
    words = list(words)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"no command {name}"
        command = found
    command.make_context("dure", words)


def commands() -> dict[str, list[str]]:
    found = {}
    for unit in UNITS:
        line = re.search(r"^ExecStart=(.*)$", unit.read_text(), re.M)
        found[unit.name] = shlex.split(line[1])[1:]
    for image in IMAGES:
        for n, line in enumerate(re.findall(r"CMD (\[.*\])$", image.read_text(), re.M)):
            words = json.loads(line)
            found[f"{image.name}:{n}"] = words[1:] if words[0] == "dure" else words
    for name, service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].items():
        found[f"compose {name}"] = service["command"]
    return found


@pytest.mark.parametrize("where", commands())
def test_every_command_in_deploy_is_one_the_program_takes(where):
    parse(commands()[where])


def test_a_misspelt_option_would_be_noticed():
    with pytest.raises(click.UsageError, match="--metrix"):
        parse(["node", "run", "--metrix", "1"])


@pytest.mark.parametrize("image", IMAGES, ids=lambda p: p.name)
def test_dockerfiles_are_clean_for_hadolint(image):
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint if hadolint.exists() else "hadolint", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DL" not in done.stdout, done.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs Debian's systemd")
@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_units_verify_and_are_well_sandboxed(unit, tmp_path):
    """The program's path is replaced by one that exists here: verify looks whether it can be executed."""
    there = tmp_path / unit.name
    there.write_text(unit.read_text().replace("/opt/dure/bin/dure", shutil.which("true")))
    done = subprocess.run(["systemd-analyze", "verify", there], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", there], capture_output=True, text=True, check=False)
    exposure = float(re.search(r"exposure level for .*: ([0-9.]+)", done.stdout)[1])
    assert exposure <= 2.0


def test_a_node_that_systemd_starts_again_is_still_waited_for():
    """The grace was 3 s and RestartSec 5: every crash of a node cost its member the exchange."""
    pause_s = float(re.search(r"^RestartSec=(\d+)$", (DEPLOY / "systemd" / "dure-node.service").read_text(), re.M)[1])
    assert CoordinatorSettings().gone_grace_s >= pause_s + 3.0


def test_compose_builds_the_images_that_are_there_and_publishes_metrics_on_loopback_only():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for service in compose["services"].values():
        assert (DEPLOY / ".." / service["build"]["dockerfile"]).resolve() in [p.resolve() for p in IMAGES]
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:") or port == "7443:7443"


def test_the_coordinator_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import dure_coordinator.app, dure_coordinator.flower.process, dure_coordinator.run_cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
