"""A run goes on from a base that members computed; what a ServerApp made of one is for an audit a model from outside."""

from __future__ import annotations

import numpy as np
import pytest

from dure.blobs import BlobStore
from dure.model.layout import Layout
from dure_coordinator.bases import is_base
from dure_coordinator.exchange.rounds import Model
from dure_coordinator.export import Found

TENSORS = [("w", "float32", (70,)), ("b", "float32", (3,))]
HERE, THERE = Layout.build(TENSORS), Layout.build(TENSORS[::-1])


def flat(layout: Layout, scale: float) -> bytes:
    whole = np.zeros(layout.elements, np.float32)
    for entry in layout.entries:
        whole[entry.offset : entry.offset + entry.count] = scale * np.arange(1, entry.count + 1)
    return whole.tobytes()


@pytest.mark.parametrize(
    ("layout", "scale", "holds"),
    [(HERE, 2.0, True), (THERE, 2.0, True), (HERE, 1.0, True), (HERE, 1.5, False)],
    ids=["the newest", "the newest in another order", "an earlier one", "an average of both"],
)
def test_a_result_is_known_as_a_base_by_its_weights_and_anything_else_is_not(tmp_path, layout, scale, holds):
    store = BlobStore(tmp_path)
    bases = {number: str(store.put_bytes(flat(HERE, number))) for number in (1, 2)}
    known = {number: Model(weights, HERE.to_json(), number) for number, weights in bases.items()}
    found = Found(store.put_bytes(flat(layout, scale)), layout, 2, "the ServerApp's result")
    assert is_base(store, known, found) is holds
