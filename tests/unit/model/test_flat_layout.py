"""The flat layout: offsets, canonical JSON, refusals by name; and the weights id over it."""

import json
import struct
from hashlib import sha256

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.blobs import BlobId, BlobStore
from dure.model.base import BaseRecord, BaseRefused
from dure.model.layout import MAX_ELEMENTS, Layout, LayoutDiffers, LayoutRefused
from dure.model.weights import (
    NonFinite,
    WeightsHasher,
    WeightsRefused,
    check_finite,
    check_padding,
    flatten,
    flatten_to,
    open_flat,
    unflatten,
    weights_id,
)

names = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20)
tensors = st.lists(
    st.tuples(names, st.just("float32"), st.lists(st.integers(0, 70), max_size=3)), max_size=8, unique_by=lambda t: t[0]
).filter(lambda ts: any(np.prod(s, dtype=int) for _, _, s in ts))


def model(*shapes: tuple[str, tuple[int, ...]]) -> Layout:
    return Layout.build((name, "float32", shape) for name, shape in shapes)


def some_weights(layout: Layout, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {e.name: rng.standard_normal(e.shape).astype(np.float32) for e in layout.entries}


def test_offsets_are_as_building_md_says():
    layout = model(("a", (3,)), ("b", (65535,)), ("c", (256, 256)), ("d", ()), ("e", (5,)))
    assert [e.offset for e in layout.entries] == [0, 64, 69632, 135168, 135232]
    assert layout.entries[2].offset % 4096 == 0 and layout.elements == 135232 + 5
    assert layout.blocks == 34 and layout.chunks == 1 and layout.parameters == 3 + 65535 + 65536 + 1 + 5


@settings(deadline=None)
@given(tensors)
def test_tensors_are_aligned_in_order_and_do_not_overlap(ts):
    layout, end = Layout.build(ts), 0
    for e in layout.entries:
        assert e.offset >= end and e.offset % (4096 if e.count >= 65536 else 64) == 0
        assert e.offset - end < (4096 if e.count >= 65536 else 64)
        end = e.offset + e.count
    assert layout.elements == end
    assert Layout.from_json(layout.to_json()) == layout
    assert layout.digest == sha256(layout.to_json()).digest()
    padding = {i for first, last in layout.gaps() for i in range(first, last)} if end < 20_000 else None
    if padding is not None:
        assert padding == {i for i in range(end) if layout.entry_at(i) is None}


@pytest.mark.parametrize(
    ("ts", "tensor"),
    [
        ([("a", "float32", (2,)), ("b", "complex64", (2,))], "b"),
        ([("a", "object", ())], "a"),
        ([("a", "<U3", (2,))], "a"),
        ([("a", "datetime64[s]", (2,))], "a"),
        ([("a", "float8_e4m3fn", (2,))], "a"),
        ([("a", "float32", (2,)), ("a", "float32", (2,))], "a"),
        ([("", "float32", (2,))], ""),
        ([("a\nb", "float32", (2,))], "a\nb"),
        ([("x" * 513, "float32", (2,))], "x" * 80),
        ([("a", "float32", (-1,))], "a"),
        ([("a", "float32", (True,))], "a"),
        ([("a", "float32", (2.0,))], "a"),
        ([("a", "float32", (1,) * 17)], "a"),
        ([("a", "float32", (MAX_ELEMENTS, 2))], "a"),
        ([], None),
        ([("a", "float32", (0,))], None),
    ],
)
def test_what_cannot_be_laid_out_is_refused_by_name(ts, tensor):
    with pytest.raises(LayoutRefused) as e:
        Layout.build(ts)
    assert e.value.tensor == tensor


def test_too_many_tensors_are_refused(monkeypatch):
    monkeypatch.setattr("dure.model.layout.MAX_TENSORS", 3)
    with pytest.raises(LayoutRefused, match="more than 3"):
        model(*((str(i), (1,)) for i in range(4)))


def spoilt(change) -> bytes:
    record = json.loads(model(("a", (2,)), ("b", (70,))).to_json())
    change(record)
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b"1" * 10_000,
        b"null",
        model(("a", (2,))).to_json() + b" ",
        model(("a", (2,))).to_json().replace(b'"v":1', b'"v":1,"v":1'),
        spoilt(lambda r: r.update(v=2)),
        spoilt(lambda r: r.update(x=1)),
        spoilt(lambda r: r.update(elements=9)),
        spoilt(lambda r: r["tensors"][1].update(offset=65)),
        spoilt(lambda r: r["tensors"][1].update(count=71)),
        spoilt(lambda r: r["tensors"][1].update(name=3)),
        spoilt(lambda r: r["tensors"][1].update(name="a")),
        spoilt(lambda r: r["tensors"][1].update(name="\ud800")),
        spoilt(lambda r: r["tensors"][1].update(dtype=["float32"])),
        spoilt(lambda r: r["tensors"][1].update(shape=[[70]])),
        spoilt(lambda r: r["tensors"][1].update(shape="70")),
        spoilt(lambda r: r["tensors"][1].update(shape=[70.0])),
        spoilt(lambda r: r["tensors"].append(None)),
        spoilt(lambda r: r.update(tensors={})),
    ],
)
def test_json_that_is_not_a_layout_is_refused(data):
    with pytest.raises(LayoutRefused):
        Layout.from_json(data)


