"""The members' witnesses as the publisher reaches them: over the stream their node opened, or over HTTP. The bytes are the same."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from dure.errors import BadInput, Unavailable
from dure.tlog.witness import MAX_ANSWER_BYTES, refusal_of
from dure.wire.log import HeadAsked
from dure_coordinator.log.publisher import ASK_S, Witness


@dataclass(frozen=True)
class Cosigned:
    """A head that the quorum cosigned."""

    head: bytes


MOST_TOLD = 4
"""Heads that wait for a node that does not read; newer ones it is not told of."""


class StreamWitness:
    """One node's witness, as long as its stream lasts. One head is asked about at a time."""

    def __init__(self) -> None:
        self._number = 0
        self._asked: asyncio.Queue[HeadAsked | Cosigned] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    async def add_checkpoint(self, request: bytes, entries: Sequence[bytes] = ()) -> bytes:
        """As `Witness.add_checkpoint`."""
        self._number += 1
        number = self._number
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            while not self._asked.empty():  # nobody waits for those any more; a node that stops reading must not pile heads up here
                self._asked.get_nowait()
            self._asked.put_nowait(HeadAsked(number, request, tuple(entries)))
            return await answer
        finally:
            del self._waiting[number]

    def tell(self, head: bytes) -> None:
        """The quorum cosigned this head; it is sent after what was asked before."""
        if self._asked.qsize() < MOST_TOLD:
            self._asked.put_nowait(Cosigned(head))

    async def next(self) -> HeadAsked | Cosigned:
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


class HttpWitness:
    """A witness outside the members' port, as c2sp.org/tlog-witness has it. Redirects are not followed.

    It has one thread of its own, so that one that drips its answer for ever holds up nobody but itself: whoever gives up on it has its
    connection cut, and until that has ended it is not asked again.

    Args:
        submission_prefix: http or https URL before `/add-checkpoint`.

    Raises:
        BadInput: not such a URL.
    """

    def __init__(self, submission_prefix: str) -> None:
        parts = urlsplit(submission_prefix)
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            self._host = ""
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.fragment or parts.username:
            raise BadInput(f"{submission_prefix!r} is no URL of a witness; write https://host/path, what comes before /add-checkpoint")
        self._tls, self._path = parts.scheme == "https", f"{parts.path.rstrip('/')}/add-checkpoint"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="witness")
        self._asked: Future[bytes] | None = None

    async def add_checkpoint(self, request: bytes, entries: Sequence[bytes] = ()) -> bytes:
        """As `Witness.add_checkpoint`; an outside witness fetches the entries itself, if it wants them."""
        if self._asked is not None and not self._asked.done():
            raise Unavailable("has not ended its answer to the head before")
        made = HTTPSConnection if self._tls else HTTPConnection
        post = _Post(made(self._host, self._port, timeout=ASK_S), self._path, request)
        self._asked = self._thread.submit(post)
        try:
            return await asyncio.wrap_future(self._asked)
        finally:
            post.give_up()


@dataclass
class _Post:
    """One request and its answer, in the witness's thread."""

    connection: HTTPConnection
    path: str
    body: bytes
    given_up: bool = False
    _socket: socket.socket | None = None

    def give_up(self) -> None:
        """From the event loop: what is still being read ends with an error. (Each reads of the other what it writes second.)"""
        self.given_up = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def __call__(self) -> bytes:
        try:
            self.connection.connect()
            self._socket = self.connection.sock
            if self.given_up:
                raise TimeoutError("given up")
            self.connection.request("POST", self.path, self.body, {"Content-Type": "application/octet-stream"})
            answer = self.connection.getresponse()
            said = answer.read(MAX_ANSWER_BYTES)
        except (OSError, HTTPException, ValueError) as error:
            raise Unavailable(f"{self.connection.host}: {error or type(error).__name__}") from None
        finally:
            self.connection.close()
        if answer.status != 200:
            raise refusal_of(answer.status, said)
        return said


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

    def tell(self, head: bytes) -> None:
        """The quorum cosigned this head: every node's mirror may keep it."""
        for witness in self.streams.values():
            witness.tell(head)

    def reach(self) -> Mapping[str, Witness]:
        return {**self.streams, **self.fixed}
