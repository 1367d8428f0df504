"""Arrays that stay in their file: to an app like any other, and a base that comes back as it was given is neither read nor written."""

from __future__ import annotations

import os

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import fedavg

from dure.model.layout import Layout
from dure.model.weights import NonFinite, flatten, open_flat, weights_id
from dure_coordinator.flower import convert, private
from dure_coordinator.flower.grid import Given
from dure_coordinator.flower.mapped import MappedArray, is_mapped

LAYOUT = Layout.build([("w", "float32", (300, 250)), ("n", "float32", ()), ("b", "float32", (5,))])
ODD = Layout.build([("w", "float32", (4,)), ("count", "int64", (2,))])


def values(layout, seed=1):
    rng = np.random.default_rng(seed)
    return {e.name: np.asarray(10 * rng.standard_normal(e.shape)).astype(e.dtype) for e in layout.entries}


@pytest.fixture
def given(tmp_path):
    path = tmp_path / "reply-1.f32"
    flatten(values(LAYOUT), LAYOUT, path)
    return path


def replies(record, weight):
    return [RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": weight})})]


def test_a_mapped_array_is_to_an_app_what_flowers_own_is(given):
    record = convert.read_arrays(given, LAYOUT)
    for name, value in values(LAYOUT).items():
        mine, own = record[name], Array(value)
        assert (mine.dtype, mine.shape, mine.stype, mine.data) == (own.dtype, own.shape, own.stype, own.data)
        assert mine.object_id == own.object_id
        copy = mine.numpy()
        copy += 1  # the caller's own
        assert np.array_equal(mine.numpy(), value)
        with pytest.raises(ValueError, match="read-only"):
            mine.view[...] = 0


@pytest.mark.parametrize("weight", [1, 7, 12345.0, 0.3])
def test_the_mean_of_one_record_is_that_record_and_bit_for_bit_what_flower_computes(given, weight):
    record = convert.read_arrays(given, LAYOUT)
    theirs = fedavg.aggregate_arrayrecords(replies(record, weight), "num-examples")
    undo = private.pass_one_mean_through(is_mapped)
    try:
        assert fedavg.aggregate_arrayrecords(replies(record, weight), "num-examples") is record
        plain = ArrayRecord({name: Array(array.numpy()) for name, array in record.items()})
        assert fedavg.aggregate_arrayrecords(replies(plain, weight), "num-examples") is not plain, "an app's own arrays are left to Flower"
        two = replies(record, weight) * 2
        assert fedavg.aggregate_arrayrecords(two, "num-examples") is not record
        with pytest.raises(ZeroDivisionError):
            fedavg.aggregate_arrayrecords(replies(record, 0), "num-examples")
    finally:
        undo()
    assert all(theirs[name].data == record[name].data for name in record)


def test_a_record_with_other_dtypes_is_left_to_flower(tmp_path):
    flatten(values(ODD), ODD, tmp_path / "odd.f32")
    assert not is_mapped(convert.read_arrays(tmp_path / "odd.f32", ODD))


def test_a_base_that_comes_back_as_it_was_given_is_linked_and_one_that_was_touched_is_written(given, tmp_path):
    record = convert.read_arrays(given, LAYOUT)
    kept = Given(record, dict(record), given, True)
    assert kept.is_still(record)
    item, path = convert.again("arrays", given, LAYOUT, tmp_path / "base-2.f32", finite=True)
    assert os.path.samefile(path, given)
    assert item == convert.write_arrays("arrays", record, tmp_path / "plain.f32", LAYOUT)[0]
    assert not kept.is_still(ArrayRecord(dict(record))), "another record"
    record["b"] = Array(np.zeros(5, np.float32))
    assert not kept.is_still(record)


def test_base_plus_mean_is_one_file_and_the_record_stays_in_it(given, tmp_path):
    mean = tmp_path / "mean.f32"
    flatten(values(LAYOUT, 2), LAYOUT, mean)
    record = convert.base_plus_mean(given, mean, LAYOUT, tmp_path / "next-1.f32")
    assert all(isinstance(array, MappedArray) for array in record.values())
    for name in record:
        assert np.array_equal(record[name].numpy(), values(LAYOUT)[name] + values(LAYOUT, 2)[name])
    item, _ = convert.again("arrays", tmp_path / "next-1.f32", LAYOUT, tmp_path / "base-2.f32", finite=False)
    assert item.weights_id == weights_id(open_flat(tmp_path / "next-1.f32", LAYOUT), LAYOUT)


def test_a_base_that_diverged_is_refused_by_tensor(given, tmp_path):
    bad = values(LAYOUT)
    bad["b"][3] = np.inf
    flatten(bad, LAYOUT, given)
    with pytest.raises(NonFinite, match="'b'"):
        convert.again("arrays", given, LAYOUT, tmp_path / "base-2.f32", finite=False)
