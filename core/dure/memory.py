"""What the C library does with memory that is given back.

By default it returns every buffer of a chunk's size to the kernel at once, which clears its pages and maps them again for the next chunk:
at half a MiB per message that costs more than masking. Source: mallopt(3).
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
KEPT_BYTES = 64 << 20
"""Free memory kept for the next chunk."""
LARGEST_KEPT_BYTES = 32 << 20
"""Larger buffers still come from the kernel and go back to it; glibc takes no higher number."""
ARENAS = 2
"""Each keeps its own free memory; threads share them."""


def keep_freed_memory() -> None:
    """Once, at the start of a process that moves chunks, before its threads. Another C library than glibc is left as it is."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for name, value in ((_MMAP_THRESHOLD, LARGEST_KEPT_BYTES), (_TRIM_THRESHOLD, KEPT_BYTES), (_ARENA_MAX, ARENAS)):
        mallopt(name, value)
