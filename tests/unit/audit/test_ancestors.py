"""A run that began with another run's model is followed into that run; a plan that names a wrong ancestor is found, and named."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.made_runs import LAYOUT, MadeRun, MadeRuns
from support.remembered import remembered_signatures

from dure.audit import level2, report
from dure.audit.bundle import Bundle
from dure.audit.descent import NOT_HERE, OUTSIDE, RECOMPUTED, SIGNED_ONLY, Descent, row
from dure.audit.html import CLAIMS
from dure.audit.level1 import verify
from dure.audit.level3 import add_up
from dure.audit.lineage import DRAWN, NAMED, Lineage
from dure.audit.lineage_cli import add_runs
from dure.audit.pages import Found, found_in_json, page_of
from dure.audit.parts import sum_name
from dure.audit.places import LogPlace
from dure.audit.reading import verified
from dure.blobs import BlobStore
from dure.charter.root import walk_all
from dure.provenance.ancestry import Ancestry
from dure.statements import kinds
from dure.statements.kinds import RunPlan


@pytest.fixture(scope="module", autouse=True)
def remembered():
    with remembered_signatures():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Runs: a; b from a's end; c from b's middle; d from a file that is a's first round; and one of its own, that nobody goes on from."""
    log = MadeRuns(tmp_path_factory.mktemp("world") / "blobs")
    a = log.begin()
    b = log.begin(base=log.named(a, 2), flat=a.models[2][1])
    c = log.begin(base=log.named(b, 1), flat=b.models[1][1])
    d = log.begin(base=log.named(a, 1, file=True), flat=a.models[1][1])
    stranger = log.begin()
    return log, a, b, c, d, stranger


def traced(log, folder, **how):
    bundle = Bundle.open(folder)
    result = verify(bundle, log.pin, now=log.now, cores=1)
    assert result.holds, [f"{f.where}: {f.why}" for f in result.findings[:3]]
    return bundle, result, level2.trace(bundle, result, **how)


def whys(found):
    return [f"{f.where}: {f.why}" for f in found.findings]


class Trailerless(MadeRuns):
    """A log whose coordinator signs trailers without weights, which no level 1 misses."""

    def told(self, fact):
        said = super().told(fact)
        return replace(said, trailer=said.trailer[:1]) if isinstance(said, kinds.InstanceAggregate) else said


def test_a_sum_whose_trailer_says_no_weight_is_named_and_ends_no_audit(tmp_path):
    log = Trailerless(tmp_path / "blobs")
    made = log.begin()
    (why,) = whys(traced(log, log.bundle(tmp_path / "b", made))[2])
    assert why == f"run {made.run.hex()[:12]}: exchange 1: its sum cannot be applied: sum: needs a positive weight and one e_b per block"


@pytest.mark.parametrize("length", [0, 196])
def test_scales_of_another_length_than_the_layout_has_are_named_and_end_no_audit(world, tmp_path, monkeypatch, length):
    """The coordinator signs an aggregate's length, and level 1 knows no layout: nothing at all, or half a number, ended level 2."""
    log, *_, stranger = world
    folder = log.bundle(tmp_path / "b", stranger)
    root = log.store.put_bytes(bytes(length)).root
    (folder / "rounds" / stranger.run.hex() / "000001.scales").write_bytes(bytes(length))
    read = level2.records

    def as_signed(entries):
        found = read(entries)
        first = found[stranger.run].aggregates
        first |= {k: replace(o, said=replace(o.said, length=length, root=root)) for k, o in first.items() if sum_name(o) == "000001.scales"}
        return found

    monkeypatch.setattr(level2, "records", as_signed)
    (why,) = whys(traced(log, folder)[2])
    assert f"000001.scales: is a sum of {length} bytes, and of this layout it has 192" in why


