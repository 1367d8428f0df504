"""Blobs: ids, manifests, and a store in which nothing is ever half there."""

import errno
import os
import tracemalloc
from hashlib import sha256
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from dure import blobs
from dure.blobs import (
    SPARE_FROM_BYTES,
    BlobDamaged,
    BlobId,
    BlobMissing,
    BlobRefused,
    BlobStore,
    DiskFull,
    Manifest,
    chunk_leaf,
)
from dure.tlog.merkle import merkle_root


def everything_in(store: BlobStore) -> list[str]:
    return sorted(str(p.relative_to(store.folder)) for p in store.folder.rglob("*") if p.is_file())


def recursive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\0" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha256(b"\1" + recursive_root(leaves[:k]) + recursive_root(leaves[k:])).digest()


def test_root_is_that_of_the_certificate_transparency_test_vectors():
    """Leaves and roots of google/certificate-transparency, merkletree tests; any leaf length."""
    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    assert merkle_root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert merkle_root([b""]).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    want = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    assert merkle_root(bytes.fromhex(x) for x in leaves).hex() == want


@given(st.integers(0, 70))
def test_root_is_the_recursive_definition_for_every_count(n):
    leaves = [blake3(bytes([i])).digest() for i in range(n)]
    assert merkle_root(leaves) == recursive_root(leaves)


@pytest.mark.parametrize("text", ["", "ab:1", "A" * 64 + ":1", "a" * 64, "a" * 64 + ":01", "a" * 64 + ":-1",
                                  "a" * 64 + ":1 ", "a" * 64 + ":9999999999999999", "a" * 64 + ":1\n"])  # fmt: skip
def test_other_spellings_of_an_id_are_refused(text):
    with pytest.raises(BlobRefused, match="blob id"):
        BlobId.parse(text)


@given(st.binary(max_size=100), st.integers(1, 17))
def test_manifest_and_id_survive_a_round_trip(data, chunk_bytes):
    leaves = tuple(chunk_leaf(data[i : i + chunk_bytes]) for i in range(0, len(data), chunk_bytes))
    manifest = Manifest(leaves, len(data), chunk_bytes)
    assert Manifest.decode(manifest.encode(), expect=manifest.id) == manifest
    assert BlobId.parse(str(manifest.id)) == manifest.id


def manifest_bytes(**change) -> bytes:
    good = {"magic": b"DUREMAN1", "chunk_bytes": 4, "length": 6, "count": 2, "leaves": bytes(64)} | change
    head = blobs._MANIFEST_HEAD.pack(good["magic"], good["chunk_bytes"], good["length"], good["count"])
    return head + good["leaves"]


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", "manifest"),
        (manifest_bytes(magic=b"DUREMAN2"), "manifest"),
        (manifest_bytes(chunk_bytes=0), "chunk_bytes"),
        (manifest_bytes(chunk_bytes=2**20 + 1), "chunk_bytes"),
        (manifest_bytes(length=9), "leaves"),
        (manifest_bytes(length=4), "leaves"),
        (manifest_bytes(length=2**63), "length"),
        (manifest_bytes(count=3), "leaves"),
        (manifest_bytes(count=2**32 - 1), "leaves"),
        (manifest_bytes() + b"x", "leaves"),
        (manifest_bytes()[:-1], "leaves"),
    ],
)
def test_malformed_manifest_is_refused_and_the_field_named(data, field):
    assert Manifest.decode(manifest_bytes()).chunks == 2
    with pytest.raises(BlobRefused) as e:
        Manifest.decode(data)
    assert e.value.field == field


def test_manifest_of_another_blob_is_refused():
    with pytest.raises(BlobRefused, match="is of blob"):
        Manifest.decode(manifest_bytes(), expect=BlobId(bytes(32), 6))


@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.binary(max_size=25), max_size=8), chunk_bytes=st.integers(1, 20))
def test_bytes_come_back_however_they_were_appended(parts, chunk_bytes, tmp_path_factory):
    store = BlobStore(tmp_path_factory.mktemp("s"))
    data = b"".join(parts)
    with store.writer(chunk_bytes=chunk_bytes) as out:
        for part in parts:
            out.append(part)
        manifest = out.commit()
    assert manifest.id == store.put_bytes(data, chunk_bytes=chunk_bytes)
    assert store.read_bytes(manifest.id, limit=1000) == data == bytes(store.map(manifest.id))
    assert store.manifest(manifest.id) == manifest and store.ids() == [manifest.id]


