"""Whoever leaves parts out of a bundle gets no verdict over them, and where the run keeps its uploads no success either."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.synthetic_log import SyntheticLog

from dure.audit import cli, level3
from dure.audit.bundle import Bundle
from dure.audit.level1 import verify
from dure.audit.level2 import Traced
from dure.audit.level3 import add_up, check_files
from dure.audit.pages import Found
from dure.audit.parts import records
from dure.audit.reading import verified
from dure.charter.root import walk_all
from dure.errors import Refused


@pytest.mark.parametrize(("kept", "code"), [("none", 0), ("all", 2)])
def test_sums_without_uploads_are_named_and_missing_where_the_plan_keeps_them(tmp_path, kept, code):
    log = SyntheticLog(members=4, exchanges_per_run=2, seed=3)
    entries = list(log.entries(80))
    bundle, versions = Bundle.open(log.write(tmp_path / "bundle", entries)), walk_all(log.roots, None)
    runs = {run: replace(r, plan=replace(r.plan, keep_uploads=kept)) for run, r in records(verified(entries, versions)).items()}
    traced = Traced(runs, versions, {run for run in runs if runs[run].aggregates})
    summed = add_up(bundle, traced, threads=1)
    found = Found(verify(bundle, log.pin), 3, traced, summed)
    assert summed.levels and found.exit_code == code
    assert len(found.missing) == (sum(len(r.aggregates) for r in runs.values()) if code else 0)
    assert f"{len(summed.levels)} of {len(summed.levels)} exchanges" in found.left
    words = cli._verdict(3, 0, 0, found.left)
    assert words.startswith("what is here of level 3 holds; not shown to it: ") and found.left in words


def test_an_upload_of_another_size_than_was_committed_to_is_not_read(tmp_path, monkeypatch):
    """A file of many terabytes can take no room in a bundle, and an audit would read it to its end."""
    upload = tmp_path / "m1.upload"
    upload.touch()
    os.truncate(upload, 1 << 42)
    monkeypatch.setattr(level3, "read_all_at", lambda *_words: pytest.fail("was read"))
    with pytest.raises(Refused, match="m1: has 4398046511104 bytes, 10 were committed to"):
        check_files(SimpleNamespace(length=10, chunk_bytes=4, commits={}), {"m1": upload})
