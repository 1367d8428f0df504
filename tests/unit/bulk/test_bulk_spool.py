"""Spools: nothing half counted, whatever the disk and the power do; and the sum over them."""

import errno
import os
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.blobs import BlobDamaged, BlobStore, DiskFull, chunk_leaf
from dure.secagg.field import P, add_words_into
from dure.tlog.merkle import merkle_root
from dure_coordinator import spool as spool_module
from dure_coordinator.aggregate import sum_spools
from dure_coordinator.quotas import Quotas
from dure_coordinator.spool import Spool, SpoolRefused, Spools, SpoolsFull

KEY = b"\x07" * 32
DATA = random.Random(74).randbytes(74)  # five chunks of 16, the last of 10
CHUNKS = [DATA[i : i + 16] for i in range(0, 74, 16)]
ROOT = merkle_root(chunk_leaf(c) for c in CHUNKS)


def opened(folder) -> Spool:
    return Spool(folder, KEY, length=74, chunk_bytes=16)


def filled(folder, upto: int) -> Spool:
    spool = opened(folder)
    for k in range(upto):
        spool.write(k, CHUNKS[k])
    return spool


def test_upload_is_read_back_and_finishes_with_its_root(tmp_path):
    spool = filled(tmp_path, 5)
    assert not spool.complete
    spool.finish(ROOT)
    spool.finish(ROOT)
    assert spool.complete
    buffer = bytearray(16)
    for k, chunk in enumerate(CHUNKS):
        n = spool.read_chunk_into(k, memoryview(buffer))
        assert buffer[:n] == chunk
    again = opened(tmp_path)
    assert again.complete and again.root() == ROOT


def test_only_what_was_synced_counts_after_a_power_cut(tmp_path):
    spool = filled(tmp_path, 2)
    assert spool.durable_chunks() == 0 and spool.sync() == 2
    spool.write(2, CHUNKS[2])
    again = opened(tmp_path)
    assert again.durable_chunks() == 2 and again.path.stat().st_size == 32
    for k in (2, 3, 4):
        again.write(k, CHUNKS[k], leaf=chunk_leaf(CHUNKS[k]))
    again.finish(ROOT)


