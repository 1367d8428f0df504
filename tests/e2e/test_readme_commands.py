"""Every `dure` command in README.md is typed here as it stands there, in a scratch folder, in an order that makes sense.

A command the README gets and this story does not know fails the first test; so the story grows with the README.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import dure

from dure_demo.consortium import free_port, node_environment

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.S)
IN_TEXT = set(re.findall(r"`(dure [^`]+)`", re.sub(r"```.*?```", "", README, flags=re.S)))
LIMIT_S = 90.0

ELSEWHERE = {
    "dure demo --json": "the demo itself: tests/unit/demo, and `make demo`",
    "dure demo --app digits": "the demo itself",
    "dure run lock APP --wheels FOLDER": "tests/e2e/test_app_environment.py",
    "dure node env prepare PLAN --wheels FOLDER --dir krafton/node": "tests/e2e/test_app_environment.py",
    "dure coordinator env prepare APP --wheels FOLDER --dir hub": "tests/e2e/test_app_environment.py",
    "dure run start APP --from RUN [--round N]": "tests/e2e/test_start_from.py",
    "dure audit export --run RUN --level 3 --dir hub --out bundle": "tests/e2e/test_joint_seed.py",
    "dure audit lineage bundle --root-sha256 PIN --model model.safetensors": "tests/e2e/test_joint_seed.py",
    "dure audit verify bundle --root-sha256 PIN --level 3 --model release --html report.html": "tests/e2e/test_guide_auditor.py",
    "dure audit similarity MODEL REFERENCE…": "tests/unit/audit/test_similarity.py",
    "dure allocation draft --name N --by counted --dir hub": "tests/e2e/test_audit_bundle.py",
    "dure allocation sign FILE --node NODE": "tests/e2e/test_audit_bundle.py",
    "dure allocation publish FILE SIGNATURES": "tests/e2e/test_audit_bundle.py",
    "dure contributions --check N --dir hub": "tests/e2e/test_audit_bundle.py",
    "dure log contains --member ID": "tests/e2e/test_audit_bundle.py",
    "dure member leave": "tests/e2e/test_charter_in_force.py",
    "dure member replace-keys": "tests/e2e/test_charter_in_force.py",
    "dure coordinator replace-keys --dir hub": "tests/attacks/test_replaced_coordinator_keys.py",
    "dure member revoke node1 --reason stolen": "tests/attacks/test_revoked_node.py",
    "dure coordinator enter krafton.revocation.json": "tests/attacks/test_revoked_node.py",
    "dure data register FOLDER --name NAME --licence LICENCE --dir krafton/keys": "tests/unit/audit/test_data_commitments.py",
    "dure data list --dir krafton/keys": "tests/unit/audit/test_data_commitments.py",
    "dure data open NAME --challenge bundle --dir krafton/keys": "tests/unit/audit/test_data_commitments.py",
    "dure data verify NAME.opening.json --root-sha256 PIN --bundle bundle": "tests/unit/audit/test_data_commitments.py",
    "dure log serve --listen 7480": "tests/integration/test_log_over_http.py",
}
STORY = {
    "dure coordinator serve --dir hub",
    "dure node run --dir krafton/node",
    "dure run plan apps/digits --outer-step average --dir hub",
    "dure run start apps/digits --rounds 3 --outer-step average --dir hub",
    "dure node allow --list",
    "dure node allow DIGEST",
    "dure run list --dir hub",
    "dure run show RUN [--phases] --dir hub",
    "dure run watch RUN --dir hub",
    "dure run export RUN --out model --dir hub",
    "dure node gave",
    "dure node recompute RUN",
    "dure node config set recompute=always",
    "dure contributions [--run R] [--format csv] --dir hub",
    "dure run let-go RUN --dir hub",
    "dure run pause RUN --dir hub",
    "dure run resume RUN --dir hub",
    "dure run stop RUN --dir hub",
    'dure run abort RUN --reason "…" --dir hub',
    "dure audit export --dir krafton/node --out bundle",
    "dure audit verify bundle --root-sha256 PIN",
    "dure audit contributions bundle --root-sha256 PIN",
    "dure log show",
    "dure log tail",
    "dure log entry N",
    "dure log prove N --out mine.tlog-proof",
    "dure log verify mine.tlog-proof --entry mine.json",
    "dure log evidence",
    "dure release about > about.toml",
    "dure release create model --name titan-1.0 --out titan-1.0 --dir hub",
    "dure release sign titan-1.0 --node krafton/node --dir krafton/keys",
    "dure release publish titan-1.0 SIGNATURES --dir hub",
    "dure release show titan-1.0",
    "dure release verify titan-1.0 --root-sha256 PIN",
}


def test_every_command_of_the_readme_is_in_the_story_or_has_a_test_of_its_own():
    assert set(ELSEWHERE) | STORY == IN_TEXT
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("command", sorted(ELSEWHERE))
def test_what_is_tried_elsewhere_exists_with_the_options_the_readme_gives(command):
    words = [w.strip("[]") for w in command.split()]
    names = [w for w in words[1:] if re.fullmatch(r"[a-z-]+", w) and not w.startswith("-")]
    names = names[: 3 if "env" in names else 1 if names[0] == "demo" else 2]
    done = subprocess.run([sys.executable, "-m", "dure.cli", *names, "--help"], capture_output=True, text=True, timeout=60, check=True)
    for option in (w for w in words if w.startswith("--")):
        assert option in done.stdout, option


class Shell:
    """A terminal in a scratch folder, with `dure` on its PATH; what stays in the foreground gets a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, str(free_port())
        self.typed: set[str] = set()
        self.background: list[subprocess.Popen[bytes]] = []
        (folder / "apps").symlink_to(ROOT / "apps")
        (folder / "bin").mkdir()
        (folder / "bin" / "dure").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dure.cli "$@"\n')
        (folder / "bin" / "dure").chmod(0o755)
        self.env = {**node_environment(), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}

    def _sh(self, line: str) -> subprocess.CompletedProcess[str]:
        how = {"cwd": self.folder, "env": self.env, "capture_output": True, "text": True, "timeout": LIMIT_S}
        return subprocess.run(["sh", "-c", line], **how, check=False)

    def run(self, line: str) -> str:
        """One line as typed; its output."""
        line = line.replace(":7443", f":{self.port}")
        done = self._sh(line)
        assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout

    def readme(self, command: str, *more: str, **said: str) -> str:
        """A command of the README, its placeholders filled in, with more words at its end."""
        assert command in STORY
        self.typed.add(command)
        for name, value in said.items():
            command = re.sub(rf"\b{name}\b", value, command)
        return self.run(" ".join([re.sub(r"\[[^]]*\]", "", command), *more]))

    def stay(self, line: str) -> None:
        """A command that goes on until it is stopped."""
        self.typed.add(line)
        with (self.folder / f"log-{len(self.background)}").open("wb") as log:
            started = subprocess.Popen(shlex.split(line), cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True)
        self.background.append(started)

    def until(self, what: str, line: str, words: str) -> None:
        """Run a line again and again until its output has these words: no claim of the README's, so in this process."""
        deadline = time.monotonic() + LIMIT_S
        while words not in (ran := dure(*shlex.split(line)[1:])).out:
            assert time.monotonic() < deadline, (what, ran)
            time.sleep(0.2)

    def close(self) -> None:
        for process in self.background:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.background:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Shell(tmp_path)
    try:
        yield made
    finally:
        made.close()