@pytest.mark.parametrize(
    ("other", "tensor"),
    [
        (model(("a", (2,)), ("c", (3,))), "b"),
        (model(("a", (2,)), ("b", (4,))), "b"),
        (model(("a", (2,))), "b"),
        (model(("a", (2,)), ("b", (3,)), ("d", (1,))), "d"),
    ],
)
def test_first_tensor_that_differs_is_named(other, tensor):
    mine = model(("a", (2,)), ("b", (3,)))
    mine.compare(model(("a", (2,)), ("b", (3,))))
    with pytest.raises(LayoutDiffers) as e:
        mine.compare(other)
    assert e.value.tensor == tensor


@settings(max_examples=20, deadline=None)
@given(tensors)
def test_weights_come_back_from_the_flat_file_with_zero_padding(tmp_path_factory, ts):
    layout, path = Layout.build(ts), tmp_path_factory.mktemp("w") / "flat"
    weights = some_weights(layout)
    flatten(weights, layout, path)
    flat = open_flat(path, layout)
    check_padding(flat, layout)
    check_finite(flat, layout)
    back = unflatten(flat, layout)
    assert list(back) == [e.name for e in layout.entries]
    assert all(np.array_equal(back[name], weights[name]) for name in weights)
    assert not any(view.flags.owndata for view in back.values() if view.size)


def test_weights_go_straight_into_a_blob(tmp_path):
    layout, store = model(("a", (3,)), ("b", (5, 2))), BlobStore(tmp_path)
    with store.writer() as out:
        flatten_to(out.append, some_weights(layout), layout)
        blob = out.commit().id
    assert weights_id(open_flat(store.path(blob), layout), layout) == weights_id(open_flat(store.path(blob), layout), layout)
    assert blob.length == layout.flat_bytes


def test_weights_id_is_the_documented_hash_and_ignores_order():
    a, b = np.arange(3, dtype=np.float32), np.arange(4, dtype=np.float32).reshape(2, 2)

    def head(name: bytes, shape: tuple[int, ...], size: int) -> bytes:
        return (
            struct.pack("<I", len(name)) + name + struct.pack("<I", 7) + b"float32"
            + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", d) for d in shape) + struct.pack("<Q", size)
        )  # fmt: skip

    want = sha256(
        b"dure/weights/2\0" + struct.pack("<I", 2)
        + head(b"a", (3,), 12) + blake3(a.tobytes()).digest() + head(b"b", (2, 2), 16) + blake3(b.tobytes()).digest()
    ).digest()  # fmt: skip
    for order in (("a", (3,)), ("b", (2, 2))), (("b", (2, 2)), ("a", (3,))):
        layout, flat = model(*order), []
        flatten_to(lambda part, flat=flat: flat.append(bytes(part)), {"a": a, "b": b}, layout)
        assert weights_id(np.frombuffer(b"".join(flat), np.float32), layout) == want


@settings(max_examples=30, deadline=None)
@given(tensors, st.integers(1, 3000))
def test_weights_id_is_the_same_however_the_vector_is_cut(ts, step):
    layout, flat = Layout.build(ts), []
    flatten_to(lambda part: flat.append(bytes(part)), some_weights(layout), layout)
    whole, hasher = np.frombuffer(b"".join(flat), np.float32), WeightsHasher(layout)
    for at in range(0, len(whole), step):
        hasher.update(whole[at : at + step])
    assert hasher.digest() == weights_id(whole, layout)