@pytest.mark.parametrize("cut_note", range(0, 24 + 36 * 3 + 1, 7))
@pytest.mark.parametrize("cut_data", [0, 15, 31, 32, 48])
def test_torn_tails_are_cut_back_to_what_can_be_trusted(tmp_path, cut_note, cut_data):
    spool = filled(tmp_path, 3)
    spool.sync()
    spool.close()
    os.truncate(spool.path, cut_data)
    os.truncate(spool._note, min(cut_note, spool._note.stat().st_size))
    again = opened(tmp_path)
    assert again.durable_chunks() == min(cut_data // 16, max(0, cut_note - spool_module._HEADER.size) // 36)
    for k in range(again.durable_chunks(), 5):
        again.write(k, CHUNKS[k])
    again.finish(ROOT)


def test_garbage_after_the_trusted_records_is_ignored(tmp_path):
    spool = filled(tmp_path, 2)
    spool.sync()
    with open(spool._note, "ab") as f:
        f.write(bytes(36) + b"x" * 20)
    with open(spool.path, "ab") as f:
        f.write(b"y" * 40)
    assert opened(tmp_path).durable_chunks() == 2


def test_last_chunk_that_lost_its_bytes_is_asked_for_again(tmp_path):
    spool = filled(tmp_path, 3)
    spool.sync()
    with open(spool.path, "r+b") as f:
        f.seek(32)
        f.write(bytes(16))
    assert opened(tmp_path).durable_chunks() == 2


@pytest.mark.parametrize(
    ("k", "chunk", "leaf", "field"),
    [
        (3, CHUNKS[3], None, "chunk"),
        (5, CHUNKS[0], None, "chunk"),
        (-1, CHUNKS[0], None, "chunk"),
        (2, CHUNKS[2][:-1], None, "payload"),
        (2, CHUNKS[2] + b"x", None, "payload"),
        (2, b"", None, "payload"),
        (2, CHUNKS[2], bytes(32), "leaf"),
        (1, CHUNKS[2], None, "payload"),
    ],
)
def test_wrong_chunk_is_refused_by_field_and_not_counted(tmp_path, k, chunk, leaf, field):
    spool = filled(tmp_path, 2)
    with pytest.raises(SpoolRefused) as e:
        spool.write(k, chunk, leaf=leaf)
    assert e.value.field == field and spool.received_chunks == 2


def test_same_chunk_again_is_no_error_and_other_bytes_are_refused(tmp_path):
    spool = filled(tmp_path, 5)
    spool.write(4, CHUNKS[4])
    spool.finish(ROOT)
    spool.write(0, CHUNKS[0])
    with pytest.raises(SpoolRefused, match="other bytes"):
        spool.write(0, CHUNKS[1])


def test_finish_refuses_missing_chunks_and_another_root(tmp_path):
    spool = filled(tmp_path, 4)
    with pytest.raises(SpoolRefused, match="4 of 5"):
        spool.finish(ROOT)
    spool.write(4, CHUNKS[4])
    with pytest.raises(SpoolRefused, match="root"):
        spool.finish(bytes(32))


@pytest.mark.parametrize("when", ["data", "half data", "leaves"])
def test_full_disk_counts_nothing_of_the_chunk_and_the_upload_goes_on_later(tmp_path, monkeypatch, when):
    spool, real, sizes = filled(tmp_path, 2), os.pwrite, {"data": 16, "half data": 8, "leaves": 36}

    def pwrite(fd, data, at):
        if when == "half data" and len(data) == 16:
            return real(fd, data[:8], at)
        if len(data) == sizes[when]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, at)

    if when == "leaves":
        spool.sync()
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(DiskFull) as e:
        spool.write(2, CHUNKS[2])
        spool.sync()
    assert e.value.path == spool.path
    assert opened(tmp_path).durable_chunks() == (2 if when == "leaves" else 0)
    monkeypatch.undo()
    if when == "leaves":
        return  # the spool was opened twice above, which `Spools` never does
    again = filled(tmp_path, 5)
    again.finish(ROOT)


def test_failed_fsync_forgets_what_it_should_have_made_durable(tmp_path, monkeypatch):
    """A second fsync after a failed one may succeed without the data being on the disk."""
    spool = filled(tmp_path, 2)
    spool.sync()
    spool.write(2, CHUNKS[2])

    def fail(fd):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as m, pytest.raises(OSError):
        m.setattr(os, "fsync", fail)
        spool.sync()
    assert spool.received_chunks == spool.durable_chunks() == 2
    for k in (2, 3, 4):
        spool.write(k, CHUNKS[k])
    spool.finish(ROOT)


def test_large_upload_is_synced_as_it_comes(tmp_path):
    spool = Spools(tmp_path, quotas=Quotas(1 << 20), sync_bytes=32).open(KEY, length=len(DATA), chunk_bytes=16)
    for k in range(3):
        spool.write(k, CHUNKS[k])
    assert spool.durable_chunks() == 2


def test_damage_on_the_disk_is_noticed_on_reading(tmp_path):
    spool = filled(tmp_path, 5)
    spool.sync()
    with open(spool.path, "r+b") as f:
        f.write(b"\0\1\2")
    with pytest.raises(BlobDamaged, match="chunk 0"):
        spool.read_chunk_into(0, memoryview(bytearray(16)))


def test_quota_counts_what_each_upload_may_grow_to(tmp_path):
    spools = Spools(tmp_path, quotas=Quotas(150))
    first = spools.open(KEY, length=74, chunk_bytes=16)
    assert spools.open(KEY, length=74, chunk_bytes=16) is first
    with pytest.raises(SpoolRefused, match="another length"):
        spools.open(KEY, length=75, chunk_bytes=16)
    spools.close()
    again = Spools(tmp_path, quotas=Quotas(150))
    with pytest.raises(SpoolsFull) as e:
        again.open(b"\1" * 32, length=77, chunk_bytes=16)
    assert e.value.free_bytes == 76
    again.open(b"\1" * 32, length=76, chunk_bytes=16)
    assert again.keys() == [b"\1" * 32, KEY]
    again.remove(KEY)
    again.remove(KEY)
    assert again.keys() == [b"\1" * 32] and not list(tmp_path.glob("07*"))
    again.open(b"\2" * 32, length=74, chunk_bytes=16)


