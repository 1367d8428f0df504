"""What an operator's monitoring sees of the two daemons."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request

import pytest
from support.founded import Founded

from dure_demo.consortium import dure_command, free_port, node_environment

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    made = Founded(tmp_path_factory.mktemp("metrics") / "c", ("ara", "bora", "chan"))
    made.found()
    return made


def scrape(port: int) -> dict[str, float]:
    """{name{labels}: value} of one scrape."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and not line.startswith("#")}


def until(port: int, name: str, value: float) -> dict[str, float]:
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            found = scrape(port)
        except OSError:
            found = {}
        if found.get(name) == value:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


@pytest.mark.timeout(180)
def test_both_daemons_answer_scrapes_and_log_json_lines(consortium, tmp_path):
    hub, site = consortium.dir_of("coordinator"), consortium.dir_of("ara/node")
    hub_port, node_port = free_port(), free_port()
    commands = {
        "hub": ["coordinator", "serve", "--dir", str(hub), "--metrics", str(hub_port)],
        "node": ["node", "run", "--dir", str(site), "--metrics", str(node_port)],
    }
    logs = {name: (tmp_path / f"{name}.log").open("wb") for name in commands}
    running = [
        subprocess.Popen([*dure_command(), *words], stdout=logs[name], stderr=subprocess.STDOUT, env=node_environment())
        for name, words in commands.items()
    ]
    try:
        found = until(hub_port, 'dure_member_connected{member="ara"}', 1.0)
        assert found['dure_member_connected{member="bora"}'] == 0.0
        assert found['dure_runs{state="running"}'] == 0.0
        assert found["dure_charter_expires_timestamp_seconds"] > time.time()
        assert found["process_resident_memory_bytes"] > 1e6
        found = until(node_port, "dure_node_connected", 1.0)
        assert found["dure_node_certificate_expires_timestamp_seconds"] > time.time()
        taken = subprocess.run([*dure_command(), *commands["hub"]], capture_output=True, text=True, timeout=30, env=node_environment())
        assert taken.returncode != 0
        assert taken.stderr.count("\n") == 1, taken.stderr
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            assert process.wait(30) in (0, -signal.SIGTERM)
        for file in logs.values():
            file.close()
    events = [json.loads(line) for line in (tmp_path / "node.log").read_text().splitlines() if line.startswith("{")]
    assert "coordinator.connected" in [e["event"] for e in events]
    assert all(e["timestamp"].endswith("Z") and e["level"] for e in events)


def test_a_metrics_port_in_use_is_one_clear_line(consortium):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["node", "run", "--dir", str(consortium.dir_of("bora/node")), "--metrics", str(port)]
        done = subprocess.run([*dure_command(), *words], capture_output=True, text=True, timeout=60, env={**os.environ})
    assert done.returncode != 0
    assert f"--metrics {port}: address already in use" in done.stderr
    assert "Traceback" not in done.stderr
