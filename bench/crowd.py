"""Many light nodes on one real coordinator: real certificates, real gRPC, real directives and cosignatures, but no agent behind them.

What each node's streams cost the coordinator is the same as with full agents: Follow and Witness. One process plays all of them.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner

from dure.charter.log_keys import log_key, witness_name
from dure.cli import main
from dure.identity.node import NodeIdentity, load_node
from dure.tlog.checkpoint import open_checkpoint
from dure.tlog.witness import AddCheckpoint, answer
from dure.wire.messages import DirectiveKind
from dure_demo.consortium import Consortium, StepFailed
from dure_participant.transport import Line

ARRIVE_DEADLINE_S = 120.0


class QuickConsortium(Consortium):
    """The same commands without a new interpreter for each: a hundred members are founded in seconds."""

    def dure(self, *arguments: str | Path, timeout_s: float = 30.0) -> str:
        done = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="dure")
        if done.exit_code != 0:
            raise StepFailed(f"`dure {' '.join(map(str, arguments))}` exited with {done.exit_code}: {done.output.strip()}")
        return done.stdout


Arrival = tuple[bytes, DirectiveKind]


@dataclass
class Crowd:
    """All the nodes of a consortium; `arrived[(run, kind)]` is when each of them got that directive (monotonic seconds by member)."""

    identities: list[NodeIdentity]
    arrived: dict[Arrival, dict[str, float]] = field(default_factory=dict)
    following: int = 0
    cosigned: int = 0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, consortium: Consortium) -> Crowd:
        return cls([load_node(consortium.dir_of(f"{member}/node")) for member in consortium.members])

    async def start(self) -> None:
        """Connect everybody; returns when all follow.

        Raises:
            TimeoutError: some could not in time.
        """
        self._tasks = [asyncio.create_task(self._node(identity)) for identity in self.identities]
        async with asyncio.timeout(ARRIVE_DEADLINE_S):
            while self.following < len(self.identities):
                self._check()
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def all_got(self, run: bytes, kind: DirectiveKind, timeout_s: float = 60.0) -> dict[str, float]:
        """When each node got this directive; waits for the last."""
        async with asyncio.timeout(timeout_s):
            while len(found := self.arrived.setdefault((run, kind), {})) < len(self.identities):
                self._check()
                self._news.clear()
                await self._news.wait()
        return found

    def _check(self) -> None:
        """Raises what ended a node, if one ended."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def _node(self, identity: NodeIdentity) -> None:
        line = Line(identity)
        try:
            await line.hello()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(line, identity.member))
                group.create_task(self._witness(line, identity))
        finally:
            self._news.set()
            await line.close()

    async def _follow(self, line: Line, member: str) -> None:
        self.following += 1
        async for directive in line.follow():
            self.arrived.setdefault((directive.run, directive.kind), {}).setdefault(member, time.monotonic())
            self._news.set()

    async def _witness(self, line: Line, identity: NodeIdentity) -> None:
        terms = identity.charter.terms
        name, key = witness_name(identity.charter.member(identity.member).host), identity.witness_key

        async def cosign(request: bytes, _entries: tuple[bytes, ...]) -> tuple[int, bytes]:
            head = open_checkpoint(AddCheckpoint.from_bytes(request).checkpoint, log_key(terms)).checkpoint
            self.cosigned += 1
            return 200, answer(head, name, key, int(time.time()))

        await line.witness(cosign, lambda _head: None)
