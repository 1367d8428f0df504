"""Uploads on the coordinator's disk: taken chunk by chunk, durable before acknowledged, resumable after any crash.

    <key>.data     the chunks, in order
    <key>.leaves   a header, then one record per durable chunk: its leaf and a checksum

Data is synced before the leaves that vouch for it are written, so after a power cut the records tell exactly how
many chunks can be trusted; what follows them is cut off. docs/spec/formats.md, "Spool".

Calls block on the disk; callers on an event loop use a thread.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from dure.blobs import (
    LEAF_BYTES,
    MAX_BLOB_BYTES,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    BlobDamaged,
    BlobReader,
    Manifest,
    chunk_leaf,
    chunks_of,
    read_all_at,
    sync_dir,
    write_all_at,
    writing,
)
from dure.errors import Refused, Unavailable
from dure.failpoints import Point, reach
from dure.tlog.merkle import merkle_root
from dure_coordinator.quotas import Quotas, room_of

_HEADER = struct.Struct("<8sQIII")  # magic, length, chunk_bytes, chunks, CRC of what is before
_MAGIC = b"DURESPL1"
_RECORD = struct.Struct("<32sI")
SYNC_BYTES = 64 * 1024 * 1024
"""Bytes taken between two syncs by default: what a killed coordinator asks for again at most, per upload."""
MANIFESTS_KEPT = 64
"""Leaves of complete uploads kept in memory for those who read them again, window by window."""


class SpoolRefused(Refused):
    """An upload's chunk, root or size is not what it must be; nothing was counted. `field` names what."""


class SpoolsFull(Unavailable):
    """The quota for uploads is used up; the upload may be repeated when older ones are gone.

    Nothing is dropped early to make room: a coordinator that could would have a way around every challenge.
    """

    def __init__(self, *, folder: Path, wanted_bytes: int, free_bytes: int, why: str = "of the quota (spool_quota_bytes)") -> None:
        super().__init__(
            f"{folder}: an upload of {wanted_bytes} bytes exceeds the {free_bytes} left {why}; uploads stay until the charter's "
            "challenge window has closed (`dure coordinator status`): raise it in coordinator.toml, or wait"
        )
        self.folder = folder
        self.wanted_bytes = wanted_bytes
        self.free_bytes = free_bytes


