"""A coordinator that adds one to the first element of a chunk of every update's sum, and is honest in everything else. argv: folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from dure_coordinator import duties_done
from dure_coordinator.aggregate import Group, sum_spools
from dure_coordinator.app import serve

CHUNK = 0


def lying(spools: Any, group: Group, unmask: Any, out: Any, **how: Any) -> Any:
    """`sum_spools`, with the lie in what takes the masks off."""

    def take_off(k: int, part: Any) -> None:
        unmask(k, part)
        if group is Group.RING16 and k == CHUNK:
            part[:1] += np.uint16(1)

    return sum_spools(spools, group, take_off, out, **how)


if __name__ == "__main__":
    duties_done.sum_spools = lying
    serve(Path(sys.argv[1]), None)
