"""Trees and proofs against RFC 6962's own recursion, written out here a second time, and against its test vectors."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.tlog.merkle import (
    EMPTY_ROOT,
    Frontier,
    ProofRefused,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    merkle_root,
    root_at,
    verify_consistency,
    verify_inclusion,
)

N = 600
ENTRIES = [f"entry {i}".encode() for i in range(N)]


def mth(entries):
    """RFC 6962 §2.1, word by word."""
    if not entries:
        return sha256(b"").digest()
    if len(entries) == 1:
        return sha256(b"\0" + entries[0]).digest()
    k = 1
    while 2 * k < len(entries):
        k *= 2
    return sha256(b"\1" + mth(entries[:k]) + mth(entries[k:])).digest()


def path(m, entries):
    """PATH(m, D[n])."""
    if len(entries) <= 1:
        return []
    k = 1
    while 2 * k < len(entries):
        k *= 2
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m, entries, b):
    """SUBPROOF(m, D[n], b)."""
    n = len(entries)
    if m == n:
        return [] if b else [mth(entries)]
    k = 1
    while 2 * k < n:
        k *= 2
    if m <= k:
        return [*subproof(m, entries[:k], b), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


@pytest.fixture(scope="module")
def tree():
    """(node reader, roots by size 0…N)."""
    nodes, frontier, roots = {}, Frontier(), [EMPTY_ROOT]
    for entry in ENTRIES:
        for level, index, value in frontier.append(leaf_hash(entry)):
            nodes[level, index] = value
        roots.append(frontier.root())
    return (lambda level, index: nodes[level, index]), roots


def test_rfc_6962_heads_of_certificate_transparencys_test_vectors():
    """Inputs and heads from the reference implementation of Certificate Transparency (merkletree/merkle_tree_test)."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    heads = {
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    for size, head in heads.items():
        assert merkle_root(bytes.fromhex(i) for i in inputs[:size]).hex() == head


def test_every_size_has_the_head_of_the_recursion(tree):
    node, roots = tree
    for size in range(N + 1):
        assert root_at(node, size) == roots[size]
    for size in (0, 1, 2, 3, 7, 8, 255, 256, 257, 600):
        assert roots[size] == mth(ENTRIES[:size])


def test_inclusion_proofs_of_every_size_verify_and_are_those_of_the_recursion(tree):
    node, roots = tree
    for size in range(1, N + 1):
        for index in {0, size // 3, size // 2, size - 1}:
            proof = inclusion_proof(node, index, size)
            verify_inclusion(leaf_hash(ENTRIES[index]), index, size, proof, roots[size])
    for index, size in ((0, 1), (0, 7), (3, 7), (6, 7), (300, 513), (512, 513), (599, 600)):
        assert inclusion_proof(node, index, size) == path(index, ENTRIES[:size])


def test_consistency_proofs_of_every_size_verify_and_are_those_of_the_recursion(tree):
    node, roots = tree
    for size in range(N + 1):
        for old in {0, 1, size // 2, max(0, size - 1), size}:
            if old <= size:
                verify_consistency(old, roots[old], size, roots[size], consistency_proof(node, old, size))
    for old, size in ((1, 2), (3, 7), (4, 7), (6, 8), (256, 600), (257, 600), (599, 600)):
        assert consistency_proof(node, old, size) == subproof(old, ENTRIES[:size], True)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_proof_changed_in_any_way_is_refused(tree, data):
    node, roots = tree
    size = data.draw(st.integers(1, N))
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(node, index, size)
    leaf = leaf_hash(ENTRIES[index])
    for bad in tampered(data, proof):
        with pytest.raises(ProofRefused):
            verify_inclusion(leaf, index, size, bad, roots[size])
    other = data.draw(st.integers(0, size - 1).filter(lambda i: i != index)) if size > 1 else None
    if other is not None:
        with pytest.raises(ProofRefused):
            verify_inclusion(leaf, other, size, proof, roots[size])
    with pytest.raises(ProofRefused):
        verify_inclusion(leaf_hash(b"another"), index, size, proof, roots[size])
    with pytest.raises(ProofRefused):
        verify_inclusion(leaf, size, size, proof, roots[size])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_history_that_was_rewritten_is_not_consistent(tree, data):
    node, roots = tree
    size = data.draw(st.integers(2, N))
    old = data.draw(st.integers(1, size - 1))
    proof = consistency_proof(node, old, size)
    changed = data.draw(st.integers(0, old - 1))
    forked = merkle_root(b"rewritten" if i == changed else e for i, e in enumerate(ENTRIES[:size]))
    with pytest.raises(ProofRefused):
        verify_consistency(old, roots[old], size, forked, proof)
    with pytest.raises(ProofRefused):
        verify_consistency(old, forked, size, roots[size], proof)
    for bad in tampered(data, proof):
        with pytest.raises(ProofRefused):
            verify_consistency(old, roots[old], size, roots[size], bad)


def tampered(data, proof):
    """Proofs that are not this one: an element flipped, cut, repeated, or all reversed."""
    yield [*proof, bytes(32)]
    yield [*proof, b"short"]
    if proof:
        k = data.draw(st.integers(0, len(proof) - 1))
        flipped = bytes([proof[k][0] ^ 1]) + proof[k][1:]
        yield [*proof[:k], flipped, *proof[k + 1 :]]
        yield [*proof[:k], *proof[k + 1 :]]
        if proof[::-1] != proof:
            yield proof[::-1]


def test_two_heads_of_one_size_are_not_consistent(tree):
    _, roots = tree
    with pytest.raises(ProofRefused, match="another history"):
        verify_consistency(5, roots[5], 5, roots[6], [])
    with pytest.raises(ProofRefused, match="must be empty"):
        verify_consistency(5, roots[5], 5, roots[5], [bytes(32)])
    with pytest.raises(ProofRefused):
        verify_consistency(6, roots[6], 5, roots[5], [])
