"""The log's HTTP port: its own files, cached as they should be, nothing else whatever the path; no client stops another for long."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.signed_log import SignedLog, signed_log

from dure.errors import BadInput
from dure.tlog.files import LogFiles
from dure.tlog.http import Limits, LogServer, Shelf, check_private, parse_listen
from dure_demo.consortium import dure_command, node_environment

OLD, SIZE = 300, 304


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> SignedLog:
    """A coordinator's folder with a published log of 304 entries, of which 300 were published before."""
    made = signed_log(tmp_path_factory.mktemp("log"), plans=SIZE - 4)
    folder = made.founded.hub.directory / "log"
    made.publish(folder, made.entries[:OLD])
    made.publish(folder)
    return made


@contextlib.contextmanager
def serving(folder: Path, *, public: bool = False, limits: Limits | None = None) -> Iterator[LogServer]:
    with LogServer("127.0.0.1", 0, Shelf(folder), public=public, limits=limits) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def server(log) -> Iterator[LogServer]:
    with serving(log.founded.hub.directory / "log") as made:
        yield made


def raw(server: LogServer, request: bytes, timeout: float = 10.0) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of these very bytes; status 0 if the connection ended without an answer."""
    answer = b""
    with socket.create_connection(server.server_address[:2], timeout) as line, contextlib.suppress(ConnectionError, BrokenPipeError):
        line.sendall(request)
        while piece := line.recv(65_536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in rest)
    return (int(first.split()[1]) if first else 0), headers, body


def get(server: LogServer, target: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    lines = [f"{k}: {v}" for k, v in {"Host": "127.0.0.1", "Connection": "close", **headers}.items()]
    return raw(server, "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode())


def test_every_file_of_the_published_head_is_served_byte_for_byte_and_tiles_for_ever(server, log):
    folder = log.founded.hub.directory / "log"
    for path in ("tile/0/000", "tile/0/001.p/48", "tile/1/000.p/1", "tile/entries/000", "tile/entries/001.p/48"):
        status, headers, body = get(server, f"/{path}")
        assert (status, body) == (200, (folder / path).read_bytes()), path
        assert headers["Cache-Control"] == "private, max-age=31536000, immutable"
        assert headers["Content-Type"] == "application/octet-stream"
    status, headers, body = get(server, "/checkpoint")
    assert (status, body) == (200, (folder / "checkpoint").read_bytes())
    assert (headers["Cache-Control"], headers["Content-Type"]) == ("no-cache", "text/plain; charset=utf-8")
    assert get(server, "/tile/0/001.p/44")[0] == 200, "the head before may still be being read"
    status, headers, body = get(server, "/tile/0/000", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "8192", b"")


@pytest.mark.parametrize(
    "target",
    [
        "/", "/log.key", "/../log.key", "/tile/../../log.key", "/tile/0/../../../signing.key", "/tile/0/000/../../../../log.key",
        "/%2e%2e/log.key", "/tile/0/%2e%2e%2f%2e%2e%2f%2e%2e%2flog.key", "/tile/0/..%5c..%5clog.key", "//log.key", "//checkpoint",
        "/./checkpoint", "/checkpoint?x=1", "/checkpoint#x", "/checkpoint/", "/checkpoint%00", "/Checkpoint", "/cosigned",
        "/.checkpoint.new", "/tile", "/tile/", "/tile/0", "/tile/0/0", "/tile/0/000.p", "/tile/0/000.p/0", "/tile/0/000.p/256",
        "/tile/0/x000/000", "/tile/8/000", "/tile/-1/000", "/tile/0/000.p/48/../48", "/etc/passwd", "etc/passwd",
        "http://127.0.0.1/checkpoint", "/tile/0/" + "x001/" * 2000 + "000", "*", "/tile/0/002", "/tile/entries/x001/000",
    ],
)  # fmt: skip
def test_nothing_but_the_logs_own_files_can_be_read_whatever_the_path(server, target):
    status, _, body = get(server, target)
    assert (status, body) in ((404, b"no file of this log\n"), (414, b"this is no request\n"))


def test_what_is_on_disk_and_not_under_the_published_head_is_not_served(log, tmp_path):
    """Tiles are written before their head is cosigned: under it they are the log, before it nothing anybody stands for."""
    folder = tmp_path / "log"
    log.publish(folder, log.entries[:OLD])
    LogFiles(folder, log.log).grow(log.entries[OLD:])
    with serving(folder) as server:
        assert (folder / "tile/entries/001.p/48").exists()
        assert get(server, "/tile/entries/001.p/48")[0] == get(server, "/tile/0/001.p/48")[0] == 404
        assert get(server, "/tile/0/001.p/44")[0] == get(server, "/tile/1/000.p/1")[0] == 200


def test_a_link_that_somebody_put_among_the_tiles_is_not_followed(log, tmp_path):
    folder = tmp_path / "log"
    log.publish(folder)
    (folder / "tile/0/000").unlink()
    (folder / "tile/0/000").symlink_to(log.founded.hub.directory / "log.key")
    with serving(folder) as server:
        assert get(server, "/tile/0/000")[0] == 404


def test_before_the_first_head_there_is_nothing(tmp_path):
    with serving(tmp_path) as server:
        assert get(server, "/checkpoint")[0] == get(server, "/tile/0/000")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"])
def test_other_methods_are_refused(server, method):
    status, headers, _ = get(server, "/checkpoint", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_what_is_no_request_is_refused_and_a_body_is_not_taken_for_the_next_one(server):
    assert raw(server, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")[0] in (0, 400)
    assert raw(server, b"GET /checkpoint\r\n\r\n")[0] == 200, "the oldest form still has a head"
    assert raw(server, b"GET /checkpoint HTTP/9.9\r\n\r\n")[0] in (400, 505)
    many = b"".join(b"x%d: y\r\n" % n for n in range(200))
    assert raw(server, b"GET /checkpoint HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n")[0] == 431
    inner = b"GET /tile/0/000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    outer = b"GET /checkpoint HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(inner)
    _, headers, body = raw(server, outer + inner)
    assert len(body) == int(headers["Content-Length"])


@pytest.mark.parametrize("host", ["evil.example", "127.evil.example", "localhost.evil.example", "[::2]", "10.0.0.1:80", ""])
def test_a_private_log_answers_nobody_who_asks_by_another_name(server, host):
    """A web page whose name was made to point to loopback could read it otherwise."""
    assert get(server, "/checkpoint", Host=host)[0] == 421
    assert get(server, "/checkpoint", Host="localhost:7480")[0] == 200


def test_a_public_log_answers_to_any_name_and_may_be_cached_by_anybody(log):
    with serving(log.founded.hub.directory / "log", public=True) as server:
        status, headers, _ = get(server, "/tile/0/000", Host="log.example")
        assert (status, headers["Cache-Control"]) == (200, "public, max-age=31536000, immutable")


# -- where it may listen -------------------------------------------------------------------------------------------------


def test_a_private_log_is_for_loopback_only_and_says_what_would_make_it_public():
    for text in ("7480", "127.0.0.1:7480", "[::1]:7480", "127.8.8.8:1"):
        check_private(parse_listen(text)[0], public=False)
    for text in ("0.0.0.0:7480", "10.1.2.3:7480", "[::]:7480"):
        with pytest.raises(BadInput, match="public_log = true"):
            check_private(parse_listen(text)[0], public=False)
        check_private(parse_listen(text)[0], public=True)
    for text in ("", "x", "localhost:7480", "hub.example:7480", "127.0.0.1:99999", "127.0.0.1"):
        with pytest.raises(BadInput, match="--listen"):
            parse_listen(text)


# -- slow clients and floods ---------------------------------------------------------------------------------------------


def hold(server: LogServer, count: int, first: bytes) -> list[socket.socket]:
    lines = [socket.create_connection(server.server_address[:2], 10) for _ in range(count)]
    for line in lines:
        line.sendall(first)
    return lines


def within(seconds: float, so: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not so():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_clients_beyond_the_limit_hear_later_and_silent_ones_make_room(log):
    with serving(log.founded.hub.directory / "log", limits=Limits(connections=4, silence_s=0.5, life_s=60)) as server:
        held = hold(server, 4, b"GET /check")
        status, headers, _ = raw(server, b"")
        assert (status, headers["Retry-After"]) == (503, "2")
        assert within(10, lambda: get(server, "/checkpoint")[0] == 200), "whoever is silent for half a second is gone"
        for line in held:
            line.close()


def test_clients_that_never_are_silent_are_cut_off_when_their_time_is_over(log):
    """One byte every now and then, up or down, resets every timeout of a socket; the connection's life does not."""
    with serving(log.founded.hub.directory / "log", limits=Limits(connections=2, silence_s=5, life_s=0.6)) as server:
        dripping = hold(server, 1, b"GET /tile/0/000 HTTP/1.1\r\n")[0]
        ended = threading.Event()

        def drip() -> None:
            try:
                while True:
                    dripping.sendall(b"x: y\r\n")
                    time.sleep(0.05)
            except OSError:
                ended.set()

        threading.Thread(target=drip, daemon=True).start()
        assert ended.wait(10)
        assert get(server, "/checkpoint")[0] == 200


