"""What an audit had established when it was ended: a folder of the auditor's own, from which the same audit goes on.

journal     one line per finding of level 2 or 3 that held: which inputs it is of, and the files it was read from
runs/<run>  blobs of the newest base of a run whose recomputation is under way

A line is believed for exactly its inputs: their digests, as the log signs them, are its key. That a file of the bundle is still the one
that was read is told by its inode, size, and times of change, which the file system sets; a file that was written to, replaced, or copied
anew is read again. Bases are read again and must have the digests the log names. A line is also authenticated with a key that is in
the auditor's home alone: the folder lies beside the bundle, and whoever packed the bundle may have packed such a folder, too. So what is
trusted, beyond what a first audit trusts, is that key, this folder, which nobody else may write (mode 0700, the auditor's own, in folders
where nobody else may put another in its place), and the file system's word that a file was not changed.
Only what held is written down: whatever does not hold is found anew.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hmac
import io
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import dure
from dure.blobs import sync_dir, writing
from dure.errors import BadInput, Conflict, DureError
from dure.statements.dsse import canonical_json

JOURNAL, LOCK, RUNS = "journal", "lock", "runs"
_FORM = 2
KEY_BYTES = 32
MAX_LINE_BYTES = 1 << 16
"""Of the journal: several times what a base record and its digests take."""


class Question(NamedTuple):
    """What is asked of the bundle: by all its inputs."""

    key: str
    """Digest of the inputs and of the program that judges them."""
    files: str
    """Digest of which files they are read from, as they were before that."""


@dataclass
class Kept:
    """An audit's folder, held by one process at a time."""

    folder: Path
    secret: bytes
    """`own_key`."""
    tell: Callable[[str], None] = lambda _line: None
    """Shows a person a line."""
    _answers: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    _last: str = ""
    """Tag of the journal's last line, which the next one names."""
    _lock: int = -1

    @staticmethod
    def open(folder: Path, secret: bytes, tell: Callable[[str], None] = lambda _line: None) -> Kept:
        """Takes the folder, made if need be, and reads what is in it.

        Args:
            secret: `own_key`.

        Raises:
            BadInput: somebody else may write to it.
            Conflict: another process has it.
            OSError: it cannot be made where nobody else may put another in its place.
        """
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (place := _open_to_others(folder.parent.resolve())) is not None:
            raise PermissionError(errno.EPERM, f"in {place} others may put something else in its place", str(folder))
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise BadInput(
                f"{folder}: is not this user's alone (mode 0700), so nothing in it can be believed; remove it, or give another --work"
            )
        kept = Kept(folder, secret, tell)
        kept._lock = _locked(folder)
        kept._read()
        return kept

    def room(self, run: bytes) -> Path:
        """The folder of a run's blobs."""
        path = self.folder / RUNS / run.hex()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def ask(self, inputs: Iterable[object], files: Iterable[Path]) -> Question:
        """To be called before the files are read: what changes after it is another question.

        Args:
            inputs: numbers, texts and bytes that together say what is judged.
        """
        whole = json.dumps(
            [_FORM, version("dure"), version("numpy"), _program(), *(each.hex() if isinstance(each, bytes) else each for each in inputs)]
        )
        return Question(sha256(whole.encode()).hexdigest(), sha256(json.dumps([_as_it_is(path) for path in files]).encode()).hexdigest())

    def answer(self, question: Question) -> dict[str, Any] | None:
        """What was found then; None: it was not asked, or of other files."""
        files, said = self._answers.get(question.key, ("", {}))
        return said if files == question.files else None

    def write(self, question: Question, said: Mapping[str, object]) -> None:
        """Keeps an answer, durably. Raises DiskFull."""
        line, tag = self._line(question, said)
        path = self.folder / JOURNAL
        with writing(path), path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        sync_dir(self.folder)
        self._last = tag
        self._answers[question.key] = question.files, dict(said)

    def close(self, *, finished: bool) -> None:
        """Lets go of the folder. `finished`: the audit said all it can; nothing is kept for another one."""
        if finished or not self._answers:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def _read(self) -> None:
        """Lines up to the first that is torn or changed; the rest is cut off. Where no line is this user's, nothing in the folder is."""
        path, good, line = self.folder / JOURNAL, 0, b""
        with _plain(path) as file:
            while line := file.readline(MAX_LINE_BYTES):
                try:
                    read = json.loads(line)
                    question, said = Question(read["key"], read["files"]), read["said"]
                    whole, tag = self._line(question, said)
                except (ValueError, KeyError, TypeError, RecursionError, DureError):  # of anything that somebody put there
                    break
                if not hmac.compare_digest(whole, line):
                    break
                self._last, self._answers[question.key], good = tag, (question.files, said), good + len(line)
        if line:
            self.tell(
                f"{path}: the end of it is torn or was changed, or not by this user, and is not believed; what it was about is done again"
            )
            if good:
                os.truncate(path, good)
        if not good:
            self._clear()

    def _clear(self) -> None:
        """Takes out everything but the lock: what somebody packed, links to this user's own files among it, is not written to."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def _line(self, question: Question, said: Mapping[str, object]) -> tuple[bytes, str]:
        """(a line, its tag: HMAC-SHA256, which covers the tag of the line before)"""
        body = {"after": self._last, "files": question.files, "key": question.key, "said": dict(said)}
        tag = hmac.digest(self.secret, canonical_json(body), "sha256").hex()
        return canonical_json({**body, "hmac_sha256": tag}) + b"\n", tag


def place_of(bundle: Path, pin: bytes, work: Path | None) -> Path:
    """Where an audit of this bundle keeps what it established: below `work`, or beside the bundle."""
    whole = bundle.resolve()
    name = f"dure-audit-{sha256(pin + str(whole).encode(errors='surrogateescape')).hexdigest()[:16]}"
    return (whole.parent if work is None else work) / name


def own_key() -> bytes:
    """32 bytes in this user's home, made at first use: with them a journal's lines are authenticated.

    Raises:
        BadInput: the file is not this user's alone, or not so long.
        OSError: it cannot be made, or read.
    """
    path = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")) / "dure" / "audit.key"
    if not path.is_absolute():
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder for its key", str(path))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=path.parent) as file:  # mode 0600; gets its name whole, and one of two processes' stays
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    with path.open("rb") as read:
        found, key = os.fstat(read.fileno()), read.read(KEY_BYTES + 1)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or len(key) != KEY_BYTES:
        raise BadInput(
            f"{path}: must be {KEY_BYTES} bytes that this user alone may read; remove it, and audits that were ended begin again"
        )
    return key


def _plain(path: Path) -> BinaryIO:
    """A plain file, open; an empty one where there is none, but a link, a pipe or a folder, say."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return io.BytesIO()
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return open(handle, "rb")
    os.close(handle)
    return io.BytesIO()


def _open_to_others(folder: Path) -> Path | None:
    """Of this folder and those above it, one where another user may put something else in the place of what is there; None: none is."""
    for place in (folder, *folder.parents):
        found = place.stat()
        shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
        if shared or found.st_uid not in (0, os.geteuid()):
            return place
    return None


def _locked(folder: Path) -> int:
    """Descriptor of the folder's lock, which is this process's now. Raises Conflict."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), (folder / LOCK).stat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass  # another process's; or it was through, and removed the folder just now
    os.close(lock)
    raise Conflict(f"{folder}: another audit of this bundle is under way; wait for it, or give another --work")


@functools.cache
def _program() -> str:
    """Digest of what judges: every module of this package, so that another version finds everything anew."""
    home = Path(dure.__file__).parent
    files = sorted((str(path.relative_to(home)), sha256(path.read_bytes()).hexdigest()) for path in home.rglob("*.py"))
    return sha256(json.dumps(files).encode()).hexdigest()


def _as_it_is(path: Path) -> list[object]:
    """All that changes when a file does. The time of change (ctime) is the kernel's: no program sets it."""
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return [path.name]
    return [path.name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
