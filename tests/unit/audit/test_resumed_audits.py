"""An audit that was ended goes on where it was; of its folder it believes what is as it was left, about files that are as they were."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from support import killed_audit
from support.made_runs import MadeRuns
from support.opened_instance import open_instance

from dure.audit import level3, lineage
from dure.audit.bundle import Bundle
from dure.audit.kept import JOURNAL, KEY_BYTES, LOCK, RUNS, Kept, Question, own_key, place_of
from dure.audit.level1 import verify
from dure.audit.level2 import Traced, trace
from dure.audit.level3 import add_up
from dure.audit.parts import Opened, RunRecord, records, sum_name
from dure.audit.reading import verified
from dure.blobs import DiskFull
from dure.charter.root import walk_all
from dure.errors import BadInput, Conflict
from dure.secagg.ids import InstanceId, Purpose
from dure.statements.dsse import Envelope
from dure.statements.kinds import InstanceOpen
from dure.statements.statement import read_verified

SECRET = bytes(range(KEY_BYTES))


class Ended(Exception):
    """As if the power had gone."""


def ending_at(monkeypatch, number):
    """The audit ends just after so many lines are durable."""
    write, left = Kept.write, [number]

    def then_end(self, *words):
        write(self, *words)
        left[0] -= 1
        if not left[0]:
            raise Ended

    monkeypatch.setattr(Kept, "write", then_end)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    log = MadeRuns(tmp_path_factory.mktemp("world") / "blobs")
    return log, log.begin()


@pytest.fixture
def half(world, tmp_path, monkeypatch):
    """A bundle whose audit was ended after the first of two exchanges; (bundle, its log, what is called to go on, exchanges recomputed)."""
    log, made = world
    bundle = Bundle.open(log.bundle(tmp_path / "bundle", made))
    result, folder, told, stepped = verify(bundle, log.pin, now=log.now, cores=1), tmp_path / "kept", [], []
    step = lineage.next_base
    monkeypatch.setattr(lineage, "next_base", lambda *a, **k: stepped.append(k["exchange"]) or step(*a, **k))

    def on():
        kept = Kept.open(folder, SECRET, told.append)
        try:
            return trace(bundle, result, kept=kept)
        finally:
            kept.close(finished=False)

    with monkeypatch.context() as patch:
        ending_at(patch, 2)
        with pytest.raises(Ended):
            on()
    assert stepped == made.exchanges[1:2]
    stepped.clear()
    return bundle, made, on, told, stepped, folder


def test_a_process_killed_after_the_first_exchange_goes_on_at_the_second_and_says_the_same(world, tmp_path):
    log, made = world
    bundle, work = log.bundle(tmp_path / "bundle", made), tmp_path / "work"

    words = (bundle, "--root-sha256", log.pin.hex(), "--level", "2", "--work", work, "--cores", "1")
    assert killed_audit.verified(*words, state=tmp_path, lines=2, now=log.now).returncode == -signal.SIGKILL
    again = killed_audit.verified(*words, state=tmp_path, now=log.now)
    assert f"run {made.run.hex()[:12]}: resumed at exchange 2 of 2" in again.stderr
    assert list(work.iterdir()) == [], "nothing is kept of an audit that is through"
    anew = killed_audit.verified(*words, state=tmp_path, now=log.now)
    assert "resumed" not in anew.stderr
    assert again.stdout == anew.stdout
    assert json.loads(anew.stdout)["lineage"][0]["exchanges"] == made.exchanges[1:]


def test_finished_exchanges_are_not_recomputed_and_every_model_is_known_all_the_same(half):
    _, made, on, told, stepped, folder = half
    found = on()
    assert not found.findings
    assert stepped == made.exchanges[2:]
    assert {wid: number for (wid, _), number in zip(made.models, made.exchanges, strict=True)} == found.lineages[0].models
    assert told == [f"run {made.run.hex()[:12]}: resumed at exchange 2 of 2"]
    assert list((folder / RUNS).iterdir()) == [], "models are large: of a run that is recomputed none is kept"
    assert on().lineages == found.lineages
    assert stepped == made.exchanges[2:], "the second time nothing was left to do"


def test_a_sum_that_was_changed_after_its_exchange_was_recomputed_is_found(half):
    bundle, made, on, _, stepped, _ = half
    sum_file = bundle.folder / "rounds" / made.run.hex() / f"{made.exchanges[1]:06d}.update"
    was, whole = sum_file.stat(), sum_file.read_bytes()
    sum_file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(sum_file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert [f.why for f in on().findings] == [f"rounds/{made.run.hex()}/{sum_file.name}: is not the sum the log names"]
    assert stepped == []


def test_a_sum_that_was_taken_away_after_its_exchange_was_recomputed_is_missing(half):
    bundle, made, on, _, _, _ = half
    (bundle.folder / "rounds" / made.run.hex() / f"{made.exchanges[1]:06d}.scales").unlink()
    assert [f"{made.exchanges[1]:06d}.scales" in line for line in on().missing] == [True]


def test_a_kept_base_that_was_changed_is_not_believed(half):
    _, made, on, told, stepped, folder = half
    for data in (folder / RUNS).rglob("data"):
        whole = data.read_bytes()
        data.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    found = on()
    assert not found.findings and not found.missing
    assert stepped == made.exchanges[1:]
    assert "begun anew" in told[0]


@pytest.mark.parametrize("how", ["a digit", "a line", "torn"])
def test_a_journal_that_was_changed_is_believed_up_to_there_only(half, how):
    _, made, on, told, stepped, folder = half
    journal = folder / JOURNAL
    first, second = journal.read_bytes().splitlines(keepends=True)
    at = second.index(b'"weights_id":"') + 14
    changed = {
        "a digit": first + second[:at] + (b"0" if second[at : at + 1] != b"0" else b"1") + second[at + 1 :],
        "a line": second,
        "torn": first + second[:-1],
    }
    journal.write_bytes(changed[how])
    found = on()
    assert not found.findings and not found.missing
    assert stepped == made.exchanges[1:]
    assert "torn or was changed" in told[0]


def test_a_folder_that_came_with_the_bundle_is_not_believed(half, tmp_path):
    """Whoever packs the bundle can pack a folder beside it: mode 0700, the auditor's own once unpacked, about files that are not there."""
    bundle, made, on, told, stepped, folder = half
    gone = [[f"{made.exchanges[1]:06d}.{name}"] for name in ("scales", "update")]
    for (name,) in gone:
        (bundle.folder / "rounds" / made.run.hex() / name).unlink()
    ours = Kept.open(folder, SECRET)
    packed = Kept.open(tmp_path / "packed", bytes(KEY_BYTES))
    for key, (_, said) in ours._answers.items():
        packed.write(Question(key, sha256(json.dumps(gone).encode()).hexdigest()), said)
    packed.close(finished=False)
    ours.close(finished=False)
    (tmp_path / "packed" / JOURNAL).replace(folder / JOURNAL)
    assert len(on().missing) == 1 and not stepped
    assert "not by this user" in told[0]


