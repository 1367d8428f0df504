"""Unix sockets in folders only we may enter. gRPC creates a socket 0755: the folder is the access control."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from dure.errors import Unavailable

MAX_PATH_BYTES = 107
"""sun_path holds 108 bytes with its NUL."""


def private_folder(path: Path) -> Path:
    """The folder, made if need be, ours alone (0700).

    Raises:
        Unavailable: it cannot be made, or is somebody else's.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise Unavailable(f"{path}: must be a folder of ours; remove it and start again")
        if stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)
    except OSError as e:
        raise Unavailable(f"{path}: {e.strerror}; give --dir a folder this user may write") from e
    return path


def socket_path(folder: Path, name: str) -> Path:
    """Where the socket of this name is: in `folder`, or, if that is too long to bind, in a short runtime folder.

    A pure function of both, so that server and client agree without telling each other.
    """
    path = folder.resolve() / name
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        return path
    short = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"dure-{os.getuid()}-{short}" / name


def prepare_socket(folder: Path, name: str) -> Path:
    """`socket_path`, with its folder made private and a stale socket removed."""
    private_folder(folder)
    path = socket_path(folder, name)
    private_folder(path.parent)
    path.unlink(missing_ok=True)
    return path