@pytest.mark.parametrize("part", ["first.f32", "000001.update"])
def test_a_part_of_another_size_than_the_log_names_is_not_copied(world, tmp_path, monkeypatch, part):
    """A file of many terabytes can take no room in a bundle, and would take all there is where the run is recomputed."""
    log, *_, stranger = world
    folder = log.bundle(tmp_path / "b", stranger)
    os.truncate(folder / "rounds" / stranger.run.hex() / part, 1 << 42)
    copy = BlobStore.put_file
    monkeypatch.setattr(BlobStore, "put_file", lambda s, path, **k: pytest.fail("copied") if path.name == part else copy(s, path, **k))
    (why,) = whys(traced(log, folder)[2])
    assert f"{part}: has 4398046511104 bytes, " in why


def test_a_chain_of_runs_is_recomputed_back_to_the_first_and_the_table_says_so(world, tmp_path):
    log, a, b, c, d, _ = world
    _, result, found = traced(log, log.bundle(tmp_path / "b", a, b, c, d))
    assert found.exit_code == 0 and [one.run for one in found.lineages] == [a.run, b.run, c.run, d.run]
    assert {run: (x.how, x.run, x.exchange) for run, x in found.descents.items()} == {
        b.run: (RECOMPUTED, a.run, a.exchanges[2]),
        c.run: (RECOMPUTED, b.run, b.exchanges[1]),
        d.run: (RECOMPUTED, a.run, a.exchanges[1]),
    }
    told = level2.lines(found.by_run[c.run], found)
    assert f"  first weights from run {b.run.hex()[:12]}, exchange {b.exchanges[1]}, recomputed: proved" in told
    whole = Found(result, 2, found)
    said = {r.claim: r for r in whole.rows}[report.FIRST]
    assert said.how == report.SIGNED, "the oldest run's first weights are what its ServerApp sent"
    assert f"run {b.run.hex()[:12]}: from run {a.run.hex()[:12]}, exchange {a.exchanges[2]}, recomputed" in said.detail
    said = {one["run"]: one["from"] for one in found_in_json(whole)["lineage"]}
    assert said[b.run.hex()] == {"run": a.run.hex(), "exchange": a.exchanges[2], "how": RECOMPUTED} and said[a.run.hex()] is None
    page = page_of(whole, log.pin.hex())
    assert CLAIMS[report.FIRST] in page and f"from run {a.run.hex()[:12]}, exchange {a.exchanges[2]}, recomputed" in page


def test_without_the_ancestors_parts_nothing_is_claimed_of_them(world, tmp_path):
    log, a, b, c, *_ = world
    _, result, found = traced(log, log.bundle(tmp_path / "b", b, c))
    assert found.exit_code == 0 and found.descents[b.run].how == NOT_HERE and found.descents[c.run].how == RECOMPUTED
    said = {r.claim: r for r in Found(result, 2, found).rows}[report.FIRST]
    assert said.how == report.UNCHECKED and "checked against the plan, not recomputed" in said.detail
    told = level2.lines(found.by_run[b.run], found)
    assert f"  first weights said to be from run {a.run.hex()[:12]}, which is not recomputed here: {NOT_HERE}" in told


def test_one_run_that_is_asked_for_brings_its_ancestors_and_nobody_else(world, tmp_path):
    log, a, b, c, d, _ = world
    *_, found = traced(log, log.bundle(tmp_path / "b", a, b, c, d), run=c.run.hex()[:16])
    assert [one.run for one in found.lineages] == [a.run, b.run, c.run] and found.exit_code == 0


@pytest.mark.parametrize(
    ("seed", "came", "how"),
    [
        (b"s" * 32, RECOMPUTED, report.PROVED),
        (b"", RECOMPUTED, report.SIGNED),
        (b"s" * 32, SIGNED_ONLY, report.SIGNED),
        (b"s" * 32, NOT_HERE, report.UNCHECKED),
        (b"s" * 32, OUTSIDE, report.UNCHECKED),
    ],
)
def test_weights_are_proved_to_come_from_a_seed_only_through_runs_that_were_all_recomputed(seed, came, how):
    first, second, third = (
        Lineage(run, begins, "a joint seed", seed, (2,), bytes(32), {}, recomputable=True)
        for run, begins in ((b"1" * 32, DRAWN), (b"2" * 32, NAMED), (b"3" * 32, NAMED))
    )
    descents = {second.run: Descent(came, b"" if came == OUTSIDE else first.run, 2), third.run: Descent(RECOMPUTED, second.run, 2)}
    assert row({one.run: one for one in (first, second, third)}, descents).how == how
    told = row({one.run: one for one in (first, second, replace(third, recomputable=False))}, descents)
    assert told.how == (report.SIGNED if how == report.PROVED else how), "what a ServerApp sent first is in no file"


