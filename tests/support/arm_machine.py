"""An aarch64 Python on this machine: Debian's own, with the core's aarch64 wheels, under QEMU's user-mode emulation.

Everything is downloaded and unpacked into one folder, by apt under a state of its own; nothing is installed, and nobody needs to be root.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).parents[2]
PYTHON = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
PLATFORMS = ("manylinux_2_34_aarch64", "manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


class NoArm(Exception):
    """Why there is none here."""


@dataclass(frozen=True)
class ArmMachine:
    """Runs Python on aarch64."""

    folder: Path

    def python(self, *arguments: object, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """One run of the interpreter to its end, with `dure`'s core and nothing else to import."""
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHOME": str(self.folder / "root/usr"),
            "PYTHONPATH": f"{self.folder / 'site'}:{REPO / 'core'}:{REPO / 'protos'}",
        }
        command = [self.folder / "qemu/usr/bin/qemu-aarch64-static", "-L", self.folder / "root", self.folder / "root/usr/bin/python3"]
        return subprocess.run(
            [*map(str, command), *map(str, arguments)], capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
        )


def arm_machine(folder: Path) -> ArmMachine:
    """Made in this folder, 200 MB.

    Raises:
        NoArm: there is no apt here, or a registry does not answer.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NoArm("no apt-get and dpkg-deb: this is no Debian")
    _debian(folder / "qemu", folder / "apt-amd64", "amd64", "qemu-user-static")
    _debian(folder / "root", folder / "apt-arm64", "arm64", *PYTHON)
    made = ArmMachine(folder)
    version = made.python("-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout.strip()
    wanted = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["dependencies"]
    kinds = [word for platform in PLATFORMS for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--target", folder / "site", *kinds]
    _ran(*pip, "--python-version", version, "--implementation", "cp", "--only-binary=:all:", *wanted)
    commands = next(Path(p) / "dure-0.1.0.dist-info" for p in sys.path if (Path(p) / "dure-0.1.0.dist-info").exists())
    shutil.copytree(commands, folder / "site" / commands.name)
    return made


def _debian(root: Path, state: Path, architecture: str, *packages: str) -> None:
    """Debian packages and all they depend on, unpacked below `root`."""
    for needed in ("state/lists/partial", "cache/archives/partial"):
        (state / needed).mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state / "state",
        "Dir::Cache": state / "cache",
        "Dir::State::status": state / "status",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    _ran(*apt, "update")
    _ran(*apt, "install", "--download-only", "--yes", *packages)
    for package in sorted((state / "cache/archives").glob("*.deb")):
        _ran("dpkg-deb", "-x", package, root)


def _ran(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoArm(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")