def test_weights_id_of_half_a_vector_is_refused():
    hasher = WeightsHasher(model(("a", (3,)), ("b", (5,))))
    hasher.update(np.zeros(10, np.float32))
    with pytest.raises(LayoutRefused, match="10 elements"):
        hasher.digest()


@pytest.mark.parametrize(
    ("weights", "tensor"),
    [
        ({"a": np.zeros(2, np.float32)}, "b"),
        ({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32), "c": np.zeros(1, np.float32)}, "c"),
        ({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float64)}, "b"),
        ({"a": np.zeros(2, np.float32), "b": np.zeros((3, 1), np.float32)}, "b"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_tensor_and_leave_no_file(tmp_path, weights, tensor):
    with pytest.raises(WeightsRefused) as e:
        flatten(weights, model(("a", (2,)), ("b", (3,))), tmp_path / "flat")
    assert e.value.tensor == tensor and not (tmp_path / "flat").exists()


def test_non_finite_element_names_its_tensor():
    layout = model(("a", (2,)), ("b", (300_000,)))
    flat = np.zeros(layout.elements, np.float32)
    flat[layout["b"].offset + 290_000] = np.inf
    with pytest.raises(NonFinite) as e:
        check_finite(flat, layout)
    assert e.value.tensor == "b"


@pytest.mark.parametrize("value", [1.0, -0.0])
def test_padding_that_is_not_plus_zero_is_refused(value):
    layout = model(("a", (2,)), ("b", (3,)))
    flat = np.zeros(layout.elements, np.float32)
    flat[10] = value
    with pytest.raises(WeightsRefused, match="2…63"):
        check_padding(flat, layout)


def test_flat_file_of_another_length_is_refused(tmp_path):
    (tmp_path / "flat").write_bytes(bytes(12))
    with pytest.raises(WeightsRefused, match="12 bytes"):
        open_flat(tmp_path / "flat", model(("a", (2,))))


BASE = BaseRecord(BlobId(b"w" * 32, 8), BlobId(b"s" * 32, 16), {"name": "nesterov", "t": "3"}, None, 7)


def test_base_record_survives_a_round_trip_and_its_id_is_the_digest_of_its_json():
    assert BaseRecord.from_json(BASE.to_json()) == BASE
    assert BASE.id == sha256(BASE.to_json()).digest()
    assert BaseRecord(BASE.weights, None, {}, BASE.outer_state, 0).id != BASE.id


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        (b'"exchange":7', b'"exchange":-1', "exchange"),
        (b'"exchange":7', b'"exchange":7.0', "exchange"),
        (b'"exchange":7', b'"exchange": 7', "json"),
        (b'"v":1', b'"v":2', "json"),
        (b'"v":1', b'"v":1,"w":1', "json"),
        (b'"e_b":null', b'"e_b":"x"', "e_b"),
        (b'"e_b":null', b'"e_b":1', "e_b"),
        (b'"t":"3"', b'"t":3', "step.t"),
        (b'"t":"3"', b'"T":"3"', "step"),
        (b':8"', b':08"', "weights"),
    ],
)
def test_malformed_base_record_is_refused_and_the_field_named(old, new, field):
    data = BASE.to_json().replace(old, new)
    with pytest.raises(BaseRefused) as e:
        BaseRecord.from_json(data)
    assert e.value.field == field


def test_a_flat_file_is_written_over_in_place_and_has_nothing_of_the_one_before(tmp_path):
    small, large = model(("a", (3,)), ("b", (5,))), model(("a", (300,)))
    flatten(some_weights(large), large, tmp_path / "flat")
    before = (tmp_path / "flat").stat().st_ino
    flatten(some_weights(small), small, tmp_path / "flat", over=True)
    flatten(some_weights(small), small, tmp_path / "fresh")
    assert (tmp_path / "flat").stat().st_ino == before
    assert (tmp_path / "flat").read_bytes() == (tmp_path / "fresh").read_bytes()


def test_a_value_that_is_not_finite_leaves_no_file(tmp_path):
    layout = model(("a", (3,)), ("b", (5,)))
    weights = some_weights(layout)
    weights["b"][2] = np.nan
    with pytest.raises(NonFinite) as e:
        flatten(weights, layout, tmp_path / "flat", finite=True)
    assert (e.value.tensor, e.value.index) == ("b", 66) and not (tmp_path / "flat").exists()
