"""The consortium file: the one public file a member gets back. Address, coordinator CA, every charter version."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dure.charter import root
from dure.charter.model import Charter
from dure.errors import BadInput
from dure.identity.files import read_json, write_json

WHAT = "the consortium file, which the administrator makes with `dure charter publish`"


@dataclass(frozen=True)
class ConsortiumFile:
    """Not trusted by itself: `charter(pin)` walks its versions from a digest pinned out of band."""

    name: str
    address: str
    """host:port of the members' port."""
    roots: tuple[bytes, ...]
    """Every charter version's file, 1 first."""

    @property
    def first_digest(self) -> bytes:
        """Digest of version 1 as the file has it: what to compare, not what to believe."""
        return root.digest(root.parse(self.roots[0]))

    def charter(self, pin: bytes | None) -> Charter:
        """The newest version, verified from the pinned first one. Raises as `root.walk`."""
        return root.walk(self.roots, pin)

    def charters(self, pin: bytes | None) -> tuple[Charter, ...]:
        """Every version, verified from the pinned first one. Raises as `root.walk_all`."""
        return root.walk_all(self.roots, pin)

    def followed_by(self, offered: Sequence[bytes], pin: bytes) -> ConsortiumFile | None:
        """This file with the newer versions a peer shows; None where it shows none. Raises as `root.follow`."""
        newer = root.follow(self.roots, offered, pin)
        return replace(self, roots=(*self.roots, *newer)) if newer else None

    def write(self, path: Path) -> None:
        body = {
            "name": self.name,
            "address": self.address,
            "charter_sha256": self.first_digest.hex(),
            "roots": [base64.b64encode(r).decode() for r in self.roots],
        }
        write_json(path, body)

    @staticmethod
    def load(path: Path) -> ConsortiumFile:
        """Read one.

        Raises:
            BadInput: not a consortium file.
        """
        body = read_json(path, WHAT, "name", "address", "roots")
        try:
            roots = tuple(base64.b64decode(r, validate=True) for r in body["roots"])
        except (ValueError, TypeError):
            raise BadInput(f"{path}: roots are not base64; {WHAT}") from None
        if not roots:
            raise BadInput(f"{path}: has no charter version; {WHAT}")
        host, colon, port = str(body["address"]).rpartition(":")
        if not colon or not host or not port.isdigit():
            raise BadInput(f"{path}: address {body['address']!r} is not host:port")
        return ConsortiumFile(str(body["name"]), str(body["address"]), roots)
