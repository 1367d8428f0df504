"""Heads that statements name: each must be of this very log, no younger than the statement, and none older than its signer named before.

Whoever was shown another history says so in every statement it signs: a fork is found in the statements themselves, whoever cosigned it.

A root is compared with what follows from the entries, and memory does not grow with the log. The processes that read entries give, for
each size that is named in their stretch and lies in it, the hash of the leaves of its tile below that size (`prefixes`); with the peaks
over the full tiles before, which the judging process has, that is the root. What is named from further back is read from the bundle's tiles
of hashes, each of which the audit compares with the entries, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dure.audit.entry import Entry
from dure.errors import DureError, Refused
from dure.statements.statement import SeenHead
from dure.tlog.merkle import EMPTY_ROOT, Frontier, node_hash, root_at
from dure.tlog.tiles import TiledTree

REMEMBERED = 4_096
"""Roots at hand: those of the last few stretches, and what was read from tiles."""


def prefixes(first: int, leaves: Sequence[bytes], sizes: Iterable[int]) -> tuple[Frontier, dict[int, bytes]]:
    """The tree over a tile's leaves, and for each of these sizes within it (first < size <= first + leaves) the hash of those below.

    Args:
        first: index of the tile's first entry.
    """
    frontier, found = Frontier(), {}
    for size in sorted(s for s in sizes if first < s < first + len(leaves)):
        frontier.extend(leaves[frontier.size : size - first])
        found[size] = frontier.root()
    return frontier.extend(leaves[frontier.size :]), found


@dataclass
class NamedHeads:
    """Judges statements in the order of the log."""

    read: Callable[[str], bytes]
    """A file of the log by its path in the layout; a DureError where it is not there."""
    size: int
    """Entries in the log."""
    named: int = 0
    """Statements that name a head."""
    unchecked: int = 0
    """Of them, those whose head could not be computed: tiles are missing."""
    _tree: TiledTree = field(init=False)
    _last: dict[str, SeenHead] = field(default_factory=dict)
    """What each key named last."""
    _roots: OrderedDict[int, bytes | None] = field(default_factory=OrderedDict)
    """By size; None: a tile is missing."""

    def __post_init__(self) -> None:
        self._tree = TiledTree(self.read, self.size)

    def begin_tile(self, first: int, peaks: Sequence[bytes], found: Mapping[int, bytes]) -> None:
        """Takes what is known of the sizes in the next tile.

        Args:
            peaks: hashes of the complete subtrees over all tiles before it, the largest first.
            found: `prefixes` of it.
        """
        whole = {first: None, **found} if peaks else found
        for size, prefix in whole.items():
            rest = list(peaks)
            root = rest.pop() if prefix is None else prefix
            for peak in reversed(rest):
                root = node_hash(peak, root)
            self._keep(size, root)

    def judge(self, index: int, entry: Entry) -> str:
        """What does not hold of the head that this statement names; "" where all does."""
        before, seen = self._last.get(entry.key_id), entry.seen
        if seen is None:
            return "" if before is None else f"checkpoint: is null, and this signer had seen {before.size} entries before"
        self.named += 1
        if seen == before:
            return ""  # judged already
        self._last[entry.key_id] = seen
        if seen.size > index:
            return f"checkpoint: names a head of {seen.size} entries, which is younger than this statement"
        if before is not None and seen.size < before.size:
            return f"checkpoint: names a head of {seen.size} entries, and this signer had seen {before.size} before"
        root = self._root(seen.size)
        self.unchecked += root is None
        if root is not None and root != seen.root:
            return f"checkpoint: names a head of {seen.size} entries that this log never had: its signer was shown another history"
        return ""

    def check_cited(self, index: int, size: int, root: bytes) -> None:
        """That an entry says something was drawn from a head of this log that stands before it; nothing where hashes are missing.

        Raises:
            Refused: names the field.
        """
        if size > index:
            raise Refused("log_size", f"{size} entries are cited, which is more than stand before it")
        found = self._root(size) if size else EMPTY_ROOT
        if found is not None and found != root:
            raise Refused("log_root", "is of another history than this log")

    def _root(self, size: int) -> bytes | None:
        if size not in self._roots:
            try:
                self._keep(size, root_at(self._tree.node, size))
            except DureError:  # a tile that is missing or out of form, which is named already
                self._keep(size, None)
        return self._roots[size]

    def _keep(self, size: int, root: bytes | None) -> None:
        self._roots[size] = root
        if len(self._roots) > REMEMBERED:
            self._roots.popitem(last=False)
