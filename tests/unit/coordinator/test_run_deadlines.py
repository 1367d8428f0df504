"""Deadlines of a run from the command line: read in any unit, refused by name, shown to operators in words."""

from __future__ import annotations

import pytest

from dure.console import span_words
from dure.errors import BadInput
from dure.statements.kinds import Deadlines
from dure_coordinator.deadlines import checked, read_deadlines
from dure_participant.policy import times_in_words


def test_deadlines_are_read_in_seconds_minutes_hours_and_days_and_the_last_word_counts():
    assert read_deadlines(["execute=6h", "upload=45m", "approve = 2d", "share=90", "reveal=30s", "execute=7h"]) == {
        "execute": 7 * 3600,
        "upload": 2700,
        "approve": 172_800,
        "share": 90,
        "reveal": 30,
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("exekute=6h", "no phase 'exekute'; did you mean execute?"),
        ("training=6h", "no phase 'training'; phases are approve, epoch, execute"),
        ("execute", "write execute=TIME"),
        ("execute=soon", "write execute=TIME"),
        ("execute=0", "from 1 second to 10 days"),
        ("execute=11d", "from 1 second to 10 days"),
        ("execute=-5", "write execute=TIME"),
        ("execute=1.5h", "write execute=TIME"),
    ],
)
def test_a_deadline_that_is_none_is_refused_in_one_line(text, named):
    with pytest.raises(BadInput, match="--deadline") as refused:
        read_deadlines([text])
    assert named in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("limits", [{"execute": "soon"}, {"execute": None}, {"sleep": 5}, {"execute": 10**9}])
def test_the_admin_socket_takes_only_what_the_command_line_would(limits):
    with pytest.raises(BadInput):
        checked(limits)


def test_the_operator_sees_what_the_site_must_keep_up_with():
    words = times_in_words(Deadlines(execute=6 * 3600, share=90, upload=2700))
    assert words.startswith("times: 6 h to train, 45 min to upload, 10 min to verify, and at most 90 s for each answer between;")
    assert words.endswith("the plan waits 1 day for approvals")


@pytest.mark.parametrize(
    ("seconds", "words"), [(1, "1 s"), (60, "1 min"), (5400, "90 min"), (3600, "1 h"), (86_400, "1 day"), (172_800, "2 days")]
)
def test_a_time_is_told_in_the_largest_unit_that_is_whole(seconds, words):
    assert span_words(seconds) == words
