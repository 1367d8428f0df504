"""A sum is verified, and the next base made from it, while it arrives; nothing of one that is not what it should be stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dure.blobs import BlobRefused, BlobStore, Manifest, chunk_leaf
from dure.errors import Refused
from dure.model.advance import next_base
from dure.model.base import BaseRecord
from dure.model.layout import CHUNK_ELEMENTS, Layout
from dure.model.weights import open_flat, weights_id
from dure.secagg.tag import TagKey
from dure_participant.exchange.actions import Verify
from dure_participant.verify import verify

CUT = 2 * CHUNK_ELEMENTS
LAYOUT = Layout.build([("w", "float32", (CHUNK_ELEMENTS + 5000,)), ("half", "bfloat16", (100,))])
COHORT = ("ara", "bora", "chan")


@pytest.fixture
def at(tmp_path):
    """(store, action, chunks of the sum, manifest)."""
    store, rng = BlobStore(tmp_path), np.random.default_rng(5)
    base = np.zeros(LAYOUT.elements, "<f4")
    base[: LAYOUT["w"].count] = rng.normal(size=LAYOUT["w"].count)
    record = BaseRecord(store.put_bytes(base.tobytes()), None, {"name": "average", "t": "0"}, None, 0)
    e_b = store.put_bytes(np.full(LAYOUT.blocks, -6, np.int8).tobytes())
    opened = rng.integers(0, 2**16, LAYOUT.elements, dtype=np.uint16)
    for first, last in LAYOUT.gaps():
        opened[first:last] = 0
    raw = opened.tobytes()
    chunks = [raw[i : i + CUT] for i in range(0, len(raw), CUT)]
    manifest = Manifest(tuple(map(chunk_leaf, chunks)), len(raw), CUT)
    action = Verify(
        id="verify/x",
        instance=b"i",
        purpose="update",
        exchange=1,
        sum=str(manifest.id),
        elements=LAYOUT.elements,
        length=len(raw),
        chunk_bytes=CUT,
        ctx=bytes(32),
        group_key=b"\x03" * 32,
        cohort=COHORT,
        weight_sum=1 << 41,
        base_record=record.to_json(),
        layout=LAYOUT.to_json(),
        e_b=str(e_b),
        outer_step={"name": "average"},
    )
    return store, action, chunks, manifest


def arriving(chunks, manifest):
    return ((manifest, k, memoryview(chunk)) for k, chunk in enumerate(chunks))


def test_the_facts_are_those_of_the_whole_sum(at):
    store, action, chunks, manifest = at
    facts = verify(action, store, arriving(chunks, manifest))
    key = TagKey(action.group_key, action.ctx, COHORT)
    whole = sum(key.ring_chunk(k, np.frombuffer(chunk, np.uint16)) for k, chunk in enumerate(chunks)) % (2**61 - 1)
    assert (facts.root, facts.length, facts.tag) == (manifest.id.root, action.length, whole)
    made = BaseRecord.from_json(facts.next_base)
    assert facts.next_weights_id == weights_id(open_flat(store.path(made.weights), LAYOUT), LAYOUT)
    with store.writer(chunk_bytes=CUT) as out:
        out.append(b"".join(chunks))
        opened = out.commit().id
    after = next_base(
        store,
        base=BaseRecord.from_json(action.base_record),
        layout=LAYOUT,
        opened=opened,
        e_b=made.e_b,
        bump=0,
        cohort_size=3,
        weight_sum=action.weight_sum,
        outer_step=action.outer_step,
        exchange=1,
    )
    assert after.record == made and after.weights_id == facts.next_weights_id


def test_a_chunk_that_is_not_the_sums_ends_it_and_no_base_stays(at):
    store, action, chunks, manifest = at
    before = store.ids()
    for wrong in (chunks[1][::-1], chunks[1][:-2], chunks[1] + b"\0\0"):
        with pytest.raises(BlobRefused, match="chunk 1"):
            verify(action, store, arriving([chunks[0], wrong], manifest))
    assert store.ids() == before and not list((store.folder / "tmp").iterdir())


def test_a_sum_of_another_form_is_refused(at):
    store, action, chunks, manifest = at
    other = Manifest(manifest.leaves, manifest.length, CUT - 4096)
    with pytest.raises(Refused, match="is cut into"):
        verify(action, store, arriving(chunks, other))
    with pytest.raises(Refused, match="this instance's has"):
        verify(replace(action, length=action.length - 2), store, arriving(chunks, manifest))


def test_a_sum_from_which_no_base_follows_is_the_sums_fault(at):
    store, action, chunks, manifest = at
    endless = store.put_bytes(np.full(LAYOUT.elements, np.inf, "<f4").tobytes())
    record = replace(BaseRecord.from_json(action.base_record), weights=endless)
    with pytest.raises(Refused, match="sum: no next base follows from it"):
        verify(replace(action, base_record=record.to_json()), store, arriving(chunks, manifest))
