"""The last part of what a child process prints, on disk, at next to no cost to the parent.

A thread moves the bytes from pipe to file inside the kernel: a process that prints gigabytes takes its own time, not that of everything
else its parent does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import threading
from pathlib import Path

PIPE_BYTES = 1 << 20
"""Of the pipe, and moved at a time."""


class OutputLog:
    """Give `writer` to the child as stdout or stderr, then call `started`.

    The file never exceeds half of `max_bytes`; the half before it is kept as `<name>.1`. A disk that takes nothing more loses output; the
    child never waits for it.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self._half = path, max(max_bytes // 2, 1)
        self.bytes = 0
        """All the child has printed so far."""
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a limit of the user's; then it is 64 KiB
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._open(fresh=False)
        self._splices = True
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)

    def started(self) -> None:
        """The child has its end: the log now ends when nobody holds that any more."""
        os.close(self.writer)
        self._thread.start()

    def end(self, limit_s: float) -> None:
        """Once: waits until the last byte is in the file; a grandchild that holds the pipe open is waited for only so long. Blocks."""
        self._thread.join(limit_s)
        os.write(self._wake, b".")
        self._thread.join()
        for fd in (self._woken, self._wake):
            os.close(fd)

    def _open(self, *, fresh: bool) -> int:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if fresh else 0), 0o600)
        os.lseek(fd, 0, os.SEEK_END)  # not O_APPEND, into which nothing can be spliced
        return fd

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if self._reader not in ready or not self._move():
                    return
        finally:
            for fd in (self._reader, self._file):
                os.close(fd)

    def _move(self) -> int:
        """Some bytes from the pipe into the file; 0 at its end."""
        room = self._half - os.lseek(self._file, 0, os.SEEK_CUR)
        if room <= 0:
            room = self._turn_over()
        count = self._splice(min(room, PIPE_BYTES)) if self._splices else self._copy(min(room, PIPE_BYTES))
        self.bytes += count
        return count

    def _turn_over(self) -> int:
        os.close(self._file)
        with contextlib.suppress(OSError):
            os.replace(self.path, self.path.with_name(self.path.name + ".1"))
        self._file = self._open(fresh=True)
        return self._half

    def _splice(self, most: int) -> int:
        try:
            return os.splice(self._reader, self._file, most)
        except OSError as error:
            self._splices = error.errno not in (errno.EINVAL, errno.ENOSYS)  # a file system that cannot; a full disk may have room later
            return self._copy(most)

    def _copy(self, most: int) -> int:
        data = os.read(self._reader, most)
        with contextlib.suppress(OSError):
            os.write(self._file, data)
        return len(data)