def test_a_plan_that_names_a_run_planned_after_it_names_a_stranger_so_nothing_goes_in_circles(world):
    log, a, b, *_ = world
    entries = list(verified(log.made, walk_all(log.roots, None)))
    plans = {s.envelope.payload_sha256: s for s in entries if isinstance(s.fact, RunPlan)}
    backwards = Ancestry()
    for run in (b.run, a.run):
        backwards.take(plans[run])
    assert backwards.stranger(b.run) == a.run and backwards.chain(b.run) == () and backwards.chain(a.run) == ()
    onwards = Ancestry()
    assert list(onwards.following(entries)) == entries and onwards.chain(b.run) == (a.run,) and onwards.stranger(b.run) == b""


# -- tampered twins ------------------------------------------------------------------------------------------------------


def test_an_ancestors_sum_from_another_run_is_named_and_nothing_is_said_of_its_descendants(world, tmp_path):
    log, a, b, *_, other = world
    folder = log.bundle(tmp_path / "b", a, b, other)
    rounds = folder / "rounds"
    shutil.copy(rounds / other.run.hex() / "000003.update", rounds / a.run.hex() / "000003.update")
    *_, found = traced(log, folder)
    assert whys(found) == [f"run {a.run.hex()[:12]}: rounds/{a.run.hex()}/000003.update: is not the sum the log names"]
    assert found.descents[b.run].how == NOT_HERE, "a run that does not hold proves nothing of those after it"


def test_a_base_that_changed_places_is_named_in_the_ancestor_and_in_its_descendant(world, tmp_path):
    log, a, b, *_ = world
    folder = log.bundle(tmp_path / "b", a, b)
    ours, theirs = (folder / "rounds" / run.run.hex() / "first.f32" for run in (a, b))
    whole = ours.read_bytes()
    ours.write_bytes(theirs.read_bytes())
    *_, found = traced(log, folder)
    assert whys(found) == [f"run {a.run.hex()[:12]}: rounds/{a.run.hex()}/first weights: are not the base the first exchange started from"]
    theirs.write_bytes(whole)
    *_, found = traced(log, folder)
    assert f"run {b.run.hex()[:12]}: rounds/{b.run.hex()}/first.f32: is not what the plan names" in whys(found)


def bought(log):
    """Weights that nobody here made."""
    flat = log.store.put_bytes(np.ones(LAYOUT.elements, np.float32).tobytes())
    return MadeRun(b"", [(log.wid(flat), flat)])


LIES = {
    "another run's weights": lambda log, a, other: log.begin(base=log.named(other, 2, run=a.run), flat=other.models[2][1]),
    "weights from outside": lambda log, a, _: log.begin(base=log.named(bought(log), 0, run=a.run), flat=bought(log).models[0][1]),
    "a run that is not there": lambda log, a, _: log.begin(base=log.named(a, 2, run=b"\7" * 32), flat=a.models[2][1]),
}


@pytest.mark.parametrize("lie", list(LIES))
def test_a_plan_that_names_a_wrong_ancestor_is_found_although_everybody_signed_it(tmp_path, lie):
    log = MadeRuns(tmp_path / "blobs", seed=3)
    a, other = log.begin(), log.begin()
    made = LIES[lie](log, a, other)
    *_, found = traced(log, log.bundle(tmp_path / "b", a, other, made))
    named, why = (a.run, "and none of the 3 bases of that run, recomputed, has these weights")
    if lie == "a run that is not there":
        named, why = (b"\7" * 32, "which the log does not have before it")
    said = f"its plan says that it began with a model of run {named.hex()[:12]}, {why}"
    assert whys(found) == [f"run {made.run.hex()[:12]}: first weights: {said}"]
    assert made.run not in found.by_run and found.exit_code == 1


