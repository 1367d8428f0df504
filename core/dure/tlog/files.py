"""The log on the coordinator's disk, in C2SP tlog-tiles layout: written from the database, in an order that no crash can make wrong.

Entry bundles, then tiles, all synced; the head is signed and cosigned; only then `checkpoint` is renamed into place. So whatever it
names is there. A path never gets other bytes: after a crash the same files are written again, and one that differs is damage.

Calls block on the disk; callers on an event loop use a thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from dure.blobs import sync_dir, writing
from dure.errors import DureError
from dure.tlog.checkpoint import Checkpoint, Head, open_by_any
from dure.tlog.merkle import root_at
from dure.tlog.note import NoteKey
from dure.tlog.tiles import WIDTH, Tile, TileBuilder, TiledTree, partial_tiles, tiles_between

CHECKPOINT = "checkpoint"
COSIGNED = "cosigned"
"""In a member's mirror: the newest head it knows to be cosigned by a quorum; `checkpoint` there is the one it cosigned itself."""
SYNC_EVERY = 4096
"""Entries between two syncs while many are written at once."""


def log_path(path: str) -> str:
    """The same path, if it is the one spelling of a log's file in the layout: `checkpoint`, a tile, an entry bundle.

    Raises:
        TileRefused: nothing else of a log's folder is for others.
    """
    return path if path == CHECKPOINT else Tile.parse(path).path


class LogDamaged(DureError):
    """A file of the log has other bytes than it had, or than the database says. Nothing more is published until a person has looked."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}; keep a copy of the folder as evidence and put the same file of a member's mirror in its place")
        self.path = path


class Disk:
    """The three things done to the log's folder; tests make each of them fail."""

    def put(self, path: Path, data: bytes) -> None:
        """A file that appears whole, its bytes synced."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.new")
        with writing(path), scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)

    def sync(self, folders: Iterable[Path]) -> None:
        for folder in folders:
            sync_dir(folder)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


class LogFiles:
    """One log's folder.

    Args:
        log: the log's own key; its name is the origin.
        former: keys it had before, by which heads here may be signed. Whoever relies on a head judges its key by the charter (log_keys).
    """

    def __init__(self, folder: Path, log: NoteKey, disk: Disk | None = None, former: Sequence[NoteKey] = ()) -> None:
        self.folder, self._logs, self._disk = folder, (log, *former), disk or Disk()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.published: Head | None = self._read_published()
        """The head in `checkpoint`; None before the first."""
        self._builder = self._resume()
        self._unsynced: set[Path] = set()
        self._kept = self.published.checkpoint.size if self.published else 0
        """Partial tiles from this size on may still lie about."""

    def _read_published(self) -> Head | None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return None
        try:
            return open_by_any(path.read_bytes(), self._logs)
        except DureError as error:
            raise LogDamaged(path, str(error)) from None

    def _resume(self) -> TileBuilder:
        if self.published is None:
            return TileBuilder()
        head = self.published.checkpoint
        tree = self.tree(head.size)
        try:
            if root_at(tree.node, head.size) != head.root:
                raise LogDamaged(self.folder, "the tiles do not give the published head")
            return TileBuilder.at(tree)
        except OSError as error:
            raise LogDamaged(self.folder, f"a tile of the published head cannot be read ({error})") from None

    @property
    def keys(self) -> tuple[NoteKey, ...]:
        """The log's own key, then those it had before."""
        return self._logs

    def signed_by(self, logs: Sequence[NoteKey]) -> None:
        """The log's key was replaced: these, newest first, may sign heads here."""
        self._logs = tuple(logs)

    @property
    def size(self) -> int:
        """Entries whose files are written; at least the published ones."""
        return self._builder.size

    @property
    def root(self) -> bytes:
        return self._builder.frontier.root()

    def tree(self, size: int) -> TiledTree:
        """The tree of a size that is published or being published."""
        return TiledTree(self.read, size)

    def read(self, path: str) -> bytes:
        """A file of the log by its path in the layout; FileNotFoundError where there is none."""
        return (self.folder / log_path(path)).read_bytes()

    def grow(self, entries: Iterable[bytes]) -> None:
        """Writes and syncs the files of a tree that goes on with these entries. After any error this is where it was at the published head
        again, so that `size` never counts an entry whose files may be missing; the same entries are then given again.

        Raises:
            DiskFull: nothing is published.
            LogDamaged: a file is there with other bytes.
        """
        try:
            self._grow(entries)
        except BaseException:
            self._unsynced.clear()
            self._builder = self._resume()
            raise

    def _grow(self, entries: Iterable[bytes]) -> None:
        for entry in entries:
            for tile, data in self._builder.append(entry):
                self._write_once(tile, data)
            if self._builder.size % SYNC_EVERY == 0:
                self._sync()
        for tile, data in self._builder.partial():
            self._write_once(tile, data)
        self._sync()

    def _write_once(self, tile: Tile, data: bytes) -> None:
        path = self.folder / tile.path
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() != data:
                raise LogDamaged(path, "has other bytes than the database says")
            return
        self._disk.put(path, data)
        while path != self.folder:
            path = path.parent
            self._unsynced.add(path)

    def _sync(self) -> None:
        self._disk.sync(sorted(self._unsynced))
        self._unsynced.clear()

    def publish(self, note: bytes) -> Head:
        """Makes a signed and cosigned head the published one. Its files are synced; it never goes back."""
        head = open_by_any(note, self._logs)
        before = self.published.checkpoint if self.published else Checkpoint(self._logs[0].name, 0, b"")
        assert before.size <= head.checkpoint.size <= self.size, "a head is published after its files, and never a shorter one"
        assert head.checkpoint.size < self.size or head.checkpoint.root == self.root
        self._disk.put(self.folder / CHECKPOINT, note)
        self._disk.sync([self.folder])
        self.published = head
        self._forget_partials(before.size, head.checkpoint.size)
        return head

    def _forget_partials(self, before: int, now: int) -> None:
        """Partial tiles of neither this head nor the one before, which readers may still be reading."""
        keep = {tile.path for size in (before, now) for tile in partial_tiles(size)}
        for tile in tiles_between(self._kept, now):
            folder = self.folder / f"{replace(tile, width=WIDTH).path}.p"
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if str(path.relative_to(self.folder)) not in keep:
                    self._disk.remove(path)
        self._kept = before
