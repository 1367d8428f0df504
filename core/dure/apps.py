"""Flower app folders: read, pack to a digest that members approve, unpack at a node.

An app is what `flwr run` takes: a folder with a pyproject.toml holding `[tool.flwr.app]`. Dure reads one more table,
`[tool.dure]`, which Flower ignores. This module is an edge (it reads folders); it imports no flwr and runs no app code.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import io
import os
import re
import tarfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from dure.environments.lock import LOCK_NAMES, Lock, read_lock
from dure.errors import BadInput
from dure.model.rules import KINDS, Rule

MAX_FILES = 2000
MAX_ARCHIVE_BYTES = 32 << 20
MAX_PATH_CHARS = 240
SKIPPED_FOLDERS = {
    ".git",
    ".venv",
    "venv",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "node_modules",
}
SKIPPED_SUFFIXES = (".pyc", ".pyo", ".swp", ".fab")
SKIPPED_FILES = {".DS_Store"}
ROUNDS_KEYS = ("num-server-rounds", "num-rounds", "rounds")
"""Names under which Flower's templates keep the number of rounds, most usual first."""
OUTER_STEPS = ("average", "nesterov", "adam")

DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,24})?(e-?[0-9]{1,2})?")
"""As docs/spec/formats.md, "Outer steps", writes them."""

ConfigValue = bool | int | float | str


class AppRefused(BadInput):
    """The app folder or archive cannot be used; the message names what is missing and where."""


@dataclass(frozen=True)
class DureTable:
    """`[tool.dure]` of an app; absent keys have the values of a stock Flower app."""

    outer_step: Mapping[str, ConfigValue] | None = None
    """{"kind": "average" | "nesterov" | "adam", lr, momentum, …}, or None: the ServerApp computes the next base."""
    averaged: tuple[str, ...] = ("*running_mean", "*running_var")
    """Tensors, by name or pattern, that Nesterov and Adam do not touch: a momentum could make a variance negative. Integers never are."""
    w_max: int | None = None
    """Largest `num-examples` a node may report; None: the plan's default."""
    weight_key: str = "num-examples"
    metrics: tuple[str, ...] = ()
    """Metric names members approve; empty: the first exchange of a kind fixes them."""
    per_node_config: Mapping[str, tuple[ConfigValue, ...]] = field(default_factory=dict)
    """Config keys that may differ per node, each with its permitted values, in the open for every member."""
    max_exchanges: int | None = None
    max_messages: int | None = None
    """Most exchanges without arrays, per category; None: one more than the rounds."""
    linear_strategy: tuple[str, ...] = ()
    """Strategy classes (by name) the author declares to be functions of the weighted mean; "none": a ServerApp that
    uses no strategy class."""
    initial: tuple[Rule, ...] = ()
    """What each tensor begins as where the members draw the seed of the first weights together; empty: the app's own arrays."""
    query_replies: str = "mean"
    """`sum`: the ServerApp adds up the replies to its queries, so the one reply holds sums instead of weighted means."""


DURE_KEYS = tuple(sorted(f.name.replace("_", "-") for f in fields(DureTable)))


@dataclass(frozen=True)
class App:
    """What a pyproject.toml says about an app."""

    name: str
    version: str
    publisher: str
    serverapp: str
    """`module:attribute`"""
    clientapp: str
    config: Mapping[str, ConfigValue]
    """`[tool.flwr.app.config]`, nested tables flattened with dots, as Flower does."""
    dure: DureTable
    env_sha256: bytes | None = None
    """SHA-256 of the lock in its folder (docs/spec/environments.md); None: it runs with what the site's own interpreter has."""

    @property
    def rounds_key(self) -> str | None:
        """The run-config key that holds the number of rounds, if the app has one of the usual names."""
        return next((key for key in ROUNDS_KEYS if type(self.config.get(key)) is int), None)


@dataclass(frozen=True)
class PackedApp:
    """An app as bytes; `digest` is what a plan names and members approve."""

    app: App
    archive: bytes
    digest: bytes
    """SHA-256 of the archive."""
    files: tuple[tuple[str, int], ...]
    """(path, bytes) in archive order, for people who read before they approve."""


