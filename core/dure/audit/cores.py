"""One function over many pieces of work in several processes; results come in the order of the work, whatever the number of processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
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
    if cores <= 1:
        yield from map(work, pieces)
        return
    waiting: deque[Future[bytes]] = deque()
    # A key press that ends the command is the parent's affair: children would only print over each other.
    spawn, quiet = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(cores, mp_context=spawn, initializer=signal.signal, initargs=quiet)
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


def _written(work: Callable[[W], R], piece: W) -> bytes:
    """A result as bytes: the pool's own thread passes them on, and need not stop the one that looks at results in order to read them."""
    return pickle.dumps(work(piece), pickle.HIGHEST_PROTOCOL)
