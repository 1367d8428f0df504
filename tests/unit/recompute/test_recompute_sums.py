"""A doubter adds everything again: what agrees, and what speaks against whom, down to the chunk."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from hashlib import sha256

import pytest
from support.opened_instance import Instance, Upload, open_instance

from dure.blobs import Manifest, chunk_leaf
from dure.errors import DureError
from dure.recompute.evidence import Evidence
from dure.recompute.sums import Finding, prepare, recompute
from dure.secagg.ids import Purpose
from dure.tlog.merkle import merkle_root


@pytest.fixture(scope="module")
def made() -> Instance:
    """Three chunks, the last of them short; read only."""
    return open_instance()


def find(made: Instance, *, aggregate=None, evidence=None, seeds=None, uploads=None, total=None, **how) -> Finding:
    """Everything as the doubter gets it, with parts replaced."""
    raw = (evidence or made.evidence).to_bytes()
    ready = prepare(aggregate or made.aggregate, raw, seeds or made.seeds, made.trust)
    if isinstance(ready, Finding):
        return ready
    return recompute(*ready, uploads or made.uploads, (total or made.total).manifest, **how)


def flipped(upload: Upload, k: int, at: int = 7) -> bytes:
    part = bytearray(upload.chunks[k])
    part[at] ^= 1
    return bytes(part)


@pytest.mark.parametrize("purpose", list(Purpose))
@pytest.mark.parametrize("lost", [(), ("m2",)], ids=["everyone", "one lost"])
def test_the_sum_of_what_was_committed_agrees_with_the_coordinators(purpose, lost):
    made = open_instance(purpose=purpose, elements=20_000, lost=lost)
    assert find(made).kind == "agrees"
    assert set(made.uploads) == {"m0", "m1", "m2", "m3"} - set(lost)


def test_progress_counts_every_chunk_and_a_recheck_of_one_reads_only_that_one(made):
    seen = []
    assert find(made, progress=lambda done, total: seen.append((done, total))).kind == "agrees"
    assert seen == [(1, 3), (2, 3), (3, 3)]
    read = []

    class Watched(Upload):
        def read_chunk(self, k):
            read.append(k)
            return super().read_chunk(k)

    watched = {m: Watched(u.chunks, u.manifest) for m, u in made.uploads.items()}
    assert find(made, uploads=watched, chunks=(1,)).kind == "agrees"
    assert read == [1] * 4


def test_one_flipped_bit_in_an_upload_as_served_names_member_and_chunk(made):
    uploads = {**made.uploads, "m1": replace(made.uploads["m1"], chunks=[*made.uploads["m1"].chunks])}
    uploads["m1"].chunks[2] = flipped(made.uploads["m1"], 2)
    found = find(made, uploads=uploads)
    assert (found.kind, found.member, found.chunk) == ("withheld", "m1", 2)
    assert found.against_coordinator


def test_an_upload_with_another_root_than_its_commit_is_not_believed(made):
    other = Upload.of(b"".join([flipped(made.uploads["m3"], 0), *made.uploads["m3"].chunks[1:]]), made.total.manifest.chunk_bytes)
    found = find(made, uploads={**made.uploads, "m3": other})
    assert (found.kind, found.member) == ("withheld", "m3")


def test_leaves_that_lie_about_the_size_of_chunks_do_not_move_their_borders(made):
    whole = made.total.manifest
    lie = Manifest(whole.leaves, whole.length, whole.chunk_bytes + 2)
    assert find(made, total=Upload([], lie)).kind == "agrees"


def test_a_sum_wrong_at_one_chunk_names_the_chunk_and_both_leaves(made):
    parts = [made.total.chunks[0], flipped(made.total, 1), made.total.chunks[2]]
    wrong = Upload.of(b"".join(parts), made.total.manifest.chunk_bytes)
    aggregate = made.aggregate_with(root=merkle_root(wrong.manifest.leaves))
    found = find(made, aggregate=aggregate, total=wrong)
    assert (found.kind, found.chunk) == ("sum", 1)
    assert found.leaf == chunk_leaf(parts[1])
    assert found.recomputed == chunk_leaf(made.total.chunks[1])
    assert find(made, aggregate=aggregate, total=wrong, chunks=(0, 2)).kind == "agrees"


def test_a_sum_without_one_survivor_is_found_at_the_first_chunk(made):
    from support.opened_instance import sum_of

    three = sum_of([u for m, u in made.uploads.items() if m != "m0"], Purpose.UPDATE, made.recovered, made.total.manifest.chunk_bytes)
    found = find(made, aggregate=made.aggregate_with(root=merkle_root(three.manifest.leaves)), total=three)
    assert (found.kind, found.chunk) == ("sum", 0)


def test_a_seed_that_does_not_open_its_commitment_names_its_author(made):
    recovered = replace(made.recovered, self_seeds={**made.recovered.self_seeds, "m2": b"x" * 32})
    seeds = recovered.to_bytes()
    found = find(made, aggregate=made.aggregate_with(seeds_sha256=sha256(seeds).digest()), seeds=seeds)
    assert found.kind == "seeds"
    assert "m2" in found.words


def test_a_pair_secret_that_does_not_open_its_commitment_names_both():
    made = open_instance(elements=5000, lost=("m2",))
    recovered = replace(made.recovered, pair_secrets={**made.recovered.pair_secrets, ("m2", "m0"): b"x" * 32})
    seeds = recovered.to_bytes()
    found = find(made, aggregate=made.aggregate_with(seeds_sha256=sha256(seeds).digest()), seeds=seeds)
    assert found.kind == "seeds"
    assert "m2 and m0" in found.words


def test_seeds_other_than_the_aggregate_names_are_refused(made):
    found = find(made, seeds=made.seeds[:-1] + bytes([made.seeds[-1] ^ 1]))
    assert found.kind == "seeds"


@pytest.mark.parametrize("field", ["trailer", "tag"])
def test_an_opened_trailer_or_tag_that_does_not_follow_from_the_commits_is_named(made, field):
    value = made.fact.tag ^ 1 if field == "tag" else (*made.fact.trailer[:1], made.fact.trailer[1] + 1, *made.fact.trailer[2:])
    assert find(made, aggregate=made.aggregate_with(**{field: value})).kind == field


def changed(evidence: Evidence, other: Evidence, table: str) -> Evidence:
    found = getattr(other, table)
    if isinstance(found, dict):
        found = {**getattr(evidence, table), "m1": found["m1"]}
    return replace(evidence, **{table: found})


@pytest.mark.parametrize("table", ["open", "survivors", "delegations", "adverts", "shares", "commits"])
def test_evidence_of_another_instance_is_named(made, table):
    other = open_instance(elements=5000, seed=1)
    found = find(made, evidence=changed(made.evidence, other.evidence, table))
    assert found.kind == "evidence", found
    assert found.against_coordinator


@pytest.mark.parametrize("table", ["delegations", "adverts", "shares", "commits"])
def test_evidence_with_a_member_missing_is_named(made, table):
    short = {m: v for m, v in getattr(made.evidence, table).items() if m != "m0"}
    assert find(made, evidence=replace(made.evidence, **{table: short})).kind == "evidence"


def test_a_judge_with_other_keys_or_another_run_believes_nothing(made):
    for trust in (
        replace(made.trust, run=b"x" * 32),
        replace(made.trust, coordinator_keys=made.trust.signing_keys["m0"]),
        replace(made.trust, signing_keys={**made.trust.signing_keys, "m0": made.trust.signing_keys["m1"]}),
        replace(made.trust, u_min=5),
    ):
        found = prepare(made.aggregate, made.evidence.to_bytes(), made.seeds, trust)
        assert isinstance(found, Finding), trust
        assert found.kind == "evidence"


def test_evidence_reads_back_and_bytes_of_another_form_are_refused(made):
    raw = made.evidence.to_bytes()
    assert Evidence.from_bytes(raw) == made.evidence
    for bad in (b"", raw[:-1], raw + b"b\0\0\0\0", made.seeds):
        with pytest.raises(DureError):
            Evidence.from_bytes(bad)


def test_memory_is_a_few_chunks_however_long_the_model(tmp_path):
    """24 chunks from three members' files; the readers hold no more than one chunk."""
    made = open_instance(n=3, elements=24 << 18)
    chunk_bytes = made.total.manifest.chunk_bytes

    class OnDisk:
        def __init__(self, name: str, upload: Upload) -> None:
            self.manifest, self._path = upload.manifest, tmp_path / name
            self._path.write_bytes(b"".join(upload.chunks))

        def read_chunk(self, k: int) -> bytes:
            with self._path.open("rb") as file:
                file.seek(k * chunk_bytes)
                return file.read(chunk_bytes)

    uploads = {m: OnDisk(m, u) for m, u in made.uploads.items()}
    made.uploads.clear()
    total = made.total = Upload([], made.total.manifest)
    tracemalloc.start()
    try:
        assert find(made, uploads=uploads, total=total).kind == "agrees"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * chunk_bytes, f"{peak} bytes, a chunk has {chunk_bytes}"
