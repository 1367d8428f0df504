"""What the worker brought is looked at by the agent before anything is promised."""

from __future__ import annotations

import numpy as np
import pytest

from dure.model.layout import Layout
from dure_participant.trained import why_not

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


def test_a_sound_update_may_be_sent(files):
    assert why_not(*files("embed", 0.5), LAYOUT, weight=10, w_max=100) == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_names_its_tensor(files, value):
    why = why_not(*files("head.bias", value), LAYOUT, weight=10, w_max=100)
    assert "tensor head.bias" in why and str(value) in why


def test_a_weighted_update_of_64_or_more_sits_out_and_a_light_member_may_move_further(files):
    moved = files("embed", 640.0)
    assert "tensor embed: moved by 640" in why_not(*moved, LAYOUT, weight=100, w_max=100)
    assert why_not(*moved, LAYOUT, weight=1, w_max=100) == ""


def test_a_weight_above_the_plans_limit_names_the_setting(files):
    assert "w_max" in why_not(*files(), LAYOUT, weight=101, w_max=100)


def test_something_hidden_in_the_padding_is_not_sent(files, tmp_path):
    base, local = files()
    first, _last = next(iter(LAYOUT.gaps()))
    after = np.fromfile(local, "<f4")
    after[first] = 1
    after.tofile(local)
    assert "belong to no tensor" in why_not(base, local, LAYOUT, weight=10, w_max=100)
