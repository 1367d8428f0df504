"""How much room for masked uploads a run has beside the others: a quota for all, a bound per run, and a reserve no other run can take."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Quotas:
    """Bytes, from the settings."""

    all_bytes: int
    """Of all uploads together."""
    run_bytes: int = 0
    """Most of one run; 0: only `all_bytes` bounds it."""
    reserve_bytes: int = 0
    """What every open run is sure of, at most its equal share of `all_bytes`: a small run goes on however much a large one keeps."""


def room_of(run: bytes, quotas: Quotas, used: Mapping[bytes, int], open_runs: Collection[bytes]) -> tuple[int, str]:
    """(bytes this run may still add, what bounds it in words).

    Args:
        used: bytes by run, of runs that are over as well: their uploads stay until the challenge window has closed.
        open_runs: those whose reserve counts; this one may be among them.
    """
    reserve = min(quotas.reserve_bytes, quotas.all_bytes // max(1, len({*open_runs, run})))
    kept_free = sum(max(0, reserve - used.get(other, 0)) for other in open_runs if other != run)
    room = quotas.all_bytes - sum(used.values()) - kept_free
    why = "of the quota (spool_quota_bytes)"
    if kept_free:
        why += f", {kept_free} bytes of which are kept for other open runs (run_reserve_bytes)"
    if quotas.run_bytes and quotas.run_bytes - used.get(run, 0) < room:
        room, why = quotas.run_bytes - used.get(run, 0), "of what one run may keep (run_quota_bytes)"
    return max(0, room), why
