"""The last screen says what the numbers say: on a terminal and in a pipe, when joint wins and when it does not."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from dure_demo.evaluate import Evaluation, Scores
from dure_demo.table import show_matrix, show_members, verdict


def scores(joint, own, others):
    """Two members; each one's solo scores `own` at home and `others` on the other's text."""
    return Scores(
        joint={"games": joint, "law": joint},
        solo={"games": {"games": own, "law": others}, "law": {"games": others, "law": own}},
        initial={"games": 20.0, "law": 20.0},
    )


def evaluation(joint, own, others, ppl=None):
    return Evaluation(scores(joint, own, others), ppl or scores(joint * 100, own * 100, others * 100))


def last(found):
    return verdict(found)[-1]


def test_joint_wins_on_the_mean_and_every_solo_at_home():
    assert last(evaluation(3.0, 2.0, 6.0)) == (
        "The joint model is the best single model for everybody; each member alone still knows its own text better at this size."
    )


def test_joint_wins_everywhere():
    assert "better than every member's own model" in last(evaluation(1.0, 2.0, 6.0))


def test_a_joint_model_that_loses_is_said_to_lose():
    assert "NOT the best" in last(evaluation(5.0, 2.0, 6.0))


def test_measures_that_disagree_are_said_to_disagree():
    assert "disagree" in last(evaluation(3.0, 2.0, 6.0, ppl=scores(500.0, 200.0, 600.0)))


def test_a_single_member_that_wins_at_home_is_named():
    found = evaluation(3.0, 2.0, 6.0)
    bits = Scores(found.bits_per_byte.joint, {**found.bits_per_byte.solo, "law": {"games": 6.0, "law": 3.5}}, {})
    assert "games alone still knows its own text" in last(Evaluation(bits, found.perplexity))


def test_numbers_come_before_words():
    assert verdict(evaluation(3.0, 2.0, 6.0))[0] == (
        "On the mean over all members' held-out text the joint model needs 3.00 bits per byte, the best solo model (games) 4.00; "
        "perplexity 300 against 400."
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_every_row_is_there_on_a_terminal_and_in_a_pipe(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=140 if terminal else 40)
    show_matrix(console, evaluation(3.0, 2.0, 6.0))
    row = {"name": "law", "exchanges_counted": 4, "tokens": 122_880, "seconds": 40.2, "bytes_up": 8_600_000, "bytes_down": 999}
    show_members(console, [row])
    shown = out.getvalue()
    for expected in ("JOINT", "before training", "law alone", "3.00* (300)", "2.00* (200)", "122,880", "8.6 MB", "999 B"):
        assert expected in shown or (expected == "3.00* (300)" and terminal)
    if not terminal:
        assert "\x1b" not in shown
        assert not {"─", "━", "│"} & set(shown)
        (line,) = [line for line in shown.splitlines() if line.startswith("JOINT")]
        assert line.split() == ["JOINT", "3.00", "(300)", "3.00", "(300)", "3.00*", "(300)"]


def test_json_has_the_keys_scripts_read():
    found = json.loads(json.dumps(evaluation(3.0, 2.0, 6.0).to_json()))
    assert set(found) == {"perplexity", "bits_per_byte"}
    assert set(found["perplexity"]) == {"joint", "solo", "initial"}
    assert found["bits_per_byte"]["solo"]["games"] == {"games": 2.0, "law": 6.0}
