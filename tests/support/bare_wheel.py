"""An empty environment with the wheel that is released and its core dependencies, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = "import sys; from dure.cli import main; sys.argv[0] = 'dure'; main()"


def build_wheel(folder: Path) -> Path:
    """The wheel of this tree, made by the build backend itself; nothing is fetched."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (wheel,) = folder.glob("dure-*.whl")
    return wheel


def core_requirements(wheel: Path) -> list[Requirement]:
    """What is installed with the wheel where no extra is asked for."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().partition("\n\n")[0].splitlines()
    found = [Requirement(line.removeprefix("Requires-Dist: ")) for line in lines if line.startswith("Requires-Dist: ")]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "lib" / version / "site-packages"

    def run(self, *words: object, code: str = LAUNCH) -> subprocess.CompletedProcess[str]:
        """`dure WORDS…`, or other code, with nothing of the surrounding environment."""
        clean = {"PATH": os.defpath, "HOME": str(self.folder), "LANG": "C.UTF-8"}
        command = [self.python, "-I", "-c", code, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=clean, cwd=self.folder, timeout=120, check=False)


def empty(folder: Path, *, pip: bool = False) -> Environment:
    """A new one, of the interpreter below this environment."""
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    subprocess.run([base, "-m", "venv", *(() if pip else ("--without-pip",)), folder], check=True, timeout=100)
    return Environment(folder)


def fill_offline(environment: Environment, wheel: Path) -> None:
    """The wheel unpacked, and links to the files of its core dependencies, and of theirs, as they are installed here."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(environment.site)
    for dist in _closure(core_requirements(wheel)).values():
        for file in dist.files or ():
            top = file.parts[0]
            there = environment.site / top
            if top != ".." and not there.exists():
                there.symlink_to(Path(str(dist.locate_file(top))))


def _closure(requirements: list[Requirement]) -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    waiting = list(requirements)
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError as error:
            raise AssertionError(f"{name} is not installed here ({sysconfig.get_path('purelib')})") from error
        extras = wanted.extras or {""}
        for line in found[name].requires or ():
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)
    return found
