"""What an auditor installs: the wheel without extras, in an empty environment, does all of an auditor's work there."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.signed_log import SignedLog, signed_log
from support.small_release import small_release

from dure.audit.bundle import export
from dure.audit.places import log_of
from dure_demo.bare import NOT_FOR_AUDITORS, Bare, build_wheel, copy_dependencies, empty, install
from dure_demo.consortium import StepFailed

CORE = {"numpy", "cryptography", "pynacl", "blake3", "tuf", "securesystemslib", "protobuf", "typer", "click", "rich"}
ABSENT = (
    *NOT_FOR_AUDITORS, "alembic", "structlog", "prometheus_client", "safetensors", "pydantic_settings", "pydantic",
    "starlette", "uvicorn", "requests", "tlog_scales", "pytest", "sklearn", "tokenizers",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> SignedLog:
    """A published log in a coordinator's folder."""
    made = signed_log(tmp_path_factory.mktemp("log"), plans=40)
    made.publish(made.founded.hub.directory / "log")
    return made


def test_the_wheel_asks_for_the_core_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().partition("\n\n")[0].splitlines()
    every = [Requirement(line.removeprefix("Requires-Dist: ")) for line in lines if line.startswith("Requires-Dist: ")]
    unasked = [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert {r.name for r in unasked} == CORE
    assert not any(r.extras for r in unasked)


def does_an_auditors_work(bare: Bare, log: SignedLog, folder: Path) -> None:
    """Everything the README promises of the bare `dure`; a tampered twin of each thing fails."""
    assert {"dure", "numpy", "tuf"} <= set(bare.packages(without=ABSENT))
    assert "audit" in bare.run("--help").stdout
    hub = log.founded.hub.directory
    place = log_of(hub)
    export(place.tree(), place.head(), place.roots, folder / "good")
    good = bare.run("audit", "verify", folder / "good", "--root-sha256", log.pin.hex(), "--json")
    assert (good.returncode, json.loads(good.stdout)["holds"]) == (0, True), good.stderr
    bad = shutil.copytree(folder / "good", folder / "bad")
    path = next((bad / "log/tile/entries").glob("000.p/*"))
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    told = bare.run("audit", "verify", bad, "--root-sha256", log.pin.hex(), "--json")
    assert (told.returncode, json.loads(told.stdout)["holds"]) == (1, False), told.stderr
    released = small_release(folder / "release")
    held = bare.run("release", "verify", released.folder, "--root-sha256", released.pin.hex(), "--json")
    assert (held.returncode, json.loads(held.stdout)["holds"]) == (0, True), held.stderr
    wrong = bare.run("audit", "verify", folder / "good", "--root-sha256", "00" * 32)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (6, 1)
    assert bare.run("log", "prove", 7, "--out", folder / "mine.tlog-proof", "--dir", hub).returncode == 0
    proved = bare.run("log", "verify", folder / "mine.tlog-proof", "--entry", folder / "mine.json", "--dir", hub)
    assert proved.returncode == 0, proved.stderr
    (folder / "mine.json").write_bytes(log.entries[8])
    assert bare.run("log", "verify", folder / "mine.tlog-proof", "--entry", folder / "mine.json", "--dir", hub).returncode == 1
    other = bare.run("run", "list")
    assert other.returncode != 0 and "dure[coordinator]" in other.stderr and other.stderr.count("\n") == 1


def test_the_bare_wheel_does_an_auditors_work_with_its_core_dependencies_alone(wheel, log, tmp_path, monkeypatch):
    """As `make demo` makes it, offline; what our own environment could lend it does not reach it."""
    bare = empty(tmp_path / "bare")
    copy_dependencies(bare)
    install(bare, wheel)
    monkeypatch.setenv("PYTHONPATH", str(Path(pytest.__file__).parents[1]))
    does_an_auditors_work(bare, log, tmp_path)
    (bare.site / "torch.py").touch()
    with pytest.raises(StepFailed, match="no bare environment: torch can be imported"):
        bare.packages()


@pytest.mark.deep
@pytest.mark.timeout(600)
def test_the_bare_wheel_installs_from_an_index_and_does_an_auditors_work(wheel, log, tmp_path):
    """As an auditor types it. Needs a package index."""
    bare = empty(tmp_path / "bare", pip=True)
    command = [bare.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    if done.returncode and "No matching distribution" in done.stderr + done.stdout:
        pytest.skip("not run: no package index can be reached from here")
    assert done.returncode == 0, done.stderr
    listed = subprocess.run([bare.python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True)
    names = {row["name"].lower() for row in json.loads(listed.stdout)}
    assert not names & {"torch", "flwr", "sqlalchemy", "grpcio"}, names
    assert (bare.folder / "bin" / "dure").exists()
    does_an_auditors_work(bare, log, tmp_path)
