"""The files of a data set on a disk: listed, read once, and compared with what was opened."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from dure.errors import BadInput, Refused
from dure.provenance.data_set import PATH_FORM, DataFile, OpenedFile, in_order

READ_BYTES = 1 << 20
PLAIN_PATH = re.compile(PATH_FORM).fullmatch


def listed(where: Path) -> list[tuple[str, int]]:
    """(path, size) of every file under a folder, or of one file.

    Raises:
        BadInput: a link, a device, a name that is no plain text, or nothing at all: names it.
    """
    if not where.exists() and not where.is_symlink():
        raise BadInput(f"{where} is not there; give the folder or file to register")
    found = list(_below(where, "")) if where.is_dir() and not where.is_symlink() else [_plain(where.lstat(), str(where), where.name)]
    if not found:
        raise BadInput(f"{where} has no file in it; there is nothing to register")
    return found


def _below(where: Path, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(where) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(where / entry.name, f"{prefix}{entry.name}/")
            else:
                yield _plain(entry.stat(follow_symlinks=False), entry.path, prefix + entry.name)


def _plain(facts: os.stat_result, shown: str, path: str) -> tuple[str, int]:
    if not stat.S_ISREG(facts.st_mode):
        what = "a link" if stat.S_ISLNK(facts.st_mode) else "no plain file"
        raise BadInput(f"{shown!r} is {what}; a data set has plain files only: put the file itself there, or take it out")
    if not PLAIN_PATH(path):
        raise BadInput(f"{shown!r}: a file's name must be UTF-8 without control characters; rename it")
    return path, facts.st_size


def read_all(where: Path, progress: Callable[[int, int], None]) -> tuple[DataFile, ...]:
    """Every file's size and digest, in the tree's order; memory does not grow with the files' sizes.

    Args:
        progress: is told (bytes read, bytes in all).

    Raises:
        BadInput: as `listed`, or a file changed while it was read.
    """
    names = listed(where)
    total, done = sum(size for _, size in names), 0
    files = []
    for path, _ in names:
        files.append(read_one(where if where.is_file() else where / path, path))
        done += files[-1].size
        progress(min(done, total), total)
    progress(total, total)
    return tuple(in_order(files))


def read_one(at: Path, path: str) -> DataFile:
    """One file's size and digest. Raises BadInput: it is no plain file, or changes meanwhile."""
    try:
        handle = os.open(at, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BadInput(f"{at} cannot be read: {(error.strerror or '').lower()}") from None
    digest, size = sha256(), 0
    with os.fdopen(handle, "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise BadInput(f"{at} is no plain file")
        while block := file.read(READ_BYTES):
            digest.update(block)
            size += len(block)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or size != after.st_size:
        raise BadInput(f"{at} changed while it was read; run it again once nothing writes there")
    return DataFile(path, size, digest.digest())


def compare(folder: Path, opened: OpenedFile) -> None:
    """That the file in this folder is the opened one.

    Raises:
        BadInput: it is not there.
        Refused: its content is another, or its path leads out of the folder.
    """
    wanted = opened.file
    if any(part in ("", ".", "..") for part in wanted.path.split("/")):
        raise Refused("path", f"{wanted.path!r} leads out of the folder")
    at = folder / wanted.path
    try:
        inside = at.resolve().is_relative_to(folder.resolve())
    except RuntimeError:  # links that lead to each other
        inside = False
    if not inside:
        raise Refused("path", f"{wanted.path!r} leads out of the folder")
    if read_one(at, wanted.path) != wanted:
        raise Refused(wanted.path, "is not the file that was registered: its content differs")
