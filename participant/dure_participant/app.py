"""Wiring of a node process: logs, signals, identity, store, agent. The only place that reads the environment."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dure import failpoints
from dure.errors import NotAuthorised, Unavailable
from dure.identity.node import load_node
from dure.logs import configure_logs
from dure.memory import keep_freed_memory
from dure.scrape import serve_metrics
from dure_participant.agent import Agent
from dure_participant.metrics import samples
from dure_participant.settings import load
from dure_participant.store import NodeStore

STORE = "node.sqlite"


def open_store(directory: Path) -> NodeStore:
    """The node's store in its folder."""
    return NodeStore(directory / STORE)


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Two agents on one folder would speak with one key at once.

    Raises:
        Unavailable: another process runs this node.
    """
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"another process runs the node in {directory}; stop it first") from None
        yield


def is_running(directory: Path) -> bool:
    """Whether a process runs the node of this folder."""
    try:
        with (directory / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def run(directory: Path, metrics: str | None = None) -> None:
    """Run the node until SIGTERM or SIGINT; everything it knew is then in its folder. `metrics`: port of the Prometheus scrape.

    Raises:
        NotAuthorised: its member left, or has other keys by now.
    """
    configure_logs()
    keep_freed_memory()
    # Chunk work in threads and gRPC in the event loop share the interpreter; 5 ms turns would starve the streams.
    sys.setswitchinterval(0.0005)
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    identity = load_node(directory)
    if identity.ended:
        raise NotAuthorised(identity.ended)
    settings = load(directory)
    with only_one(directory):
        store = open_store(directory)
        try:
            if metrics is not None:
                print(f"metrics  http://{serve_metrics(metrics, lambda: samples(identity, store))}/metrics", flush=True)
            asyncio.run(_until_signal(Agent(identity, settings, store, time.time), settings.drain_s))
        finally:
            with contextlib.suppress(Unavailable):
                last = store.fact("connection") or {}
                store.set_fact("connection", {**last, "state": "stopped", "since": time.time()})
            store.close()


async def _until_signal(agent: Agent, drain_s: float) -> None:
    """The first signal drains, the second stops at once; either way the store has everything."""
    serving = asyncio.create_task(agent.run())
    leaving: asyncio.Task[None] | None = None

    def signalled() -> None:
        nonlocal leaving
        if leaving is not None:
            leaving.cancel()
        else:
            leaving = asyncio.create_task(agent.drain(drain_s))
            leaving.add_done_callback(lambda _: serving.cancel())

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled)
    with contextlib.suppress(asyncio.CancelledError):
        await serving
