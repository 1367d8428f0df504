"""The log over HTTP, as c2sp.org/tlog-tiles has it: GET and HEAD of its own files, and of nothing else.

A process of its own (`dure log serve`), so that no flood or slow client takes anything from a coordinator or node but the disk's reading.
A path is judged by its one spelling before any file is looked for; a connection has a time to live, and there are only so many.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import socketserver
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, BinaryIO

from dure.errors import BadInput, DureError, Unavailable
from dure.tlog.checkpoint import Checkpoint
from dure.tlog.files import CHECKPOINT, log_path
from dure.tlog.note import Note
from dure.tlog.tiles import ENTRIES, HEIGHT, Tile

PIECE_BYTES = 64 * 1024
FOR_EVER_S = 31_536_000
"""A tile's path never gets other bytes, so a cache may keep it: a year, HTTP's "for ever"."""


_THIS_MACHINE = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?")


@dataclass(frozen=True)
class Limits:
    """What clients may take."""

    connections: int = 64
    silence_s: float = 10.0
    """Longest wait for the next bytes of a request, or until a piece of 64 KiB is taken."""
    life_s: float = 300.0
    """Longest life of a connection; a bundle of 8 MB then needs a line of 0.3 Mbit/s."""


def parse_listen(text: str) -> tuple[str, int]:
    """(host, port) of PORT, which is loopback, or ADDRESS:PORT.

    Raises:
        BadInput: it is neither; names are not resolved, since what they point to may change.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    with contextlib.suppress(ValueError):
        if port.isdigit() and int(port) <= 65_535:
            return str(ipaddress.ip_address(host)), int(port)
    raise BadInput(f"--listen {text}: give a port (loopback only) or address:port, such as 127.0.0.1:7480")


def check_private(host: str, *, public: bool) -> None:
    """That an address may serve this log.

    Raises:
        BadInput: other machines could reach it, and the charter keeps the log among the members.
    """
    if not public and not ipaddress.ip_address(host).is_loopback:
        raise BadInput(
            f"--listen {host}: the charter keeps this log among the members (public_log = false), who read it over mutual TLS; give a "
            "loopback address such as 127.0.0.1, or have the members sign a version with public_log = true"
        )


@dataclass(frozen=True)
class Shelf:
    """The files of one log that may be seen: what the published head is about."""

    folder: Path
    head: str = CHECKPOINT
    """File that is shown as `checkpoint`; a mirror shows the newest head it knows to be cosigned."""

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[tuple[BinaryIO, int]]:
        """(file, its bytes) of a path in the layout.

        Raises:
            TileRefused: not the one spelling of a path in the layout.
            FileNotFoundError: there is none now, or the published head does not reach so far.
        """
        name = log_path(path)
        if name != CHECKPOINT and _end(Tile.parse(name)) > self._size():
            raise FileNotFoundError(name)
        try:
            handle = os.open(self.folder / (self.head if name == CHECKPOINT else name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            raise FileNotFoundError(name) from None
        with os.fdopen(handle, "rb") as file:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise FileNotFoundError(name)
            yield file, facts.st_size

    def _size(self) -> int:
        return Checkpoint.parse(Note.from_bytes((self.folder / self.head).read_bytes()).text).size


def _end(tile: Tile) -> int:
    """Entries a tree must have for it to have this tile."""
    last = tile.first + tile.width
    return last if tile.level == ENTRIES else last << (HEIGHT * tile.level)


class LogServer(socketserver.ThreadingTCPServer):
    """Serves one shelf; `serve_forever` until `shutdown` from another thread.

    Args:
        host: an IP address that `check_private` let pass.

    Raises:
        Unavailable: the port is in use, or may not be bound.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, shelf: Shelf, *, public: bool, limits: Limits | None = None) -> None:
        self.shelf, self.public, self.limits = shelf, public, limits or Limits()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._lives: dict[Any, float] = {}
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise Unavailable(
                f"--listen {host}:{port}: {(error.strerror or str(error)).lower()}; stop whoever uses it or give another"
            ) from None

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}" if self.address_family == socket.AF_INET6 else f"http://{host!s}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._lives) >= self.limits.connections:
            with contextlib.suppress(OSError):
                request.settimeout(0)
                request.send(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.shutdown_request(request)
            return
        self._lives[request] = time.monotonic() + self.limits.life_s
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._lives.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Between two connections, and twice a second: whoever has lived long enough is cut off."""
        now = time.monotonic()
        for request, until in list(self._lives.items()):
            if now > until:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was cut off, is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: LogServer
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"
    """Of a request that names none: an answer without a head would be taken for the file."""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.limits.silence_s)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body nobody reads must not be taken for the next request
        if not self._meant_for_us():
            self._say(421, "this log is for this machine; ask for it by a loopback address")
            return
        target = self.requestline.split()[1]  # as it came: nothing decoded, nothing collapsed
        if not target.startswith("/"):
            self._say(404, "no file of this log")
            return
        try:
            with self.server.shelf.open(target[1:]) as (file, length):
                self._begin(target[1:], length)
                while body and (piece := file.read(PIECE_BYTES)):
                    self.wfile.write(piece)
        except (FileNotFoundError, DureError):
            self._say(404, "no file of this log")

    def _meant_for_us(self) -> bool:
        """A page in a browser on this machine must not read a private log by a name that points to loopback (DNS rebinding)."""
        if self.server.public:
            return True
        return _THIS_MACHINE.fullmatch(self.headers.get("Host", "localhost")) is not None

    def _begin(self, path: str, length: int) -> None:
        reach = "public" if self.server.public else "private"
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", "text/plain; charset=utf-8" if path == CHECKPOINT else "application/octet-stream")
        kept = "no-cache" if path == CHECKPOINT else f"{reach}, max-age={FOR_EVER_S}, immutable"
        self.send_header("Cache-Control", kept)
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.server.public:
            self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()

    def _say(self, status: int, why: str) -> None:
        text = f"{why}\n".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        if status == 405:
            self.send_header("Allow", "GET, HEAD")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the parser of requests refuses: one line, no page, and the connection ends."""
        self.close_connection = True
        self._say(405 if code == 501 else code, "only GET and HEAD" if code == 501 else "this is no request")

    def version_string(self) -> str:
        return "dure"

    def log_message(self, *_: object) -> None:
        """Who reads what is nobody's business."""
