"""A real coordinator on a real members' port, members with keys and certificates of their own, and nodes that a test holds in its hand."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from sim.exchange_world import LAYOUT, make_plan

from dure.charter import root
from dure.charter.coordinator import CoordinatorFolder
from dure.charter.draft import default_toml, joins, terms_from
from dure.identity.member import MemberFolder
from dure.identity.node import NodeIdentity, create_node
from dure.model.content import ArrayItem, ConfigItem, Instruction
from dure.model.weights import weights_id
from dure.statements.dsse import canonical_json
from dure.statements.statement import Chain, seal
from dure.wire.control import decode_directive, encode_hello, encode_report
from dure.wire.messages import PROTOCOL_VERSION, Directive, Hello, Report, ReportKind
from dure_coordinator.app import Coordinator
from dure_coordinator.engine import RunEngine
from dure_coordinator.exchange.events import Asked
from dure_coordinator.rpc.server import Door, Limits, members_port
from dure_coordinator.settings import CoordinatorSettings
from dure_coordinator.storage.store import RunRow, With
from dure_participant.exchange import actions as act
from dure_participant.exchange import inputs as inp
from dure_participant.exchange.site import History
from dure_participant.exchange.step import begin, step
from dure_participant.settings import NodeSettings
from dure_participant.standing import site_of
from dure_pb.v1 import members_pb2, members_pb2_grpc

NAMES = ("ara", "bora", "chan")


@dataclass
class Founded:
    """A consortium on disk: its coordinator's folder, and each member's with one node."""

    hub: CoordinatorFolder
    members: dict[str, MemberFolder]
    nodes: dict[str, NodeIdentity]


def found(folder: Path, names: tuple[str, ...] = NAMES) -> Founded:
    """As the commands of the README do it."""
    hub = CoordinatorFolder.create(folder / "hub", "titan", "127.0.0.1:1", time.time())
    members = {}
    for name in names:
        members[name] = MemberFolder.create(folder / name, name, label="titan", display_name="", registration="", now=time.time())
        request = hub.directory / "joins" / f"{name}.join.json"
        request.parent.mkdir(exist_ok=True)
        members[name].join_request().write(request)
    (hub.directory / "charter.toml").write_text(default_toml("titan", list(joins(hub).values())))
    proposal = root.propose(terms_from(hub), 1, datetime.now(UTC))
    hub.publish(proposal, {name: root.sign(proposal, name, member.governance_key) for name, member in members.items()})
    nodes = {}
    for name, member in members.items():
        member.trust(root.digest(root.parse(proposal)))
        nodes[name] = create_node(folder / name, folder / name / "node", "n1", hub.published_path(), now=time.time())
    return Founded(hub, members, nodes)


@dataclass
class Port:
    """A serving coordinator."""

    address: str
    founded: Founded
    coordinator: Coordinator

    @property
    def ca(self) -> bytes:
        return self.founded.hub.ca_pem

    async def start_run(self, **changes: Any) -> RunEngine:
        """A run of everybody, without a ServerApp: what is asked of it a test asks."""
        charter = self.coordinator.charter
        named = {"consortium": charter.terms.consortium_id, "charter_sha256": charter.digest, "w_max": 1000, **changes}
        plan = make_plan(tuple(self.founded.nodes), charter.colluders, "average", **named)
        envelope, _ = seal(plan, self.founded.hub.signing_key, Chain(), time.time())
        row = RunRow(envelope.payload_sha256, plan.name, envelope.to_bytes(), plan.app_sha256, created=time.time())
        return await self.coordinator.fleet.add(row, With())

    async def ask(self, engine: RunEngine, seq: int = 1) -> np.ndarray[Any, Any]:
        """A train exchange on fresh weights, which come back."""
        flat = np.random.default_rng(seq).standard_normal(LAYOUT.elements).astype("<f4")
        for first, last in LAYOUT.gaps():
            flat[first:last] = 0
        blob = await asyncio.to_thread(self.coordinator.blobs.put_bytes, flat.tobytes())
        records = (ArrayItem("arrays", LAYOUT, weights_id(flat, LAYOUT)), ConfigItem("config", {"lr": 0.1}))
        body = canonical_json(Instruction("train", "1", 3600.0, records).to_json())
        await engine.submit(Asked(seq, hashlib.sha256(body).digest(), body, str(blob)))
        return flat


@contextlib.asynccontextmanager
async def serving(folder: Path, limits: Limits | None = None, names: tuple[str, ...] = NAMES) -> AsyncIterator[Port]:
    """A coordinator on port 0 with mutual TLS."""
    founded = found(folder, names)
    coordinator = await Coordinator.open(founded.hub, CoordinatorSettings())
    coordinator.fleet.on_opened = None
    coordinator.publisher.confirmed = True  # nobody plays the witnesses here
    service = coordinator.log_service()
    door = Door(
        lambda tls, at: members_port(coordinator.fleet, coordinator.fleet.roster, tls, at, limits or Limits(), service),
        coordinator.tls_files,
        "127.0.0.1:0",
    )
    coordinator.door = door
    await door.open()
    try:
        yield Port(door.port.address, founded, coordinator)
    finally:
        await door.port.server.stop(0)
        await coordinator.close()


@dataclass
class Hand:
    """One member's node in a test's hand: the real exchange logic, a real connection, and nothing done that the test does not do."""

    identity: NodeIdentity
    channel: grpc.aio.Channel
    stub: Any = None
    state: Any = None
    chain: Chain = field(default_factory=Chain)
    history: History = field(default_factory=History)
    directives: asyncio.Queue[Directive] = field(default_factory=asyncio.Queue)
    following: asyncio.Task[None] | None = None

    async def hello(self) -> None:
        said = Hello(PROTOCOL_VERSION, self.identity.charter.digest, self.identity.delegation, "test")
        await self.stub.Hello(encode_hello(said), timeout=20)

    def follow(self) -> None:
        async def take() -> None:
            async for message in self.stub.Follow(members_pb2.FollowRequest()):
                await self.directives.put(decode_directive(message))

        self.following = asyncio.create_task(take())

    async def report(self, report: Report) -> members_pb2.ReportResponse:
        return await self.stub.Report(encode_report(report), timeout=20)

    def feed(self, given: inp.Input) -> tuple[act.Action, ...]:
        site = site_of(self.identity, NodeSettings())
        if self.state is None:
            assert isinstance(given, inp.Directed)
            self.state = begin(given.directive.run)
        done = step(site, self.history, self.chain, self.state, given, time.time(), os.urandom)
        self.state, self.chain, self.history = done.state, done.chain, self.history.with_records(done.records)
        return done.actions

    async def go(self, until: Callable[[act.Action], bool]) -> act.Action:
        """Does what an honest node does, except the first action of which `until` is true: that one comes back."""
        while True:
            actions = list(self.feed(inp.Directed(await asyncio.wait_for(self.directives.get(), 30))))
            while actions:
                action = actions.pop(0)
                if until(action):
                    return action
                match action:
                    case act.Send():
                        await self.report(action.report)
                    case act.AskOperator():
                        actions += self.feed(inp.Allowed(action.run))
                    case act.Train():
                        trained = inp.TrainResult(action.instruction.arrays.weights_id, True, b"u" * 32, 7.0, {"loss": 1.0})  # type: ignore[union-attr]
                        actions += self.feed(inp.Trained(action.exchange, trained))

    async def close(self) -> None:
        if self.following is not None:
            self.following.cancel()
        await self.channel.close()


@contextlib.asynccontextmanager
async def hands(port: Port, *names: str, narrow: bool = False) -> AsyncIterator[list[Hand]]:
    """These members' nodes, greeted and following; narrow ones have taken nothing yet, and take little at a time."""
    found_: list[Hand] = []
    try:
        for name in names or NAMES:
            identity = port.founded.nodes[name]
            credentials = grpc.ssl_channel_credentials(port.ca, identity.tls_key_pem, identity.tls_certificate_pem)
            options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)] if narrow else []
            hand = Hand(identity, grpc.aio.secure_channel(port.address, credentials, options))
            hand.stub = members_pb2_grpc.MembersServiceStub(hand.channel)
            await hand.hello()
            if not narrow:
                hand.follow()
            found_.append(hand)
        yield found_
    finally:
        await asyncio.gather(*(h.close() for h in found_))


def sends(kind: ReportKind) -> Callable[[act.Action], bool]:
    return lambda action: isinstance(action, act.Send) and action.report.kind is kind


def uploads(action: act.Action) -> bool:
    return isinstance(action, act.Upload)
