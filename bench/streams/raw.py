"""The yardstick: TCP with mutual TLS from the standard library, a thread per connection, the same adds where the bytes arrive.

Nothing is checked and nothing stored.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np

from streams.common import Clock, Go

PIECE = 1 << 20
"""Bytes handed to the socket at once."""
UPLOAD_PIECE = 1 << 19


def server(go: Go, told: Queue[Any], start: Barrier) -> None:
    """Sends the base to everyone, and adds what comes back into one vector."""
    base = np.random.default_rng(1).standard_normal(go.params, dtype=np.float32).data.cast("B")
    total, lock = np.zeros(go.params, np.uint16), threading.Lock()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, chain = go.credentials.server
    context.load_cert_chain(chain, key)
    context.load_verify_locations(go.credentials.client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    listening = socket.create_server(("127.0.0.1", 0))
    told.put(("port", listening.getsockname()[1]))
    connections = [context.wrap_socket(listening.accept()[0], server_side=True) for _ in range(go.clients)]

    def one(line: ssl.SSLSocket) -> None:
        for at in range(0, go.base_bytes, PIECE):
            line.sendall(base[at : at + PIECE])
        buffer = np.empty(UPLOAD_PIECE, np.uint8)
        for at in range(0, go.upload_bytes, UPLOAD_PIECE):
            size = min(UPLOAD_PIECE, go.upload_bytes - at)
            receive(line, buffer.data[:size])
            part = total[at // 2 : (at + size) // 2]
            with lock:
                np.add(part, buffer[:size].view(np.uint16), out=part)

    threads = [threading.Thread(target=one, args=(line,)) for line in connections]
    start.wait()
    clock = Clock()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told.put(("served", time.monotonic(), clock.cpu_s()))


def client(go: Go, number: int, port: int, told: Queue[Any], start: Barrier) -> None:
    """Reads the base into one buffer, and sends."""
    data = np.random.default_rng(number).integers(0, 1 << 16, go.params, np.uint16).data.cast("B")
    context = ssl.create_default_context(cafile=str(go.credentials.server_ca))
    key, chain = go.credentials.client
    context.load_cert_chain(chain, key)
    buffer = memoryview(bytearray(PIECE))
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1") as line:
        start.wait()
        clock = Clock()
        for at in range(0, go.base_bytes, PIECE):
            receive(line, buffer[: min(PIECE, go.base_bytes - at)])
        fetched = time.monotonic()
        for at in range(0, go.upload_bytes, UPLOAD_PIECE):
            line.sendall(data[at : at + UPLOAD_PIECE])
        told.put(("client", clock.began, fetched, clock.cpu_s()))


def receive(line: ssl.SSLSocket, into: memoryview) -> None:
    """Exactly as many bytes as fit."""
    while into:
        got = line.recv_into(into)
        if not got:
            raise ConnectionError("the other end left")
        into = into[got:]
