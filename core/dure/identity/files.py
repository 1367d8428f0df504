"""Files a role keeps under its --dir: written whole or not at all, and read with an error that says what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dure.errors import BadInput


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a public file's content: a crash leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: object) -> None:
    """A small public JSON file people may read."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")


def read(path: Path, what: str) -> bytes:
    """A file's bytes.

    Raises:
        BadInput: it is not there or cannot be read; says what it should have been.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path} is not there: {what}") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: Path, what: str, *fields: str) -> dict[str, Any]:
    """A JSON object with at least these fields.

    Raises:
        BadInput: absent, not JSON, or a field is missing.
    """
    try:
        body = json.loads(read(path, what))
    except (ValueError, RecursionError):
        raise BadInput(f"{path}: not JSON; {what}") from None
    if not isinstance(body, dict):
        raise BadInput(f"{path}: not a JSON object; {what}")
    for name in fields:
        if name not in body:
            raise BadInput(f"{path}: has no {name}; {what}")
    return body
