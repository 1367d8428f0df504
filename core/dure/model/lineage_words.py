"""How far a run's bases can be followed, in words; apart from the steps themselves, which are numpy's."""

from __future__ import annotations


def lineage(step: str) -> str:
    """Who vouches for the bases of a run whose plan names this outer step (`none`: the ServerApp chooses), for people."""
    return "signed by the coordinator, not recomputed" if step == "none" else f"recomputed by every member ({step})"
