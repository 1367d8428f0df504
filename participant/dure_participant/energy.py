"""What training took from the mains, as far as a node can say: the site's word on its power, or the counters of NVIDIA devices."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import lru_cache
from typing import Any

from dure.statements.kinds import Energy
from dure_participant.settings import NodeSettings

MOST_MILLIJOULES = 2**53
LIBRARY = "libnvidia-ml.so.1"


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
    nvml = library if library is not None else _nvml()
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