def test_a_flood_leaves_no_threads_and_no_connections_behind(log):
    with serving(log.founded.hub.directory / "log", limits=Limits(connections=8, silence_s=0.5, life_s=5)) as server:
        before = threading.active_count()
        for _ in range(20):
            held = hold(server, 20, b"GET /tile/entries/000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert threading.active_count() <= before + 8 + 1
            for line in held:
                line.close()
        assert within(10, lambda: not server._lives)
        assert get(server, "/checkpoint")[0] == 200


# -- the command ---------------------------------------------------------------------------------------------------------


def test_the_command_serves_a_coordinators_log_until_sigterm_and_refuses_another_machine(log):
    hub = log.founded.hub.directory
    command = [*dure_command(), "log", "serve", "--dir", str(hub), "--listen"]
    refused = subprocess.run([*command, "0.0.0.0:0"], capture_output=True, text=True, env=node_environment(), timeout=60)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "public_log = false" in refused.stderr
    with subprocess.Popen(
        [*command, "0"], stdout=subprocess.PIPE, text=True, env={**node_environment(), "PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        assert "for this machine only" in told
        port = int(told.split("/")[2].rpartition(":")[2])
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for path in ("/checkpoint", "/tile/0/000"):  # one connection, kept alive
            line.request("GET", path)
            assert line.getresponse().read() == (hub / "log" / path[1:]).read_bytes()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 0
