"""One function over many pieces of work in several processes; results come in the order of the work, whatever the number of processes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from dure.errors import Unavailable

W = TypeVar("W")
R = TypeVar("R")

AHEAD = 2
"""Pieces given out beyond one for each process, so that none waits while results are looked at."""


def available() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[W], R], pieces: Iterable[W], cores: int) -> Iterator[R]:
    """The results of the pieces, each taken from `pieces` only when it is about to be worked on.

    Args:
        work: importable by name; it runs in other processes where `cores` is above 1.

    Raises:
        Unavailable: a process was ended from outside.
    """
    with _collector_at_rest():
        yield from map(work, pieces) if cores <= 1 else _in_processes(work, pieces, cores)


def _in_processes(work: Callable[[W], R], pieces: Iterable[W], cores: int) -> Iterator[R]:
    waiting: deque[Future[bytes]] = deque()
    pool = ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        for piece in pieces:
            waiting.append(pool.submit(_written, work, piece))
            if len(waiting) >= cores + AHEAD:
                yield pickle.loads(waiting.popleft().result())  # noqa: S301 -- what our own process wrote
        while waiting:
            yield pickle.loads(waiting.popleft().result())  # noqa: S301 -- likewise
    except BrokenProcessPool:
        raise Unavailable(
            "a process of this command was ended from outside, for lack of memory perhaps; try again with --cores 1"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Entries on their way refer to nothing that refers to them: looking for cycles among them is 3 % of an audit, and finds none."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _begin() -> None:
    """A child's first step. A key press that ends the command is the parent's affair: children would only print over each other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()


def _written(work: Callable[[W], R], piece: W) -> bytes:
    """A result as bytes: the pool's own thread passes them on, and need not stop the one that looks at results in order to read them."""
    return pickle.dumps(work(piece), pickle.HIGHEST_PROTOCOL)
