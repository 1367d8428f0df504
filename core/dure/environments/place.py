"""Where a role keeps its environments: `<dir>/envs/<16 digits of the environment's digest>`, whole once `environment.json` lies in it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dure.errors import BadInput
from dure.identity.files import write_json

FOLDER = "envs"
RECORD = "environment.json"
ISOLATED = ("-I", "-B", "-u")
"""No PYTHON* variable, no user site, no import from the working folder."""
OWN_INTERPRETER = (sys.executable, *ISOLATED, "-m")
"""The agent's interpreter; the working folder is the worker's to write, so nothing is imported from it."""


@dataclass(frozen=True)
class Environment:
    """A prepared environment of this machine."""

    folder: Path
    env_sha256: str
    """SHA-256 of its lock, as plans and rules name it; hex."""
    digest: str
    """`environment_digest` of it here; hex."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Package → version, as installed."""
    bytes: int = 0

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


def python_tag() -> str:
    """The interpreter and platform an environment is made for, such as `cpython-311 linux-x86_64`."""
    return f"{sys.implementation.cache_tag} {sysconfig.get_platform()}"


def environment_digest(env_sha256: bytes) -> bytes:
    """One lock on one kind of machine: SHA-256("dure environment 1\\n" ‖ env_sha256 ‖ python tag)."""
    return hashlib.sha256(b"dure environment 1\n" + env_sha256 + python_tag().encode()).digest()


def folder_of(directory: Path, env_sha256: bytes) -> Path:
    """Where a role's environment of this lock is, or will be."""
    return directory.resolve() / FOLDER / environment_digest(env_sha256).hex()[:16]


def prepared(directory: Path, env_sha256: bytes) -> Environment | None:
    """The environment of this lock, if it is whole; None before, and while it is being made."""
    return _read(folder_of(directory, env_sha256))


def all_prepared(directory: Path) -> tuple[Environment, ...]:
    """Every environment that is whole, by digest."""
    found = (_read(folder) for folder in sorted((directory.resolve() / FOLDER).glob("[0-9a-f]*")))
    return tuple(environment for environment in found if environment is not None)


def _read(folder: Path) -> Environment | None:
    try:
        record = json.loads((folder / RECORD).read_text())
        return Environment(folder, record["env_sha256"], record["digest"], record["packages"], record["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(environment: Environment) -> None:
    """The last step of making one: from here on it is whole."""
    record = asdict(environment) | {"format": 1, "python": python_tag()}
    del record["folder"]
    write_json(environment.folder / RECORD, record)


def named(directory: Path, prefix: str) -> Environment:
    """The environment whose lock digest, or own digest, starts so.

    Raises:
        BadInput: none or several do.
    """
    found = [e for e in all_prepared(directory) if prefix and prefix.lower() in (e.env_sha256[: len(prefix)], e.digest[: len(prefix)])]
    if len(found) != 1:
        raise BadInput(f"{prefix}: is the beginning of {len(found)} environments here, must be of one; see `env list`")
    return found[0]


def remove(environment: Environment) -> None:
    """Its record first, so that a crash leaves no half environment that seems whole."""
    (environment.folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(environment.folder)
