"""gRPC server objects, one per audience: handlers belong to a server and not to a port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from dure.errors import BadInput, Unavailable
from dure.statements.dsse import MAX_ENVELOPE_BYTES
from dure.wire.bulk import MAX_FRAME_BYTES
from dure.wire.control import MAX_BODY_BYTES
from dure.wire.log import BATCH
from dure.wire.messages import MAX_CONTROL_BYTES
from dure_coordinator.callers import Roster
from dure_coordinator.fleet import Fleet
from dure_coordinator.rpc.bulk import BulkService, BulkSettings
from dure_coordinator.rpc.interceptor import Authorise, member_of
from dure_coordinator.rpc.log import Log
from dure_coordinator.rpc.members import Members, MembersBulk
from dure_pb.v1 import log_pb2_grpc, members_pb2_grpc

log = structlog.get_logger()

SLACK_BYTES = 64 * 1024
REOPEN_S = 0.1
MOST_UP_BYTES = max(MAX_FRAME_BYTES, BATCH * MAX_ENVELOPE_BYTES, *MAX_BODY_BYTES.values())
"""The largest message a member may send. Down go directives, which are larger: MAX_CONTROL_BYTES."""


@dataclass(frozen=True)
class TlsFiles:
    """The coordinator's own TLS key and chain, PEM."""

    key: bytes
    chain: bytes


@dataclass(frozen=True)
class Limits:
    """What one peer may take of the members' port."""

    calls_per_member: int = 32
    handshake_s: float = 10.0
    """A stranger who has not shown a member's certificate by then is gone."""
    follow_write_s: float = 60.0
    """A node that takes no directive for so long loses its Follow stream."""
    arrivals_per_minute: int = 30
    """Greetings of one member, and Follow streams; each one is written to the database."""
    keepalive_s: float = 30.0
    """The server pings a silent connection after so long; a node may ping every third of it."""


@dataclass
class MembersPort:
    """The members' port, bound but not started."""

    server: grpc.aio.Server
    members: Members
    address: str
    authorise: Authorise
    anchors: bytes
    """PEM, as TLS trusts them."""


def members_port(
    fleet: Fleet, roster: Callable[[], Roster], tls: TlsFiles, listen: str, limits: Limits, log: Log | None = None
) -> MembersPort:
    """Mutual TLS only; anchors are the charter's member CAs.

    Raises:
        Unavailable: the port is in use or may not be bound.
        BadInput: `listen` is not host:port.
    """
    interceptor = Authorise(roster, calls_per_member=limits.calls_per_member)
    server = grpc.aio.server(interceptors=[interceptor], options=_options(limits))
    members = Members(fleet, write_s=limits.follow_write_s, arrivals_per_minute=limits.arrivals_per_minute)
    members_pb2_grpc.add_MembersServiceServicer_to_server(members, server)
    if log is not None:
        log_pb2_grpc.add_LogServiceServicer_to_server(log, server)
    bulk = BulkService(MembersBulk(fleet), member_of, BulkSettings(), fleet.disk_full)
    server.add_generic_rpc_handlers((bulk.handler(),))
    anchors = roster().anchors()
    credentials = grpc.ssl_server_credentials([(tls.key, tls.chain)], anchors, require_client_auth=True)
    return MembersPort(server, members, bind(server, listen, credentials), interceptor, anchors)


class Door:
    """The members' port as it is kept open: a server's TLS files and anchors are fixed, so a charter with other CAs opens it anew.

    (gRPC's dynamic credentials call Python under a lock that the event loop's own thread may wait for: the coordinator stood still.)
    """

    def __init__(self, make: Callable[[TlsFiles, str], MembersPort], tls: Callable[[], TlsFiles], listen: str) -> None:
        """Binds; raises as `members_port`."""
        self._make, self._tls = make, tls
        self._served = tls()
        self.port = make(self._served, listen)

    async def open(self) -> None:
        await self.port.server.start()

    async def renew(self, anchors: bytes) -> None:
        """The charter or the denylist has changed: whoever may not call any more is cut off, and whoever may can connect."""
        served = self._tls()
        if anchors == self.port.anchors and served == self._served:
            await self.port.authorise.recheck()
            return
        await self.port.server.stop(0)
        while True:
            try:
                self.port, self._served = self._make(served, self.port.address), served
                break
            except Unavailable as error:  # the socket is let go of a moment after its server
                log.warning("members.reopening", reason=str(error))
                await asyncio.sleep(REOPEN_S)
        await self.port.server.start()


def bind(server: grpc.aio.Server, listen: str, credentials: Any) -> str:
    """Binds and returns host:port as bound (port 0 becomes a real one)."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise BadInput(f"--listen {listen}: must be host:port")
    _check_free(host, int(port))
    try:
        bound = server.add_secure_port(listen, credentials)
    except RuntimeError as e:
        raise Unavailable(f"port {listen}: cannot be bound; is another process using it?") from e
    if not bound:
        raise Unavailable(f"port {listen}: cannot be bound; is another process using it?")
    return f"{host}:{bound}"


def unix_server(path: Path, add: Sequence[Callable[[grpc.aio.Server], None]], *, max_bytes: int) -> grpc.aio.Server:
    """A server on one Unix socket; the folder it lies in decides who may call."""
    options = [("grpc.max_receive_message_length", max_bytes), ("grpc.max_send_message_length", max_bytes)]
    server = grpc.aio.server(options=options)
    for each in add:
        each(server)
    try:
        bound = server.add_insecure_port(f"unix:{path}")
    except RuntimeError as e:
        raise Unavailable(f"{path}: cannot be bound") from e
    if not bound:
        raise Unavailable(f"{path}: cannot be bound")
    return server


def _check_free(host: str, port: int) -> None:
    """gRPC says only "failed to bind"; this says why."""
    if not port:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as e:
            remedy = "stop whoever uses it or choose another with --listen" if e.errno == 98 else "choose another with --listen"
            raise Unavailable(f"port {host}:{port}: {e.strerror.lower()}; {remedy}") from e


def _options(limits: Limits) -> list[tuple[str, Any]]:
    ping_ms = int(limits.keepalive_s * 1000)
    return [
        ("grpc.so_reuseport", 0),  # a second coordinator on this port is an error, not a lottery
        ("grpc.max_receive_message_length", MOST_UP_BYTES + SLACK_BYTES),
        ("grpc.max_send_message_length", MAX_CONTROL_BYTES + SLACK_BYTES),
        ("grpc.max_concurrent_streams", limits.calls_per_member),
        ("grpc.max_metadata_size", 8192),
        ("grpc.server_handshake_timeout_ms", int(limits.handshake_s * 1000)),
        ("grpc.keepalive_time_ms", ping_ms),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", ping_ms // 3),
        ("grpc.http2.max_ping_strikes", 3),
    ]
