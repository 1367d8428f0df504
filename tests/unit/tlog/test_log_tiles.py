"""The log as files: paths, contents, and what a reader gets from them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.tlog.merkle import Frontier, consistency_proof, inclusion_proof, leaf_hash, root_at, verify_consistency, verify_inclusion
from dure.tlog.tiles import ENTRIES, Tile, TileBuilder, TiledTree, TileRefused, decode_entries, encode_entries, tiles_between


class Files:
    """A growing log kept as files; a path written twice must get the same bytes. The builder is made anew at every growth."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.files: dict[str, bytes] = {}
        self.frontier = Frontier()

    def grow(self, entries) -> None:
        builder = TileBuilder.at(self.tree())
        written = set()
        for entry in entries:
            self.entries.append(entry)
            written |= {self.put(tile, data) for tile, data in builder.append(entry)}
        written |= {self.put(tile, data) for tile, data in builder.partial()}
        assert {t for t in tiles_between(self.frontier.size, builder.size)} <= written
        self.frontier = builder.frontier

    def put(self, tile, data):
        assert self.files.setdefault(tile.path, data) == data
        return tile

    def tree(self, size=None) -> TiledTree:
        return TiledTree(self.files.__getitem__, self.frontier.size if size is None else size)


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0, 256), "tile/0/000"),
        (Tile(0, 1234067, 256), "tile/0/x001/x234/067"),
        (Tile(1, 5, 7), "tile/1/005.p/7"),
        (Tile(ENTRIES, 1000, 256), "tile/entries/x001/000"),
    ],
)
def test_paths_are_those_of_the_specification(tile, path):
    assert tile.path == path
    assert Tile.parse(path) == tile


@pytest.mark.parametrize(
    "path",
    ["tile/0/0", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/x000/001", "tile/8/000", "tile/0/../000", "tile/0/001/000", "tile/0/000\n"],
)
def test_other_spellings_are_refused(path):
    with pytest.raises(TileRefused):
        Tile.parse(path)


@given(st.lists(st.integers(1, 700), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_a_log_grown_in_any_steps_can_be_read_at_every_published_size(steps):
    """Every size that was published keeps its tiles: heads, proofs and entries of it can be read from them for ever."""
    log, sizes = Files(), []
    for step in steps:
        log.grow(b"%d" % i for i in range(log.frontier.size, log.frontier.size + step))
        sizes.append((log.frontier.size, log.frontier.root()))
    newest = log.tree()
    for size, root in sizes:
        tree = log.tree(size)
        assert root_at(tree.node, size) == root
        assert list(tree.entries()) == log.entries[:size]
        verify_consistency(size, root, *sizes[-1], consistency_proof(newest.node, size, newest.size))
        verify_inclusion(leaf_hash(log.entries[size - 1]), size - 1, size, inclusion_proof(tree.node, size - 1, size), root)
        assert tree.entry(size - 1) == log.entries[size - 1]


def test_70_000_entries_have_three_levels_and_prove_any_entry():
    log = Files()
    log.grow(b"%d" % i for i in range(70_000))
    assert {Tile.parse(p).level for p in log.files} == {ENTRIES, 0, 1, 2}
    tree, root = log.tree(), log.frontier.root()
    for index in (0, 255, 256, 65_535, 65_536, 69_999):
        verify_inclusion(leaf_hash(b"%d" % index), index, 70_000, inclusion_proof(tree.node, index, 70_000), root)


def test_bundles_that_are_cut_padded_or_miscounted_are_refused():
    tile = Tile(ENTRIES, 0, 2)
    good = encode_entries([b"one", b"two"])
    assert decode_entries(tile, good) == [b"one", b"two"]
    for bad in (good[:-1], good + b"\0", good + b"\0\0", encode_entries([b"one"]), b""):
        with pytest.raises(TileRefused):
            decode_entries(tile, bad)
    with pytest.raises(TileRefused):
        encode_entries([bytes(65_536)])


def test_a_tree_shorter_than_its_files_claim_is_refused():
    log = Files()
    log.grow([b"a", b"b"])
    with pytest.raises(TileRefused):
        TiledTree(lambda _path: bytes(31), 2).node(0, 0)
    with pytest.raises(TileRefused):
        log.tree().node(2, 0)
    with pytest.raises(TileRefused):
        log.tree().entry(2)
