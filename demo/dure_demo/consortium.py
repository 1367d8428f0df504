"""A consortium on one machine: the real commands, one process per role, everything under one folder.

The demo, the end-to-end tests and a curious reader use the same steps; nothing here reaches into the product.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dure.errors import DureError
from dure_coordinator.admin_client import call

COORDINATOR_SETTINGS = "gone_grace_s = 3.0  # nobody restarts a killed node by itself here: no use in waiting ten seconds\n"
START_DEADLINE_S = 60.0
"""How long a coordinator may take until it says which ports it serves; torch is not imported there."""


class StepFailed(DureError):
    """A command of the demo ended with an error; its last lines are in the message."""


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def dure_command() -> list[str]:
    """How to start `dure` with this very interpreter and environment."""
    return [sys.executable, "-m", "dure.cli"]


def node_environment() -> dict[str, str]:
    """The parent's environment, one thread per process: five members share this machine's cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


def output_of(done: subprocess.CompletedProcess[str], arguments: Sequence[str | Path], of: str = "dure") -> str:
    """What a command that ended printed.

    Raises:
        StepFailed: it exited non-zero; the message has the command and its last lines.
    """
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-6:])
        raise StepFailed(f"`{of} {' '.join(map(str, arguments))}` exited with {done.returncode}:\n{tail}")
    return done.stdout


@dataclass
class Consortium:
    """Members, coordinator and nodes as processes on loopback.

    Every role's state is under `root/<role>`; logs are under `root/logs`. `say` gets one line per step.
    """

    root: Path
    members: tuple[str, ...]
    say: Callable[[str], None] = lambda _line: None
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def dir_of(self, role: str) -> Path:
        return self.root / role

    def dure(self, *arguments: str | Path, timeout_s: float = 30.0) -> str:
        """Run one `dure` command to its end and return what it printed.

        Raises:
            StepFailed: it exited non-zero; the message has the command and its last lines.
        """
        command, env = [*dure_command(), *map(str, arguments)], {**node_environment(), "XDG_STATE_HOME": str(self.root / "state")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=env, check=False)
        return output_of(done, arguments)

    def found(self, label: str = "titan", edit_charter: Callable[[str], str] = lambda text: text) -> None:
        """Keys, charter, signatures and the consortium file: everything before the first process starts.

        `edit_charter` changes the text of charter.toml before it is proposed, as an administrator would in an editor.
        """
        if self.root.exists():
            shutil.rmtree(self.root)
        (self.root / "logs").mkdir(parents=True)
        hub = self.dir_of("coordinator")
        self.say(f"coordinator: own keys and CA, at 127.0.0.1:{self.port}")
        self.dure("coordinator", "init", "--name", label, "--advertise", f"127.0.0.1:{self.port}", "--dir", hub)
        (hub / "coordinator.toml").write_text(COORDINATOR_SETTINGS)
        joins = []
        for member in self.members:
            self.dure("member", "init", member, "--consortium", label, "--dir", self.dir_of(f"{member}/member"))
            joins.append(self.dir_of(f"{member}/member") / f"{member}.join.json")
        self.say(f"members: {', '.join(self.members)} made their own keys")
        self.dure("charter", "draft", *joins, "--dir", hub)
        draft = hub / "charter.toml"
        draft.write_text(edit_charter(draft.read_text()))
        self.dure("charter", "propose", "--dir", hub)
        root_file = hub / "1.root.json"
        for member in self.members:
            self.dure("member", "sign", root_file, "--yes", "--dir", self.dir_of(f"{member}/member"))
        signatures = sorted(self.root.glob("**/1.root.*.sig"))
        self.dure("charter", "publish", *signatures, "--dir", hub)
        self.say(f"charter: version 1, signed by {len(signatures)} members")
        for index, member in enumerate(self.members):
            node = self.dir_of(f"{member}/node")
            self.dure("node", "init", "--consortium", hub / "consortium.json", "--member", self.dir_of(f"{member}/member"), "--dir", node)
            self.configure(member, {"partition-id": str(index), "num-partitions": str(len(self.members))})

    def configure(self, member: str, values: Mapping[str, str]) -> None:
        """Set site-only settings of a member's node."""
        pairs = [f"{key}={value}" for key, value in values.items()]
        self.dure("node", "config", "set", *pairs, "--dir", self.dir_of(f"{member}/node"))

    def _spawn(self, role: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
        log = (self.root / "logs" / f"{role}.log").open("ab")
        with log:
            self.processes[role] = subprocess.Popen(
                [*dure_command(), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**node_environment(), **(environment or {})},
                start_new_session=True,
            )

    def serve(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the coordinator, with these variables besides the parent's, and wait until it answers its administrator."""
        hub = self.dir_of("coordinator")
        self._spawn("coordinator", "coordinator", "serve", "--dir", hub, environment=environment)
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                self.dure("coordinator", "status", "--json", "--dir", hub)
                return
            except StepFailed as failed:
                if self.processes["coordinator"].poll() is not None or time.monotonic() > deadline:
                    raise StepFailed(f"the coordinator did not start: {self.log_tail('coordinator')}") from failed
                time.sleep(0.3)

    def start_node(self, member: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a member's node, with these variables besides the parent's; it dials out and waits for runs."""
        self._spawn(member, "node", "run", "--dir", self.dir_of(f"{member}/node"), environment=environment)

    def kill(self, role: str) -> None:
        """SIGKILL a role's whole process group, its worker included: a power cut."""
        process = self.processes.pop(role)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log_tail(self, role: str, lines: int = 5) -> str:
        """The last lines of a role's log."""
        path = self.root / "logs" / f"{role}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"

    def run_start(
        self,
        app: Path,
        *,
        rounds: int,
        settings: Mapping[str, str],
        outer_step: str | None = None,
        deadlines: Mapping[str, int] | None = None,
    ) -> tuple[str, str]:
        """Plan and start a run; returns (run id, plan digest), both hex. Deadlines are in seconds, by phase."""
        chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        if outer_step is not None:
            chosen += ["--outer-step", outer_step]
        chosen += [part for phase, limit_s in (deadlines or {}).items() for part in ("--deadline", f"{phase}={limit_s}")]
        hub = self.dir_of("coordinator")
        printed = self.dure("run", "start", app, "--rounds", str(rounds), *chosen, "--json", "--dir", hub)
        facts = json.loads(printed.strip().splitlines()[-1])
        return facts["run"], facts["plan_digest"]

    def allow(self, member: str, plan_digest: str) -> None:
        """A member's operator allows the plan."""
        self.dure("node", "allow", plan_digest, "--yes", "--dir", self.dir_of(f"{member}/node"))

    def run_show(self, run: str) -> dict[str, object]:
        """What `dure run show RUN --json` prints; asked on the admin socket, without a new process each time."""
        return call(self.dir_of("coordinator"), "run-show", {"run": run}, timeout_s=30.0)

    def export(self, run: str, out: Path, round_number: int | None = None) -> None:
        """The run's newest model as safetensors, or that after a round; 0: its first weights."""
        which = () if round_number is None else ("--round", str(round_number))
        self.dure("run", "export", run, *which, "--out", out, "--dir", self.dir_of("coordinator"))

    def stop(self) -> None:
        """SIGTERM everybody, then SIGKILL whoever is left after ten seconds."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 10.0
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.processes.clear()
