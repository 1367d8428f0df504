"""What the worker brought, looked at before anybody says "ready": the agent's own checks, outside user code."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dure.errors import DureError
from dure.model.layout import CHUNK_ELEMENTS, Layout
from dure.model.weights import check_padding, open_flat, shown_part
from dure.secagg.encode import weight_of
from dure.secagg.scales import LEVELS

REACH = np.float32(2.0 ** LEVELS[-1])
"""|x·ŵ| a member may bring stays below; who reaches it sits out (secure-aggregation.md §6)."""


def why_not(base: Path, local: Path, layout: Layout, *, weight: float, w_max: int) -> str:
    """Why this update cannot be sent, naming tensor and value; "" where it can. Chunk by chunk; runs in a thread."""
    try:
        w_hat = weight_of(weight, w_max).w_hat
        before, after = open_flat(base, layout), open_flat(local, layout)
        check_padding(after, layout)
    except DureError as error:
        return str(error)
    for first in range(0, layout.elements, CHUNK_ELEMENTS):
        part = slice(first, min(first + CHUNK_ELEMENTS, layout.elements))
        with np.errstate(all="ignore"):
            delta = after[part] - shown_part(before, layout, part)
            bad = np.flatnonzero(~(np.abs(delta * w_hat) < REACH))
        if bad.size:
            return _named(layout, first + int(bad[0]), float(after[first + int(bad[0])]), float(delta[int(bad[0])]))
    return ""


def _named(layout: Layout, index: int, value: float, moved: float) -> str:
    entry = layout.entry_at(index)
    name = f"tensor {entry.name}" if entry is not None else "padding"
    if not np.isfinite(value):
        return f"{name}: holds {value}; training diverged at this node, look at its loss"
    return f"{name}: moved by {moved:.3g}, too far to be summed (weighted, {REACH:g} or more); lower the learning rate"