def test_file_goes_in_with_memory_of_a_few_chunks(tmp_path):
    store, source = BlobStore(tmp_path / "s"), tmp_path / "big"
    data = os.urandom(40 * 2**20 + 5)
    source.write_bytes(data)
    tracemalloc.start()
    blob = store.put_file(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 2**20
    assert blob.length == len(data) and store.path(blob).read_bytes() == data
    assert store.read_chunk(blob, 40) == data[40 * 2**20 :]


def test_nothing_is_visible_before_commit_nor_after_an_error(tmp_path):
    store = BlobStore(tmp_path)
    with pytest.raises(RuntimeError), store.writer(chunk_bytes=4) as out:
        out.append(b"0123456789")
        assert store.ids() == []
        raise RuntimeError
    assert everything_in(store) == []


def test_what_a_killed_writer_left_is_swept_and_never_listed(tmp_path):
    store = BlobStore(tmp_path)
    out = store.writer(chunk_bytes=4)
    out.append(b"0123456789")
    os.close(out._fd)  # killed
    out._fd = -1
    again = BlobStore(tmp_path)
    assert again.ids() == [] and everything_in(again) != []
    again.sweep()
    assert everything_in(again) == []


def test_full_disk_names_the_path_and_leaves_nothing(tmp_path, monkeypatch):
    store, real, calls = BlobStore(tmp_path), os.pwrite, []

    def pwrite(fd, data, at):
        calls.append(at)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[: max(1, len(data) // 2)], at)  # and short writes before that

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(DiskFull) as e, store.writer(chunk_bytes=8) as out:
        out.append(b"x" * 64)
    assert str(tmp_path) in str(e.value)
    monkeypatch.undo()
    assert everything_in(store) == []
    assert store.read_bytes(store.put_bytes(b"x" * 64), limit=64) == b"x" * 64


def test_full_disk_while_the_manifest_is_written_leaves_nothing_visible(tmp_path, monkeypatch):
    store = BlobStore(tmp_path)

    def no_room(path: Path, data: bytes) -> None:
        raise DiskFull(path)

    monkeypatch.setattr(blobs, "_write_durably", no_room)
    with pytest.raises(DiskFull):
        store.put_bytes(b"abc")
    assert store.ids() == [] and everything_in(store) == []


def test_damaged_chunk_is_noticed_on_reading(tmp_path):
    store = BlobStore(tmp_path)
    blob = store.put_bytes(b"0123456789", chunk_bytes=4)
    with open(store.path(blob), "r+b") as f:
        f.seek(5)
        f.write(b"X")
    assert store.read_chunk(blob, 0) == b"0123"
    with pytest.raises(BlobDamaged, match="chunk 1"):
        store.read_chunk(blob, 1)


def test_removed_blob_is_missing_and_an_open_reader_goes_on(tmp_path):
    store = BlobStore(tmp_path)
    blob = store.put_bytes(b"0123456789", chunk_bytes=4)
    with store.open(blob) as reader:
        store.remove(blob)
        assert reader.read_chunk(2) == b"89"
    assert not store.has(blob) and everything_in(store) == []
    for ask in (store.open, store.path, store.manifest):
        with pytest.raises(BlobMissing):
            ask(blob)
    store.remove(blob)


def test_partial_blob_takes_up_after_a_restart_where_it_was(tmp_path):
    data, there, here = os.urandom(90), BlobStore(tmp_path / "there"), BlobStore(tmp_path / "here")
    manifest = there.manifest(there.put_bytes(data, chunk_bytes=16))
    with here.partial(manifest) as partial:
        for k in (0, 1, 3):
            partial.accept(k, data[16 * k :][:16])
    assert not here.has(manifest.id) and here.partial_manifest(manifest.id) == manifest
    again = BlobStore(tmp_path / "here").partial(manifest)
    assert [again.has(k) for k in range(6)] == [True, True, False, True, False, False]
    assert again.first_missing() == 2
    with pytest.raises(BlobRefused, match="2"):
        again.commit()
    for k in (5, 4, 2, 2):
        again.accept(k, data[16 * k :][:16])
    assert again.commit() == manifest
    assert here.read_bytes(manifest.id, limit=100) == data and here.partial_manifest(manifest.id) is None


@pytest.mark.parametrize("k,chunk", [(0, b"x" * 16), (0, b""), (5, b"x" * 16), (6, b"x"), (-1, b"x")])
def test_wrong_chunk_is_refused_and_nothing_kept(tmp_path, k, chunk):
    store = BlobStore(tmp_path)
    leaves = tuple(chunk_leaf(bytes([i]) * (16 if i < 5 else 10)) for i in range(6))
    partial = store.partial(Manifest(leaves, 90, 16))
    with pytest.raises(BlobRefused):
        partial.accept(k, chunk)
    assert partial.have == 0


def test_partial_with_another_chunk_size_starts_anew(tmp_path):
    store = BlobStore(tmp_path)
    one = Manifest((chunk_leaf(b"abcd"),), 4, 4)
    with store.partial(one) as partial:
        partial.accept(0, b"abcd")
    with store.partial(Manifest(one.leaves, 4, 8)) as partial:
        assert partial.have == 0


def test_a_spare_file_is_written_over_by_a_blob_of_its_size_and_leaves_nothing_in_it(tmp_path):
    store = BlobStore(tmp_path)
    large, small = os.urandom(SPARE_FROM_BYTES + 5), os.urandom(SPARE_FROM_BYTES)
    old = store.put_bytes(large)
    file = store.path(old).stat().st_ino
    store.remove(old, spare=True)
    assert not store.has(old)
    tiny = store.put_bytes(b"few bytes")
    with store.writer(expect=len(small)) as out:
        out.append(small)
        blob = out.commit().id
    assert store.path(blob).stat().st_ino == file != store.path(tiny).stat().st_ino
    assert store.path(blob).read_bytes() == small and store.read_bytes(blob, limit=len(small)) == small
    store.remove(tiny, spare=True)
    assert not list((tmp_path / "tmp").iterdir()), "a small one's is not worth keeping"


def test_a_spare_file_is_gone_after_a_restart(tmp_path):
    store = BlobStore(tmp_path)
    store.remove(store.put_bytes(bytes(SPARE_FROM_BYTES)), spare=True)
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    store.sweep()
    assert not list((tmp_path / "tmp").iterdir())
