"""The members' witnesses as the publisher reaches them: over the stream their node opened, or over HTTP. The bytes are the same."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from dure.errors import Unavailable
from dure.tlog.witness import MAX_ANSWER_BYTES, refusal_of
from dure_coordinator.log.publisher import ASK_S, Witness


class StreamWitness:
    """One node's witness, as long as its stream lasts. One head is asked about at a time."""

    def __init__(self) -> None:
        self._number = 0
        self._asked: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    async def add_checkpoint(self, request: bytes) -> bytes:
        """As `Witness.add_checkpoint`."""
        self._number += 1
        number = self._number
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            while not self._asked.empty():  # nobody waits for those any more; a node that stops reading must not pile heads up here
                self._asked.get_nowait()
            self._asked.put_nowait((number, request))
            return await answer
        finally:
            del self._waiting[number]

    async def next(self) -> tuple[int, bytes]:
        """What is to be sent next."""
        return await self._asked.get()

    def answer(self, number: int, status: int, body: bytes) -> None:
        """What came back; an answer nobody waits for any more is dropped."""
        waiting = self._waiting.get(number)
        if waiting is None or waiting.done():
            return
        if status == 200:
            waiting.set_result(body)
            return
        waiting.set_exception(refusal_of(status, body))

    def gone(self) -> None:
        """The stream ended."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("went away"))


@dataclass(frozen=True)
class HttpWitness:
    """A witness outside the members' port, as c2sp.org/tlog-witness has it."""

    submission_prefix: str
    """URL before `/add-checkpoint`."""

    async def add_checkpoint(self, request: bytes) -> bytes:
        """As `Witness.add_checkpoint`."""
        return await asyncio.to_thread(self._post, request)

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(f"{self.submission_prefix}/add-checkpoint", data=body, method="POST")  # noqa: S310  # the operator's URL
        try:
            with urllib.request.urlopen(request, timeout=ASK_S) as answer:  # noqa: S310
                return bytes(answer.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise refusal_of(error.code, error.read(MAX_ANSWER_BYTES)) from None
        except (OSError, ValueError) as error:
            raise Unavailable(f"{self.submission_prefix}: {error}") from None


@dataclass
class Witnesses:
    """Who can be asked now, by key name."""

    streams: dict[str, StreamWitness] = field(default_factory=dict)
    fixed: Mapping[str, Witness] = field(default_factory=dict)
    """HTTP witnesses of members that run theirs outside the node."""

    def arrive(self, name: str) -> StreamWitness:
        """This member's witness is here; an older stream of it is over."""
        with contextlib.suppress(KeyError):
            self.streams.pop(name).gone()
        made = self.streams[name] = StreamWitness()
        return made

    def leave(self, name: str, witness: StreamWitness) -> None:
        witness.gone()
        if self.streams.get(name) is witness:
            del self.streams[name]

    def reach(self) -> Mapping[str, Witness]:
        return {**self.streams, **self.fixed}