def offered(shell: Shell, *more: str) -> str:
    """A run that nobody has allowed yet."""
    printed = shell.readme("dure run start apps/digits --rounds 3 --outer-step average --dir hub", *more)
    return re.search(r"^run ([0-9a-f]{64})$", printed, flags=re.M)[1]


def started(shell: Shell, *more: str) -> str:
    """A run that all three operators allowed."""
    run = offered(shell, *more)
    for member in ("krafton", "skt", "rebellions"):
        shell.until("the plan is offered", f"dure node allow --list --dir {member}/node", run)
        shell.readme("dure node allow DIGEST", "--yes", "--dir", f"{member}/node", DIGEST=run[:16])
    return run


@pytest.mark.timeout(480)
def test_the_readme_by_hand(shell):
    for block in BLOCKS:
        for line in block.strip().splitlines():
            shell.run(line)
    for member in ("skt", "rebellions"):
        shell.run(f"dure node init --consortium hub/consortium.json --member {member}/keys --dir {member}/node")
    shell.stay("dure coordinator serve --dir hub")
    shell.stay("dure node run --dir krafton/node")
    for member in ("skt", "rebellions"):
        shell.stay(f"dure node run --dir {member}/node")
    shell.until("everybody is connected", "dure coordinator status --dir hub", "connected: krafton, rebellions, skt of")
    assert "must finish an exchange" in shell.readme("dure run plan apps/digits --outer-step average --dir hub")
    _one_run(shell)
    _steering(shell)
    _auditing(shell)
    _releasing(shell)
    assert shell.typed >= STORY


