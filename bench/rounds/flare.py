"""NVIDIA FLARE's side: a POC deployment over gRPC with mutual TLS, its own FedAvg, clients that return base + noise in their job process.

FLARE lives in an environment of its own under .bench/ (made here, never in Dure's). What `nvflare poc start` starts in the background is
started here as children, so that they can be watched: `sub_start.sh --once` of every participant's startup kit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dure_demo.consortium import free_port, node_environment
from measure import ROOT, Watch
from rounds.played import APP, Played, Processes, rounds_of, wait_for_rounds

VERSION = "2.9.0"
PLACE = ROOT / ".bench" / f"nvflare-{VERSION}"
JOB = Path(__file__).resolve().parents[1] / "flare_noise"
INSTALL_DEADLINE_S = 600.0
START_DEADLINE_S = 90.0


class NotHere(RuntimeError):
    """FLARE cannot be installed on this machine; the message says why."""


def role_of(_pid: int, command: str, parent: str) -> str:
    """How a process of FLARE's is counted: parents of server and sites, and a job process of each."""
    if "server.runner_process" in command:
        return "serverapp"
    if "client.worker_process" in command:
        return "worker"
    if "server.server_train" in command or "/server/startup" in command:
        return "coordinator"
    return "agent" if "client.client_train" in command or "/startup/" in command else parent if parent != "bench" else ""


def ensure(say: Callable[[str], None] = lambda _line: None) -> Path:
    """FLARE's environment, made if it is not there.

    Raises:
        NotHere: with pip's last line.
    """
    done = PLACE / ".installed"
    if not done.exists():
        say(f"making {PLACE.relative_to(ROOT)} for the peer: nvflare {VERSION}, about a minute")
        shutil.rmtree(PLACE, ignore_errors=True)
        base = getattr(sys, "_base_executable", sys.executable)
        for command in ([base, "-m", "venv", str(PLACE)], [str(PLACE / "bin" / "pip"), "install", "-qq", f"nvflare=={VERSION}"]):
            try:
                ended = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_DEADLINE_S, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise NotHere(f"nvflare {VERSION} could not be installed: {error}") from error
            if ended.returncode:
                last = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()][-1:]
                raise NotHere(f"nvflare {VERSION} could not be installed: {' '.join(last)}")
        done.touch()
    return PLACE


def play(params: int, nodes: int, rounds: int, work: Path) -> Played:
    """Play `rounds` rounds on a FLARE server and `nodes` sites.

    Raises:
        NotHere: FLARE is not installed and cannot be.
        RuntimeError: the job did not finish.
    """
    ensure()
    work.mkdir(parents=True)
    port, marks = free_port(), (work / "marks.jsonl").resolve()
    kits = _provision(work, nodes, port)
    job = _job(work, params, nodes, rounds, marks)
    with _running(work, kits, nodes, port) as (processes, watch):
        _submit(work, kits / "admin@nvidia.com", job)
        wait_for_rounds(marks, rounds, processes)
    return Played(rounds_of(marks, nodes), watch, os.cpu_count() or 1, {"peer_version": f"nvflare {VERSION}, POC, gRPC, mutual TLS"})


def _environment(work: Path) -> dict[str, str]:
    path = f"{PLACE / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    own = {"HOME": str(work / "home"), "NVFLARE_POC_WORKSPACE": str(work / "poc"), "PATH": path, "PYTHONPATH": ""}
    return {**node_environment(), **own}


def _call(work: Path, *command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(work), cwd=cwd, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` exited with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


PROJECT = """api_version: 3
name: bench
description: noise, over gRPC
participants:
  - {{name: server, type: server, org: bench, fed_learn_port: {port}, default_host: localhost}}
  - {{name: admin@nvidia.com, type: admin, org: bench, role: project_admin}}
{sites}
builders:
  - path: nvflare.lighter.impl.workspace.WorkspaceBuilder
    args: {{template_file: [master_template.yml]}}
  - path: nvflare.lighter.impl.static_file.StaticFileBuilder
    args: {{config_folder: config, scheme: grpc}}
  - path: nvflare.lighter.impl.cert.CertBuilder
  - path: nvflare.lighter.impl.signature.SignatureBuilder
"""
"""What `nvflare poc prepare` writes by itself, but for the scheme: 2.9 would take HTTP."""


def _provision(work: Path, nodes: int, port: int) -> Path:
    (work / "home").mkdir()
    project = work / "project.yml"
    sites = "\n".join(f"  - {{name: site-{i + 1}, type: client, org: bench}}" for i in range(nodes))
    project.write_text(PROJECT.format(port=port, sites=sites))
    _call(work, str(PLACE / "bin" / "nvflare"), "poc", "prepare", "-i", str(project), "--force")
    return work / "poc" / "bench" / "prod_00"


def _job(work: Path, params: int, nodes: int, rounds: int, marks: Path) -> Path:
    code = work / "code"
    shutil.copytree(JOB, code, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(APP / "noise" / "task.py", code)
    numbers = (str(params), str(nodes), str(rounds))
    _call(work, str(PLACE / "bin" / "python"), "make_job.py", str(work / "jobs"), *numbers, str(marks), cwd=code)
    return work / "jobs" / "noise"


@contextmanager
def _running(work: Path, kits: Path, nodes: int, port: int) -> Iterator[tuple[Processes, Watch]]:
    processes = Processes(work / "logs", _environment(work))
    names: Sequence[str] = ("server", *(f"site-{i + 1}" for i in range(nodes)))
    with Watch(role_of, port) as watch:
        try:
            for name in names:
                processes.start(name, ["bash", str(kits / name / "startup" / "sub_start.sh"), "--once"])
            yield processes, watch
        finally:
            processes.stop(watch)


def _submit(work: Path, admin: Path, job: Path) -> None:
    """`nvflare job submit`, until the server answers."""
    until = time.monotonic() + START_DEADLINE_S
    while True:
        try:
            _call(work, str(PLACE / "bin" / "nvflare"), "job", "submit", "-j", str(job), "--startup-kit", str(admin))
            return
        except (RuntimeError, subprocess.TimeoutExpired):
            if time.monotonic() > until:
                raise
            time.sleep(2.0)
