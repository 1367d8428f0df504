"""One tree of errors; each says in one line what is wrong and what to do.

DureError
├── Refused        a value is out of form or out of order; `field` names it
├── NotAuthorised  the caller is not who may do this
├── BadInput       a file or argument the user gave
├── Conflict       something else already stands there
└── Unavailable    not now: a port, a disk, a peer
"""

from __future__ import annotations

import errno


class DureError(Exception):
    """Base of every error a user may see: one line, no traceback."""

    exit_code = 1


class Refused(DureError):
    """A value is refused; `field` names it."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why


class NotAuthorised(DureError):
    """The caller may not do this."""

    exit_code = 3


class BadInput(DureError):
    """A file or an argument the user gave cannot be used."""

    exit_code = 2


class Conflict(DureError):
    """Something else already stands there."""

    exit_code = 4


class Unavailable(DureError):
    """Not now: a port in use, a full disk, a peer that does not answer."""

    exit_code = 5


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_REMEDIES: dict[int, tuple[type[DureError], str]] = {
    **dict.fromkeys(_FULL, (Unavailable, "free some space and run it again; nothing half-written counts")),
    **dict.fromkeys(_FORBIDDEN, (BadInput, "give a place this user may write")),
    **dict.fromkeys(_PATH, (BadInput, "give a path that fits")),
    errno.EIO: (Unavailable, "the disk fails; move the folder to another one"),
}


def world_error(error: OSError) -> DureError | None:
    """What the machine refused, as one line with a remedy; None where it rather shows a mistake of ours."""
    kind, remedy = _REMEDIES.get(error.errno or 0, (None, ""))
    if kind is None:
        return None
    where = f"{error.filename}: " if error.filename is not None else ""
    return kind(f"{where}{(error.strerror or '').lower()}; {remedy}")
