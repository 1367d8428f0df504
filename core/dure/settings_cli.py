"""`dure settings show`: what is in force in a role's folder, and where each value comes from."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from dure.console import DEFAULT_DIR, AsJson, Dir, one_line_errors, say, show_json
from dure.errors import BadInput

app = typer.Typer(no_args_is_help=True, help="Which settings are in force, and where each comes from.")

ROLES = {"node.json": ("dure_participant.settings", "node.toml"), "coordinator.json": ("dure_coordinator.settings", "coordinator.toml")}
"""What marks a role's folder; its settings module has `load(directory)`, which gives a frozen dataclass."""


@app.callback()
def group() -> None:
    """Which settings are in force, and where each comes from."""


def in_force(directory: Path) -> tuple[str, Any]:
    """(file name, settings dataclass) of the role whose folder this is.

    Raises:
        BadInput: it is no role's folder.
    """
    for marker, (module, name) in ROLES.items():
        if (directory / marker).exists():
            found = import_module(module).load(directory)
            assert is_dataclass(found)
            return name, found
    raise BadInput(f"{directory} holds no node and no coordinator; give its folder with --dir")


def without_password(value: Any) -> Any:
    """A setting for people: of a URL everything but the password."""
    if not isinstance(value, str) or "://" not in value:
        return value
    return re.sub(r"(password=)[^&]*", r"\1***", re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", value), flags=re.I)


@app.command()
@one_line_errors
def show(directory: Dir = DEFAULT_DIR, as_json: AsJson = False) -> None:
    """Every setting in force in a folder: value, and file or default.

    Example: dure settings show --dir /var/lib/dure
    """
    name, found = in_force(directory)
    defaults = type(found)()
    rows = [
        {
            "setting": f.name,
            "value": dict(value) if hasattr(value := getattr(found, f.name), "items") else without_password(value),
            "from": "default" if value == getattr(defaults, f.name) else name,
        }
        for f in fields(found)
    ]
    if as_json:
        show_json({"settings": rows})
        return
    for row in rows:
        say(f"{row['setting']:<24} {row['value']!s:<24} {row['from']}")
