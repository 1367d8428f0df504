"""What a command waits for before it does anything: nothing that only daemons and arithmetic need."""

from __future__ import annotations

import json
import subprocess
import sys

SLOW = ("numpy", "torch", "flwr", "sqlalchemy", "structlog", "asyncio", "packaging", "rich.progress")
PROBE = """
import importlib, json, sys
found = {}
for name in sys.argv[1].split(","):
    importlib.import_module(name)
    found[name] = [slow for slow in sys.argv[2].split(",") if slow in sys.modules]
print(json.dumps(found))
"""
QUICK = ("dure.cli", "dure.identity.cli", "dure.charter.cli", "dure_coordinator.cli", "dure_participant.cli")


def test_commands_of_members_operators_and_administrators_load_neither_arithmetic_nor_daemons():
    """Each costs 0.05 to 0.5 s of every `dure member …`, `charter …`, `node …` and `coordinator …`; a founding is twenty of them."""
    done = subprocess.run([sys.executable, "-c", PROBE, ",".join(QUICK), ",".join(SLOW)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {name: [] for name in QUICK}
