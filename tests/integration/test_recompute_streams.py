"""A node adds a sum up again over real grpc.aio: from spools on a disk, through connections that break and a server that lies."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest
from support.opened_instance import Instance, Upload, open_instance

from dure.blobs import BlobId, BlobStore
from dure.errors import NotAuthorised, Refused, Unavailable
from dure.secagg.ids import Purpose
from dure.statements.dsse import Envelope
from dure.tlog.merkle import merkle_root
from dure.wire.messages import EvidenceQuery, SumEvidence
from dure_coordinator.quotas import Quotas
from dure_coordinator.rpc.bulk import BulkService, BulkSettings
from dure_coordinator.spool import Spools
from dure_participant import bulk
from dure_participant import recompute as recompute_module
from dure_participant.recompute import Recomputer

EXCHANGE = 3


@dataclass
class Policy:
    """Serves blobs and complete uploads, as the coordinator does; a test puts its lies in `changed` and its faults in `faults`."""

    blobs: BlobStore
    spools: Spools
    uploads: dict[str, bytes]
    """Blob id text -> spool key."""
    chunk_bytes: int
    faults: dict[int, Exception] = field(default_factory=dict)
    """By number of the pull."""
    changed: dict[tuple[str, int], bytes] = field(default_factory=dict)
    """(blob id text, chunk) -> what is served instead."""
    pulls: list[str] = field(default_factory=list)

    async def authorise_pull(self, member: str, blob: BlobId) -> Any:
        self.pulls.append(str(blob))
        if (fault := self.faults.pop(len(self.pulls), None)) is not None:
            raise fault
        if str(blob) not in self.uploads:
            return b"", self.blobs.open(blob)
        reader = self.spools.reader(self.uploads[str(blob)], length=blob.length, chunk_bytes=self.chunk_bytes)
        return b"", _Served(reader, str(blob), self.changed)


class _Served:
    def __init__(self, reader: Any, name: str, changed: dict[tuple[str, int], bytes]) -> None:
        self._reader, self._name, self._changed, self.manifest = reader, name, changed, reader.manifest

    def read_chunk(self, k: int) -> bytes:
        return self._changed.get((self._name, k)) or self._reader.read_chunk(k)

    def close(self) -> None:
        self._reader.close()


@dataclass
class Desk:
    made: Instance
    policy: Policy
    recomputer: Recomputer
    shown: SumEvidence
    upload: dict[str, str]
    """Member -> blob id text."""
    strangers: list[str]
    """Not empty: the node's certificate is refused, with these words."""

    async def find(self, **how: Any) -> Any:
        return await self.recomputer.find(self.made.trust, EXCHANGE, Envelope.from_bytes(self.made.aggregate).payload_sha256, **how)


