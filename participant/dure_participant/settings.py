"""A node's own settings, site-only: <dir>/node.toml. They never leave the site.

`dure node config set data=/srv/text device=cpu` writes them. Keys below configure the agent; every other key is handed to apps as Flower's
`node_config`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dure.errors import BadInput
from dure.identity.files import write_atomic
from dure_participant.accelerators import declared

Value = str | int | float | bool
Stored = Value | list[str]
FILE = "node.toml"


@dataclass(frozen=True)
class NodeSettings:
    """What is in force; defaults let an empty file run."""

    threads: int = 1
    """Threads of numeric libraries in the worker; 0 leaves it to them."""
    device: str = "cpu"
    """Accelerator the worker uses; also handed to the app."""
    train_at_once: int = 0
    """Runs whose apps may work here at one time; others wait for their turn. 0: one on an accelerator, any number on `device = "cpu"`."""
    task_timeout_s: float = 86_400.0
    """Longest one task may take before the worker is killed."""
    worker_log_bytes: int = 8 << 20
    """All of a worker's output that is kept."""
    worker_disk_bytes: int = 20 * 10**9
    """Most that one run's app may keep in its scratch folder (its HOME and TMPDIR); above it the worker is killed. 0: no limit."""
    drain_s: float = 8.0
    """Longest wait, after SIGTERM, for an exchange in which others count on this node; 0: leave at once, and resume later."""
    recompute: str = "never"
    """always: every sum is added up again from the members' uploads before it is accepted (n times its bytes); never: on demand, and
    whenever one does not verify."""
    cosign: bool = True
    """Whether this node is its member's witness. false: that one runs elsewhere (the coordinator's `http_witnesses`), and has the only copy
    of witness.key; this node mirrors the heads that a quorum cosigned."""
    data_commitments: str = ""
    """What the apps here train on, for everybody to read in this node's usage statements: the digests that `dure data register` told, up to
    16, with commas between them. `dure node allow --data` says otherwise for one run. Empty: they name no data."""
    accelerators: tuple[str, ...] = ()
    """What this node's env-commitments say it trains on, such as `["8 x npu Rebellions ATOM-Max 64 GiB driver 1.1.67"]`; with `config set`
    a semicolon divides kinds. Empty: the cpu, and, where `device` is another, what nvidia-smi tells."""
    peak_flops: float = 0.0
    """What all that one worker here uses can do at most, in FLOP per second at the precision it trains in; usage statements then say FLOP
    by hardware. 0: they do not."""
    watts: float = 0.0
    """Power that all that one worker here uses draws while it trains; usage statements then say energy, as declared. 0: they say what the
    devices' own counters tell, where there are any."""
    node_config: Mapping[str, Value] = field(default_factory=dict)
    """Everything else: given to apps, seen by nobody else."""

    @property
    def commitments(self) -> tuple[bytes, ...]:
        """`data_commitments`, read."""
        return tuple(bytes.fromhex(digest) for digest in self.data_commitments.split(",") if digest)

    @property
    def places(self) -> int:
        """`train_at_once` as it is meant; 0: any number."""
        return self.train_at_once or (0 if self.device == "cpu" else 1)


def load(directory: Path) -> NodeSettings:
    """Settings of a node's folder.

    Raises:
        BadInput: the file does not parse, or a value has the wrong type; names it.
    """
    path = directory / FILE
    return judge(_table(path), path)


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text()) if path.exists() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None


def judge(body: Mapping[str, Any], path: Path) -> NodeSettings:
    """Settings from a table; raises as `load`, naming `path`."""
    known = {f.name: f for f in fields(NodeSettings) if f.name != "node_config"}
    own: dict[str, Any] = {}
    for name in known:
        if name not in body:
            continue
        default = getattr(NodeSettings(), name)
        value = body[name]
        if isinstance(default, tuple):
            value = _texts(value, name, path)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise BadInput(f"{path}: {name} must be {type(default).__name__}, is {value!r}; set it with `dure node config set {name}=…`")
        own[name] = value
    if own.get("recompute", "never") not in ("never", "always"):
        raise BadInput(f"{path}: recompute must be never or always, is {own['recompute']!r}")
    if not re.fullmatch(r"([0-9a-f]{64}(,[0-9a-f]{64}){0,15})?", own.get("data_commitments", "")):
        raise BadInput(
            f"{path}: data_commitments must be up to 16 digests of 64 hex digits, commas between; `dure data list --json` has them"
        )
    for name in ("threads", "train_at_once", "worker_log_bytes", "worker_disk_bytes", "peak_flops", "watts"):
        if not 0 <= own.get(name, 0) < 1e24:
            raise BadInput(f"{path}: {name} must be 0 or more, is {own[name]}")
    declared(own.get("accelerators", ()))
    rest = {k: v for k, v in body.items() if k not in known}
    for name, value in rest.items():
        if not isinstance(value, (str, int, float, bool)):
            raise BadInput(f"{path}: {name} must be text, a number or true/false")
    return NodeSettings(**own, node_config=rest)


def _texts(value: Any, name: str, path: Path) -> tuple[str, ...]:
    """A list of text; from the command line one text, with semicolons between."""
    parts = [part.strip() for part in value.split(";") if part.strip()] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise BadInput(f"{path}: {name} must be a list of text, is {value!r}")
    return tuple(parts)


def parse(text: str) -> Value:
    """A value from the command line: true/false, a number, or text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def assign(directory: Path, pairs: Mapping[str, Value]) -> None:
    """Write settings into the file, keeping the others.

    Raises:
        BadInput: a key is not a plain name, or a value has the wrong type; the file stays as it was.
    """
    path = directory / FILE
    body = _table(path)
    for key, value in pairs.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", key):
            raise BadInput(f"{key!r}: a setting's name starts with a letter and has letters, digits, '_', '-' and '.'")
        body[key] = value
    judge(body, path)
    lines = [f"{json.dumps(key)} = {_toml(value)}" for key, value in sorted(body.items())]
    write_atomic(path, ("# Site-only settings; change with `dure node config set key=value`.\n" + "\n".join(lines) + "\n").encode())


def _toml(value: Stored) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, list)) else repr(value)
