"""What the mirror said when it cosigned last, as the daemon notes it and commands read it."""

from __future__ import annotations

from dure_participant.log.following import Followed
from dure_participant.store import NodeStore

FACT = "mirror"


def noted(store: NodeStore) -> Followed:
    """What a node's mirror says, as noted with the head cosigned last; nothing where there is no note that can be read."""
    try:
        return Followed.from_json(store.fact(FACT) or {})
    except (KeyError, ValueError, TypeError, AttributeError):
        return Followed()