@contextlib.asynccontextmanager
async def desk(tmp_path, made: Instance, *, aggregate: bytes | None = None, total: Upload | None = None) -> AsyncIterator[Desk]:
    """A server holding everything of this instance, and a node with nothing."""
    cut, blobs = made.total.manifest.chunk_bytes, BlobStore(tmp_path / "there")
    spools = Spools(tmp_path / "spools", quotas=Quotas(2**32))
    uploads, names = {}, {}
    for i, (member, upload) in enumerate(made.uploads.items()):
        key = bytes([i]) * 32
        if upload.chunks:
            spool = spools.open(key, length=upload.manifest.length, chunk_bytes=cut)
            for k, chunk in enumerate(upload.chunks):
                spool.write(k, chunk)
            spool.finish(merkle_root(upload.manifest.leaves))
            spools.release(key)
        uploads[str(upload.manifest.id)] = key
        names[member] = str(upload.manifest.id)
    blobs.put_bytes(b"".join((total or made.total).chunks), chunk_bytes=cut)
    made.aggregate = aggregate or made.aggregate
    shown = SumEvidence(made.aggregate, str(blobs.put_bytes(made.evidence.to_bytes())), str(blobs.put_bytes(made.seeds)))
    policy = Policy(blobs, spools, uploads, cut)
    server = grpc.aio.server()
    strangers: list[str] = []

    def identify(_context: Any) -> str:
        if strangers:
            raise NotAuthorised(strangers[0])
        return "m0"

    server.add_generic_rpc_handlers((BulkService(policy, identify, BulkSettings()).handler(),))  # type: ignore[arg-type]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        class Line:
            def __init__(self) -> None:
                self.channel = channel

            async def evidence(self, query: EvidenceQuery) -> tuple[SumEvidence, ...]:
                assert query == EvidenceQuery(made.trust.run, EXCHANGE)
                return (found.shown,)

        line: Any = Line()
        found = Desk(made, policy, Recomputer(BlobStore(tmp_path / "here"), lambda: line), shown, names, strangers)
        try:
            yield found
        finally:
            await server.stop(None)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small windows, so that three chunks are two of them; short pauses."""
    monkeypatch.setattr(recompute_module, "WINDOW", 2)
    monkeypatch.setattr(bulk, "Retry", lambda: bulk_retry)


bulk_retry = bulk.Retry(attempts=3, first_pause_s=0.01, longest_pause_s=0.02)


@pytest.mark.parametrize("purpose", [Purpose.UPDATE, Purpose.SCALES])
async def test_every_upload_is_fetched_once_and_the_sum_agrees(tmp_path, purpose):
    made, seen = open_instance(purpose=purpose, n=3), []
    chunks = len(made.total.chunks)
    assert chunks == (3 if purpose is Purpose.UPDATE else 1)
    async with desk(tmp_path, made) as at:
        assert (await at.find(progress=lambda done, total: seen.append((done, total)))).kind == "agrees"
    assert seen == ([(0, 3), (2, 3), (3, 3)] if chunks == 3 else [(0, 1), (1, 1)])
    per_upload = 1 + len(seen) - 1  # its leaves, then windows of two chunks
    assert sum(at.policy.pulls.count(name) for name in at.upload.values()) == per_upload * len(at.upload)


async def test_an_instance_without_a_vector_is_checked_by_its_trailer(tmp_path):
    async with desk(tmp_path, open_instance(purpose=Purpose.SCALARS, n=3)) as at:
        assert (await at.find()).kind == "agrees"
    assert not set(at.upload.values()) & set(at.policy.pulls)


async def test_streams_that_break_are_taken_up_where_they_were(tmp_path):
    async with desk(tmp_path, open_instance()) as at:
        at.policy.faults = {n: Unavailable("the disk is busy") for n in (2, 6, 10, 14)}
        assert (await at.find()).kind == "agrees"
        assert at.policy.faults == {}


async def test_one_flipped_bit_on_the_way_names_member_and_chunk(tmp_path):
    async with desk(tmp_path, open_instance()) as at:
        good = at.made.uploads["m1"].chunks[2]
        at.policy.changed[at.upload["m1"], 2] = bytes([good[0] ^ 1]) + good[1:]
        found = await at.find()
    assert (found.kind, found.member, found.chunk) == ("withheld", "m1", 2)


async def test_an_upload_that_is_refused_counts_as_a_mismatch_until_its_time_is_over(tmp_path):
    async with desk(tmp_path, open_instance()) as at:
        at.policy.spools.remove(at.policy.uploads[at.upload["m2"]])
        found = await at.find()
        assert (found.kind, found.member) == ("withheld", "m2")
        assert "not kept any more" in found.words
        clock = at.recomputer.clock()
        assert (await at.find(kept_until=clock + 60)).kind == "withheld"
        assert (await at.find(kept_until=clock - 60)).kind == "gone"


async def test_a_coordinator_that_serves_a_wrong_sum_is_found_at_its_chunk(tmp_path):
    made = open_instance()
    parts = [*made.total.chunks[:2], bytes([made.total.chunks[2][0] ^ 1]) + made.total.chunks[2][1:]]
    wrong = Upload.of(b"".join(parts), made.total.manifest.chunk_bytes)
    aggregate = made.aggregate_with(root=merkle_root(wrong.manifest.leaves))
    async with desk(tmp_path, made, aggregate=aggregate, total=wrong) as at:
        found = await at.find()
        assert (found.kind, found.chunk) == ("sum", 2)
        assert (await at.find(chunks=(0, 1))).kind == "agrees"
        assert (await at.find(chunks=(2,))).chunk == 2


async def test_an_aggregate_this_node_did_not_accept_proves_nothing(tmp_path):
    made = open_instance()
    async with desk(tmp_path, made) as at:
        at.shown = replace(at.shown, aggregate=made.aggregate_with(tag=made.fact.tag ^ 1))
        found = await at.find()
    assert found.kind == "withheld"


async def test_evidence_that_is_refused_or_lies_is_a_finding_and_a_lost_connection_is_none(tmp_path):
    async with desk(tmp_path, open_instance()) as at:
        good = at.shown
        at.shown = replace(good, evidence=good.seeds)
        assert (await at.find()).kind == "evidence"
        at.shown = replace(good, seeds=good.evidence)
        assert (await at.find()).kind == "seeds"
        at.shown = good
        for refusal in (NotAuthorised("no"), Refused("upload", "no")):
            at.policy.faults = {len(at.policy.pulls) + 1: refusal}
            assert (await at.find()).kind == "withheld"
        at.policy.faults = {len(at.policy.pulls) + n: Unavailable("later") for n in (1, 2, 3)}
        with pytest.raises(Unavailable):
            await at.find()


async def test_a_certificate_that_ran_out_is_no_word_of_the_coordinator_about_a_sum(tmp_path):
    async with desk(tmp_path, open_instance(n=3, elements=5000)) as at:
        at.strangers.append("certificate: not valid at this time")
        with pytest.raises(Unavailable, match="UNAUTHENTICATED"):
            await at.find()


async def test_a_recomputation_cut_short_goes_on_at_its_window(tmp_path):
    async with desk(tmp_path, open_instance(n=3)) as at:
        before_last = 2 + 2 + 1 + 3 + 3  # evidence and seeds, leaves of the sum and of three uploads, the first window
        at.policy.faults = {before_last + n: Unavailable("later") for n in (1, 2, 3)}
        with pytest.raises(Unavailable):
            await at.find()
        seen: list[tuple[int, int]] = []
        assert (await at.find(progress=lambda done, total: seen.append((done, total)))).kind == "agrees"
        assert seen == [(2, 3), (3, 3)]


async def test_a_node_holds_a_window_of_chunks_however_long_the_model(tmp_path):
    made = open_instance(n=3, elements=48 << 18)  # 48 chunks: 24 MiB an upload
    cut = made.total.manifest.chunk_bytes
    async with desk(tmp_path, made) as at:
        for upload in (*made.uploads.values(), made.total):
            upload.chunks.clear()
        tracemalloc.start()
        try:
            assert (await at.find()).kind == "agrees"
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 16 * cut, f"{peak / cut:.1f} chunks; both ends are in this process, a window is 2"
