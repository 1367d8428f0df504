"""The demo's last act: an auditor with the bare `dure` checks the history offline and recomputes the model; then one bit is flipped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dure.audit.places import log_of
from dure.errors import DureError, Unavailable
from dure_demo.bare import NOT_FOR_AUDITORS, Bare, bare_environment
from dure_demo.consortium import Consortium, StepFailed

MIRRORED_S = 20.0
"""How long the member's mirror may take to have what the coordinator has."""


def wait_for_mirror(consortium: Consortium, member: str) -> None:
    """Until this member's node knows the coordinator's newest cosigned head; both still run."""
    deadline = time.monotonic() + MIRRORED_S
    hub, node = consortium.dir_of("coordinator"), consortium.dir_of(f"{member}/node")
    while _size(node) < _size(hub):
        if time.monotonic() > deadline:
            raise Unavailable(f"{member}'s mirror did not catch up in {MIRRORED_S:.0f} s; logs are in {consortium.root / 'logs'}")
        time.sleep(0.2)


def _size(directory: Path) -> int:
    try:
        return log_of(directory).head().checkpoint.size
    except DureError:
        return 0  # no head there yet


def auditors_own(folder: Path, say: Callable[[str], None]) -> tuple[Bare, dict[str, Any]]:
    """An environment that has only the bare `dure`, kept in `folder`, and what is in it. Adds `audited_with`.

    Raises:
        DureError: it could not be made, or has what an auditor needs not have.
    """
    auditor = bare_environment(folder)
    packages = auditor.packages()
    absent = ", ".join(NOT_FOR_AUDITORS)
    say(f"the auditor's own environment: the wheel of this checkout and {len(packages) - 1} packages it needs; {absent} are not in it")
    return auditor, {"audited_with": {"python": str(auditor.python), "packages": packages, "absent": list(NOT_FOR_AUDITORS)}}


def audit(consortium: Consortium, auditor: Bare, run: str, model: Path, bundle: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The coordinator exports; the auditor verifies, recomputes the model, and is shown a bundle with one flipped bit. Adds what was found.

    Raises:
        StepFailed: the bundle does not verify, the model does not follow from it, or the flipped one verifies.
    """
    shutil.rmtree(bundle, ignore_errors=True)
    hub = consortium.dir_of("coordinator")
    told = json.loads(
        consortium.dure("audit", "export", "--run", run, "--level", "3", "--dir", hub, "--out", bundle, "--json", timeout_s=120)
    )
    pin = told["root_sha256"]
    say(f"{told['entries']} entries of the log and {told['parts']} parts of the run in {bundle}")
    report = bundle.with_name("report.html")
    checked = ("audit", "verify", bundle, "--root-sha256", pin, "--level", "3", "--model", model, "--html", report, "--json")
    found = json.loads(auditor.dure(*checked, timeout_s=300))
    for row in found["table"]:
        say(f"{row['how']:<14} {row['claim']}: {row['detail']}")
    lineage = found["lineage"][0]
    seed = f" from seed {lineage['seed'][:16]}…" if lineage["seed"] else ""
    say(f"recomputed     the model: first weights {lineage['first_weights']}{seed}, then {len(lineage['exchanges'])} sums, bit for bit")
    say(f"the report, in Korean and English: {report}")
    say(f"one flipped bit: {_flipped(auditor, bundle, pin)}")
    return {"bundle": str(bundle), "root_sha256": pin, "audit_holds": bool(found["holds"]), "lineage": lineage, "report": str(report)}


def _flipped(auditor: Bare, bundle: Path, pin: str) -> str:
    """What the audit says of the bundle with one bit of its first entries changed."""
    twin = bundle.with_name(f"{bundle.name}-flipped")
    shutil.rmtree(twin, ignore_errors=True)
    shutil.copytree(bundle, twin)
    path = next(p for p in sorted((twin / "log" / "tile" / "entries").rglob("*")) if p.is_file())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    try:
        done = auditor.run("audit", "verify", twin, "--root-sha256", pin, "--json")
    finally:
        shutil.rmtree(twin, ignore_errors=True)
    if done.returncode == 0:
        raise StepFailed("a bundle with one flipped bit verified: the audit is broken")
    if not done.stdout:  # nothing of it can be judged
        return done.stderr.strip().splitlines()[-1].removeprefix("error: ")
    told = json.loads(done.stdout)
    first = told["findings"][0]
    return f"{first['where']}: {first['why']} (and {len(told['findings']) - 1 + told['unlisted_findings']} things that follow from it)"
