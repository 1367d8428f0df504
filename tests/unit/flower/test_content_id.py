"""content_id: equal exactly for equal content. Vectors computed by hand from docs/spec/flower.md (hashlib + json)."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dure.model.content import (
    MAX_RECORD_BYTES,
    ArrayItem,
    ConfigItem,
    Instruction,
    InstructionRefused,
    MetricItem,
    category,
    content_id,
)
from dure.model.layout import Layout

LAYOUT = Layout.build([("w", "float32", (2, 3)), ("b", "float32", (3,))])


def instruction(**changes) -> Instruction:
    fields = {
        "message_type": "train",
        "group_id": "",
        "ttl_s": 43200.0,
        "records": (ArrayItem("arrays", LAYOUT, b"\1" * 32), ConfigItem("config", {"lr": 0.1, "server-round": 1})),
    }
    return Instruction(**{**fields, **changes})


def with_config(**values) -> Instruction:
    return instruction(records=(ArrayItem("arrays", LAYOUT, b"\1" * 32), ConfigItem("config", values)))


def test_vector_written_out_by_hand():
    text = (
        '{"group_id":"","message_type":"train","records":['
        '{"kind":"array","name":"arrays","position":0,"weights_id":"' + "01" * 32 + '"},'
        '{"kind":"config","name":"config","position":1,"values":{"lr":{"f":"9a9999999999b93f"},"server-round":{"i":1}}}'
        '],"ttl_s":"000000000018e540"}'
    )
    assert content_id(instruction()) == hashlib.sha256(b"dure content 1\n" + text.encode()).digest()


def test_records_are_hashed_in_order_of_name_and_their_position_is_bound():
    a, b = ConfigItem("a", {"x": 1}), ConfigItem("b", {"x": 1})
    assert content_id(instruction(records=(a, b))) != content_id(instruction(records=(b, a)))


@pytest.mark.parametrize(
    "other",
    [
        instruction(message_type="train.warmup"),
        instruction(message_type="evaluate"),
        instruction(group_id="1"),
        instruction(ttl_s=43200.5),
        with_config(lr=0.0, **{"server-round": 1}),
        with_config(lr=0.1, **{"server-round": 1.0}),
        with_config(lr=0.1, **{"server-round": True}),
        with_config(lr=0.1),
        instruction(records=(ArrayItem("arrays", LAYOUT, b"\2" * 32), ConfigItem("config", {"lr": 0.1, "server-round": 1}))),
        instruction(records=(ArrayItem("arrays", LAYOUT, b"\1" * 32), MetricItem("config", {"lr": 0.1, "server-round": 1}))),
    ],
)
def test_any_difference_gives_another_id(other):
    assert content_id(other) != content_id(instruction())


def test_minus_zero_and_zero_are_different_content():
    assert content_id(with_config(lr=-0.0)) != content_id(with_config(lr=0.0))


def test_value_of_a_per_node_key_is_not_bound_but_its_presence_is():
    one, two, none = with_config(lr=0.1, part=1), with_config(lr=0.1, part=2), with_config(lr=0.1)
    assert content_id(one, ["part"]) == content_id(two, ["part"])
    assert content_id(one, ["part"]) != content_id(none, ["part"])
    assert content_id(one) != content_id(two)


def test_node_values_are_put_in_place_and_unknown_ones_refused():
    shared = with_config(lr=0.1, part=1)
    assert shared.with_node_values({"config": {"part": 5}}) == with_config(lr=0.1, part=5)
    assert shared.node_values(["part"]) == {"config": {"part": 1}}
    with pytest.raises(InstructionRefused, match="part2"):
        shared.with_node_values({"config": {"part2": 5}})
    with pytest.raises(InstructionRefused, match="arrays"):
        shared.with_node_values({"arrays": {"part": 5}})


VALUES = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.booleans(),
    st.binary(max_size=20),
    st.lists(st.floats(), max_size=5).map(tuple),
    st.lists(st.integers(0, 9), max_size=5).map(tuple),
    st.lists(st.binary(max_size=3), max_size=5).map(tuple),
)


@given(st.dictionaries(st.text("abc-._", min_size=1, max_size=8), VALUES, max_size=6))
def test_json_round_trip_keeps_every_value_and_the_id(values):
    before = with_config(**values)
    after = Instruction.from_json(json.loads(json.dumps(before.to_json(), allow_nan=False)))
    assert content_id(after) == content_id(before)
    assert after.to_json() == before.to_json()


def test_category_is_the_type_up_to_its_first_dot():
    assert [category(t) for t in ("train", "evaluate.x", "query.a_b")] == ["train", "evaluate", "query"]
    for refused in ("system", "system.x", "trainx", "train.", "train.a.b", "", "Train"):
        with pytest.raises(InstructionRefused):
            category(refused)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"records": (ArrayItem("a", LAYOUT, b"\1" * 32), ArrayItem("b", LAYOUT, b"\1" * 32))}, "'a', 'b'"),
        ({"records": (ConfigItem("a"), MetricItem("a"))}, "'a' appears twice"),
        ({"records": (ConfigItem("c", {"k": "x" * 70_000}),)}, "'k'"),
        ({"records": (ConfigItem("c", {f"k{i}": "x" * 60_000 for i in range(6)}),)}, str(MAX_RECORD_BYTES)),
        ({"records": (ConfigItem("c", {"k": None}),)}, "NoneType"),
        ({"records": (ConfigItem("c", {"k": 1 << 63}),)}, "64 bits"),
        ({"records": (ConfigItem("c", {"k": (1, 2.0)}),)}, "mixes"),
        ({"records": (MetricItem("m", {"k": "text"}),)}, "'k'"),
        ({"records": (ArrayItem("a", LAYOUT, b"short"),)}, "32 bytes"),
        ({"ttl_s": float("nan")}, "ttl"),
        ({"ttl_s": 0.0}, "ttl"),
        ({"message_type": "system"}, "system"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(change, named):
    with pytest.raises(InstructionRefused, match=named):
        instruction(**change)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("ttl_s"),
        lambda d: d.update(extra=1),
        lambda d: d.update(ttl_s=1.0),
        lambda d: d.update(records={}),
        lambda d: d["records"][0].update(weights_id="AB" * 32),
        lambda d: d["records"][0].update(kind="tree"),
        lambda d: d["records"][0].pop("layout"),
        lambda d: d["records"][1]["values"].update(lr=0.1),
        lambda d: d["records"][1]["values"].update(lr={"i": True}),
        lambda d: d["records"][1]["values"].update(lr={"f": "0"}),
        lambda d: d["records"][1]["values"].update(lr={"i[]": []}),
        lambda d: d["records"][1]["values"].update(lr={"i": 1, "f": "0"}),
        lambda d: d["records"][1].update(name=7),
    ],
)
def test_damaged_json_is_refused(damage):
    data = instruction().to_json()
    damage(data)
    with pytest.raises(InstructionRefused):
        Instruction.from_json(data)
