"""What level 1 says of a bundle with missing parts, an expired charter, a clock that was off; each with its own exit code."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime

import pytest
from support.synthetic_log import BEGAN, SyntheticLog
from typer.testing import CliRunner

from dure.audit.bundle import Bundle
from dure.audit.cli import app
from dure.audit.level1 import EXPIRED, INCOMPLETE, ClockOff, verify
from dure.audit.report import rows
from dure.charter import root

ENTRIES = 600


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    log = SyntheticLog(members=4, exchanges_per_run=6, seed=11)
    return log, log.write(tmp_path_factory.mktemp("log") / "bundle", log.entries(ENTRIES))


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "copy")


def table(log, bundle):
    """(result, claim -> how, claim -> detail)"""
    result = verify(Bundle.open(bundle), log.pin, now=log.now, cores=1)
    return result, {r.claim.split()[0]: r.how for r in rows(result)}, {r.claim.split()[0]: r.detail for r in rows(result)}


def test_without_a_checkpoint_the_entries_are_judged_and_one_history_is_not_checked(made, copy):
    (copy / "log/checkpoint").unlink()
    result, how, detail = table(made[0], copy)
    assert (result.exit_code, result.missing, result.checked_to) == (INCOMPLETE, ["log/checkpoint"], ENTRIES)
    assert (how["one"], how["every"]) == ("not checked", "proved")
    assert "log/checkpoint is missing" in detail["one"]


def test_without_an_entry_bundle_those_before_it_are_judged_and_the_head_is_from_the_hashes(made, copy):
    (copy / "log/tile/entries/001").unlink()
    result, how, detail = table(made[0], copy)
    assert (result.exit_code, result.findings, result.checked_to) == (INCOMPLETE, [], 256)
    assert (how["one"], how["every"], how["each"]) == ("signed", "not checked", "not checked")
    assert detail["every"].startswith("holds for entries before 256, 256 entries")


def test_without_entries_and_their_hashes_not_even_the_head_is_checked(made, copy):
    (copy / "log/tile/entries/001").unlink()
    (copy / "log/tile/0/001").unlink()
    result, how, _ = table(made[0], copy)
    assert (result.exit_code, result.findings, how["one"]) == (INCOMPLETE, [], "not checked")


def test_a_missing_tile_of_hashes_takes_no_check_away(made, copy):
    (copy / "log/tile/0/000").unlink()
    result, how, _ = table(made[0], copy)
    assert (result.exit_code, result.missing, how["one"], how["every"]) == (INCOMPLETE, ["log/tile/0/000"], "signed", "proved")


def test_lineage_ends_as_verify_does_where_the_log_is_incomplete_or_does_not_hold(made, copy):
    """A script that asks for the model must not take a missing file for a forgery: both ended with 3 once."""
    ask = [str(copy), "--root-sha256", made[0].pin.hex()]
    entries = copy / "log/tile/entries/001"
    whole = entries.read_bytes()
    for damaged, code in ((None, 2), (whole[:-1] + bytes([whole[-1] ^ 1]), 1)):
        entries.unlink() if damaged is None else entries.write_bytes(damaged)
        assert [CliRunner().invoke(app, [command, *ask]).exit_code for command in ("verify", "lineage")] == [code, code]


def test_the_command_prints_the_table_names_what_is_missing_and_ends_with_2(made, copy):
    (copy / "log/tile/entries/001").unlink()
    done = CliRunner().invoke(app, ["verify", str(copy), "--root-sha256", made[0].pin.hex()])
    assert done.exit_code == 2
    assert "MISSING log/tile/entries/001" in done.stdout and "not checked" in done.stdout
    assert "the table says what could be checked without them" in done.stdout


def test_a_changed_part_counts_more_than_a_missing_one(made, copy):
    (copy / "log/tile/entries/001").unlink()
    (copy / "log/tile/0/000").write_bytes(b"x")
    assert table(made[0], copy)[0].exit_code == 1


def test_a_run_planned_under_an_expired_charter_has_its_own_exit_code(tmp_path, monkeypatch):
    """The rest holds: expiry ends new runs, not an audit."""
    monkeypatch.setattr(root, "LIFE", datetime.fromtimestamp(BEGAN + 1_800, UTC) - datetime.fromtimestamp(BEGAN, UTC))
    log = SyntheticLog(members=4, exchanges_per_run=40, seed=12)
    bundle = log.write(tmp_path / "bundle", log.entries(1_000))
    result = verify(Bundle.open(bundle), log.pin, now=log.now, cores=1)
    assert (result.exit_code, len(result.findings)) == (EXPIRED, len(result.history.runs) - 1)
    assert "planned after charter version 1 had expired" in result.findings[0].why


def test_this_machines_clock_a_day_behind_is_not_the_logs_fault(made):
    with pytest.raises(ClockOff, match=r"cosigned 2\.0 days from now; set this machine's clock") as caught:
        verify(Bundle.open(made[1]), made[0].pin, now=made[0].now - 172_800)
    assert caught.value.exit_code == 7
