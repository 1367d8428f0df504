"""Content-addressed files in chunks: put one, read one, fetch one piece by piece and go on after a crash.

A blob is bytes cut into chunks. A leaf is the BLAKE3 of a chunk; the id is the RFC 6962 (SHA-256) root over the
leaves, beside the length. Knowing an id is not a right to read; whoever serves blobs asks that question first.

On disk, below one folder (docs/spec/formats.md, "Blob store"):

    blobs/<root>-<length>/{data,manifest}    complete; the folder appears by one rename, after fsync
    partial/<root>-<length>/{data,manifest}  being fetched; what is there is found again by hashing it
    tmp/                                     being written; nothing here counts, `sweep` empties it
    tmp/spare                                data of a blob removed, to be written over: its pages and blocks are there already

Every call here blocks on the disk; callers on an event loop use a thread.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

from blake3 import blake3

from dure.errors import DureError, Refused, Unavailable
from dure.tlog.merkle import merkle_root

Buffer = bytes | bytearray | memoryview

CHUNK_BYTES = 1 << 20
"""Chunk of every blob but masked updates (512 KiB), scales (768 KiB) and their sums."""
MAX_CHUNK_BYTES = 1 << 20
"""No blob has larger chunks: a chunk is what one frame carries and what a reader holds in memory."""
SPARE_FROM_BYTES = 1 << 22
"""The file of a removed blob is kept for the next one from this size on."""
LEAF_BYTES = 32
MAX_CHUNKS = 1 << 20
"""1 TiB in 1 MiB chunks; its manifest is 32 MiB."""
MAX_BLOB_BYTES = MAX_CHUNKS * MAX_CHUNK_BYTES

_ID = re.compile(r"([0-9a-f]{64}):(0|[1-9][0-9]{0,15})")
_MANIFEST_HEAD = struct.Struct("<8sIQI")
_MANIFEST_MAGIC = b"DUREMAN1"
MAX_MANIFEST_BYTES = _MANIFEST_HEAD.size + MAX_CHUNKS * LEAF_BYTES


class BlobRefused(Refused):
    """An id, a manifest or a chunk does not have the form or the hash it must have; nothing was kept."""


class BlobMissing(DureError):
    """The store does not hold this blob; fetch it."""

    def __init__(self, blob: BlobId) -> None:
        super().__init__(f"blob {blob} is not in the store; fetch it from the coordinator")
        self.blob = blob


class BlobDamaged(DureError):
    """A stored file no longer has the bytes its name promises; remove it and fetch it again."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}; the disk or somebody changed it, remove it and fetch it again")
        self.path = path
        self.why = why


NO_ROOM = "no room on this node's disk; its operator must free some"
"""What others are told of a full disk: no path of this machine."""


class DiskFull(Unavailable):
    """The file system or a quota has no room; what was being written does not count. Free space, then repeat."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: no space left on the disk (or a quota or file-size limit); free some and try again")
        self.path = path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns "no space", "over quota" and "file too large" inside the block into `DiskFull` that names `path`."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(path) from e
        raise


def write_all_at(fd: int, data: Buffer, offset: int) -> None:
    """All of `data` at `offset`, however often the kernel takes only a part."""
    rest = memoryview(data).cast("B")
    while rest:
        n = os.pwrite(fd, rest, offset)
        rest, offset = rest[n:], offset + n


def read_all_at(fd: int, out: memoryview, offset: int) -> int:
    """Fills `out` from `offset`; fewer bytes only at the end of the file. Returns how many."""
    done = 0
    while done < len(out):
        n = os.preadv(fd, [out[done:]], offset + done)
        if n == 0:
            break
        done += n
    return done


def sync_dir(path: Path) -> None:
    """Makes renames and new names in this folder survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def chunk_leaf(data: Buffer) -> bytes:
    """The leaf of one chunk: its BLAKE3, 32 bytes."""
    return blake3(data).digest()


