"""A small witness over real HTTP (c2sp.org/tlog-witness), with a record on disk, and with faults a test can choose."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.tlog.note import NoteKey, SignatureLine
from dure.tlog.witness import SIZE_TYPE, AddCheckpoint, Seen, WitnessRefused, answer, judge


@dataclass
class HttpWitnessServer:
    """One witness of one log. `fault` is what it does instead of answering honestly; "" is honest."""

    record: Path
    log: NoteKey
    name: str
    key: Ed25519PrivateKey
    fault: str = ""
    asked: list[int] = field(default_factory=list)
    """The status of every answer."""
    released: threading.Event = field(default_factory=threading.Event)
    _server: ThreadingHTTPServer | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/w"

    def start(self, port: int = 0) -> HttpWitnessServer:
        handler = type("Handler", (_Handler,), {"witness": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> int:
        """The port it was on; what it kept is on disk."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        return int(self._server.server_address[1])

    @property
    def seen(self) -> Seen:
        if not self.record.exists():
            return Seen()
        size, root = self.record.read_text().split()
        return Seen(int(size), bytes.fromhex(root))

    def judge(self, body: bytes) -> tuple[int, bytes]:
        """An honest answer, kept before it is given."""
        with self._lock:
            try:
                checkpoint, seen = judge(AddCheckpoint.from_bytes(body), {self.log.name: [self.log]}, {self.log.name: self.seen})
            except WitnessRefused as refused:
                told = f"{refused.size}\n" if refused.status == 409 else f"{refused.why}\n"
                return refused.status, told.encode()
            self.record.write_text(f"{seen.size} {seen.root.hex()}")
            line = answer(checkpoint, self.name, self.key, int(time.time()))
        return 200, self._twisted(line, checkpoint.text())

    def _twisted(self, line: bytes, text: bytes) -> bytes:
        if self.fault == "wrong signature":
            good = SignatureLine.parse(line.decode().rstrip("\n"))
            return SignatureLine(good.name, good.key_id, good.signature[:-1] + bytes([good.signature[-1] ^ 1])).line().encode()
        if self.fault == "other key":
            from dure.tlog.note import cosign

            return cosign(text, self.name, Ed25519PrivateKey.generate(), int(time.time())).line().encode()
        return b"\xff garbage" if self.fault == "garbage" else line


class _Handler(BaseHTTPRequestHandler):
    witness: HttpWitnessServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fault = self.witness.fault
        if self.path != "/w/add-checkpoint":
            self._say(404, b"")
        elif fault in ("silent", "drip"):
            self._hold(fault)
        elif fault == "redirect":
            self._say(307, b"", {"Location": "/w/elsewhere"})
        elif fault.isdigit():
            self._say(int(fault), b"because\n")
        elif fault == "says it has more":
            self._say(409, b"999999999\n", {"Content-Type": SIZE_TYPE})
        else:
            status, told = self.witness.judge(body)
            self._say(status, told, {"Content-Type": SIZE_TYPE} if status == 409 else {})

    def _hold(self, fault: str) -> None:
        """Nothing, or one byte now and then, until the test lets go."""
        if fault == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while not self.witness.released.wait(0.02):
            try:
                self.wfile.write(b"x" if fault == "drip" else b"")
            except OSError:
                break
        self.close_connection = True

    def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.witness.asked.append(status)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
