"""The log as files: C2SP tlog-tiles (height 8), the same below HTTP, in a member's mirror and in an auditor's bundle.

    tile/<L>/<N>[.p/<W>]          up to 256 hashes: nodes of level 8·L, the first being number 256·N
    tile/entries/<N>[.p/<W>]      up to 256 entries, each u16 big-endian length ‖ bytes
    checkpoint                    the one file that changes

A path never gets other bytes: partial tiles have their width in their name. Source: c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from dure.errors import Refused
from dure.tlog.merkle import HASH_BYTES, Frontier, frontier_at, leaf_hash, node_hash

WIDTH = 256
HEIGHT = 8
MAX_ENTRY_BYTES = 65_535
MAX_LEVEL = 63 // HEIGHT
_PATH = re.compile(r"tile/(entries|[0-7])/((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")
_LENGTH = struct.Struct(">H")

ENTRIES = -1
"""`Tile.level` of entry bundles."""


class TileRefused(Refused):
    """A tile's name or bytes are not what they must be; `field` is its path."""


@dataclass(frozen=True, order=True)
class Tile:
    """The name of a tile or, with level `ENTRIES`, of an entry bundle."""

    level: int
    index: int
    width: int
    """1..256; 256 is full."""

    @property
    def path(self) -> str:
        kind = "entries" if self.level == ENTRIES else str(self.level)
        parts, n = [f"{self.index % 1000:03d}"], self.index // 1000
        while n:
            parts.append(f"x{n % 1000:03d}")
            n //= 1000
        return f"tile/{kind}/{'/'.join(reversed(parts))}" + ("" if self.width == WIDTH else f".p/{self.width}")

    @staticmethod
    def parse(path: str) -> Tile:
        """Raises TileRefused: not the one spelling of a tile's path."""
        found = _PATH.fullmatch(path)
        if found is None:
            raise TileRefused(path[:100], "is not a tile's path")
        index = int(found[2].replace("x", "").replace("/", ""))
        tile = Tile(ENTRIES if found[1] == "entries" else int(found[1]), index, int(found[3] or WIDTH))
        if tile.path != path:
            raise TileRefused(path[:100], "is not the one spelling of a tile's path")
        return tile

    @property
    def first(self) -> int:
        """Number of its first node (of its level) or entry."""
        return self.index * WIDTH


def tiles_between(old: int, size: int) -> Iterator[Tile]:
    """Tiles a tree of `size` has and one of `old` had not: entry bundles first, then levels upwards. From 0: all of its files."""
    yield from _of_level(ENTRIES, old, size)
    for level in range(MAX_LEVEL + 1):
        have, want = old >> (HEIGHT * level), size >> (HEIGHT * level)
        if not want:
            return
        yield from _of_level(level, have, want)