@dataclass(frozen=True, order=True)
class BlobId:
    """Name of some bytes. As text `<root in hex>:<length in bytes>`."""

    root: bytes
    length: int

    def __post_init__(self) -> None:
        if len(self.root) != LEAF_BYTES:
            raise BlobRefused("blob id", f"root must have 32 bytes, has {len(self.root)}")
        if not 0 <= self.length <= MAX_BLOB_BYTES:
            raise BlobRefused("blob id", f"length must lie in 0…{MAX_BLOB_BYTES}, is {self.length}")

    def __str__(self) -> str:
        return f"{self.root.hex()}:{self.length}"

    @classmethod
    def parse(cls, text: str) -> BlobId:
        """The id written so; `BlobRefused` for any other spelling (one id, one text)."""
        found = _ID.fullmatch(text)
        if found is None:
            raise BlobRefused("blob id", "must read <64 lower-case hex digits>:<length>")
        return cls(bytes.fromhex(found[1]), int(found[2]))


@dataclass(frozen=True)
class Manifest:
    """The leaves of a blob: enough to judge each chunk when it arrives."""

    leaves: tuple[bytes, ...]
    length: int
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        if not 0 < self.chunk_bytes <= MAX_CHUNK_BYTES:
            raise BlobRefused("chunk_bytes", f"must lie in 1…{MAX_CHUNK_BYTES}, is {self.chunk_bytes}")
        if not 0 <= self.length <= MAX_BLOB_BYTES:
            raise BlobRefused("length", f"must lie in 0…{MAX_BLOB_BYTES}, is {self.length}")
        want = chunks_of(self.length, self.chunk_bytes)
        if want > MAX_CHUNKS:
            raise BlobRefused("leaves", f"at most {MAX_CHUNKS}, this length needs {want}")
        if len(self.leaves) != want:
            raise BlobRefused("leaves", f"this length needs {want}, there are {len(self.leaves)}")
        if any(len(leaf) != LEAF_BYTES for leaf in self.leaves):
            raise BlobRefused("leaves", "each must have 32 bytes")

    @cached_property
    def id(self) -> BlobId:
        return BlobId(merkle_root(self.leaves), self.length)

    @property
    def chunks(self) -> int:
        return len(self.leaves)

    def size_of(self, k: int) -> int:
        """Bytes in chunk k; only the last may be short."""
        if not 0 <= k < len(self.leaves):
            raise BlobRefused("chunk", f"must lie in 0…{len(self.leaves) - 1}, is {k}")
        return min(self.chunk_bytes, self.length - k * self.chunk_bytes)

    def check(self, k: int, data: Buffer) -> None:
        """`BlobRefused` unless `data` is chunk k."""
        size, got = self.size_of(k), memoryview(data).nbytes
        if got != size:
            raise BlobRefused("payload", f"chunk {k} must have {size} bytes, has {got}")
        if chunk_leaf(data) != self.leaves[k]:
            raise BlobRefused("payload", f"chunk {k} does not have the hash its leaf says")

    def encode(self) -> bytes:
        head = _MANIFEST_HEAD.pack(_MANIFEST_MAGIC, self.chunk_bytes, self.length, len(self.leaves))
        return b"".join((head, *self.leaves))

    @classmethod
    def decode(cls, data: bytes, *, expect: BlobId | None = None) -> Manifest:
        """The manifest in these bytes; with `expect`, only that blob's. One manifest has one encoding."""
        if len(data) < _MANIFEST_HEAD.size:
            raise BlobRefused("manifest", f"must have at least {_MANIFEST_HEAD.size} bytes, has {len(data)}")
        magic, chunk_bytes, length, count = _MANIFEST_HEAD.unpack_from(data)
        if magic != _MANIFEST_MAGIC:
            raise BlobRefused("manifest", "does not start with DUREMAN1")
        if count > MAX_CHUNKS or len(data) != _MANIFEST_HEAD.size + count * LEAF_BYTES:
            raise BlobRefused("leaves", f"{count} do not fit {len(data)} bytes")
        at = _MANIFEST_HEAD.size
        leaves = tuple(data[i : i + LEAF_BYTES] for i in range(at, len(data), LEAF_BYTES))
        manifest = cls(leaves, length, chunk_bytes)
        if expect is not None and manifest.id != expect:
            raise BlobRefused("manifest", f"is of blob {manifest.id}, not {expect}")
        return manifest


