"""Merkle trees of RFC 6962: heads, inclusion and consistency proofs, and their verification. The log and blobs share this code.

A tree is read through its *nodes*: the hash of the complete subtree of 2^level entries whose first entry is index·2^level. Whoever keeps
those (tiles.py) can answer for every size up to its own with O(log² n) reads and O(log n) memory.

Source: RFC 6962 §2.1; verification RFC 9162 §2.1.3.2 and §2.1.4.2.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from dure.errors import Refused

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()
MAX_PROOF = 63
"""Longest proof there is for sizes below 2^63; also tlog-witness's limit."""

Node = Callable[[int, int], bytes]
"""(level, index) -> 32-byte hash of that complete subtree; level 0 are the leaves."""


class ProofRefused(Refused):
    """A proof does not show what it should."""


def leaf_hash(entry: bytes | bytearray | memoryview) -> bytes:
    """RFC 6962 §2.1: SHA-256(0x00 ‖ entry)."""
    if isinstance(entry, bytes):
        return sha256(b"\0" + entry).digest()  # a copy of something so small costs less than a second call
    h = sha256(b"\0")
    h.update(entry)
    return h.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 §2.1: SHA-256(0x01 ‖ left ‖ right)."""
    return sha256(b"\1" + left + right).digest()


@dataclass
class Frontier:
    """The right edge of a growing tree: what is needed to append and to give the head. O(log n) hashes."""

    size: int = 0
    peaks: list[bytes] = field(default_factory=list)
    """Complete subtrees from left to right, one per set bit of `size`, the largest first."""

    def append(self, leaf: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Adds a leaf hash; yields every node it completes as (level, index, hash), the leaf itself first.

        The iterator must be read to its end.
        """
        level, index, node = 0, self.size, leaf
        yield level, index, node
        while index & 1:
            node = node_hash(self.peaks.pop(), node)
            level, index = level + 1, index >> 1
            yield level, index, node
        self.peaks.append(node)
        self.size += 1

    def extend(self, leaves: Iterable[bytes]) -> Frontier:
        """Adds leaf hashes; returns itself."""
        for node in leaves:
            index = self.size
            while index & 1:
                node, index = node_hash(self.peaks.pop(), node), index >> 1
            self.peaks.append(node)
            self.size += 1
        return self

    def root(self) -> bytes:
        """The tree head."""
        if not self.peaks:
            return EMPTY_ROOT
        *rest, root = self.peaks
        for peak in reversed(rest):
            root = node_hash(peak, root)
        return root


def merkle_root(entries: Iterable[bytes]) -> bytes:
    """Tree head over entries in order; of none, SHA-256 of nothing."""
    return Frontier().extend(map(leaf_hash, entries)).root()


def frontier_at(node: Node, size: int) -> Frontier:
    """The right edge of the tree of this size, from its nodes."""
    return Frontier(size, [node(level, index) for level, index in _peaks(0, size)])


def root_at(node: Node, size: int) -> bytes:
    """Tree head at any size the nodes reach to."""
    return frontier_at(node, size).root()


def _peaks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """(level, index) of the complete subtrees that make up [start, end), `start` a multiple of the largest of them."""
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def _range_root(node: Node, start: int, end: int) -> bytes:
    """MTH(D[start:end]) for a range that RFC 6962's recursion meets."""
    *rest, root = [node(level, index) for level, index in _peaks(start, end)]
    for peak in reversed(rest):
        root = node_hash(peak, root)
    return root


def _split(n: int) -> int:
    """Largest power of two below n."""
    return 1 << (n - 1).bit_length() - 1


def inclusion_proof(node: Node, index: int, size: int) -> list[bytes]:
    """PATH(index, D[size]), from the leaf's sibling up to a child of the root.

    Raises:
        ProofRefused: `index` is not in a tree of this size.
    """
    if not 0 <= index < size:
        raise ProofRefused("index", f"is {index}, the tree has {size} entries")
    proof, start, end = [], 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(_range_root(node, middle, end))
            end = middle
        else:
            proof.append(_range_root(node, start, middle))
            start = middle
    return proof[::-1]


def consistency_proof(node: Node, old: int, size: int) -> list[bytes]:
    """PROOF(old, D[size]); empty for 0 and for `size` itself.

    Raises:
        ProofRefused: `old` is not in 0..size.
    """
    if not 0 <= old <= size:
        raise ProofRefused("old", f"is {old}, the tree has {size} entries")
    if old in (0, size):
        return []
    proof, start, end = [], 0, size
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            proof.append(_range_root(node, middle, end))
            end = middle
        else:
            proof.append(_range_root(node, start, middle))
            start = middle
    if start:
        proof.append(_range_root(node, start, end))
    return proof[::-1]


def root_from_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The head that a leaf hash and its path lead to (RFC 9162 §2.1.3.2, 4-5).

    Raises:
        ProofRefused: the path is too long or too short for this place.
    """
    if not 0 <= index < size:
        raise ProofRefused("index", f"is {index}, the tree has {size} entries")
    fn, sn, root = index, size - 1, leaf
    for step in proof:
        _check_hash(step)
        if sn == 0:
            raise ProofRefused("proof", "is longer than the tree is high")
        if fn & 1 or fn == sn:
            root = node_hash(step, root)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            root = node_hash(root, step)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise ProofRefused("proof", "is shorter than the tree is high")
    return root


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """That `leaf` (a leaf hash) is entry `index` of the tree of this size and head.

    Raises:
        ProofRefused: it is not shown.
    """
    if not hmac.compare_digest(root_from_inclusion(leaf, index, size, proof), root):
        raise ProofRefused("proof", f"does not lead from entry {index} to the head of size {size}")


def verify_consistency(old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """That the tree of `size` begins with the tree of `old` (RFC 9162 §2.1.4.2).

    Raises:
        ProofRefused: it does not, or the proof does not show it.
    """
    if not 0 <= old <= size:
        raise ProofRefused("old", f"is {old}, the newer tree has {size} entries")
    if old in (0, size):
        if proof:
            raise ProofRefused("proof", "must be empty")
        same = EMPTY_ROOT if old == 0 else root
        if not hmac.compare_digest(old_root, same):
            raise ProofRefused("root", f"two heads of size {old} differ: somebody was shown another history")
        return
    first, second = _walk_consistency(old, old_root, size, proof)
    if not hmac.compare_digest(first, old_root) or not hmac.compare_digest(second, root):
        raise ProofRefused("proof", f"does not lead from the head of size {old} to the head of size {size}")


def _walk_consistency(old: int, old_root: bytes, size: int, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    steps = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not steps:
        raise ProofRefused("proof", "is empty")
    fn, sn = old - 1, size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    first = second = _check_hash(steps[0])
    for step in steps[1:]:
        _check_hash(step)
        if sn == 0:
            raise ProofRefused("proof", "is longer than the tree is high")
        if fn & 1 or fn == sn:
            first, second = node_hash(step, first), node_hash(step, second)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            second = node_hash(second, step)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise ProofRefused("proof", "is shorter than the tree is high")
    return first, second


def _check_hash(value: bytes) -> bytes:
    if len(value) != HASH_BYTES:
        raise ProofRefused("proof", f"a hash has {len(value)} bytes, not {HASH_BYTES}")
    return value
