"""What an environment is lent: Dure itself, and flwr with all it needs as far as the environment has none of its own.

A folder of links into the installation this process runs from, made anew for every set of versions, so an upgrade of Dure needs no new
environment. Nothing else of that installation is visible: an app whose lock has no torch finds no torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions, requires
from pathlib import Path

from packaging.requirements import Requirement  # wherever flwr is, packaging is

from dure.environments import bootstrap
from dure.environments.lock import normalised
from dure.environments.place import ISOLATED, Environment
from dure.errors import BadInput, Unavailable

LENT = ("flwr", "numpy", "blake3", "cryptography", "pynacl", "grpcio", "protobuf")
"""Distributions a worker or a ServerApp process imports; what these need is lent with them."""
OWN = ("dure", "dure_pb", "dure_participant", "dure_coordinator")
"""Our own packages, where installed."""


def lend(environment: Environment) -> Path:
    """The folder of links for this environment and this installation; made if it is not there.

    Raises:
        BadInput: the environment has a package in a version that the worker's own code cannot use.
        Unavailable: this installation lacks something, or does not know its own files.
    """
    own = {normalised(d.name): d for d in distributions(path=_site_packages(environment))}
    links = {**_own_packages(), **_lent(own)}
    name = hashlib.sha256(json.dumps({k: str(v) for k, v in sorted(links.items())}).encode()).hexdigest()[:16]
    folder = environment.folder / "lent" / name
    if not folder.is_dir():
        _make(folder, links)
    return folder


def command_in(environment: Environment, flags: Sequence[str] = ISOLATED) -> list[str]:
    """How a module is run in an environment, with what it is lent; the module's name and arguments follow.

    Raises:
        BadInput, Unavailable: as `lend`.
    """
    return [str(environment.python), *flags, str(Path(bootstrap.__file__).resolve()), str(lend(environment))]


def _site_packages(environment: Environment) -> list[str]:
    return [str(path) for path in environment.folder.glob("lib/python*/site-packages")]


def _own_packages() -> dict[str, Path]:
    found = {name: importlib.util.find_spec(name) for name in OWN}
    return {name: Path(next(iter(spec.submodule_search_locations or ()))) for name, spec in found.items() if spec is not None}


def _lent(own: Mapping[str, Distribution]) -> dict[str, Path]:
    """Path in the folder → file or folder of this installation, for the closure of `LENT` less what the environment has."""
    links: dict[str, Path] = {}
    seen: set[str] = set()
    ours = [(Requirement(text), "dure", ("participant", "coordinator")) for text in requires("dure") or ()]
    wanted: list[tuple[Requirement, str, tuple[str, ...]]] = [item for item in ours if normalised(item[0].name) in LENT]
    while wanted:
        requirement, by, extras = wanted.pop()
        name = normalised(requirement.name)
        if requirement.marker is not None and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if name in own:
            _check(requirement, own[name], by)
            continue
        if name in seen:
            continue
        seen.add(name)
        found = _installed(name, by)
        links.update(_files(found))
        wanted += [(Requirement(text), found.name, ("", *sorted(requirement.extras))) for text in found.requires or ()]
    return links


def _check(requirement: Requirement, found: Distribution, by: str) -> None:
    if not requirement.specifier.contains(found.version, prereleases=True):
        raise BadInput(
            f"the lock has {found.name} {found.version}, but {by}, which runs beside the app, needs {requirement}; "
            f"lock another version of {found.name}, or {by} with all it needs"
        )


def _installed(name: str, by: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError:
        raise Unavailable(f"{name}, which {by} needs, is not installed beside this dure; `pip install dure[participant]`") from None


def _files(found: Distribution) -> dict[str, Path]:
    """The distribution's own files and folders, as high up as it owns them: a folder without `__init__.py` is shared with others."""
    if found.files is None:
        raise Unavailable(f"{found.name} is installed without a list of its files; install it with pip")
    links: dict[str, Path] = {}
    for file in found.files:
        parts = file.parts
        if parts[0] in ("..", "__pycache__") or Path(file).is_absolute():
            continue
        depth = 1
        while depth < len(parts) and _shared(Path(str(found.locate_file("/".join(parts[:depth]))))):
            depth += 1
        top = "/".join(parts[:depth])
        links[top] = Path(str(found.locate_file(top)))
    return links


def _shared(folder: Path) -> bool:
    return folder.is_dir() and folder.suffix not in (".libs", ".dist-info") and not (folder / "__init__.py").exists()


def _make(folder: Path, links: Mapping[str, Path]) -> None:
    fresh = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}")
    for name, target in links.items():
        place = fresh / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.resolve())
    try:
        fresh.rename(folder)
    except OSError:  # another process was faster: the same links
        shutil.rmtree(fresh)
        if not folder.is_dir():
            raise