def chunks_of(length: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """How many chunks these many bytes make."""
    return -(-length // chunk_bytes)


class BlobReader:
    """One complete blob, open. Safe from several threads; a removed blob stays readable until `close`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_chunk(self, k: int) -> bytes:
        """Chunk k, its hash checked; `BlobDamaged` if the disk gives something else."""
        data = os.pread(self._fd, self.manifest.size_of(k), k * self.manifest.chunk_bytes)  # whole, unless the file ends before
        self._check(k, data)
        return data

    def read_chunk_into(self, k: int, out: memoryview) -> int:
        """Chunk k into the front of `out` (bytes), its hash checked. Returns its size."""
        part = out[: self.manifest.size_of(k)]
        read_all_at(self._fd, part, k * self.manifest.chunk_bytes)
        self._check(k, part)
        return len(part)

    def _check(self, k: int, data: Buffer) -> None:
        if len(data) != self.manifest.size_of(k) or chunk_leaf(data) != self.manifest.leaves[k]:
            raise BlobDamaged(self.path, f"chunk {k} does not have its hash")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> BlobReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class BlobWriter:
    """Bytes appended in order become a blob at `commit`; without it, nothing is ever visible. One thread at a time."""

    def __init__(self, store: BlobStore, chunk_bytes: int, expect: int = 0) -> None:
        if not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
            raise BlobRefused("chunk_bytes", f"must lie in 1…{MAX_CHUNK_BYTES}, is {chunk_bytes}")
        self._store = store
        self.chunk_bytes = chunk_bytes
        self._dir = store._scratch()
        if expect >= SPARE_FROM_BYTES:
            with contextlib.suppress(FileNotFoundError):
                os.rename(store._spare, self._dir / "data")
        self._fd = os.open(self._dir / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._leaves: list[bytes] = []
        self._length = 0
        self._rest = bytearray()

    def append(self, data: Buffer) -> None:
        """More bytes, any number of them. `DiskFull` throws the whole blob away."""
        part = memoryview(data).cast("B")
        if self._length + len(self._rest) + len(part) > MAX_BLOB_BYTES:
            raise BlobRefused("length", f"a blob has at most {MAX_BLOB_BYTES} bytes")
        if self._rest:
            take = min(self.chunk_bytes - len(self._rest), len(part))
            self._rest += part[:take]
            part = part[take:]
            if len(self._rest) == self.chunk_bytes:
                self._chunk(memoryview(self._rest))
                self._rest = bytearray()
        while len(part) >= self.chunk_bytes:
            self._chunk(part[: self.chunk_bytes])
            part = part[self.chunk_bytes :]
        self._rest += part

    def commit(self) -> Manifest:
        """Makes the blob durable, then visible. Writing the same blob twice is no error."""
        if self._rest:
            self._chunk(memoryview(self._rest))
            self._rest = bytearray()
        manifest = Manifest(tuple(self._leaves), self._length, self.chunk_bytes)
        try:
            with writing(self._dir):
                os.ftruncate(self._fd, self._length)
                os.fsync(self._fd)
            self._close()
            self._store._adopt(self._dir, manifest)
        except BaseException:
            self.abort()
            raise
        return manifest

    def abort(self) -> None:
        """Forgets everything; harmless after `commit`."""
        self._close()
        shutil.rmtree(self._dir, ignore_errors=True)

    def _chunk(self, part: memoryview) -> None:
        if self._fd < 0:
            raise BlobRefused("writer", "is closed (committed, aborted, or the disk was full)")
        leaf = chunk_leaf(part)
        try:
            with writing(self._dir):
                write_all_at(self._fd, part, self._length)
        except BaseException:
            self.abort()
            raise
        self._leaves.append(leaf)
        self._length += len(part)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.abort()


class PartialBlob:
    """A blob being fetched: takes chunks in any order, each verified on arrival, and goes on after a restart.

    Progress needs no book-keeping that could be wrong: opening one again hashes what the file holds.
    """

    def __init__(self, store: BlobStore, manifest: Manifest, folder: Path) -> None:
        self._store = store
        self.manifest = manifest
        self._dir = folder
        self._lock = threading.Lock()
        self._fd = os.open(folder / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._have = bytearray(manifest.chunks)
        self._scan()

    def _scan(self) -> None:
        size = os.fstat(self._fd).st_size
        out = memoryview(bytearray(self.manifest.chunk_bytes))
        for k in range(self.manifest.chunks):
            part = out[: self.manifest.size_of(k)]
            at = k * self.manifest.chunk_bytes
            if at + len(part) > size:
                return
            read_all_at(self._fd, part, at)
            self._have[k] = chunk_leaf(part) == self.manifest.leaves[k]

    @property
    def have(self) -> int:
        """Chunks here already."""
        return sum(self._have)

    @property
    def done(self) -> bool:
        return all(self._have)

    def has(self, k: int) -> bool:
        return bool(self._have[k])

    def first_missing(self) -> int:
        """Index of the first chunk to ask for; the number of chunks when none is missing."""
        k = self._have.find(0)
        return self.manifest.chunks if k < 0 else k

    def accept(self, k: int, data: Buffer) -> None:
        """Keeps chunk k, or `BlobRefused` naming why not; a chunk that is here already is ignored."""
        self.manifest.check(k, data)
        with self._lock:
            if self._have[k]:
                return
            with writing(self._dir / "data"):
                write_all_at(self._fd, data, k * self.manifest.chunk_bytes)
            self._have[k] = 1

    def commit(self) -> Manifest:
        """The blob, complete: durable, then visible in the store."""
        if not self.done:
            raise BlobRefused("chunk", f"{self.first_missing()} and perhaps others are still missing")
        with writing(self._dir / "data"):
            os.fsync(self._fd)
        self.close()
        self._store._adopt(self._dir, self.manifest)
        return self.manifest

    def discard(self) -> None:
        """Forgets what was fetched."""
        self.close()
        shutil.rmtree(self._dir, ignore_errors=True)

    def close(self) -> None:
        """Lets go of the file; what was fetched stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> PartialBlob:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlobStore:
    """A folder of blobs. One process may write while others read; `sweep` is for the writer's start only."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        with writing(self.folder):
            for name in ("blobs", "partial", "tmp"):
                (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def sweep(self) -> None:
        """Throws away what a killed process left in `tmp/`. Call once at start, before anything writes."""
        self._spare.unlink(missing_ok=True)
        for path in (self.folder / "tmp").iterdir():
            shutil.rmtree(path, ignore_errors=True)

    def has(self, blob: BlobId) -> bool:
        return self._home(blob).is_dir()

    def path(self, blob: BlobId) -> Path:
        """The file with the bytes, to read or map; `BlobMissing` if it is not here."""
        if not self.has(blob):
            raise BlobMissing(blob)
        return self._home(blob) / "data"

    def manifest(self, blob: BlobId) -> Manifest:
        try:
            data = (self._home(blob) / "manifest").read_bytes()
        except FileNotFoundError as e:
            raise BlobMissing(blob) from e
        try:
            return Manifest.decode(data, expect=blob)
        except BlobRefused as e:
            raise BlobDamaged(self._home(blob) / "manifest", str(e)) from e

    def verify(self, blob: BlobId) -> None:
        """Reads it whole; `BlobDamaged` unless every chunk has its hash, `BlobMissing` if it is not here. Memory: one chunk."""
        with self.open(blob) as reader:
            out = memoryview(bytearray(reader.manifest.chunk_bytes))
            for k in range(reader.manifest.chunks):
                reader.read_chunk_into(k, out)

    def open(self, blob: BlobId) -> BlobReader:
        manifest = self.manifest(blob)
        return BlobReader(self.path(blob), manifest)

    def read_chunk(self, blob: BlobId, k: int) -> bytes:
        """One chunk, its hash checked. To read many, `open` once."""
        with self.open(blob) as reader:
            return reader.read_chunk(k)

    def read_bytes(self, blob: BlobId, *, limit: int) -> bytes:
        """A small blob whole, hashes checked; `BlobRefused` if it is longer than `limit` bytes."""
        if blob.length > limit:
            raise BlobRefused("length", f"at most {limit} bytes expected here, blob has {blob.length}")
        with self.open(blob) as reader:
            return b"".join(reader.read_chunk(k) for k in range(reader.manifest.chunks))

    def map(self, blob: BlobId) -> memoryview:
        """The bytes, mapped read-only; hashes are not checked. The map lives as long as the view."""
        with open(self.path(blob), "rb") as f:
            if blob.length == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ))

    def writer(self, *, chunk_bytes: int = CHUNK_BYTES, expect: int = 0) -> BlobWriter:
        """`expect`: about how many bytes will come; for many, a spare file is written over."""
        return BlobWriter(self, chunk_bytes, expect)

    def put_bytes(self, data: Buffer, *, chunk_bytes: int = CHUNK_BYTES) -> BlobId:
        with self.writer(chunk_bytes=chunk_bytes) as out:
            out.append(data)
            return out.commit().id

    def put_file(self, path: Path | str, *, chunk_bytes: int = CHUNK_BYTES) -> BlobId:
        """Copies a file in, a chunk at a time."""
        part = bytearray(chunk_bytes)
        with open(path, "rb", buffering=0) as f, self.writer(chunk_bytes=chunk_bytes) as out:
            while n := f.readinto(part):
                out.append(memoryview(part)[:n])
            return out.commit().id

    def partial(self, manifest: Manifest) -> PartialBlob:
        """Starts or resumes fetching this blob. One at a time per blob.

        A manifest that disagrees with the one of an earlier try (same id, other chunk size) starts from nothing.
        """
        folder = self.folder / "partial" / self._name(manifest.id)
        note, data = folder / "manifest", manifest.encode()
        if folder.is_dir() and (not note.is_file() or note.read_bytes() != data):
            shutil.rmtree(folder)
        if not folder.is_dir():
            scratch = self._scratch()
            try:
                _write_durably(scratch / "manifest", data)
                os.rename(scratch, folder)
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
        return PartialBlob(self, manifest, folder)

    def partial_manifest(self, blob: BlobId) -> Manifest | None:
        """The manifest of a fetch begun earlier, so that it need not travel again."""
        try:
            return Manifest.decode((self.folder / "partial" / self._name(blob) / "manifest").read_bytes(), expect=blob)
        except (FileNotFoundError, BlobRefused):
            return None

    def remove(self, blob: BlobId, *, spare: bool = False) -> None:
        """Forgets a blob, whole or partial; no error if it is not here. Open readers go on.

        Args:
            spare: nobody reads or maps it any more: its file is kept for the next blob of about its size, which is then written over it.
                One is kept, until the next `sweep`; a small blob's is not worth it.
        """
        shutil.rmtree(self.folder / "partial" / self._name(blob), ignore_errors=True)
        scratch = self._scratch()
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._home(blob), scratch / "gone")
                sync_dir(self.folder / "blobs")
                if spare and blob.length >= SPARE_FROM_BYTES:
                    os.replace(scratch / "gone" / "data", self._spare)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def ids(self) -> list[BlobId]:
        """Every complete blob, in order of id."""
        return sorted(BlobId.parse(p.name.replace("-", ":")) for p in (self.folder / "blobs").iterdir())

    @property
    def _spare(self) -> Path:
        return self.folder / "tmp" / "spare"

    @staticmethod
    def _name(blob: BlobId) -> str:
        return f"{blob.root.hex()}-{blob.length}"

    def _home(self, blob: BlobId) -> Path:
        return self.folder / "blobs" / self._name(blob)

    def _scratch(self) -> Path:
        with writing(self.folder / "tmp"):
            return Path(tempfile.mkdtemp(dir=self.folder / "tmp"))

    def _adopt(self, folder: Path, manifest: Manifest) -> None:
        """`folder` holds the data, synced: adds the manifest and makes it the blob, by one rename."""
        _write_durably(folder / "manifest", manifest.encode())
        sync_dir(folder)
        try:
            os.rename(folder, self._home(manifest.id))
        except OSError as e:
            if e.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            shutil.rmtree(folder, ignore_errors=True)  # the same bytes are here already
        with writing(self.folder / "blobs"):
            sync_dir(self.folder / "blobs")


def _write_durably(path: Path, data: bytes) -> None:
    """The file with exactly this content, through fsync; its folder is the caller's to sync."""
    with writing(path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all_at(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