def test_the_key_is_made_once_and_read_by_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert own_key() == own_key() and len(set(own_key())) > 8
    (path,) = (tmp_path / "state").rglob("*.key")
    assert path.stat().st_mode & 0o777 == 0o600 and len(list(path.parent.iterdir())) == 1
    path.chmod(0o640)
    with pytest.raises(BadInput, match="alone may read"):
        own_key()


def test_nothing_is_kept_where_others_may_put_another_folder_in_its_place(tmp_path):
    shared = tmp_path / "shared"
    (shared / "deeper").mkdir(parents=True)
    shared.chmod(0o777)
    with pytest.raises(PermissionError, match="put something else in its place"):
        Kept.open(shared / "deeper" / "kept", SECRET)
    shared.chmod(0o1777)
    Kept.open(shared / "deeper" / "kept", SECRET).close(finished=True)


def test_a_full_disk_is_no_finding_and_what_was_established_stays(half, monkeypatch):
    _, made, on, _, stepped, folder = half
    with monkeypatch.context() as patch:

        def full(*_words, **_more):
            raise DiskFull(folder)

        patch.setattr(Kept, "write", full)
        with pytest.raises(DiskFull):
            on()
    assert stepped == made.exchanges[2:]
    on()
    assert stepped == made.exchanges[2:] * 2, "the first exchange is not recomputed, the second is"