def _one_run(shell: Shell) -> None:
    run = started(shell)
    shell.readme("dure node allow --list", "--dir krafton/node")
    assert run[:12] in shell.readme("dure run list --dir hub")
    assert run[:12] in shell.readme("dure run show RUN [--phases] --dir hub", "--phases", RUN=run[:12])
    assert "finished" in shell.readme("dure run watch RUN --dir hub", RUN=run[:12])
    shell.readme("dure run export RUN --out model --dir hub", RUN=run[:12])
    assert (shell.folder / "model" / "model.safetensors").stat().st_size > 1000
    assert "exchange 1: masked scales" in shell.readme("dure node gave", "--dir krafton/node")
    shell.readme("dure node recompute RUN", "--dir krafton/node", RUN=run[:12])
    shell.readme("dure node config set recompute=always", "--dir krafton/node")
    assert "krafton" in shell.readme("dure contributions [--run R] [--format csv] --dir hub", f"--run {run[:12]} --format csv")
    shell.readme("dure run let-go RUN --dir hub", RUN=run[:12])


def _steering(shell: Shell) -> None:
    long = started(shell, "--rounds 200")
    shell.readme("dure run pause RUN --dir hub", RUN=long[:12])
    shell.readme("dure run resume RUN --dir hub", RUN=long[:12])
    shell.readme("dure run stop RUN --dir hub", RUN=long[:12])
    shell.until("the run stops", f"dure run show {long[:12]} --dir hub --json", '"state": "finished"')
    given_up = offered(shell)
    shell.readme('dure run abort RUN --reason "…" --dir hub', RUN=given_up[:12])
    assert json.loads(shell.run(f"dure run show {given_up[:12]} --dir hub --json"))["state"] == "aborted"


def _auditing(shell: Shell) -> None:
    pin = json.loads((shell.folder / "hub" / "consortium.json").read_text())["charter_sha256"]
    shell.readme("dure log show", "--dir hub")
    shell.readme("dure log tail", "--dir hub")
    entry = shell.readme("dure log entry N", "--json --dir hub", N="0")
    assert json.loads(entry)
    shell.readme("dure log prove N --out mine.tlog-proof", "--dir hub", N="0")
    shell.readme("dure log verify mine.tlog-proof --entry mine.json", "--dir hub")
    shell.readme("dure log evidence", "--dir krafton/node")
    shell.readme("dure audit export --dir krafton/node --out bundle")
    assert "proved" in shell.readme("dure audit verify bundle --root-sha256 PIN", PIN=pin)
    assert "krafton" in shell.readme("dure audit contributions bundle --root-sha256 PIN", PIN=pin)


def _releasing(shell: Shell) -> None:
    pin = json.loads((shell.folder / "hub" / "consortium.json").read_text())["charter_sha256"]
    shell.readme("dure release about > about.toml")
    shell.readme("dure release create model --name titan-1.0 --out titan-1.0 --dir hub", "--about about.toml")
    size = json.loads((shell.folder / "titan-1.0" / "release.json").read_text())["log"]["size"]
    for member in ("krafton", "skt"):
        shell.until(f"{member} mirrored it", f"dure log show --json --dir {member}/node", f'"size": {size}')
    shell.readme("dure release sign titan-1.0 --node krafton/node --dir krafton/keys", "--yes")
    shell.run("dure release sign titan-1.0 --node skt/node --dir skt/keys --yes")
    signed = "krafton/keys/titan-1.0.release.krafton.sig skt/keys/titan-1.0.release.skt.sig"
    assert "published" in shell.readme("dure release publish titan-1.0 SIGNATURES --dir hub", SIGNATURES=signed)
    assert "titan-1.0" in shell.readme("dure release show titan-1.0")
    assert "the release holds" in shell.readme("dure release verify titan-1.0 --root-sha256 PIN", PIN=pin)