def read_app(folder: Path) -> App:
    """What the folder's pyproject.toml declares.

    Raises:
        AppRefused: no folder, no or unreadable pyproject.toml, no `[tool.flwr.app]`, a component that is missing or
            whose module or attribute is not in the folder, a `[tool.dure]` key of the wrong type.
    """
    if not folder.is_dir():
        raise AppRefused(f"{folder} is not a folder; give the folder that holds the app's pyproject.toml")
    path = folder / "pyproject.toml"
    if not path.is_file():
        raise AppRefused(f"{folder} has no pyproject.toml; a Flower app needs one with [tool.flwr.app]")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AppRefused(f"{path} is not valid TOML: {error}") from None
    project = _table(data.get("project", {}), f"{path}: [project]")
    tool = _table(data.get("tool", {}), f"{path}: [tool]")
    flower = _table(tool.get("flwr", {}), f"{path}: [tool.flwr]").get("app")
    if not isinstance(flower, dict):
        raise AppRefused(f"{path} has no [tool.flwr.app]; see `flwr new` for the shape of a Flower app")
    components = _table(flower.get("components", {}), f"{path}: [tool.flwr.app.components]")
    references: dict[str, str] = {}
    for kind in ("serverapp", "clientapp"):
        reference = components.get(kind)
        if not isinstance(reference, str):
            raise AppRefused(f'{path}: [tool.flwr.app.components] has no {kind} = "module:attribute"')
        _check_component(folder, kind, reference)
        references[kind] = reference
    return App(
        name=_text(project.get("name", folder.name), f"{path}: project.name"),
        version=_text(project.get("version", "0"), f"{path}: project.version"),
        publisher=_text(flower.get("publisher", ""), f"{path}: [tool.flwr.app] publisher"),
        serverapp=references["serverapp"],
        clientapp=references["clientapp"],
        config=_flatten(_table(flower.get("config", {}), f"{path}: [tool.flwr.app.config]"), str(path)),
        dure=_dure_table(tool.get("dure", {}), f"{path}: [tool.dure]"),
        env_sha256=None if (lock := app_lock(folder)) is None else lock.sha256,
    )


def app_lock(folder: Path) -> Lock | None:
    """The lock in an app's folder; None where it has none.

    Raises:
        AppRefused: two of them.
        LockRefused: as `read_lock`.
    """
    found = [name for name in LOCK_NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise AppRefused(f"{folder} has {' and '.join(found)}; an app has one lock")
    return read_lock(found[0], (folder / found[0]).read_bytes()) if found else None


def pack_app(folder: Path) -> PackedApp:
    """The app's files as one archive: the same files give the same bytes on every machine.

    Left out: caches, version control, virtual environments, compiled Python. Symbolic links are refused by name.

    Raises:
        AppRefused: as `read_app`; a link, an odd file, too many files or bytes.
    """
    app = read_app(folder)
    buffer = io.BytesIO()
    files: list[tuple[str, int]] = []
    total = 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
        for name in _walk(folder):
            content = (folder / name).read_bytes()
            total += len(content)
            files.append((name, len(content)))
            if len(files) > MAX_FILES or total > MAX_ARCHIVE_BYTES:
                raise AppRefused(
                    f"{folder} holds more than {MAX_FILES} files or {MAX_ARCHIVE_BYTES >> 20} MiB (at {name}); keep data out of the app"
                )
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    packed = buffer.getvalue()
    return PackedApp(app, packed, hashlib.sha256(packed).digest(), tuple(files))


def unpack_app(archive: bytes, folder: Path, *, digest: bytes | None = None) -> App:
    """Write an archive's files below `folder` (made; must be empty) and read the app there.

    Args:
        digest: what the plan approved; the bytes are checked against it before anything is opened.

    Raises:
        AppRefused: another digest, a path that leaves the folder, links and devices, duplicates, too much of anything.
    """
    if digest is not None and hashlib.sha256(archive).digest() != digest:
        raise AppRefused(f"app archive has digest {hashlib.sha256(archive).hexdigest()}, approved is {digest.hex()}")
    if len(archive) > 2 * MAX_ARCHIVE_BYTES:
        raise AppRefused(f"app archive has {len(archive)} bytes; at most {2 * MAX_ARCHIVE_BYTES}")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise AppRefused(f"{folder} is not empty; an app is unpacked into an empty folder")
    total = 0
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as opened:
            for entry in opened:
                _check_entry(entry, seen)
                total += entry.size
                if len(seen) > MAX_FILES or total > MAX_ARCHIVE_BYTES:
                    raise AppRefused(f"app archive holds more than {MAX_FILES} files or {MAX_ARCHIVE_BYTES >> 20} MiB")
                source = opened.extractfile(entry)
                content = b"" if source is None else source.read(entry.size)
                if len(content) != entry.size:
                    raise AppRefused(f"app archive is cut off in {entry.name!r}")
                target = folder / entry.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as file:
                    file.write(content)
    except (tarfile.TarError, UnicodeError, ValueError, OSError) as error:
        raise AppRefused(f"app archive cannot be unpacked: {error}") from None
    return read_app(folder)


def run_config(app: App, overrides: Sequence[str] = ()) -> dict[str, ConfigValue]:
    """The app's config with `key=value` overrides, each of the type it has in pyproject.toml.

    Raises:
        AppRefused: no `=`, an unknown key (with the nearest one), a value that is not of the key's type.
    """
    config = dict(app.config)
    for override in overrides:
        key, equals, raw = override.partition("=")
        key = key.strip()
        if not equals:
            raise AppRefused(f"override {override!r} is not key=value")
        if key not in config:
            near = difflib.get_close_matches(key, config, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(config)) or 'no config'}"
            raise AppRefused(f"app {app.name} has no config key {key!r}{hint}")
        config[key] = _typed(key, raw.strip(), config[key])
    return config


