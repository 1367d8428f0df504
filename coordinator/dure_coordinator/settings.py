"""The coordinator's settings: <dir>/coordinator.toml; an absent file runs with the defaults."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dure.errors import BadInput

FILE = "coordinator.toml"


@dataclass(frozen=True)
class CoordinatorSettings:
    """What is in force."""

    listen: str = ""
    """host:port of the members' port; empty takes the port of `--advertise` on all addresses of loopback or 0.0.0.0."""
    database: str = ""
    """SQLAlchemy URL with a plain driver, such as postgresql+psycopg://host/name; empty is SQLite in the folder."""
    spool_quota_bytes: int = 200 * 10**9
    """All masked uploads on disk together."""
    run_quota_bytes: int = 0
    """Most of them of one run; 0: the quota for all is the only bound."""
    run_reserve_bytes: int = 10**9
    """What every open run is sure of, whatever the others keep; at most its equal share of the quota. 0: whoever comes first has it all."""
    spool_sync_bytes: int = 64 * 1024 * 1024
    """Bytes of one upload taken between two syncs to disk: what a coordinator that was killed asks for again at most."""
    keep_bases: int = 4
    """Bases of a run, with their momenta, that stay on disk besides its first weights and the current one; older ones follow from the sums,
    which all stay, and are recomputed where somebody asks for one. 0: all stay."""
    http_witnesses: Mapping[str, str] = field(default_factory=dict)
    """Member id -> URL of a C2SP tlog-witness with that member's witness key, for members whose node is not the witness."""
    gone_grace_s: float = 10.0
    """How long a member that lost its connection holds up a phase that others have finished; longer than a service manager takes to start a
    node again (RestartSec=5 in deploy/systemd, and its own start), so that a restart costs nobody an exchange."""
    return_grace_s: float = 30.0
    """The same after a restart of the coordinator, when everybody has to come back; nodes try at least every 15 s."""
    join_grace_s: float = 3.0
    """How long the first epoch waits for further members once a quorum is there."""


def load(directory: Path) -> CoordinatorSettings:
    """Settings of a coordinator's folder.

    Raises:
        BadInput: names the key that is unknown or of the wrong type.
    """
    path = directory / FILE
    try:
        body: dict[str, Any] = tomllib.loads(path.read_text()) if path.exists() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
    known = {f.name: getattr(CoordinatorSettings(), f.name) for f in fields(CoordinatorSettings)}
    for name, value in body.items():
        if name not in known:
            raise BadInput(f"{path}: {name} is unknown; settings are {', '.join(known)}")
        if isinstance(known[name], float) and type(value) is int:
            body[name] = float(value)
        elif isinstance(value, dict) and not all(isinstance(v, str) for v in value.values()):
            raise BadInput(f"{path}: {name} must be a table of texts")
        elif type(value) is not type(known[name]):
            raise BadInput(f"{path}: {name} must be {type(known[name]).__name__}")
    if body.get("keep_bases", 0) < 0:
        raise BadInput(f"{path}: keep_bases must be at least 1, or 0 for all")
    return CoordinatorSettings(**body)
