"""What the README promises an auditor: the bare `dure`, no extras."""

from __future__ import annotations

import os
import subprocess
import sys

EXTRAS = ("torch", "flwr", "grpc", "sqlalchemy", "alembic", "structlog", "prometheus_client", "safetensors", "pydantic_settings")


def test_audit_and_log_commands_import_nothing_of_the_extras():
    """Each of them is made impossible to import, as in an environment with the bare wheel."""
    block = "; ".join(f"sys.modules[{name!r}] = None" for name in EXTRAS)
    modules = "dure.audit.cli, dure.audit.log_cli, dure.audit.contributions_cli, dure.cli"
    code = f"import sys; {block}; import {modules}; dure.cli.main(['audit', '--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ})
    assert (done.returncode, "verify" in done.stdout) == (0, True), done.stderr
