"""What training took from the mains, as far as a node can say: the site's word on its power, or the counters of NVIDIA devices."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import structlog

from dure.statements.kinds import Energy
from dure_participant.settings import NodeSettings

MOST_MILLIJOULES = 2**53
LIBRARY = "libnvidia-ml.so.1"
ASK_S = 30.0
"""Longest wait for the counters; to begin takes seconds where no daemon keeps the driver loaded."""

log = structlog.get_logger()


@dataclass
class Counters:
    """One node's devices. They are asked in a thread: a driver takes its time, and one that hangs must not end this node's training, nor
    keep it from its log and its coordinator."""

    asks: bool
    """Turned off by a driver that gave no answer: the thread that waits for it is lost."""
    count: Callable[[], int | None]

    async def read(self) -> int | None:
        """Millijoules so far; None where nobody counts."""
        if not self.asks:
            return None
        try:
            return await asyncio.wait_for(asyncio.to_thread(self.count), ASK_S)
        except TimeoutError:
            self.asks = False
            log.warning("energy.no_answer", seconds=ASK_S, reason="usage statements say no energy until this node starts anew")
            return None


def counters_of(settings: NodeSettings) -> Counters:
    """Asked only where the site does not say what it draws, and trains on something that may count."""
    return Counters(settings.device != "cpu" and not settings.watts, counted_millijoules)


def energy_of(settings: NodeSettings, milliseconds: int, before: int | None, after: int | None) -> Energy | None:
    """Of a training that lasted so long. None where nobody knows.

    Args:
        before, after: the devices' counters, in millijoules; None where there are none.
    """
    if settings.watts:
        found, source = round(settings.watts * milliseconds), "declared"
    else:
        found, source = (after - before if before is not None and after is not None else 0), "nvml"
    return Energy(found, source) if 0 < found <= MOST_MILLIJOULES else None


def counted_millijoules(library: Any = None) -> int | None:
    """What all NVIDIA devices of this machine took since their driver was loaded; None where one of them does not count, or none is there.

    Source: NVML, nvmlDeviceGetTotalEnergyConsumption (Volta and newer).
    """
    with suppress(AttributeError):  # a library that is older than one of these calls
        return _sum(library if library is not None else _nvml())
    return None


def _sum(nvml: Any) -> int | None:
    count, total = ctypes.c_uint(), 0
    if nvml is None or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) or not count.value:
        return None
    for index in range(count.value):
        device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
            return None
        if nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
            return None
        total += millijoules.value
    return total


@lru_cache(maxsize=1)
def _nvml() -> Any:
    """The library, begun; None where it is not installed."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(LIBRARY)
        if library.nvmlInit_v2() == 0:
            return library
    return None
