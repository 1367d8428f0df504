"""Files a role keeps under its --dir: written whole or not at all, and read with an error that says what to do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dure.errors import BadInput


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a public file's content: a crash leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole_or_nothing(directory: Path) -> Iterator[None]:
    """What a block that fails has made in this folder is removed again: keys nobody was told of are no keys."""
    made_here = not directory.exists()
    before = set() if made_here else set(directory.iterdir())
    try:
        yield
    except BaseException:
        if made_here:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            for path in set(directory.iterdir()) - before:
                path.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object) -> None:
    """A small public JSON file people may read."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """As `write_json` writes it."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


MAX_READ_BYTES = 1 << 28
"""Of a file that is read whole: above what any kind of ours may have, below what would take a machine's memory."""


def read(path: Path, what: str, most: int = MAX_READ_BYTES) -> bytes:
    """A file's bytes.

    Raises:
        BadInput: it is not there, cannot be read, or has more than `most` bytes; says what it should have been.
    """
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            found = b"" if facts.st_size > most else file.read() if stat.S_ISREG(facts.st_mode) else file.read(most + 1)
        if max(facts.st_size, len(found)) > most:
            raise BadInput(f"{path} is larger than {most} bytes; expected {what}")
        return found
    except FileNotFoundError:
        raise BadInput(f"{path} is not there; expected {what}") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: Path, what: str, *fields: str) -> dict[str, Any]:
    """A JSON object with at least these fields.

    Raises:
        BadInput: absent, not JSON, or a field is missing; says what it should have been.
    """
    try:
        body = json.loads(read(path, what))
    except (ValueError, RecursionError):
        raise BadInput(f"{path} is not JSON; expected {what}") from None
    if not isinstance(body, dict):
        raise BadInput(f"{path} is not a JSON object; expected {what}")
    for name in fields:
        if name not in body:
            raise BadInput(f"{path} has no {name}; expected {what}")
    return body
