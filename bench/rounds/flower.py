"""Flower's side: its SuperLink and SuperNodes as they ship, plain (insecure), the very same app folder, a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from dure_demo.consortium import free_port, node_environment
from measure import Watch
from rounds.played import APP, Played, Processes, rounds_of, wait_for_rounds

BIN = Path(sys.executable).parent
START_DEADLINE_S = 90.0


def role_of(_pid: int, command: str, parent: str) -> str:
    """How a process of Flower's is counted: SuperLink and SuperNodes start a SuperExec each, and that starts the apps."""
    if "flower-superlink" in command:
        return "coordinator"
    if "flower-supernode" in command:
        return "agent"
    below = {"coordinator": "exec-server", "agent": "exec-client", "exec-server": "serverapp", "exec-client": "worker"}
    return below.get(parent, parent if parent in ("serverapp", "worker") else "")


def play(params: int, nodes: int, rounds: int, work: Path) -> Played:
    """Play `rounds` rounds of the noise app on a SuperLink and `nodes` SuperNodes.

    Raises:
        RuntimeError: the run did not finish.
    """
    work.mkdir(parents=True)
    port, marks = free_port(), work / "marks.jsonl"
    home = work / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    with _running(work, home, port, nodes) as (processes, watch):
        values = f'params={params} nodes={nodes} num-server-rounds={rounds} marks="{marks.resolve()}"'
        _start_run(home, values)
        wait_for_rounds(marks, rounds, processes)
    return Played(rounds_of(marks, nodes), watch, os.cpu_count() or 1, {"peer_version": f"flwr {version('flwr')}, insecure"})


@contextmanager
def _running(work: Path, home: Path, port: int, nodes: int) -> Iterator[tuple[Processes, Watch]]:
    processes = Processes(work / "logs", _environment(home))
    with Watch(role_of, port) as watch:
        try:
            link = ["--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
            processes.start("superlink", [str(BIN / "flower-superlink"), "--insecure", *link])
            for i in range(nodes):
                own = ["--host", "127.0.0.1", "--port", str(free_port()), "--node-config", f"partition-id={i} num-partitions={nodes}"]
                processes.start(f"supernode-{i}", [str(BIN / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}", *own])
            yield processes, watch
        finally:
            processes.stop(watch)


def _environment(home: Path) -> dict[str, str]:
    return {**node_environment(), "FLWR_HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}


def _start_run(home: Path, values: str) -> None:
    """`flwr run`, until the SuperLink answers."""
    until = time.monotonic() + START_DEADLINE_S
    while True:
        command = [str(BIN / "flwr"), "run", str(APP), "bench", "--run-config", values]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(home), check=False)
        if done.returncode == 0 and "Successfully started run" in done.stdout:
            return
        if time.monotonic() > until:
            raise RuntimeError(f"flwr run did not start: {(done.stdout + done.stderr).strip()[-500:]}")
        time.sleep(1.0)
