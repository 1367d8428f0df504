"""Which files a bundle must have, which it has: every byte of it is either checked or refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dure.audit.bundle import LOG, Bundle, PartMissing, root_names
from dure.audit.parts import PART
from dure.errors import DureError
from dure.tlog.files import CHECKPOINT
from dure.tlog.tiles import ENTRIES, WIDTH, Tile, TiledTree, tiles_between

MOST_NAMED = 1_000
"""Missing and unexpected files named one by one."""


@dataclass(frozen=True)
class Coverage:
    """A bundle's files against what its head asks for."""

    size: int
    """Entries: the head's, or without one as many as there are bundles of."""
    unexpected: tuple[str, ...]
    missing: tuple[str, ...]


def cover(bundle: Bundle, versions: int, size: int | None) -> Coverage:
    """Looks at names only. The files are counted first: a head may name any size.

    Args:
        size: of the head; None where there is none.

    Raises:
        PartMissing: the head is of more entries than so many files can hold.
    """
    files = sum(1 for _ in bundle.names())
    if size is not None and size > WIDTH * files:
        raise PartMissing(f"the head is of {size} entries, the bundle holds at most {WIDTH * files}; export anew")
    missing = [] if size is not None else [f"{LOG}/{CHECKPOINT}"]
    size = _size_of(bundle, files) if size is None else size
    tree = TiledTree(bundle.read, size)
    own = root_names(versions) | {f"{LOG}/{CHECKPOINT}"}
    there = (name for name in bundle.names() if not PART.fullmatch(name))  # parts of runs are the lineage's affair
    unexpected = [name for name in there if name not in own and not _is_tile(name, tree)]
    missing += [name for name in _tile_names(size) if not bundle.has(name)]
    return Coverage(size, tuple(sorted(unexpected)[:MOST_NAMED]), tuple(missing[:MOST_NAMED]))


def _tile_names(size: int) -> Iterator[str]:
    return (f"{LOG}/{tile.path}" for tile in tiles_between(0, size))


def _is_tile(name: str, tree: TiledTree) -> bool:
    """Whether it is the name of a tile that a tree of this size has."""
    try:
        tile = Tile.parse(name.removeprefix(f"{LOG}/"))
        return name == f"{LOG}/{tile.path}" and tree.tile(tile.level, tile.index) == tile
    except DureError:
        return False


def _size_of(bundle: Bundle, files: int) -> int:
    """As many entries as the entry bundles' names tell, from the first up to the first that is not there."""
    for index in range(files + 1):
        if bundle.has(f"{LOG}/{Tile(ENTRIES, index, WIDTH).path}"):
            continue
        widths = [w for w in range(1, WIDTH) if bundle.has(f"{LOG}/{Tile(ENTRIES, index, w).path}")]
        return index * WIDTH + max(widths, default=0)
    return 0