def _typed(key: str, raw: str, sample: ConfigValue) -> ConfigValue:
    try:
        if isinstance(sample, bool):
            return {"true": True, "false": False}[raw.lower()]
        if isinstance(sample, int):
            return int(raw)
        if isinstance(sample, float):
            return float(raw)
    except (KeyError, ValueError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[type(sample)]
        raise AppRefused(f"config key {key!r} is {kind} (pyproject.toml has {sample!r}), not {raw!r}") from None
    if len(raw) >= 2 and raw[0] == raw[-1] and raw[0] in "\"'":
        return raw[1:-1]
    return raw


def _walk(folder: Path) -> list[str]:
    names: list[str] = []
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        for name in [*folders, *files]:
            path = Path(base) / name
            if path.is_symlink():
                raise AppRefused(f"{path} is a symbolic link; an app is made of plain files")
        for name in files:
            path = Path(base) / name
            if name in SKIPPED_FILES or name.endswith(SKIPPED_SUFFIXES):
                continue
            if not path.is_file():
                raise AppRefused(f"{path} is not a plain file")
            relative = path.relative_to(folder).as_posix()
            _check_path(relative)
            names.append(relative)
    return sorted(names, key=str.encode)


def _check_entry(entry: tarfile.TarInfo, seen: set[str]) -> None:
    if not entry.isreg():
        raise AppRefused(f"app archive: {entry.name!r} is not a plain file")
    _check_path(entry.name)
    if entry.name.casefold() in seen:
        raise AppRefused(f"app archive: {entry.name!r} appears twice")
    seen.add(entry.name.casefold())


def _check_path(name: str) -> None:
    path = PurePosixPath(name)
    parts_fine = all(part not in ("", ".", "..") for part in name.split("/"))
    if path.is_absolute() or not parts_fine or "\\" in name or not name.isprintable() or len(name) > MAX_PATH_CHARS:
        raise AppRefused(f"app file name {name[:80]!r} is refused: relative, printable, at most {MAX_PATH_CHARS} characters")


def _check_component(folder: Path, kind: str, reference: str) -> None:
    module, colon, attribute = reference.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise AppRefused(f'{kind} {reference!r} is not "module:attribute"')
    base = folder.joinpath(*module.split("."))
    source = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
    if not source.is_file():
        raise AppRefused(f"{kind} {reference!r}: no module {module} in {folder} (looked for {base.with_suffix('.py')})")
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"), filename=str(source))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise AppRefused(f"{kind} {reference!r}: {source} is not valid Python: {error}") from None
    if attribute.split(".")[0] not in _top_level_names(tree):
        raise AppRefused(f"{kind} {reference!r}: {source} defines no {attribute.split('.')[0]!r}")


def _top_level_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
    return names


def _flatten(table: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, ConfigValue]:
    flat: dict[str, ConfigValue] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, where, f"{prefix}{key}."))
        elif isinstance(value, bool | int | float | str):
            flat[prefix + key] = value
        else:
            raise AppRefused(f"{where}: config key {prefix + key!r} is not a number, string or boolean")
    return flat