class Spool:
    """One upload. Safe from several threads; one object per key at a time (`Spools` sees to that)."""

    def __init__(self, folder: Path, key: bytes, *, length: int, chunk_bytes: int, sync_bytes: int = SYNC_BYTES) -> None:
        if not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
            raise SpoolRefused("chunk_bytes", f"must lie in 1…{MAX_CHUNK_BYTES}, is {chunk_bytes}")
        if not 0 < length <= MAX_BLOB_BYTES or chunks_of(length, chunk_bytes) > MAX_CHUNKS:
            raise SpoolRefused("length", f"must lie in 1…{MAX_BLOB_BYTES}, is {length}")
        self.key = key
        self.length = length
        self.chunk_bytes = chunk_bytes
        self.sync_bytes = sync_bytes
        self.chunks = chunks_of(length, chunk_bytes)
        self.path = folder / f"{key.hex()}.data"
        self._note = folder / f"{key.hex()}.leaves"
        self._lock = threading.Lock()
        self._leaves: list[bytes] = []
        self._durable = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        with writing(self.path):
            self._fd = os.open(self.path, flags, 0o600)
            self._note_fd = os.open(self._note, flags, 0o600)
            self._recover()
            sync_dir(folder)

    # -- after a restart -------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        head = _header(self.length, self.chunk_bytes, self.chunks)
        note = _read_whole(self._note_fd)
        if len(note) < len(head):  # torn while it was created: nothing was acknowledged yet
            os.ftruncate(self._note_fd, 0)
            write_all_at(self._note_fd, head, 0)
            os.fsync(self._note_fd)
            note = head
        if note[: len(head)] != head:
            raise SpoolRefused("length", f"{self._note} was begun with another length or chunk size, or is damaged")
        self._leaves = _records(note[len(head) :], self.chunks)
        size = os.fstat(self._fd).st_size
        while self._leaves and (self._end(len(self._leaves)) > size or not self._intact(len(self._leaves) - 1)):
            self._leaves.pop()
        self._durable = len(self._leaves)
        os.ftruncate(self._note_fd, len(head) + self._durable * _RECORD.size)
        os.ftruncate(self._fd, self._end(self._durable))

    def _intact(self, k: int) -> bool:
        out = memoryview(bytearray(self.size_of(k)))
        return read_all_at(self._fd, out, k * self.chunk_bytes) == len(out) and chunk_leaf(out) == self._leaves[k]

    def _end(self, chunks: int) -> int:
        return min(chunks * self.chunk_bytes, self.length)

    # -- taking chunks ---------------------------------------------------------------------------------------------

    def size_of(self, k: int) -> int:
        """Bytes in chunk k; only the last may be short."""
        if not 0 <= k < self.chunks:
            raise SpoolRefused("chunk", f"must lie in 0…{self.chunks - 1}, is {k}")
        return min(self.chunk_bytes, self.length - k * self.chunk_bytes)

    @property
    def received_chunks(self) -> int:
        """Chunks taken, durable or not: the next one to send in this connection."""
        return len(self._leaves)

    def durable_chunks(self) -> int:
        """Chunks that survive a power cut: what an uploader is told on `resume`. Call `sync` first to include all."""
        return self._durable

    @property
    def complete(self) -> bool:
        return self._durable == self.chunks

    def write(self, k: int, data: bytes | memoryview, *, leaf: bytes | None = None) -> None:
        """Takes chunk k. The same bytes again are no error; the next chunk is the only new one taken.

        Raises:
            SpoolRefused: `chunk` out of order, `payload` of another size or other bytes than before, `leaf` wrong.
            DiskFull: nothing of this chunk counts; it may be sent again.
        """
        size = self.size_of(k)
        if len(data) != size:
            raise SpoolRefused("payload", f"chunk {k} must have {size} bytes, has {len(data)}")
        found = chunk_leaf(data)
        if leaf is not None and leaf != found:
            raise SpoolRefused("leaf", f"chunk {k} does not have the hash its leaf says")
        with self._lock:
            if k < len(self._leaves):
                if self._leaves[k] != found:
                    raise SpoolRefused("payload", f"chunk {k} has other bytes than it had before")
                return
            if k > len(self._leaves):
                raise SpoolRefused("chunk", f"is {k}, expected {len(self._leaves)}: chunks come in order")
            self._append(k, data)
            self._leaves.append(found)
            if (len(self._leaves) - self._durable) * self.chunk_bytes >= self.sync_bytes:
                self._sync()
                if not self.complete:
                    reach(Point.CHUNKS_DURABLE)

    def _append(self, k: int, data: bytes | memoryview) -> None:
        if self._fd < 0:
            raise SpoolRefused("upload", "came too late and is deleted")
        try:
            with writing(self.path):
                write_all_at(self._fd, data, k * self.chunk_bytes)
        except BaseException:
            os.ftruncate(self._fd, k * self.chunk_bytes)
            raise

    def sync(self) -> int:
        """Makes everything taken durable; returns how many chunks that is."""
        with self._lock:
            self._sync()
            return self._durable

    def _sync(self) -> None:
        """Data first, then the leaves that vouch for it."""
        if self._durable == len(self._leaves):
            return
        if self._fd < 0:
            raise SpoolRefused("upload", "came too late and is deleted")
        records = b"".join(_record(k, self._leaves[k]) for k in range(self._durable, len(self._leaves)))
        try:
            with writing(self.path):
                os.fsync(self._fd)
                write_all_at(self._note_fd, records, _HEADER.size + self._durable * _RECORD.size)
                os.fsync(self._note_fd)
        except BaseException:
            # After a failed fsync the kernel may have dropped the pages, and a second one would lie: forget the tail.
            del self._leaves[self._durable :]
            os.ftruncate(self._note_fd, _HEADER.size + self._durable * _RECORD.size)
            os.ftruncate(self._fd, self._end(self._durable))
            raise
        self._durable = len(self._leaves)

    def root(self) -> bytes:
        """Merkle root over all leaves; `SpoolRefused` while chunks are missing."""
        if len(self._leaves) != self.chunks:
            raise SpoolRefused("chunk", f"{len(self._leaves)} of {self.chunks} are here; send the rest first")
        return merkle_root(self._leaves)

    def finish(self, root: bytes) -> None:
        """Everything is here, durable, and has this root; else `SpoolRefused`. Repeating it is no error.

        The upload counts once the commit that names this root is durable too; that is the caller's.
        """
        if self.root() != root:
            raise SpoolRefused("root", "does not match the chunks that came")
        self.sync()

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        """The leaves of a complete upload; `SpoolRefused` while chunks are missing."""
        self.root()
        return Manifest(tuple(self._leaves), self.length, self.chunk_bytes)

    def leaf(self, k: int) -> bytes:
        return self._leaves[k]

    def read_chunk_into(self, k: int, out: memoryview, *, verify: bool = True) -> int:
        """Chunk k into the front of `out` (bytes); returns its size. `BlobDamaged` if the disk gives other bytes."""
        if k >= len(self._leaves):
            raise SpoolRefused("chunk", f"{k} has not come yet")
        part = out[: self.size_of(k)]
        if read_all_at(self._fd, part, k * self.chunk_bytes) != self.size_of(k):
            raise BlobDamaged(self.path, f"chunk {k} is cut short")
        if verify and chunk_leaf(part) != self._leaves[k]:
            raise BlobDamaged(self.path, f"chunk {k} does not have its hash")
        return len(part)

    def close(self) -> None:
        with self._lock:
            for fd in (self._fd, self._note_fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._note_fd = -1

    def remove(self) -> None:
        """Deletes the upload."""
        self.close()
        self._note.unlink(missing_ok=True)  # first: data without leaves is nothing, leaves without data are damage
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Spools:
    """All uploads in one folder, one open object per key, within quotas that count what each may grow to."""

    def __init__(self, folder: Path | str, *, quotas: Quotas, sync_bytes: int = SYNC_BYTES) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.quotas = quotas
        self.sync_bytes = sync_bytes
        self.open_runs: Callable[[], Collection[bytes]] = lambda: ()
        """Whose reserve is kept free."""
        self._runs: dict[bytes, bytes] = {}
        """Run of each upload, where it was told."""
        self._open: dict[bytes, Spool] = {}
        self._manifests: OrderedDict[bytes, Manifest] = OrderedDict()
        self._lock = threading.Lock()
        self._lengths = self._promised()

    def belong(self, runs: Mapping[bytes, bytes]) -> None:
        """Which run each upload on the disk is of, after a restart."""
        with self._lock:
            self._runs = {key: run for key, run in runs.items() if key in self._lengths} | self._runs

    def open(self, key: bytes, *, length: int, chunk_bytes: int, run: bytes = b"") -> Spool:
        """The upload of this key, begun or resumed; `SpoolsFull` if one that is new would exceed a quota with its whole length."""
        with self._lock:
            spool = self._open.get(key)
            if spool is not None:
                if (spool.length, spool.chunk_bytes) != (length, chunk_bytes):
                    raise SpoolRefused("length", "this upload was begun with another length or chunk size")
                return spool
            if key not in self._lengths:
                self._check_room(run, length)
            spool = Spool(self.folder, key, length=length, chunk_bytes=chunk_bytes, sync_bytes=self.sync_bytes)
            self._open[key], self._lengths[key] = spool, length
            self._runs.setdefault(key, run)
            return spool

    def _check_room(self, run: bytes, length: int) -> None:
        used: Counter[bytes] = Counter()
        for key, promised in self._lengths.items():
            used[self._runs.get(key, b"")] += promised
        free, why = room_of(run, self.quotas, used, self.open_runs())
        if length > free:
            raise SpoolsFull(folder=self.folder, wanted_bytes=length, free_bytes=free, why=why)

    def release(self, key: bytes) -> None:
        """Lets go of the files of an upload nobody adds to any more; it stays on the disk."""
        with self._lock:
            spool = self._open.pop(key, None)
            if spool is not None:
                spool.close()

    def reader(self, key: bytes, *, length: int, chunk_bytes: int) -> BlobReader:
        """A complete upload to be read again; it stays readable until closed, even if it is removed meanwhile.

        Raises:
            SpoolRefused: it is not here, or not complete.
        """
        with self._lock:
            manifest = self._manifests.get(key) or self._read_manifest(key, length, chunk_bytes)
            self._manifests[key] = manifest
            self._manifests.move_to_end(key)
            if len(self._manifests) > MANIFESTS_KEPT:
                self._manifests.popitem(last=False)
            return BlobReader(self.folder / f"{key.hex()}.data", manifest)

    def _read_manifest(self, key: bytes, length: int, chunk_bytes: int) -> Manifest:
        if key not in self._lengths:  # opening it would begin a new one
            raise SpoolRefused("upload", "is not kept any more")
        if (spool := self._open.get(key)) is not None:
            return spool.manifest
        with Spool(self.folder, key, length=length, chunk_bytes=chunk_bytes) as spool:
            return spool.manifest

    @property
    def used_bytes(self) -> int:
        """What all uploads on the disk may grow to."""
        return sum(self._lengths.values())

    def remove(self, key: bytes) -> None:
        """Deletes an upload, open or not; no error if there is none."""
        with self._lock:
            spool = self._open.pop(key, None)
            self._manifests.pop(key, None)
            self._lengths.pop(key, None)
            self._runs.pop(key, None)
            if spool is not None:
                spool.close()
            for kind in ("leaves", "data"):
                (self.folder / f"{key.hex()}.{kind}").unlink(missing_ok=True)

    def keys(self) -> list[bytes]:
        """Keys of all uploads on the disk, open or not."""
        return sorted(bytes.fromhex(p.stem) for p in self.folder.glob("*.leaves"))

    def close(self) -> None:
        with self._lock:
            for spool in self._open.values():
                spool.close()
            self._open.clear()

    def _promised(self) -> dict[bytes, int]:
        """Length each upload on the disk may grow to, from its own header."""
        out = {}
        for path in self.folder.glob("*.leaves"):
            with open(path, "rb") as f:
                head = f.read(_HEADER.size)
            if len(head) == _HEADER.size:
                out[bytes.fromhex(path.stem)] = _HEADER.unpack(head)[1]
        return out


def _header(length: int, chunk_bytes: int, chunks: int) -> bytes:
    body = _HEADER.pack(_MAGIC, length, chunk_bytes, chunks, 0)[:-4]
    return body + struct.pack("<I", zlib.crc32(body))


def _record(k: int, leaf: bytes) -> bytes:
    return _RECORD.pack(leaf, zlib.crc32(struct.pack("<Q", k) + leaf))


def _records(data: bytes, limit: int) -> list[bytes]:
    """The leaves up to the first record that is torn."""
    leaves: list[bytes] = []
    for k in range(min(limit, len(data) // _RECORD.size)):
        leaf = data[k * _RECORD.size :][:LEAF_BYTES]
        if _record(k, leaf) != data[k * _RECORD.size : (k + 1) * _RECORD.size]:
            break
        leaves.append(leaf)
    return leaves


def _read_whole(fd: int) -> bytes:
    out = bytearray(os.fstat(fd).st_size)
    return bytes(out[: read_all_at(fd, memoryview(out), 0)])
