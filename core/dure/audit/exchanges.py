"""What an audit remembers of exchanges: those met last in memory, all others in a file of this process's own.

So memory does not grow with the log.
"""

from __future__ import annotations

import pickle
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from dure.errors import Unavailable
from dure.secagg.ids import InstanceId

IN_MEMORY = 128
"""Exchanges: more than are ever under way, over all runs. A statement that comes later than so many costs a look into the file."""
_Plain = tuple[Any, ...]


@dataclass(slots=True)
class Instance:
    """One instance of the secure sum as the log tells it."""

    id: InstanceId
    cohort: tuple[str, ...]
    ctx: bytes
    node_keys: dict[str, bytes]
    """Every member's node key when it was opened."""
    commits: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    """member -> (payload digest of its commit, bytes of its upload)."""
    survivors: tuple[str, ...] = ()
    survivors_sha256: bytes = b""
    aggregate_sha256: bytes = b""
    voids: set[str] = field(default_factory=set)
    measures: tuple[bytes, tuple[str, ...]] | None = None
    """Of an evaluate exchange's last instance: (weights id, names of the metrics)."""
    trailer: tuple[int, ...] = ()
    """Its opened one."""
    usages: dict[str, bytes] = field(default_factory=dict)
    """And by member the envelope digest of the usage statement its commit names."""
    worded: bool = False
    """An eval statement says it in words."""


@dataclass(slots=True)
class Exchange:
    """One exchange of a run: its instances, and who accepted what."""

    instances: dict[bytes, Instance] = field(default_factory=dict)
    accepts: dict[str, tuple[tuple[bytes, ...], bytes | None]] = field(default_factory=dict)
    """member -> (payload digests of the sums it verified, next base)."""
    summed: bool = False
    """An instance other than scales was opened."""
    usages: dict[bytes, tuple[str, tuple[bytes, ...]]] = field(default_factory=dict)
    """Envelope digest of a usage statement -> (member, data commitments it names)."""

    def packed(self) -> _Plain:
        """In plain values, which are written in a third of the time."""
        instances = [(raw, *(getattr(one, name) for name in _KEPT)) for raw, one in self.instances.items()]
        return instances, self.accepts, self.summed, self.usages

    @staticmethod
    def unpacked(body: _Plain) -> Exchange:
        instances = {raw: Instance(InstanceId.decode(raw), *kept) for raw, *kept in body[0]}
        return Exchange(instances, *body[1:])


_KEPT = tuple(each.name for each in fields(Instance) if each.name != "id")
"""An instance's id is the one of its key."""


class Shelf:
    """Exchanges by run and number. What `get` gave may be changed until the next `get`."""

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._most = in_memory
        self._near: OrderedDict[tuple[bytes, int], Exchange] = OrderedDict()
        self._newest: dict[bytes, int] = {}
        """run -> largest number met, so that a new exchange costs no look into the file."""
        self._far = sqlite3.connect("")  # SQLite's own temporary file: gone with the process, in memory as long as it is small
        with _disk():
            self._far.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
            self._far.execute("CREATE TABLE exchange (run BLOB, number INT, body BLOB, PRIMARY KEY (run, number)) WITHOUT ROWID")

    def get(self, run: bytes, number: int) -> Exchange:
        """The exchange; an empty one where nothing of it was met.

        Raises:
            Unavailable: the disk is full.
        """
        key = (run, number)
        found = self._near.get(key)
        if found is not None:
            self._near.move_to_end(key)
            return found
        found = self._fetch(run, number) or Exchange()
        self._near[key] = found
        self._newest[run] = max(number, self._newest.get(run, 0))
        if len(self._near) > self._most:
            old = [self._near.popitem(last=False) for _ in range((self._most + 1) // 2)]
            with _disk():
                rows = ((*key, pickle.dumps(body.packed())) for key, body in old)
                self._far.executemany("INSERT OR REPLACE INTO exchange VALUES (?, ?, ?)", rows)
        return found

    def _fetch(self, run: bytes, number: int) -> Exchange | None:
        if number > self._newest.get(run, -1):
            return None
        with _disk():
            row = self._far.execute("SELECT body FROM exchange WHERE run = ? AND number = ?", (run, number)).fetchone()
        if row is None:
            return None
        return Exchange.unpacked(pickle.loads(row[0]))  # noqa: S301 -- our own bytes, from a file that only this process ever had


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise Unavailable(f"the audit's temporary file: {error}; free some space, or point TMPDIR to another disk") from None