def _dure_table(raw: object, where: str) -> DureTable:
    table = dict(_table(raw, where))
    step = table.pop("outer-step", None)
    if isinstance(step, str):
        step = {"kind": step}
    if step is not None and (not isinstance(step, dict) or step.get("kind") not in OUTER_STEPS):
        raise AppRefused(f"{where}: outer-step is one of {', '.join(OUTER_STEPS)}, or a table with that as kind")
    per_node = _table(table.pop("per-node-config", {}), f"{where} per-node-config")
    for key, values in per_node.items():
        if not isinstance(values, list) or not values or not all(isinstance(v, bool | int | float | str) for v in values):
            raise AppRefused(f"{where}: per-node-config.{key} is not a list of permitted values")
    replies = _text(table.pop("query-replies", "mean"), f"{where}: query-replies")
    if replies not in ("mean", "sum"):
        raise AppRefused(f"{where}: query-replies is mean or sum, not {replies!r}")
    found = DureTable(
        outer_step=None if step is None else _flatten(step, where),
        averaged=_names(table.pop("averaged", list(DureTable.averaged)), f"{where}: averaged"),
        w_max=_count(table.pop("w-max", None), f"{where}: w-max"),
        weight_key=_text(table.pop("weight-key", "num-examples"), f"{where}: weight-key"),
        metrics=_names(table.pop("metrics", []), f"{where}: metrics"),
        per_node_config={key: tuple(values) for key, values in per_node.items()},
        max_exchanges=_count(table.pop("max-exchanges", None), f"{where}: max-exchanges"),
        max_messages=_count(table.pop("max-messages", None), f"{where}: max-messages"),
        linear_strategy=_names(table.pop("linear-strategy", []), f"{where}: linear-strategy"),
        initial=_rules(table.pop("initial", []), f"{where}: initial"),
        query_replies=replies,
    )
    if "subgroups" in table:
        raise AppRefused(f"{where}: subgroups are not there yet; sample at least the run's quorum in every exchange, u_min of its members")
    if table:
        key = next(iter(table))
        near = difflib.get_close_matches(key.replace("_", "-"), DURE_KEYS, n=1, cutoff=0.5)
        raise AppRefused(f"{where} has no key {key!r}" + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(DURE_KEYS)}"))
    return found


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise AppRefused(f"{where} is not a table")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise AppRefused(f"{where} is not a string")
    return value


def _names(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise AppRefused(f"{where} is not a list of names")
    return tuple(value)


def _rules(value: object, where: str) -> tuple[Rule, ...]:
    """`["*.bias constant 0", "* normal 0.02"]`: pattern, kind, decimal."""
    found = []
    for text in _names(value, where):
        parts = text.split()
        if len(parts) != 3 or parts[1] not in KINDS or not DECIMAL.fullmatch(parts[2]):
            raise AppRefused(f'{where}: {text!r} is not "TENSORS normal|constant DECIMAL", such as "*.bias constant 0" or "* normal 0.02"')
        found.append(Rule(*parts))
    return tuple(found)


def _count(value: object, where: str) -> int | None:
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise AppRefused(f"{where} is not a whole number above 0")
    return value


def plan_settings(config: Mapping[str, ConfigValue]) -> dict[str, str | int | bool]:
    """A run config as a plan states it: decimals as text, since signed JSON has no floats."""
    return {key: repr(value) if isinstance(value, float) else value for key, value in config.items()}


def config_of_plan(app: App, settings: Mapping[str, str | int | bool]) -> dict[str, ConfigValue]:
    """The run config a plan's settings stand for; the app's own table says which of them are decimals."""
    return {
        key: float(value) if isinstance(app.config.get(key), float) and isinstance(value, str) else value for key, value in settings.items()
    }
