"""What both sides of `transport` share: certificates, the sizes, and the measuring of one go from a common start."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Empty
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dure.identity import tls

HOST = "member.bench"
GO_DEADLINE_S = 300.0


@dataclass(frozen=True)
class Credentials:
    """PEM files: what each end shows, and what it believes. As in the product: P-256, one CA per end."""

    server: tuple[Path, Path]
    client: tuple[Path, Path]
    server_ca: Path
    client_ca: Path

    @classmethod
    def make(cls, folder: Path) -> Credentials:
        now = datetime.now(UTC)
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(4)]
        hub = tls.issue_coordinator_ca(keys[0], "bench", now)
        member = tls.issue_member_ca(keys[1], HOST, now)
        server = tls.issue_coordinator_certificate(hub, keys[0], keys[2].public_key(), ["127.0.0.1", "localhost"], now)
        client = tls.issue_node_certificate(member, keys[1], keys[3].public_key(), HOST, "node", now)
        written = {
            "server.pem": tls.pem(server),
            "client.pem": tls.pem(client),
            "server-ca.pem": tls.pem(hub),
            "client-ca.pem": tls.pem(member),
        }
        for name, key in (("server.key", keys[2]), ("client.key", keys[3])):
            form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            written[name] = key.private_bytes(*form)
        for name, data in written.items():
            (folder / name).write_bytes(data)
        pair = {end: (folder / f"{end}.key", folder / f"{end}.pem") for end in ("server", "client")}
        return cls(pair["server"], pair["client"], folder / "server-ca.pem", folder / "client-ca.pem")


@dataclass(frozen=True)
class Go:
    """One measurement: so many clients fetch the base, send an upload of half its bytes, and the server adds the uploads."""

    clients: int
    params: int
    folder: Path
    """Of this go alone; empty at the start."""
    credentials: Credentials

    @property
    def base_bytes(self) -> int:
        return 4 * self.params

    @property
    def upload_bytes(self) -> int:
        return 2 * self.params

    @property
    def moved_bytes(self) -> int:
        return self.clients * (self.base_bytes + self.upload_bytes)


Server = Callable[[Go, "Queue[Any]", Barrier], None]
Client = Callable[[Go, int, int, "Queue[Any]", Barrier], None]


@dataclass(frozen=True)
class Gone:
    """What one go took."""

    seconds: float
    pull_s: float
    """Until the last client had the base."""
    server_cpu_s: float
    client_cpu_s: float


def go(server: Server, client: Client, what: Go) -> Gone:
    """Play one go: a process for the server, one per client; from the moment all are connected to the end of the adding.

    `server` puts ("port", n), then ("served", monotonic end, CPU seconds since the start) on the queue; a client
    ("client", began, fetched, CPU seconds). Everybody waits at the barrier once.
    """
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])  # the fork server of Python 3.11 does not take over sys.path
    context.set_forkserver_preload(["streams.bulk", "streams.raw"])  # libraries are imported once; nothing of them runs before the fork
    told: Queue[Any] = context.Queue()
    start = context.Barrier(what.clients + 1)
    processes = [context.Process(target=server, args=(what, told, start))]
    try:
        processes[0].start()
        _kind, port = _next(told, processes)
        processes += [context.Process(target=client, args=(what, i, port, told, start)) for i in range(what.clients)]
        for process in processes[1:]:
            process.start()
        said = [_next(told, processes) for _ in range(what.clients + 1)]
    finally:
        for process in processes:
            process.join(10.0)
            if process.is_alive():
                process.kill()
    served = next(s for s in said if s[0] == "served")
    clients = [s for s in said if s[0] == "client"]
    began = min(c[1] for c in clients)
    return Gone(served[1] - began, max(c[2] for c in clients) - began, served[2], sum(c[3] for c in clients))


def _next(told: Queue[Any], processes: Sequence[BaseProcess]) -> Any:
    """What comes next; RuntimeError when a process failed, or nothing came for too long."""
    for _ in range(int(GO_DEADLINE_S)):
        try:
            return told.get(timeout=1.0)
        except Empty:
            if failed := [process.name for process in processes if process.exitcode]:
                raise RuntimeError(f"{', '.join(failed)} failed; see above") from None
    raise RuntimeError(f"nothing came for {GO_DEADLINE_S:.0f} s")


class Clock:
    """CPU seconds of this process since the start."""

    def __init__(self) -> None:
        self.began, self._cpu = time.monotonic(), time.process_time()

    def cpu_s(self) -> float:
        return time.process_time() - self._cpu
