"""Level 1 of a made-up log with several charter versions: what it counts, on one core and on two, and how little it remembers."""

from __future__ import annotations

import json

import pytest
from support.synthetic_log import SyntheticLog

from dure.audit import level1, report
from dure.audit.bundle import Bundle
from dure.audit.exchanges import Exchange, Shelf
from dure.audit.level1 import verify

ENTRIES = 2_500


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(log, its bundle)"""
    log = SyntheticLog(exchanges_per_run=10, versions_at=(300, 800, 1_500), evaluations=True)
    return log, log.write(tmp_path_factory.mktemp("log") / "bundle", log.entries(ENTRIES))


def audit(made, **how):
    log, bundle = made
    return verify(Bundle.open(bundle), log.pin, now=log.now, **how)


def test_a_log_over_several_charter_versions_holds_and_is_counted(made):
    log, _ = made
    result = audit(made, cores=1)
    assert (result.holds, result.versions, result.checked_to) == (True, 4, ENTRIES)
    assert sum(result.history.counts.values()) == ENTRIES
    runs = report.run_rows(result.history)
    assert all(set(run["counted"]) <= {m.name for m in log.members} for run in runs)
    assert 8 <= runs[0]["exchanges_summed"] <= 10  # a few are voided
    assert len(runs[-1]["counted"]) == 6


def test_the_report_is_the_same_on_any_number_of_cores(made, monkeypatch):
    told = [json.dumps(report.as_json(audit(made, cores=1)), sort_keys=True)]
    monkeypatch.setattr(level1, "SMALL", 0)
    told.append(json.dumps(report.as_json(audit(made, cores=2)), sort_keys=True))
    assert told[0] == told[1]


def test_with_two_exchanges_in_memory_everything_is_judged_as_before(made, monkeypatch):
    """So what the audit remembers does not grow with the log, and late statements are compared with what they refer to."""
    seen = []
    monkeypatch.setattr(level1, "History", lambda keys: seen.append(history_with(keys)) or seen[0])
    assert audit(made, cores=1).holds
    assert len(seen[0].shelf._near) <= 2


def history_with(keys):
    from dure.audit.history import History

    return History(keys, shelf=Shelf(2))


def test_an_exchange_that_left_memory_comes_back_as_it_was():
    shelf = Shelf(in_memory=1)
    shelf.get(b"r" * 32, 1).accepts["ara"] = ((b"s",), None)
    assert shelf.get(b"r" * 32, 2) == Exchange()
    assert shelf.get(b"r" * 32, 1).accepts == {"ara": ((b"s",), None)}
    assert shelf.get(b"q" * 32, 1) == Exchange()
