"""The journal: same number and content, same answer; another content is stopped with both digests named."""

from __future__ import annotations

import json

import pytest

from dure.model.content import ArrayItem, ConfigItem, Instruction
from dure.model.layout import Layout
from dure_coordinator.flower.backend import ExchangeRequest
from dure_coordinator.flower.journal import Diverged, Journal, OutOfOrder, already_summed_reason, request_digest

LAYOUT = Layout.build([("w", "float32", (2,))])


def request(seq=1, lr=0.1, kind="train", weights=b"\1" * 32, nodes=(3, 4, 5), values=None) -> ExchangeRequest:
    records = (ArrayItem("arrays", LAYOUT, weights), ConfigItem("config", {"lr": lr}))
    return ExchangeRequest(seq, Instruction(kind, "", 60.0, records), nodes, values or {})


def answered(*requests, summed=True) -> Journal:
    journal = Journal()
    for each in requests:
        journal, _ = journal.ask(each)
        journal = journal.answered(each.seq, {"seq": each.seq}, summed=summed)
    return journal


def test_a_repeated_request_changes_nothing_and_finds_its_reply():
    journal = answered(request(1), request(2))
    same, entry = journal.ask(request(1))
    assert same is journal and entry.reply == {"seq": 1}


def test_a_request_in_flight_is_joined():
    journal, first = Journal().ask(request(1))
    again, entry = journal.ask(request(1))
    assert again is journal and entry == first and entry.reply is None


def test_other_nodes_connected_is_the_same_request_and_other_content_is_not():
    journal = answered(request(1))
    journal.ask(request(1, nodes=(3, 4)))
    for other in (request(1, lr=0.2), request(1, kind="evaluate"), request(1, weights=b"\2" * 32)):
        with pytest.raises(Diverged) as stopped:
            journal.ask(other)
        assert request_digest(other).hex() in str(stopped.value)
        assert request_digest(request(1)).hex() in str(stopped.value)


def test_per_node_values_are_part_of_the_request():
    one, two = ({3: {"config": {"lr": value}}} for value in (0.1, 0.2))
    assert request_digest(request(values=one)) != request_digest(request(values=two)) != request_digest(request())


def test_numbers_neither_skip_nor_overtake():
    with pytest.raises(OutOfOrder):
        Journal().ask(request(2))
    with pytest.raises(OutOfOrder):
        Journal().ask(request(0))
    journal, _ = Journal().ask(request(1))
    with pytest.raises(OutOfOrder):
        journal.ask(request(2))


def test_second_sum_in_a_category_on_the_same_weights_is_found():
    journal = answered(request(1))
    journal, entry = journal.ask(request(2, lr=0.5))
    earlier = journal.summed_before(entry)
    assert earlier is not None and earlier.seq == 1 and "train exchange 1" in already_summed_reason(earlier)


@pytest.mark.parametrize("second", [request(2, kind="evaluate"), request(2, weights=b"\2" * 32)])
def test_another_category_or_other_weights_may_be_summed(second):
    journal, entry = answered(request(1)).ask(second)
    assert journal.summed_before(entry) is None


def test_a_failed_exchange_does_not_use_up_its_base():
    journal, entry = answered(request(1), summed=False).ask(request(2))
    assert journal.summed_before(entry) is None


def test_nodes_may_change_until_the_exchange_is_asked_and_are_then_replayed():
    journal = Journal().with_nodes(1, [3, 4]).with_nodes(1, [3, 4, 5])
    assert journal.nodes_for(1) is None
    journal, _ = journal.ask(request(1))
    assert journal.with_nodes(1, [9]).nodes_for(1) == (3, 4, 5)
    assert journal.nodes_for(2) is None


def test_json_round_trip():
    journal = answered(request(1), request(2, kind="evaluate")).with_nodes(3, [1])
    journal, _ = journal.ask(request(3, kind="query"))
    assert Journal.from_json(json.loads(json.dumps(journal.to_json()))) == journal
