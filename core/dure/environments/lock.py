"""An app's lock: every package it runs with, by version and hash. Pure.

Two forms are read, one of them in the app's folder: `requirements.lock` (pip's requirements with hashes: `name==1.2 --hash=sha256:…`) and
`pylock.toml` (PEP 751). What pip is given later is written anew from what was read here, so nothing else in the file can reach it.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dure.errors import BadInput

LOCK_NAMES = ("requirements.lock", "pylock.toml")
"""Names a lock has in an app's folder; one of them at most."""
MAX_LOCK_BYTES = 4 << 20
_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:\[[A-Za-z0-9._, -]*\])?\s*==\s*(?P<version>[A-Za-z0-9.!+_-]+)"
    r"\s*(?:;(?P<marker>[^\x00-\x1f]*))?"
)
_VERSION = re.compile(r"[A-Za-z0-9.!+_-]{1,64}")
_MARKER = re.compile(r"[A-Za-z0-9_.,<>=!~'\"() *+-]{0,500}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WHERE_FROM = ("-i ", "--index-url", "--extra-index-url", "-f ", "--find-links", "--trusted-host", "--no-index", "--only-binary")
"""Lines of a requirements file that say where files come from: nothing is asked but the site's folder, so they are passed over."""


class LockRefused(BadInput):
    """A lock that does not name every package by version and hash; the message names the line or package."""


@dataclass(frozen=True)
class Pinned:
    """One package of a lock."""

    name: str
    """Normalised (PEP 503)."""
    version: str
    hashes: tuple[str, ...]
    """SHA-256 of the wheels it may be, lower-case hex."""
    marker: str = ""
    """PEP 508 marker; "" always."""


@dataclass(frozen=True)
class Lock:
    """A lock that was read."""

    file: str
    sha256: bytes
    """Of the file's bytes: the environment's name in plans and in site-policy.toml (`env_sha256`)."""
    pins: tuple[Pinned, ...]

    def requirements(self) -> str:
        """The lock as pip takes it, and nothing beside it."""
        return "".join(_requirement(pin) for pin in self.pins)


def normalised(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(file: str, raw: bytes) -> Lock:
    """A lock's bytes; `file` says the form by its ending and names it in errors.

    Raises:
        LockRefused: not text, too long, a line that is not `name==version --hash=sha256:…`, a package twice, a package without wheels.
    """
    if len(raw) > MAX_LOCK_BYTES:
        raise LockRefused(f"{file} has {len(raw)} bytes; a lock has at most {MAX_LOCK_BYTES}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise LockRefused(f"{file} is not UTF-8 text") from None
    pins = tuple(_pylock(file, text) if file.endswith(".toml") else _requirements(file, text))
    seen: set[tuple[str, str]] = set()
    for pin in pins:
        if (pin.name, pin.marker) in seen:
            raise LockRefused(f"{file} names {pin.name} twice; a lock names a package once")
        seen.add((pin.name, pin.marker))
    return Lock(file, hashlib.sha256(raw).digest(), pins)


def lock_text(pins: Iterable[Pinned]) -> str:
    """A `requirements.lock`: the same wheels give the same bytes."""
    ordered = sorted(pins, key=lambda pin: (pin.name, pin.version))
    return "# Made from a folder of wheels by `dure run lock`; every wheel by its SHA-256.\n" + "".join(map(_requirement, ordered))


def _requirement(pin: Pinned) -> str:
    marker = f" ; {pin.marker}" if pin.marker else ""
    return f"{pin.name}=={pin.version}{marker}" + "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(pin.hashes)) + "\n"


def _requirements(file: str, text: str) -> Iterable[Pinned]:
    for number, line in _logical_lines(text):
        if not line or line.startswith(_WHERE_FROM):
            continue
        head, *options = re.split(r"\s+--hash=", line)
        found = _LINE.fullmatch(head.strip())
        if found is None:
            raise LockRefused(f"{file}, line {number}: {line[:80]!r} is not name==version --hash=sha256:…; lock with hashes")
        yield _pin(f"{file}, line {number}", found["name"], found["version"], options, found["marker"])


def _logical_lines(text: str) -> Iterable[tuple[int, str]]:
    """(number of its first line, line) with continuations joined and comments gone."""
    begun, parts = 1, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        begun = begun if parts else number
        parts.append(line.removesuffix("\\").strip())
        if not line.endswith("\\"):
            yield begun, " ".join(part for part in parts if part)
            parts = []
    if parts:
        yield begun, " ".join(parts)


def _pylock(file: str, text: str) -> Iterable[Pinned]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LockRefused(f"{file} is not valid TOML: {error}") from None
    if not str(data.get("lock-version", "")).startswith("1."):
        raise LockRefused(f"{file}: lock-version must be 1.x (PEP 751), is {data.get('lock-version')!r}")
    packages = data.get("packages")
    if not isinstance(packages, list):
        raise LockRefused(f"{file} has no [[packages]]")
    for package in packages:
        yield _package(file, package if isinstance(package, dict) else {})


def _package(file: str, package: Mapping[str, Any]) -> Pinned:
    name = str(package.get("name", ""))
    where = f"{file}, package {name[:64]!r}"
    wheels = package.get("wheels")
    if not isinstance(wheels, list) or not wheels:
        raise LockRefused(f"{where} has no wheels; only wheels are installed, so that installing runs nothing")
    hashes = [f"sha256:{(w.get('hashes') or {}).get('sha256', '')}" if isinstance(w, dict) else "" for w in wheels]
    return _pin(where, name, str(package.get("version", "")), hashes, str(package.get("marker", "")))


def _pin(where: str, name: str, version: str, hashes: list[str], marker: str | None) -> Pinned:
    marker = " ".join((marker or "").split())
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", name) or not _VERSION.fullmatch(version):
        raise LockRefused(f"{where}: {name[:40]!r} {version[:40]!r} is not a package's name and one version")
    if not _MARKER.fullmatch(marker) or "extras" in marker or "dependency_groups" in marker:
        raise LockRefused(f"{where}: marker {marker[:80]!r} depends on a choice; lock one set of packages")
    digests = [digest.strip().removeprefix("sha256:") for digest in hashes]
    if not digests or not all(_SHA256.fullmatch(digest) for digest in digests):
        raise LockRefused(f"{where}: {name}=={version} has no sha256 hash of 64 hex digits for each of its wheels; lock with hashes")
    return Pinned(normalised(name), version, tuple(sorted(set(digests))), marker)
