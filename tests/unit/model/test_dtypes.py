"""Dtypes at the joints of the flat vector: what goes in, what is shown, what cannot be carried."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from dure.model.dtypes import DTYPES, DoesNotFit, flat_values, settled, shown
from dure.model.layout import CHUNK_ELEMENTS, Layout
from dure.model.outer import parse_step, step_model
from dure.model.safetensors_file import write_safetensors
from dure.model.weights import WeightsRefused, flatten, open_flat, shown_part, unflatten, weights_id

any_float32 = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50).map(lambda v: np.array(v, np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_a_dtype_can_show_comes_back_bit_for_bit(dtype):
    kind = DTYPES[dtype].array
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, 1000 * kind.itemsize, np.uint8).view(kind) if dtype != "bool" else rng.integers(0, 2, 1000).astype(bool)
    if dtype == "float64":
        with np.errstate(over="ignore"):
            raw = raw.astype(np.float32).astype(np.float64)
    if DTYPES[dtype].integer and dtype != "bool":
        raw = np.clip(raw, max(np.iinfo(kind).min, -(1 << 24)), min(np.iinfo(kind).max, 1 << 24)).astype(kind)
    flat = flat_values(raw, dtype)
    keep = np.isfinite(flat)
    assert flat.dtype == np.float32 and keep.sum() > 500
    assert shown(flat, dtype)[keep].tobytes() == raw[keep].tobytes()


@settings(deadline=None)
@given(any_float32)
def test_bfloat16_and_float16_round_as_torch_does(values):
    with np.errstate(over="ignore"):
        for dtype, theirs in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
            want = torch.from_numpy(values.copy()).to(theirs).view(torch.int16).numpy()
            assert np.array_equal(shown(values, dtype).view(np.int16), want)


@settings(deadline=None)
@given(any_float32, st.sampled_from(sorted(DTYPES)))
def test_what_is_shown_stays_as_it_is(values, dtype):
    once = settled(np.clip(values, -60000, 60000), dtype)
    assert np.array_equal(settled(once, dtype), once)


def test_integers_are_rounded_half_to_even_and_kept_within_their_dtype():
    flat = np.array([0.5, 1.5, 2.4, -0.5, 300.0, -300.0], np.float32) * np.float32(2.0**-20)
    assert shown(flat, "int64").tolist() == [0, 2, 2, 0, 300, -300]
    assert shown(flat, "uint8").tolist() == [0, 2, 2, 0, 255, 0]
    assert shown(flat, "int8").tolist() == [0, 2, 2, 0, 127, -128]
    assert shown(flat, "bool").tolist() == [False, True, True, False, True, False]


@pytest.mark.parametrize(
    ("value", "dtype", "why"),
    [
        (np.int64((1 << 24) + 1), "int64", "16777217"),
        (np.int64(-(1 << 24) - 1), "int64", "-16777217"),
        (np.uint32(4_000_000_000), "uint32", "4000000000"),
        (np.float64(1e300), "float64", "does not fit float32"),
    ],
)
def test_what_float32_cannot_carry_is_refused_with_tensor_element_and_value(tmp_path, value, dtype, why):
    array = np.zeros(CHUNK_ELEMENTS + 9, value.dtype)
    with pytest.raises(DoesNotFit):
        flat_values(np.array([value]), dtype)
    array[CHUNK_ELEMENTS + 3] = value
    with pytest.raises(WeightsRefused, match=why) as e:
        flatten({"a": array}, Layout.build([("a", dtype, array.shape)]), tmp_path / "flat")
    assert e.value.tensor == "a" and f"element {CHUNK_ELEMENTS + 3} " in str(e.value)


MIXED = [
    ("half", "bfloat16", (3, 5)),
    ("count", "int64", ()),
    ("mask", "bool", (70,)),
    ("w", "float32", (130_000,)),
    ("none", "float16", (0, 4)),
    ("wide", "float64", (2, 3)),
    ("scalar", "float32", ()),
]


def mixed_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    found = {}
    for name, dtype, shape in MIXED:
        values = rng.standard_normal(shape).astype(np.float32)
        if dtype == "bfloat16":
            found[name] = shown(values.reshape(-1), dtype).reshape(shape)
        else:
            found[name] = np.asarray(np.abs(values * 100) if dtype == "int64" else values).astype(DTYPES[dtype].array).reshape(shape)
    return found


def test_integers_and_floats_never_share_a_block():
    layout = Layout.build(MIXED)
    kinds = {}
    for e in layout.entries:
        for block in range(e.offset // 4096, -(-(e.offset + e.count) // 4096)):
            assert kinds.setdefault(block, e.integer) == e.integer
    assert [layout[n].offset for n in ("half", "count", "mask", "w")] == [0, 4096, 4160, 8192]
    assert Layout.from_json(layout.to_json()) == layout


def test_a_model_of_mixed_dtypes_goes_in_and_comes_out_with_shapes_and_bits(tmp_path):
    layout, tensors = Layout.build(MIXED), mixed_tensors()
    flatten(tensors, layout, tmp_path / "flat")
    back = unflatten(open_flat(tmp_path / "flat", layout), layout)
    for name, value in tensors.items():
        want = value.astype(np.float32).astype(np.float64) if name == "wide" else value
        assert back[name].shape == value.shape and back[name].dtype == value.dtype
        assert back[name].tobytes() == want.tobytes(), name


def test_digits_the_app_is_not_shown_do_not_change_the_weights_id(tmp_path):
    layout = Layout.build(MIXED)
    flatten(mixed_tensors(), layout, tmp_path / "flat")
    flat = np.array(open_flat(tmp_path / "flat", layout))
    finer = flat.copy()
    finer[0] *= np.float32(1 + 2**-12)
    finer[layout["count"].offset] += np.float32(0.3 * 2.0**-20)
    assert not np.array_equal(flat, finer) and weights_id(flat, layout) == weights_id(finer, layout)
    finer[0] *= np.float32(1 + 2**-7)
    assert weights_id(flat, layout) != weights_id(finer, layout)


def test_an_update_starts_from_what_the_app_was_shown():
    layout = Layout.build(MIXED)
    flat = np.random.default_rng(5).standard_normal(layout.elements).astype(np.float32)
    whole = shown_part(flat, layout, slice(0, layout.elements))
    for e in layout.entries:
        at = slice(e.offset, e.offset + e.count)
        assert np.array_equal(whole[at], settled(flat[at], e.dtype))
    for first, last in ((0, 8), (4090, 4100), (4200, 139_000), (layout.elements - 1, layout.elements)):
        assert np.array_equal(shown_part(flat, layout, slice(first, last)), whole[first:last])
    plain = Layout.build([("w", "float32", (300_000,))])
    ones = np.ones(plain.elements, np.float32)
    assert np.shares_memory(shown_part(ones, plain, slice(5, 20)), ones)


@pytest.mark.parametrize(
    "rule",
    [{"name": "nesterov", "lr": "0.7", "momentum": "0.9"}, {"name": "adam", "lr": "0.1", "beta1": "0.9", "beta2": "0.99", "eps": "0.001"}],
)
def test_counts_are_averaged_under_every_outer_step(rule):
    layout = Layout.build([("w", "float32", (CHUNK_ELEMENTS - 10,)), ("count", "int64", (4000,)), ("v", "float32", (5,))])
    rng = np.random.default_rng(2)
    base, mean = (rng.standard_normal(layout.elements).astype(np.float32) for _ in "ab")
    step, out, state = parse_step(rule), bytearray(), bytearray()
    parts = [mean[i : i + CHUNK_ELEMENTS] for i in range(0, mean.size, CHUNK_ELEMENTS)]
    step_model(
        step,
        taken=0,
        base_D=base,
        state=None,
        mean_chunks=parts,
        weights_out=out.extend,
        state_out=state.extend,
        averaged=layout.averaged(),
    )
    after = np.frombuffer(bytes(out), np.float32)
    count = slice(layout["count"].offset, layout["count"].offset + 4000)
    assert np.array_equal(after[count], base[count] + mean[count])
    free = np.ones(base.size, bool)
    free[count] = False
    assert (after[free] != (base + mean)[free]).any()
    plain = bytearray()
    step_model(step, taken=0, base_D=base, state=None, mean_chunks=parts, weights_out=plain.extend, state_out=bytearray().extend)
    assert np.array_equal(after[free], np.frombuffer(bytes(plain), np.float32)[free])


def test_small_steps_of_a_bfloat16_model_add_up_in_the_base():
    """A fifth of the last digit per exchange moves what is shown after some; rounding the base each time would lose all of it."""
    layout = Layout.build([("w", "bfloat16", (1,))])
    base = np.array([1.0], np.float32)
    for _ in range(5):
        out = bytearray()
        local = shown_part(base, layout, slice(0, 1)) + np.float32(2**-7 / 5)
        mean = local - shown_part(base, layout, slice(0, 1))
        step_model(
            parse_step({"name": "average"}), taken=0, base_D=base, state=None, mean_chunks=[mean], weights_out=out.extend, state_out=None
        )
        base = np.frombuffer(bytes(out), np.float32)
    assert shown_part(base, layout, slice(0, 1))[0] == 1 + 2**-7


def test_exported_safetensors_hold_every_dtype_as_torch_reads_it(tmp_path):
    layout, tensors = Layout.build(MIXED), mixed_tensors()
    flatten(tensors, layout, tmp_path / "flat")
    write_safetensors(tmp_path / "m.safetensors", open_flat(tmp_path / "flat", layout), layout, {"format": "pt"})
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(tensors) and file.metadata() == {"format": "pt"}
        for name, dtype, shape in MIXED:
            read = file.get_tensor(name)
            assert read.dtype == getattr(torch, dtype) and tuple(read.shape) == shape
            mine = read.view(torch.int16) if dtype == "bfloat16" else read
            assert np.array_equal(mine.numpy(), unflatten(open_flat(tmp_path / "flat", layout), layout)[name])


def test_tensors_are_named_by_their_ends_beginnings_and_middles():
    layout = Layout.build([("a.running_var", "float32", (2,)), ("running_var.b", "float32", (3,)), ("w", "float32", (4,))])
    spans = {e.name: (e.offset, e.offset + e.count) for e in layout.entries}
    for pattern, names in (("*running_var", ["a.running_var"]), ("running_var*", ["running_var.b"]), ("w", ["w"]), ("x", [])):
        assert layout.averaged([pattern]) == tuple(spans[n] for n in names)
    assert layout.averaged(["*running_var*"]) == (spans["a.running_var"], spans["running_var.b"])