@pytest.mark.parametrize(
    "line",
    [b'"x":NaN', b'"x":1e400', b'"x":"\\ud800"', b'"x":' + b"9" * 5_000, b'"x":' + b"[" * 100_000, b"\xff\xfe", b"\0" * 100],
    ids=["no number", "infinite", "half a character", "many digits", "deep", "no text", "zeros"],
)
def test_whatever_stands_in_a_journal_an_audit_begins(tmp_path, line):
    """A folder packed with the bundle must not keep anybody from auditing it either."""
    Kept.open(tmp_path / "kept", SECRET).write(Question("k", "f"), {"bytes": 1})
    with (tmp_path / "kept" / JOURNAL).open("ab") as journal:
        journal.write(b'{"key":"k","files":"g","said":{' + line + b"}}\n")
    told = []
    (tmp_path / "kept" / LOCK).unlink()  # the first one is not let go of, as if it had been killed
    kept = Kept.open(tmp_path / "kept", SECRET, told.append)
    assert kept.answer(Question("k", "f")) == {"bytes": 1} and kept.answer(Question("k", "g")) is None
    assert len(told) == 1
    kept.close(finished=True)


@pytest.mark.parametrize("lines", [0, 1])
def test_a_journal_larger_than_memory_is_not_read_whole(tmp_path, lines):
    """A file of nothing but holes takes no room in what was packed."""
    for _ in range(lines):
        Kept.open(tmp_path / "kept", SECRET).write(Question("k", "f"), {"bytes": 1})
        (tmp_path / "kept" / LOCK).unlink()  # as if it had been killed
    (tmp_path / "kept").mkdir(mode=0o700, exist_ok=True)
    (tmp_path / "kept" / JOURNAL).touch()
    os.truncate(tmp_path / "kept" / JOURNAL, 1 << 42)
    told = []
    kept = Kept.open(tmp_path / "kept", SECRET, told.append)
    assert (kept.answer(Question("k", "f")) is not None) == bool(lines) and len(told) == 1
    kept.write(Question("l", "f"), {"bytes": 2})
    kept.close(finished=False)
    assert (tmp_path / "kept" / JOURNAL).read_bytes().count(b"\n") == lines + 1


@pytest.mark.parametrize("what", [JOURNAL, RUNS, "pipe", "hard"])
def test_links_and_pipes_in_a_folder_that_was_packed_with_the_bundle_lead_nowhere(tmp_path, what):
    """The end of a journal that is not believed is cut off, and what is in `runs` removed: neither may be a file of the auditor's."""
    own, packed = tmp_path / "own", tmp_path / "kept"
    (own / "run").mkdir(parents=True)
    (own / "run" / "thesis").write_bytes(b"years of work")
    packed.mkdir(mode=0o700)
    if what == "pipe":
        os.mkfifo(packed / JOURNAL)
    elif what == "hard":
        os.link(own / "run" / "thesis", packed / JOURNAL)
    else:
        (packed / what).symlink_to(own / "run" / "thesis" if what == JOURNAL else own)
    kept = Kept.open(packed, SECRET)
    kept.write(Question("k", "f"), {"bytes": 1})
    (kept.room(b"run") / "blob").write_bytes(b"a base")
    kept.close(finished=True)
    assert [(path.name, path.read_bytes()) for path in own.rglob("*") if path.is_file()] == [("thesis", b"years of work")]


def test_a_folder_that_others_may_write_is_refused(tmp_path):
    (tmp_path / "kept").mkdir(mode=0o755)
    with pytest.raises(BadInput, match="mode 0700"):
        Kept.open(tmp_path / "kept", SECRET)


