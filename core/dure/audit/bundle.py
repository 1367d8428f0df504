"""The bundle: everything an auditor needs of a consortium, as plain files that do not depend on who made the copy.

trust/1.root.json …   every charter version, verbatim
log/checkpoint        the newest cosigned head
log/tile/…            the log's tiles and entry bundles at that size, C2SP tlog-tiles
rounds/<run>/…        what a run's models are recomputed from (parts.py), where it was exported with --run
<anything else>       refused: every byte of a bundle is covered by a check
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dure.errors import BadInput, Conflict, DureError
from dure.identity.files import write_atomic
from dure.statements.anykind import kind_of
from dure.statements.dsse import Envelope
from dure.statements.kinds import CharterVersion
from dure.tlog.checkpoint import Head
from dure.tlog.files import CHECKPOINT
from dure.tlog.tiles import Tile, TileBuilder, TiledTree

TRUST, LOG = "trust", "log"
MAX_FILE_BYTES = 1 << 25
_ROOT = re.compile(r"trust/([1-9][0-9]{0,5})\.root\.json")


class PartMissing(BadInput):
    """A file of the bundle is not there; the message says which, and what can be checked without it."""


@dataclass(frozen=True)
class Bundle:
    """A folder somebody handed over. Nothing in it is believed."""

    folder: Path

    @staticmethod
    def open(folder: Path) -> Bundle:
        """Raises BadInput: it is no folder, or holds links or other things that are no plain files."""
        if not folder.is_dir():
            raise BadInput(f"{folder}: is no folder; give the bundle that `dure audit export` made")
        bundle = Bundle(folder)
        for _ in bundle.names():
            pass
        return bundle

    def names(self) -> Iterator[str]:
        """Every file, relative to the bundle. Raises BadInput for what is no plain file."""
        folders = [""]
        while folders:
            below = folders.pop()
            with os.scandir(self.folder / below) as found:
                for entry in found:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{below}{entry.name}/")
                    elif entry.is_file(follow_symlinks=False):
                        yield below + entry.name
                    else:
                        raise BadInput(f"{entry.path}: is no plain file; a bundle has nothing else")

    def has(self, name: str) -> bool:
        return os.path.exists(f"{self.folder}/{name}")

    def read(self, name: str) -> bytes:
        """Raises PartMissing; BadInput for one that is too large to be what it should be."""
        try:
            with open(f"{self.folder}/{name}", "rb") as file:
                if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                    raise BadInput(f"{name}: larger than anything a bundle holds")
                return file.read()
        except FileNotFoundError:
            raise PartMissing(f"{name} is not in the bundle; ask for it again, or export anew") from None

    def existing(self, name: str) -> Path:
        """The path of a part that may be as large as a model; raises PartMissing."""
        path = self.folder / name
        if not path.is_file():
            raise PartMissing(f"{name} is not in the bundle; ask for it again, or export anew with --run")
        return path

    def roots(self) -> list[bytes]:
        """Every charter version's file, 1 first.

        Raises:
            PartMissing: one in between is not there.
        """
        numbers = sorted(int(found[1]) for name in self.names() if (found := _ROOT.fullmatch(name)))
        return [self.read(f"{TRUST}/{n}.root.json") for n in range(1, max(numbers, default=1) + 1)]


def root_names(versions: int) -> set[str]:
    return {f"{TRUST}/{n}.root.json" for n in range(1, versions + 1)}


def export(tree: TiledTree, head: Head, roots: Sequence[bytes], out: Path, more: Callable[[Path], object] = lambda _scratch: None) -> int:
    """Writes a bundle of a log up to a cosigned head; returns its size in entries. The same log and head give the same bytes.

    Args:
        tree: of at least the head's size.
        roots: every charter version here, 1 first; those whose entry the head covers go into the bundle.
        more: adds further parts to the folder before it gets its name.

    Raises:
        Conflict: `out` is there already.
    """
    if out.exists():
        raise Conflict(f"{out} is there already; choose another name, or remove it")
    scratch = out.with_name(f".{out.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        builder, versions = TileBuilder(), 0
        for entry in tree.entries(0, head.checkpoint.size):
            _write(scratch, builder.append(entry))
            versions += versions < len(roots) and is_charter(entry)
        for number, raw in enumerate(roots[: max(versions, 1)], 1):
            write_atomic(scratch / TRUST / f"{number}.root.json", raw)
        _write(scratch, builder.partial())
        write_atomic(scratch / LOG / CHECKPOINT, head.note.to_bytes())
        more(scratch)
        scratch.replace(out)
    except (OSError, DureError):
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return head.checkpoint.size


def is_charter(entry: bytes) -> bool:
    """Whether an entry says of itself that it brings a charter version."""
    try:
        return kind_of(Envelope.from_bytes(entry).payload) == CharterVersion.kind
    except DureError:
        return False


def _write(scratch: Path, tiles: Iterable[tuple[Tile, bytes]]) -> None:
    for tile, data in tiles:
        path = scratch / LOG / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