class Both(MadeRuns):
    """Plans that name a base, and rules by which first weights are drawn."""

    def _plan(self, roster):
        plan = super()._plan(roster)
        rule = kinds.InitialRule("*", "constant", "0")
        drawn = kinds.JointInitial("dure-initial-1", LAYOUT.tensors_sha256, LAYOUT.parameters, (rule,))
        return plan if plan.base is None else replace(plan, initial=drawn)


def test_a_plan_that_draws_first_weights_and_names_a_base_as_well_is_found(tmp_path):
    """Else drawn weights would be said to come from whatever earlier run the plan names."""
    log = Both(tmp_path / "blobs", seed=3)
    a = log.begin()
    b = log.begin(base=log.named(a, 2), flat=a.models[2][1])
    found = verify(Bundle.open(log.bundle(tmp_path / "b", a)), log.pin, now=log.now, cores=1)
    assert found.findings[0].why == "initial: the first weights are drawn, or those of a base, and not both"
    assert b.run not in found.history.runs


def test_an_ancestor_that_is_left_out_is_missing_where_its_plan_keeps_uploads(tmp_path):
    log = MadeRuns(tmp_path / "blobs", seed=4)
    a = log.begin(keep_uploads="all")
    b = log.begin(base=log.named(a, 2), flat=a.models[2][1])
    bundle, result, found = traced(log, log.bundle(tmp_path / "b", b))
    whole = Found(result, 3, found, add_up(bundle, found, threads=1))
    assert whole.exit_code == 2 and [name for name in whole.missing if a.run.hex() in name] == [
        f"all of rounds/{a.run.hex()}, kept by the run's plan: run {b.run.hex()[:12]} descends from it; export it, too"
    ]


def test_weights_of_nobody_here_are_an_outside_model_by_digest(tmp_path):
    """Two runs from one bought file: neither made it."""
    log = MadeRuns(tmp_path / "blobs", seed=5)
    model = bought(log)
    first, second = (log.begin(base=log.named(model, 0, file=True), flat=model.models[0][1]) for _ in range(2))
    *_, found = traced(log, log.bundle(tmp_path / "b", first, second))
    assert found.exit_code == 0 and {x.how for x in found.descents.values()} == {OUTSIDE}


# -- export --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    log, *_ = world
    folder = log.folder.parent
    log.write(folder, log.made)
    return LogPlace(folder, walk_all(log.roots, None), tuple(log.roots))


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_export_takes_a_runs_ancestors_along_to_the_byte_and_says_for_whom(world, place, tmp_path):
    _, a, b, c, *_ = world
    taken = add_runs(place, [c.run.hex()[:16]], 2, tmp_path / "one")
    assert [(part.run, part.ancestor_of, part.missing) for part in taken] == [(c.run, b"", ()), (b.run, c.run, ()), (a.run, c.run, ())]
    add_runs(place, [c.run.hex()], 2, tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    alone = add_runs(place, [c.run.hex()], 2, tmp_path / "alone", ancestors=False)
    assert [part.run for part in alone] == [c.run] and os.listdir(tmp_path / "alone" / "rounds") == [c.run.hex()]


def test_export_takes_several_runs_or_all_and_a_file_to_the_run_that_it_is_a_model_of(world, place, tmp_path):
    _, a, b, c, d, other = world
    taken = add_runs(place, [d.run.hex(), b.run.hex()], 2, tmp_path / "two")
    assert [(part.run, part.ancestor_of) for part in taken] == [(d.run, b""), (b.run, b""), (a.run, d.run)]
    every = add_runs(place, None, 2, tmp_path / "all")
    assert [(part.run, part.ancestor_of) for part in every] == [(one.run, b"") for one in (a, b, c, d, other)]
