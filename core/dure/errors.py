"""One tree of errors; each says in one line what is wrong and what to do.

DureError
├── Refused        a value is out of form or out of order; `field` names it
├── NotAuthorised  the caller is not who may do this
├── BadInput       a file or argument the user gave
├── Conflict       something else already stands there
└── Unavailable    not now: a port, a disk, a peer
"""

from __future__ import annotations


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
