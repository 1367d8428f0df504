"""Safetensors in and out, against the package of that name, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from dure.errors import Refused
from dure.model.layout import Layout
from dure.model.safetensors_file import SafetensorsFile, SafetensorsRefused, write_safetensors
from dure.model.weights import flatten, open_flat


def test_a_file_of_the_package_is_read_tensor_by_tensor(tmp_path):
    tensors = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array([1, -2], np.int64),
        "empty": np.empty((0, 4), np.float32),
        "one": np.array(2.5, np.float64),
        "half": np.array([0.5], np.float16),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    found = SafetensorsFile(tmp_path / "m.safetensors")
    assert set(found) == set(tensors) == {e.name for e in found.layout.entries}
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert np.array_equal(found[name], tensor)


def test_bfloat16_of_torch_comes_as_its_bit_patterns(tmp_path):
    value = torch.tensor([1.5, -3.0], dtype=torch.bfloat16)
    save_torch({"w": value}, tmp_path / "m.safetensors")
    found = SafetensorsFile(tmp_path / "m.safetensors")
    assert found.layout["w"].dtype == "bfloat16"
    assert np.array_equal(found["w"], value.view(torch.int16).numpy())


def test_what_we_write_we_read(tmp_path):
    layout = Layout.build([("w", "float32", (3, 4)), ("n", "int64", ()), ("h", "bfloat16", (5,))])
    tensors = {"w": np.ones((3, 4), np.float32), "n": np.array(7, np.int64), "h": np.arange(5, dtype=np.int16)}
    flatten(tensors, layout, tmp_path / "flat")
    write_safetensors(tmp_path / "m.safetensors", open_flat(tmp_path / "flat", layout), layout, {"format": "pt"})
    found = SafetensorsFile(tmp_path / "m.safetensors")
    assert found.layout.tensors_sha256 == layout.tensors_sha256
    flatten(found, layout, tmp_path / "again")
    assert (tmp_path / "flat").read_bytes() == (tmp_path / "again").read_bytes()


def test_the_tensors_digest_does_not_depend_on_their_order():
    one = Layout.build([("w", "float32", (3, 4)), ("b", "float32", (4,))])
    other = Layout.build([("b", "float32", (4,)), ("w", "float32", (3, 4))])
    assert one.digest != other.digest and one.tensors_sha256 == other.tensors_sha256
    assert Layout.build([("b", "float32", (4,)), ("w", "float32", (4, 3))]).tensors_sha256 != one.tensors_sha256


def put(path, header, data=b""):
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ([], "header"),
        ({"w": 1}, "tensor 'w'"),
        ({"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}, "tensor 'w'"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "tensor 'w'"),
        ({"w": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, "tensor 'w'"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "tensor 'w'"),
        ({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}, "tensor 'w'"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, "tensor 'w'"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}, "tensor 'w'"),
    ],
)
def test_a_header_that_does_not_hold_is_refused_by_name(tmp_path, header, field):
    put(tmp_path / "m", header, bytes(8))
    with pytest.raises(SafetensorsRefused) as refused:
        SafetensorsFile(tmp_path / "m")
    assert refused.value.field == field


TWO_FLOATS = {"dtype": "F32", "shape": [2]}


@pytest.mark.parametrize(
    ("header", "byte"),
    [
        ({"w": {**TWO_FLOATS, "data_offsets": [4, 12]}}, 0),
        ({"w": {**TWO_FLOATS, "data_offsets": [0, 8]}}, 8),
        ({"w": {**TWO_FLOATS, "data_offsets": [0, 8]}, "v": {**TWO_FLOATS, "data_offsets": [12, 20]}}, 8),
        ({"w": {**TWO_FLOATS, "data_offsets": [0, 8]}, "v": {**TWO_FLOATS, "data_offsets": [4, 12]}}, 4),
    ],
)
def test_bytes_that_no_tensor_covers_or_two_cover_are_refused(tmp_path, header, byte):
    """Hidden bytes would pass as the same weights; a thousand names for one tensor would fill the disk. The format allows neither."""
    put(tmp_path / "m", header, bytes(max(12, max(t["data_offsets"][1] for t in header.values()))))
    with pytest.raises(SafetensorsRefused, match=f"gap or overlap at byte {byte} "):
        SafetensorsFile(tmp_path / "m")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), cut=st.integers(0, 120))
def test_no_bytes_make_it_fail_otherwise_than_by_refusing(tmp_path, data, cut):
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    (tmp_path / "m").write_bytes(good[:cut] + data)
    try:
        found = SafetensorsFile(tmp_path / "m")
        for name in found:
            assert found[name].shape == found.layout[name].shape
    except Refused:
        pass
