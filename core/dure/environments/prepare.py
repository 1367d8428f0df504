"""Make an app's environment, offline: every wheel by the hash its lock names, whole or not at all.

Nothing of a wheel runs while it is installed (wheels only, no source), and nothing of the app at all: the modules it imports are tried.
Where it stands is on the disk: the record `environment.json` is written last; a folder without it is half made, and made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path

from dure.environments import place
from dure.environments.lock import Lock
from dure.environments.place import Environment
from dure.environments.runtime import command_in
from dure.environments.wheels import check_complete, read_wheels
from dure.errors import BadInput, DureError, Unavailable

INSTALL_LIMIT_S = 3600.0
CHECK_LIMIT_S = 600.0
Say = Callable[[str], None]


def prepare(directory: Path, lock: Lock, wheels: Path, modules: Sequence[str], say: Say) -> Environment:
    """The environment of `lock` under a role's directory; at once if it is there already.

    Args:
        wheels: folder with the wheels; nothing else is asked, no network either.
        modules: what must be importable in it: the app's own imports; ours are tried, too.
        say: gets one line a step.

    Raises:
        BadInput: a wheel is missing or another one, pip cannot use it, a module cannot be imported. Nothing is left behind.
        Unavailable: not now: another process is at it, no pip, no disk.
    """
    folder = place.folder_of(directory, lock.sha256)
    with _only_one(folder.parent):
        ready = place.prepared(directory, lock.sha256)
        if ready is not None:
            say("prepared already")
            return ready
        chosen = check_complete(lock, read_wheels(wheels), wheels)
        size = sum(wheel.path.stat().st_size for wheel in chosen)
        say(f"wheels: {len(chosen)}, {size / 1e6:.1f} MB, all as {lock.file} names them")
        shutil.rmtree(folder, ignore_errors=True)  # of a crash
        try:
            return _make(folder, lock, wheels, modules, say)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise Unavailable(f"{folder}: {error.strerror}; nothing is left of it") from None
            raise


def _make(folder: Path, lock: Lock, wheels: Path, modules: Sequence[str], say: Say) -> Environment:
    say(f"making {folder}")
    venv.EnvBuilder(symlinks=True).create(folder)
    fresh = Environment(folder, lock.sha256.hex(), place.environment_digest(lock.sha256).hex())
    say("installing, offline")
    _install(fresh, lock, wheels)
    say(f"trying {', '.join(modules[:8]) or 'nothing of the app'}{' …' if len(modules) > 8 else ''}, and the worker's own")
    _try_imports(fresh, modules)
    size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_symlink())
    packages = {d.name: d.version for d in distributions(path=[str(p) for p in folder.glob("lib/python*/site-packages")])}
    made = Environment(folder, fresh.env_sha256, fresh.digest, dict(sorted(packages.items())), size)
    place.write_record(made)
    return made


@contextlib.contextmanager
def _only_one(envs: Path) -> Iterator[None]:
    envs.mkdir(parents=True, exist_ok=True)
    with (envs / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"another process is preparing an environment in {envs}; wait for it") from None
        yield


def _install(environment: Environment, lock: Lock, wheels: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise Unavailable("pip is not installed beside this dure; `python -m ensurepip` brings it without a network")
    with tempfile.TemporaryDirectory(dir=environment.folder.parent, prefix="tmp-") as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(lock.requirements())
        pip = [sys.executable, "-I", "-m", "pip", "--isolated", "--python", str(environment.python), "install"]
        how = ["--no-index", "--require-hashes", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
        done = _run([*pip, *how, "--quiet", "--find-links", str(wheels.resolve()), "-r", str(wanted)], Path(scratch), INSTALL_LIMIT_S)
    if done.returncode != 0:
        raise BadInput(f"the environment cannot be installed from {wheels}: {_why(done.stderr, lock)}")


def _why(said: str, lock: Lock) -> str:
    """pip's first error in one line, with what to do where it is a package the lock forgot."""
    forgotten = re.search(r"requirement (\S+) \(from ([^)]+)\)", said) or re.search(r"^ +(\S+) from .*\(from ([^)]+)\)", said, re.M)
    if forgotten is not None and " -r " not in f" {forgotten[2]}":
        return f"{lock.file} lacks {forgotten[1]}, which {forgotten[2].partition('->')[0]} needs; lock again with all of them"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    first = next((i for i, line in enumerate(lines) if line.startswith("ERROR:")), 0)
    return " ".join(lines[first : first + 3]).removeprefix("ERROR: ")[:400] or "pip gave no reason"


def _try_imports(environment: Environment, modules: Sequence[str]) -> None:
    ours = [m for m in ("dure_participant.worker.execute", "dure_coordinator.flower.grid") if importlib.util.find_spec(m.split(".")[0])]
    with tempfile.TemporaryDirectory(dir=environment.folder.parent, prefix="tmp-") as scratch:
        command = [*command_in(environment), "dure.environments.check", *modules, *ours]
        done = _run(command, Path(scratch), CHECK_LIMIT_S)
    try:
        failure = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        failure = {"module": "?", "error": f"the interpreter ended with code {done.returncode}: {done.stderr.strip()[-200:]}"}
    if failure:
        raise BadInput(
            f"the environment does not work: `import {failure['module']}`: {failure['error']}; "
            "lock what it needs, or another version, and run this again"
        )


def _run(command: list[str], scratch: Path, limit_s: float) -> subprocess.CompletedProcess[str]:
    """With nothing of our environment but where programs and libraries are."""
    names = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
    env = {name: os.environ[name] for name in names if name in os.environ}
    fixed = {"HOME": str(scratch), "TMPDIR": str(scratch), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    try:
        return subprocess.run(
            command,
            cwd=scratch,
            env={**env, **fixed},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DureError(f"{Path(command[0]).name} took longer than {limit_s:g} s") from None
