"""What an auditor's laptop has: an environment with the wheel of this checkout, its core dependencies, and nothing else.

It is made offline: the wheel is built by the build backend, the dependencies are copies of those installed here, and pip then installs
the wheel without an index, so that it refuses where one is missing or of another version than the wheel asks for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from dure.errors import Unavailable
from dure_demo.consortium import StepFailed, output_of

ROOT = Path(__file__).resolve().parents[2]
NOT_FOR_AUDITORS = ("torch", "flwr", "sqlalchemy", "grpc")
"""What the two sides need and the bare `dure` must not."""
PROBE = """
import importlib.metadata, importlib.util, json, sys
there = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
print(json.dumps({"there": there, "packages": {d.name: d.version for d in importlib.metadata.distributions()}}))
"""


@dataclass(frozen=True)
class Bare:
    """A virtual environment, and how to run what is in it with nothing of this process's own."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        return self.folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    def run(self, *words: object, program: str = "dure", timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """A program of this environment; neither PYTHONPATH nor any other variable of ours reaches it."""
        clean = {"PATH": os.defpath, "HOME": str(self.folder), "LANG": "C.UTF-8"}
        command = [str(self.folder / "bin" / program), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=clean, cwd=self.folder, timeout=timeout_s, check=False)

    def dure(self, *words: str | Path, timeout_s: float = 120.0) -> str:
        """What `dure WORDS…` printed.

        Raises:
            StepFailed: it exited non-zero.
        """
        return output_of(self.run(*words, timeout_s=timeout_s), words)

    def packages(self, without: Sequence[str] = NOT_FOR_AUDITORS) -> dict[str, str]:
        """Every distribution in it, name and version.

        Raises:
            StepFailed: a module of `without` can be imported there.
        """
        found: dict[str, Any] = json.loads(output_of(self.run("-c", PROBE, *without, program="python"), ("-c", "…")))
        if found["there"]:
            raise StepFailed(f"{self.folder} is no bare environment: {', '.join(found['there'])} can be imported there")
        return dict(sorted(found["packages"].items(), key=lambda pair: pair[0].lower()))


def bare_environment(folder: Path) -> Bare:
    """The environment in `folder`, made anew only where the sources, a dependency or the interpreter changed. Some seconds, then none.

    Raises:
        Unavailable: a package that this takes is not installed here.
        StepFailed: the wheel could not be built or installed; the last lines are in the message.
    """
    stamp, of = folder / "made-of", _made_of()
    if not stamp.is_file() or stamp.read_text() != of:
        made = empty(folder)
        copy_dependencies(made)
        install(made, build_wheel(folder))
        stamp.write_text(of)
    return Bare(folder)


def empty(folder: Path, *, pip: bool = False) -> Bare:
    """A new environment of this interpreter, in place of whatever was there."""
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=pip).create(folder)
    return Bare(folder)


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout, made by the build backend itself."""
    if importlib.util.find_spec("hatchling") is None:
        raise Unavailable("hatchling, which builds the auditor's wheel, is not installed; `pip install dure[demo]`")
    _step("-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    (wheel,) = folder.glob("dure-*.whl")
    return wheel


def copy_dependencies(into: Bare) -> None:
    """The files of the core dependencies, and of theirs, as they are installed here."""
    for dist in _dependencies().values():
        for file in dist.files or ():
            source = Path(str(dist.locate_file(file)))
            if ".." not in file.parts and source.is_file():
                target = into.site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)  # with its time: compiled files stay good


def install(into: Bare, wheel: Path) -> None:
    """As `pip install` does, but from this file only: what the wheel asks for must be there already."""
    if importlib.util.find_spec("pip") is None:
        raise Unavailable("pip, which installs the auditor's wheel, is not in this environment; `python -m ensurepip`")
    _step("-m", "pip", "--python", into.python, "install", "-qq", "--disable-pip-version-check", "--no-index", "--no-compile", wheel)


def _step(*words: str | Path) -> None:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    output_of(done, words, of="python")


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _dependencies() -> dict[str, Distribution]:
    """The core dependencies and what they need in turn, by normalised name."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(line) for line in _project()["project"]["dependencies"]]
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            raise Unavailable(f"{wanted}, which the bare dure needs, is not installed here; `make setup`") from None
        extras = wanted.extras or {""}
        inner = [Requirement(line) for line in found[name].requires or ()]
        waiting += [r for r in inner if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)]
    return found


def _made_of() -> str:
    """Digest of everything the environment is made from."""
    facts = [sys.version, sys.executable, *(f"{name} {dist.version}" for name, dist in sorted(_dependencies().items()))]
    digest = hashlib.sha256("\n".join(facts).encode())
    for path in _sources():
        digest.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest() + "\n"


def _sources() -> Iterator[Path]:
    yield from (ROOT / "pyproject.toml", ROOT / "README.md")
    for package in _project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        yield from sorted(p for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