def uploads(folder, arrays, chunk_bytes) -> list[Spool]:
    out = []
    for i, array in enumerate(arrays):
        data = array.tobytes()
        spool = Spool(folder, bytes([i]) * 32, length=len(data), chunk_bytes=chunk_bytes)
        for k in range(spool.chunks):
            spool.write(k, data[k * chunk_bytes :][:chunk_bytes])
        spool.sync()
        out.append(spool)
    return out


@pytest.mark.parametrize("threads", [1, 3])
def test_ring_sum_wraps_and_is_unmasked_chunk_by_chunk(tmp_path, threads):
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 2**16, 5000, np.uint16) for _ in range(4)]
    mask = rng.integers(0, 2**16, 5000, np.uint16)
    store = BlobStore(tmp_path / "blobs")

    def unmask(k, total):
        total -= mask[k * 256 :][: len(total)]

    out = store.writer(chunk_bytes=512)
    manifest = sum_spools(uploads(tmp_path, arrays, 512), "ring16", unmask, out, threads=threads)
    want = sum(a.astype(np.int64) for a in arrays) - mask
    assert np.array_equal(np.frombuffer(store.map(manifest.id), np.uint16), (want % 2**16).astype(np.uint16))


@settings(max_examples=200)
@given(st.lists(st.lists(st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([P - 1, P, P + 1, 2**64 - 1])),
                         min_size=3, max_size=3), min_size=1, max_size=20))  # fmt: skip
def test_field_adds_are_modulo_p_for_any_64_bits(rows):
    total = np.zeros(3, np.uint64)
    for row in rows:
        add_words_into(total, np.array(row, np.uint64))
        assert (total < P).all()
    assert [int(x) for x in total] == [sum(column) % P for column in zip(*rows, strict=True)]


def test_field_sum_over_spools(tmp_path):
    rng = np.random.default_rng(2)
    arrays = [rng.integers(0, P, 100, np.uint64) for _ in range(5)]
    store = BlobStore(tmp_path / "blobs")
    manifest = sum_spools(uploads(tmp_path, arrays, 192), "field61", None, store.writer(chunk_bytes=192))
    got = np.frombuffer(store.map(manifest.id), np.uint64)
    assert [int(x) for x in got] == [sum(int(a[i]) for a in arrays) % P for i in range(100)]


def test_sum_needs_complete_uploads_of_one_form(tmp_path):
    store = BlobStore(tmp_path / "blobs")
    with pytest.raises(SpoolRefused, match="none"):
        sum_spools([], "ring16", None, store.writer(chunk_bytes=16))
    with pytest.raises(SpoolRefused, match="0 of 5"):
        sum_spools([filled(tmp_path, 3)], "ring16", None, store.writer(chunk_bytes=16))
    spools = uploads(tmp_path, [np.zeros(8, np.uint16), np.zeros(9, np.uint16)], 16)
    with pytest.raises(SpoolRefused, match="length"):
        sum_spools(spools, "ring16", None, store.writer(chunk_bytes=16))
    with pytest.raises(SpoolRefused, match="chunk_bytes"):
        sum_spools(spools[:1], "ring16", None, store.writer(chunk_bytes=32))


def test_failed_unmasking_leaves_no_sum(tmp_path):
    store, spools = BlobStore(tmp_path / "blobs"), uploads(tmp_path, [np.zeros(80, np.uint16)], 16)

    def unmask(k, total):
        if k == 6:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        sum_spools(spools, "ring16", unmask, store.writer(chunk_bytes=16))
    assert store.ids() == [] and not list((tmp_path / "blobs" / "tmp").iterdir())


def test_sum_needs_memory_of_a_few_chunks(tmp_path):
    arrays = [np.full(2**22, i, np.uint16) for i in range(3)]
    spools, store = uploads(tmp_path, arrays, 2**19), BlobStore(tmp_path / "blobs")
    del arrays
    tracemalloc.start()
    sum_spools(spools, "ring16", None, store.writer(chunk_bytes=2**19), threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**19
