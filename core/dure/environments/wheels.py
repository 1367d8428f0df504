"""A folder of wheels: hashed, compared with a lock before anything is built, or made into one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dure.environments.lock import Lock, LockRefused, Pinned, lock_text, normalised
from dure.errors import BadInput


@dataclass(frozen=True)
class Wheel:
    """One wheel on this disk."""

    path: Path
    name: str
    """Normalised (PEP 503)."""
    version: str
    sha256: str


def read_wheels(folder: Path) -> tuple[Wheel, ...]:
    """Every wheel of a folder, by file name.

    Raises:
        BadInput: no folder, no wheel in it, or a file name that is no wheel's.
    """
    if not folder.is_dir():
        raise BadInput(f"--wheels {folder} is not a folder; put the app's wheels into one")
    found = tuple(_wheel(path) for path in sorted(folder.glob("*.whl")))
    if not found:
        raise BadInput(f"{folder} has no wheels (*.whl); on a machine with a network `pip download -d {folder} …` fills it")
    return found


def _wheel(path: Path) -> Wheel:
    parts = path.name.removesuffix(".whl").split("-")
    if len(parts) not in (5, 6) or not all(parts):
        raise BadInput(f"{path} is not named as a wheel (name-version-python-abi-platform.whl)")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Wheel(path, normalised(parts[0]), parts[1], digest)


def lock_of(wheels: tuple[Wheel, ...]) -> str:
    """The lock that names exactly these wheels.

    Raises:
        LockRefused: two versions of one package: which one the app runs with would be chance.
    """
    by_name: dict[str, list[Wheel]] = {}
    for wheel in wheels:
        by_name.setdefault(wheel.name, []).append(wheel)
    for name, same in by_name.items():
        versions = sorted({wheel.version for wheel in same})
        if len(versions) > 1:
            raise LockRefused(f"{same[0].path.parent} has {name} in versions {' and '.join(versions)}; keep the one the app runs with")
    return lock_text(Pinned(name, same[0].version, tuple(wheel.sha256 for wheel in same)) for name, same in by_name.items())


def check_complete(lock: Lock, wheels: tuple[Wheel, ...], folder: Path) -> tuple[Wheel, ...]:
    """The wheels the lock names. A package with a marker may be absent: pip knows whether this machine needs it.

    Raises:
        BadInput: a wheel is missing, or its file is another one than the lock was made with; names package, hash and remedy.
    """
    by_hash = {wheel.sha256: wheel for wheel in wheels}
    chosen: list[Wheel] = []
    for pin in lock.pins:
        here = [by_hash[digest] for digest in pin.hashes if digest in by_hash]
        if not here and not pin.marker:
            raise BadInput(_missing(pin, lock, wheels, folder))
        chosen += here
    return tuple(chosen)


def _missing(pin: Pinned, lock: Lock, wheels: tuple[Wheel, ...], folder: Path) -> str:
    same = next((wheel for wheel in wheels if wheel.name == pin.name and wheel.version == pin.version), None)
    named = f"sha256 {pin.hashes[0][:16]}…" + (f" or {len(pin.hashes) - 1} others" if len(pin.hashes) > 1 else "")
    if same is not None:
        other = f"it has sha256 {same.sha256[:16]}…, the lock names {named}"
        return f"{same.path} is not the wheel {lock.file} was made with: {other}; get that file"
    return f"{folder} has no wheel of {pin.name} {pin.version}, which {lock.file} names ({named}); put it there and run this again"
