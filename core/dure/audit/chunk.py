"""Reading a stretch of a bundle's entries: what one process does by itself, knowing nothing of what stands before.

Form, digests, hashes of the tree, and every signature whose key can be known: a key's id is the digest of the key, so a key that a charter
or a delegation names can be tried before anybody has said whether it is valid there. That, and all that depends on order, is for `level1`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dure import ed25519
from dure.audit.bundle import LOG, Bundle, PartMissing
from dure.audit.entry import Entry, read_entry
from dure.audit.heads import prefixes
from dure.errors import DureError
from dure.secagg.certificate import survivors_message
from dure.secagg.ids import InstanceId
from dure.statements.dsse import key_id
from dure.statements.kinds import InstanceSurvivors, NodeDelegation
from dure.statements.statement import SeenHead
from dure.tlog.merkle import leaf_hash
from dure.tlog.tiles import ENTRIES, WIDTH, Tile, decode_entries, decode_hashes

TILES = 4
"""Entry bundles in one stretch: a tenth of a second's work, and one megabyte and a half in memory."""
NODE_KEYS = 2
"""Of one member that are tried on a certificate: its newest, and the one before. Others are left to `level1`."""


@dataclass(frozen=True)
class Stretch:
    """What to read, and which keys may be met there."""

    folder: Path
    tiles: tuple[Tile, ...]
    """Entry bundles, one after the other."""
    keys: tuple[bytes, ...]
    """Public keys that may sign entries."""
    node_keys: tuple[tuple[str, bytes], ...]
    """(member, node key) that may sign survivor sets."""


Read = tuple[object, ...] | str
"""An entry, packed for its way between processes, or why it is none."""


@dataclass(frozen=True)
class TileRead:
    """One entry bundle."""

    first: int
    """Index of its first entry."""
    entries: tuple[Read, ...] = ()
    leaves: tuple[bytes, ...] = ()
    """Leaf hashes; only of the last tile, where it is not full."""
    root: bytes = b""
    """Head of the subtree over it; of a full tile."""
    heads: Mapping[int, bytes] = field(default_factory=dict)
    """For sizes within it that statements of this stretch name (heads.prefixes)."""
    missing: str = ""
    """The entry bundle's name where it is not there. Leaves and root then come from the tile of hashes, if that is."""
    findings: tuple[tuple[str, str], ...] = ()
    """(file, what does not hold)."""


@dataclass
class _Keys:
    """Candidates by id and by member."""

    by_id: dict[str, bytes]
    by_member: dict[str, list[bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """One string for each key id, so that a stretch is small when it travels to the judging process."""
    seen: dict[SeenHead, SeenHead] = field(default_factory=dict)
    """One object for each head that statements name, likewise."""

    def learn(self, fact: NodeDelegation) -> None:
        self.by_id[key_id(fact.node_key)] = fact.node_key
        self.by_member[fact.member] = [*self.by_member.get(fact.member, ()), fact.node_key][-NODE_KEYS:]


def read_stretch(stretch: Stretch) -> list[TileRead]:
    """Everything that can be said of these entries without the others. The same for everybody who reads it."""
    keys = _Keys({key_id(k): k for k in stretch.keys})
    for member, key in stretch.node_keys:
        keys.by_member.setdefault(member, []).append(key)
        keys.by_id[key_id(key)] = key
    bundle = Bundle(stretch.folder)
    read = [(tile, *_tile(bundle, tile, keys)) for tile in stretch.tiles]
    sizes = [head.size for head in keys.seen]
    return [_hashed(tile, leaves, sizes, found) for tile, leaves, found in read]


def _tile(bundle: Bundle, tile: Tile, keys: _Keys) -> tuple[list[bytes], TileRead]:
    """Its leaf hashes, none where nothing gives them; and what else can be said of it."""
    hashes = Tile(0, tile.index, tile.width)
    name = f"{LOG}/{hashes.path}"
    try:
        raw = decode_entries(tile, bundle.read(f"{LOG}/{tile.path}"))
    except DureError as error:
        gone = "" if not isinstance(error, PartMissing) else f"{LOG}/{tile.path}"
        findings = () if gone else ((f"{LOG}/{tile.path}", str(error).removeprefix(f"{tile.path}: ")),)
        without = TileRead(tile.first, missing=gone or f"{LOG}/{tile.path}", findings=findings)
        try:
            return decode_hashes(hashes, bundle.read(name)), without
        except DureError:
            return [], without
    leaves = [leaf_hash(entry) for entry in raw]
    try:
        same = bundle.read(name) == b"".join(leaves)
        findings = () if same else ((name, "does not follow from the entries"),)
    except PartMissing:
        findings = ()  # named with the other missing files
    return leaves, TileRead(tile.first, tuple(_entries(raw, keys)), findings=findings)


def _hashed(tile: Tile, leaves: list[bytes], sizes: list[int], read: TileRead) -> TileRead:
    if not leaves:
        return read
    tree, heads = prefixes(tile.first, leaves, sizes)
    return replace(read, heads=heads, **({"leaves": tuple(leaves)} if tile.width < WIDTH else {"root": tree.root()}))


def _entries(raw: list[bytes], keys: _Keys) -> Iterator[Read]:
    """First all are read, then all signatures verified: each of the two is a small loop that stays in the processor's caches."""
    read = [_read(entry, keys) for entry in raw]
    for entry in read:
        if isinstance(entry, str):
            yield entry
            continue
        key = keys.by_id.get(entry.key_id)
        if key is not None and ed25519.verifies(key, entry.signature, entry.message):
            entry.verified_by, entry.message, entry.signature = key, b"", b""
        if entry.kind == InstanceSurvivors.kind:
            entry.certified_by = tuple(_certified(entry.fact, keys))
        yield entry.packed()


def _read(raw: bytes, keys: _Keys) -> Entry | str:
    try:
        entry = read_entry(raw)
    except DureError as error:
        return str(error)
    entry.key_id = keys.names.setdefault(entry.key_id, entry.key_id)
    if entry.seen is not None:
        entry.seen = keys.seen.setdefault(entry.seen, entry.seen)
    if entry.kind == NodeDelegation.kind:
        keys.learn(entry.fact)
    return entry


def _certified(fact: InstanceSurvivors, keys: _Keys) -> Iterable[tuple[str, bytes]]:
    """Who of those in a certificate signed exactly its survivor set."""
    try:
        where = InstanceId.decode(fact.instance)
    except DureError:
        return
    payload = survivors_message(where, fact.ctx, {s.member: s.commit_sha256 for s in fact.survivors})
    for said in fact.certificate:
        for key in keys.by_member.get(said.member, ()):
            if ed25519.verifies(key, said.signature, payload):
                yield said.member, key
                break


__all__ = ["ENTRIES", "TILES", "Stretch", "TileRead", "read_stretch"]
