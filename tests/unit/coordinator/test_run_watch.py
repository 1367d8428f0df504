"""What a person sees of a run: on a terminal, and as plain lines in a log."""

from __future__ import annotations

import io

from rich.console import Console

from dure_coordinator.watch import Watch, follow, headline, human_bytes, human_time, render


def member(**facts):
    usual = {"connected": True, "doing": "execute", "note": "", "exchanges_counted": 1, "tokens": 30_720, "seconds": 12.0}
    return {**usual, "bytes_up": 2_196_224, "bytes_down": 4_392_448, **facts}


def shown(**facts):
    line = {"exchange": 1, "category": "train", "status": "ok", "counted": 3, "of": 3, "metrics": {"loss": 6.1}, "seconds": 24.0}
    usual = {
        "run": "3f" * 32,
        "plan_digest": "3f" * 32,
        "name": "pretrain",
        "state": "running",
        "reason": "",
        "trouble": "",
        "lineage": "recomputed by every member (average)",
        "run_phase": "exchange",
        "exchange_phase": "execute",
        "instance_phase": "",
        "purpose": "",
        "waiting": "",
        "category": "train",
        "rounds": 4,
        "rounds_over": 1,
        "time_left_s": 72.0,
        "elapsed_s": 24.4,
        "history": [{**line, "reason": ""}],
        "members": {"games": member(), "law": member(connected=False), "telecom": member()},
        "waiting_for": ["games"],
        "dropouts": [{"exchange": 1, "member": "law", "phase": "execute", "reason": "lost its connection"}],
    }
    return {**usual, **facts}


def played(answers, *, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=110, color_system=None)
    answers = iter(answers)
    follow(lambda: next(answers), console, poll_s=0.0)
    return console.file.getvalue()


def drawn(answer):
    console = Console(file=io.StringIO(), width=110, color_system=None)
    console.print(render(answer))
    return console.file.getvalue()


def test_a_terminal_shows_round_phases_loss_bytes_and_time_left():
    text = drawn(shown())
    assert "round 2 of 4, execute; 24 s so far, about 72 s left" in text
    for words in ("away", "execute ✓", "loss 6.1000", "█", "6.6 MB sent", "lost its connection"):
        assert words in text, words


def test_a_log_gets_each_line_once():
    text = played(
        [shown(), shown(), shown(exchange_phase="update"), shown(state="finished", reason="the ServerApp returned", time_left_s=None)],
        terminal=False,
    )
    assert text.count("exchange 1 (train): 3 of 3 members counted, loss 6.1000, 24.0 s") == 1
    assert text.count("round 2 of 4, train: nodes execute") == 1
    assert text.splitlines()[-1].endswith("finished: the ServerApp returned")
    assert "\x1b" not in text


def test_a_run_that_waits_for_operators_says_what_they_type():
    waiting = shown(run_phase="approving", exchange_phase="", category="", history=[], time_left_s=None, waiting="waiting for approvals")
    assert "waiting for the operators of games: dure node allow 3f3f3f3f3f3f3f3f" in drawn(waiting)


def test_a_failed_exchange_says_why():
    failed = {**shown()["history"][0], "status": "failed", "metrics": {}, "reason": "2 ready, 3 needed"}
    text = played([shown(history=[failed]), shown(state="aborted", reason="by the administrator", history=[failed])], terminal=False)
    assert "exchange 1 (train) failed after 24.0 s: 2 ready, 3 needed" in text
    assert "aborted: by the administrator" in text
    assert "failed: 2 ready, 3 needed" in drawn(shown(history=[failed]))


def test_an_evaluation_belongs_to_the_round_before_it():
    assert headline(shown(category="evaluate")).startswith("round 1 of 4, evaluate")


def test_notes_stay_in_view():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Watch(console) as watch:
        watch.update(shown())
        watch.note("SIGKILL: law's node is gone")
        watch.update(shown())
    assert "\nSIGKILL: law's node is gone\n" in console.file.getvalue()


def test_units():
    assert [human_time(s) for s in (7.4, 99, 200, 7_500)] == ["7 s", "99 s", "3 min 20 s", "2 h 5 min"]
    assert [human_bytes(n) for n in (0, 999, 1500, 4_300_000, 5e12)] == ["0 B", "999 B", "1.5 kB", "4.3 MB", "5.0 TB"]


def test_a_full_disk_is_said_while_it_lasts():
    full = "uploads wait for room: spools/ab.data: no space left on the disk"
    assert full in drawn(shown(trouble=full))
    text = played([shown(trouble=full), shown(), shown(state="finished", time_left_s=None)], terminal=False)
    assert text.count(full) == 1