def test_two_audits_do_not_share_a_folder(tmp_path):
    first = Kept.open(tmp_path / "kept", SECRET)
    with pytest.raises(Conflict, match="under way"):
        Kept.open(tmp_path / "kept", SECRET)
    first.close(finished=True)
    assert not (tmp_path / "kept").exists()


def test_each_bundle_and_each_pin_has_a_folder_of_its_own(tmp_path):
    places = {place_of(tmp_path / name, pin, work) for name in "ab" for pin in (b"1", b"2") for work in (None, tmp_path / "w")}
    assert len(places) == 8


# -- level 3 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sums(world, tmp_path, monkeypatch):
    """Two real sums with their uploads in a bundle; (its folder, what is called to add up, sums added up, what was told)."""
    log, run = world
    plan = records(verified(log.made, walk_all(log.roots, None)))[run.run].plan
    made = [open_instance(purpose=purpose, elements=5_000) for purpose in (Purpose.SCALES, Purpose.UPDATE)]
    record = RunRecord(made[0].trust.run, plan)
    home = tmp_path / "sums" / "rounds" / record.run.hex()
    home.mkdir(parents=True)
    for one in made:
        where, digest = InstanceId.decode(one.fact.instance), Envelope.from_bytes(one.evidence.open).payload_sha256
        opened = Opened(where, read_verified(one.evidence.open, InstanceOpen), digest, one.fact, one.aggregate, tuple(one.uploads))
        record.aggregates[Envelope.from_bytes(one.aggregate).payload_sha256] = opened
        begins = sum_name(opened)
        (home / f"{begins}.evidence").write_bytes(one.evidence.to_bytes())
        (home / f"{begins}.seeds").write_bytes(one.seeds)
        for member, upload in one.uploads.items():
            (home / f"{begins}.{member}.upload").write_bytes(b"".join(upload.chunks))
    trust, added, told = [made[0].trust], [], []
    monkeypatch.setattr(level3, "trust_of", lambda _record, _versions: trust[0])
    add = level3.add_files
    monkeypatch.setattr(level3, "add_files", lambda opened, *a: added.append(opened.instance.purpose) or add(opened, *a))

    def on():
        kept = Kept.open(tmp_path / "kept", SECRET, told.append)
        try:
            return add_up(Bundle(tmp_path / "sums"), Traced({record.run: record}, (), {record.run}), threads=1, kept=kept)
        finally:
            kept.close(finished=False)

    with monkeypatch.context() as patch:
        ending_at(patch, 1)
        with pytest.raises(Ended):
            on()
    assert added == [Purpose.SCALES]
    added.clear()
    return home, on, added, told, trust


def test_a_sum_that_was_added_up_is_not_added_up_again(sums):
    _, on, added, told, _ = sums
    found = on()
    assert added == [Purpose.UPDATE]
    assert set(found.levels.values()) == {3} and not found.findings
    assert found.bytes == sum(path.stat().st_size for path in sums[0].glob("*.upload")), "the report is that of an audit in one go"
    assert told == ["sums: resumed at exchange 1 of 1"]
    on()
    assert added == [Purpose.UPDATE]


@pytest.mark.parametrize("part", ["m1.upload", "seeds", "evidence"])
def test_a_file_that_was_changed_after_its_sum_was_added_up_is_found(sums, part):
    home, on, _, _, _ = sums
    changed = home / f"000003.scales.{part}"
    was, whole = changed.stat(), changed.read_bytes()
    changed.write_bytes(whole[:-5] + bytes([whole[-5] ^ 4]) + whole[-4:])
    os.utime(changed, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert [Path(f.where).name for f in on().findings] == [changed.name]


def test_a_sum_is_asked_again_where_other_keys_judge_it(sums):
    _, on, added, _, trust = sums
    trust[0] = replace(trust[0], coordinator_keys=(bytes(32),))
    assert len(on().findings) == 2
    assert added == []
