"""What the worker brought is looked at by the agent before anything is promised."""

from __future__ import annotations

import numpy as np
import pytest

from dure.blobs import BlobDamaged, BlobStore
from dure.errors import Refused
from dure.model.layout import CHUNK_ELEMENTS, Layout
from dure_participant.difference import Difference
from dure_participant.trained import NotToBeSent, look_again, look_at

LAYOUT = Layout.build([("embed", "float32", (300, 10)), ("head.bias", "float32", (70,))])


@pytest.fixture
def files(tmp_path):
    base, local = tmp_path / "base", tmp_path / "local"
    np.zeros(LAYOUT.elements, "<f4").tofile(base)

    def with_(tensor: str | None = None, value: float = 0.0, at: int = 3):
        after = np.zeros(LAYOUT.elements, "<f4")
        if tensor is not None:
            after[LAYOUT[tensor].offset + at] = value
        after.tofile(local)
        return base, local

    return with_


def why_not(base, local, *, weight, w_max):
    """What keeps this update back; "" for nothing."""
    try:
        look_at(Difference(base, local, LAYOUT), weight=weight, w_max=w_max)
    except NotToBeSent as error:
        return str(error)
    return ""


def test_a_sound_update_may_be_sent(files):
    assert why_not(*files("embed", 0.5), weight=10, w_max=100) == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_names_its_tensor(files, value):
    why = why_not(*files("head.bias", value), weight=10, w_max=100)
    assert "tensor head.bias" in why and str(value) in why


def test_a_weighted_update_of_64_or_more_sits_out_and_a_light_member_may_move_further(files):
    moved = files("embed", 640.0)
    assert "tensor embed: moved by 640" in why_not(*moved, weight=100, w_max=100)
    assert why_not(*moved, weight=1, w_max=100) == ""


def test_a_weight_above_the_plans_limit_names_the_setting(files):
    assert "w_max" in why_not(*files(), weight=101, w_max=100)


def test_something_hidden_in_the_padding_is_not_sent(files):
    base, local = files()
    first, last = next(iter(LAYOUT.gaps()))
    for at, value in ((first, 1.0), (last - 1, -0.0)):
        after = np.zeros(LAYOUT.elements, "<f4")
        after[at] = value
        after.tofile(local)
        assert "belong to no tensor" in why_not(base, local, weight=10, w_max=100)


def test_padding_is_looked_at_in_every_chunk(tmp_path):
    """Gaps that end and begin at the border of two chunks, and in the second."""
    layout = Layout.build(
        [("a", "float32", (CHUNK_ELEMENTS - 4000,)), ("b", "float32", (70_000,)), ("c", "int64", (5,)), ("d", "float32", (70_000,))]
    )
    assert layout["b"].offset == CHUNK_ELEMENTS and len(list(layout.gaps())) == 3
    (tmp_path / "base").write_bytes(bytes(layout.flat_bytes))
    for first, last in layout.gaps():
        for at in {first, last - 1}:
            after = np.zeros(layout.elements, "<f4")
            after[at] = 1
            after.tofile(tmp_path / "local")
            with pytest.raises(NotToBeSent, match=f"elements {first}…{last - 1} belong to no tensor"):
                look_at(Difference(tmp_path / "base", tmp_path / "local", layout), weight=1, w_max=1)


def test_an_update_is_pinned_by_every_bit_of_base_and_local_weights(files):
    base, local = files("embed", 0.5)
    pinned = look_at(Difference(base, local, LAYOUT), weight=10, w_max=100)
    assert look_again(Difference(base, local, LAYOUT)).root == pinned.root
    assert pinned.largest.tolist() == [0.5]
    for path in (base, local):
        kept = np.fromfile(path, "<f4")
        changed = kept.copy()
        changed[7] += 1e-3
        changed.tofile(path)
        assert look_again(Difference(base, local, LAYOUT)).root != pinned.root
        with pytest.raises(Refused, match="have changed since they were promised"):
            Difference(base, local, LAYOUT).promised(0, pinned)
        kept.tofile(path)
    assert np.flatnonzero(Difference(base, local, LAYOUT).promised(0, pinned)).tolist() == [3]


def test_a_file_the_worker_cuts_short_is_refused_and_ends_nothing(files):
    base, local = files("embed", 0.5)
    update = Difference(base, local, LAYOUT)
    local.write_bytes(b"")
    with pytest.raises(Refused, match="changed"):
        look_at(update, weight=10, w_max=100)
    local.unlink()
    with pytest.raises(Refused, match="changed"):
        Difference(base, local, LAYOUT)


def test_a_base_that_the_disk_has_changed_is_found_before_anything_is_promised(files, tmp_path):
    base, local = files("embed", 0.5)
    store = BlobStore(tmp_path / "store")
    blob = store.put_file(base)
    update = Difference(store.path(blob), local, LAYOUT)
    look_at(update, weight=10, w_max=100, base=store.manifest(blob))
    with store.path(blob).open("r+b") as file:
        file.write(b"\x01")
    with pytest.raises(BlobDamaged, match="chunk 0"):
        look_at(update, weight=10, w_max=100, base=store.manifest(blob))