def partial_tiles(size: int) -> Iterator[Tile]:
    """The tiles of a tree that are not full; the only ones that go out of use as it grows."""
    for level in range(ENTRIES, MAX_LEVEL + 1):
        have = size if level == ENTRIES else size >> (HEIGHT * level)
        if have % WIDTH:
            yield Tile(level, have // WIDTH, have % WIDTH)


def _of_level(level: int, have: int, want: int) -> Iterator[Tile]:
    if have == want:
        return
    for index in range(have // WIDTH, want // WIDTH):
        yield Tile(level, index, WIDTH)
    if want % WIDTH:
        yield Tile(level, want // WIDTH, want % WIDTH)


def encode_entries(entries: Iterable[bytes]) -> bytes:
    """The bytes of an entry bundle. Raises TileRefused for an entry over 65,535 bytes."""
    out = bytearray()
    for entry in entries:
        if len(entry) > MAX_ENTRY_BYTES:
            raise TileRefused("entry", f"has {len(entry)} bytes, at most {MAX_ENTRY_BYTES}")
        out += _LENGTH.pack(len(entry)) + entry
    return bytes(out)


def decode_entries(tile: Tile, data: bytes) -> list[bytes]:
    """The entries in a bundle, exactly `tile.width` of them.

    Raises:
        TileRefused: cut short, too long, or of another number of entries.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        if at + _LENGTH.size > len(data) or len(entries) == tile.width:
            raise TileRefused(tile.path, f"does not hold {tile.width} entries")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise TileRefused(tile.path, "is cut short")
        entries.append(data[at : at + length])
        at += length
    if len(entries) != tile.width:
        raise TileRefused(tile.path, f"holds {len(entries)} entries, not {tile.width}")
    return entries


def decode_hashes(tile: Tile, data: bytes) -> list[bytes]:
    """The hashes in a tile. Raises TileRefused if it has another length."""
    if len(data) != tile.width * HASH_BYTES:
        raise TileRefused(tile.path, f"has {len(data)} bytes, not {tile.width * HASH_BYTES}")
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


class TiledTree:
    """The nodes of a tree of known size, read from its tiles: what merkle.py asks for.

    Args:
        read: path -> bytes; raises for a file that is not there.
        size: entries in the tree; decides which partial tiles exist.

    The tiles are believed as they are: verify the head that comes out, or the files before.
    """

    def __init__(self, read: Callable[[str], bytes], size: int) -> None:
        self._read, self.size = read, size
        self._hashes = lru_cache(maxsize=64)(self._load)

    def _load(self, tile: Tile) -> list[bytes]:
        return decode_hashes(tile, self._read(tile.path))

    def tile(self, level: int, index: int) -> Tile:
        """The tile of this number at the tree's size; the last of a level may be partial."""
        width = min(WIDTH, self._count(level) - index * WIDTH)
        if index < 0 or width < 1:
            raise TileRefused("tile", f"{level}/{index} is not in a tree of {self.size} entries")
        return Tile(level, index, width)

    def _count(self, level: int) -> int:
        return self.size if level == ENTRIES else self.size >> (HEIGHT * level)

    def node(self, level: int, index: int) -> bytes:
        """Hash of a complete subtree, computed from the nearest tile below."""
        above = level % HEIGHT
        span = 1 << above
        first = index * span
        hashes = self._hashes(self.tile(level // HEIGHT, first // WIDTH))
        row = hashes[first % WIDTH : first % WIDTH + span]
        if len(row) != span:
            raise TileRefused("node", f"{level}/{index} is not complete in a tree of {self.size} entries")
        while len(row) > 1:
            row = [node_hash(row[i], row[i + 1]) for i in range(0, len(row), 2)]
        return row[0]

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Entries [start, end) in order, one bundle in memory at a time."""
        end = self.size if end is None else end
        for index in range(start // WIDTH, -(-end // WIDTH)):
            tile = self.tile(ENTRIES, index)
            bundle = decode_entries(tile, self._read(tile.path))
            yield from bundle[max(0, start - tile.first) : end - tile.first]

    def entry(self, index: int) -> bytes:
        """One entry. Raises TileRefused: the tree does not reach to it."""
        if not 0 <= index < self.size:
            raise TileRefused("index", f"is {index}, the tree has {self.size} entries")
        return next(iter(self.entries(index, index + 1)))


class HashTiles:
    """The tiles of hashes of a growing tree, from its nodes in order. Memory O(256 · log n).

    Args:
        lowest: level of the tiles that the given nodes are in; the nodes are hashes of 256^lowest entries.
    """

    def __init__(self, lowest: int = 0) -> None:
        self.frontier = Frontier()
        """Counts in the given nodes."""
        self._lowest, self._rows = lowest, dict[int, list[bytes]]()

    def append(self, node: bytes) -> Iterator[tuple[Tile, bytes]]:
        """Adds a node; yields the tiles it fills. Must be read to its end."""
        for level, index, value in self.frontier.append(node):
            if level % HEIGHT == 0:
                row = self._rows.setdefault(level // HEIGHT, [])
                row.append(value)
                if len(row) == WIDTH:
                    yield Tile(self._lowest + level // HEIGHT, index // WIDTH, WIDTH), b"".join(row)
                    row.clear()

    def partial(self) -> Iterator[tuple[Tile, bytes]]:
        """The tiles that are not full."""
        for above, row in sorted(self._rows.items()):
            if row:
                yield Tile(self._lowest + above, (self.frontier.size >> (HEIGHT * above)) // WIDTH, len(row)), b"".join(row)

    def resume(self, tree: TiledTree) -> None:
        """Goes on where a tree ends; its leaves are the given nodes."""
        self.frontier = frontier_at(tree.node, tree.size)
        for level in range(MAX_LEVEL + 1):
            have = tree.size >> (HEIGHT * level)
            self._rows[level] = [tree.node(level * HEIGHT, i) for i in range(have - have % WIDTH, have)]


class TileBuilder:
    """Grows a log tile by tile: takes entries in order, gives the files. Memory O(256 · log n), whatever the number of entries."""

    def __init__(self) -> None:
        self._hashes = HashTiles()
        self._bundle: list[bytes] = []

    @staticmethod
    def at(tree: TiledTree) -> TileBuilder:
        """Goes on where a tree of that size ends."""
        builder = TileBuilder()
        builder._hashes.resume(tree)
        builder._bundle = list(tree.entries(tree.size - tree.size % WIDTH))
        return builder

    @property
    def frontier(self) -> Frontier:
        return self._hashes.frontier

    @property
    def size(self) -> int:
        return self.frontier.size

    def append(self, entry: bytes) -> Iterator[tuple[Tile, bytes]]:
        """Adds an entry; yields the tiles it fills, entries first. Must be read to its end."""
        self._bundle.append(entry)
        full = list(self._hashes.append(leaf_hash(entry)))
        if len(self._bundle) == WIDTH:
            yield Tile(ENTRIES, (self.size - 1) // WIDTH, WIDTH), encode_entries(self._bundle)
            self._bundle.clear()
        yield from full

    def partial(self) -> Iterator[tuple[Tile, bytes]]:
        """The tiles that are not full at this size."""
        if self._bundle:
            yield Tile(ENTRIES, self.size // WIDTH, len(self._bundle)), encode_entries(self._bundle)
        yield from self._hashes.partial()


__all__ = [
    "ENTRIES",
    "HashTiles",
    "Tile",
    "TileBuilder",
    "TileRefused",
    "TiledTree",
    "decode_entries",
    "decode_hashes",
    "encode_entries",
    "tiles_between",
]
