"""Statements reach the log in the order of their numbers, and none twice where the message about it brings it."""

from __future__ import annotations

import pytest

from dure.errors import Unavailable
from dure.secagg import tlv
from dure.statements.statement import Chain
from dure.wire.log import Appended
from dure.wire.messages import Report, ReportKind
from dure_participant.hands import statements_in
from dure_participant.log.courier import Courier
from dure_participant.store import NodeStore

RUN = bytes(32)


class Line:
    def __init__(self):
        self.appended, self.takes = [], True

    async def append(self, envelopes):
        if not self.takes:
            return Appended(0, "statement 0 is missing before it")
        self.appended += envelopes
        return Appended(len(envelopes))


@pytest.fixture
def store(tmp_path):
    made = NodeStore(tmp_path / "node.sqlite")
    yield made
    made.close()


@pytest.fixture
def line():
    return Line()


@pytest.fixture
def courier(store, line):
    return Courier(store, (b"delegation",), lambda: line)


def sign(store, *envelopes):
    following = len(store.statements(RUN)) + len(envelopes)
    store.commit(RUN, b"state", Chain(following, bytes(32)), (), "", envelopes)


async def test_what_a_message_brings_itself_is_not_brought_before_but_what_was_signed_earlier_is(store, line, courier):
    sign(store, b"first")
    sign(store, b"accept", b"usage")
    sign(store, b"later")
    await courier.flush((b"accept", b"usage"))
    assert line.appended == [b"delegation", b"first"]
    await courier.taken((b"accept", b"usage"))
    assert [envelope for _, envelope in store.undelivered(9)] == [b"later"]
    await courier.flush()
    assert line.appended == [b"delegation", b"first", b"later"]
    assert store.undelivered(9) == []


async def test_what_stands_between_two_statements_of_one_message_is_brought_before_and_the_first_with_it(store, line, courier):
    """A usage statement signed for a commit that was never sent, and the acceptance much later: the log would not take that one before."""
    sign(store, b"usage", b"commit")
    sign(store, b"accept")
    await courier.flush((b"accept", b"usage"))
    assert line.appended == [b"delegation", b"usage", b"commit"]


async def test_what_a_refused_message_brought_goes_into_the_log_all_the_same(store, line, courier):
    sign(store, b"commit")
    await courier.flush((b"commit",))
    assert b"commit" not in line.appended
    await courier.flush()  # it was refused: late
    assert line.appended[-1] == b"commit"


async def test_nothing_counts_as_delivered_that_the_log_does_not_take(store, line, courier):
    sign(store, b"first")
    sign(store, b"commit")
    await courier.flush((b"first", b"commit"))
    line.takes = False
    with pytest.raises(Unavailable, match="does not take"):
        await courier.flush((b"commit",))
    assert len(store.undelivered(9)) == 2


def test_the_statements_in_a_report_are_those_it_is_signed_under():
    def report(kind, body):
        return Report(RUN, kind, body=body)

    assert statements_in(report(ReportKind.READY, b"x")) == ()
    assert statements_in(report(ReportKind.VOID, b"void")) == (b"void",)
    assert statements_in(report(ReportKind.ACCEPT, tlv.encode(b"accept", b"usage"))) == (b"accept", b"usage")
    assert statements_in(report(ReportKind.ACCEPT, tlv.encode(b"accept", b""))) == (b"accept",)
