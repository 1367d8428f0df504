"""Which survivor sets may be opened on one base: two sums whose sets differ by few members tell what those few sent.

Source: secure-aggregation.md §5 rule 2, "New run". Sets are of one base (weights id), category and purpose; voided instances do not count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from dure.secagg.thresholds import difference_allowed

MOST_SETS = 2
"""Three sets that differ pairwise by many can still isolate one member."""


def why_not(candidate: Collection[str], earlier: Iterable[Collection[str]], c: int) -> str:
    """Why this set may not be signed, or revealed for, after these; "" if it may.

    Args:
        earlier: the survivor set of every instance that was or may have been opened.
        c: colluders assumed.
    """
    before = {frozenset(u) for u in earlier}
    mine = frozenset(candidate)
    for u in sorted(before, key=sorted):
        if not difference_allowed(mine, u, c):
            apart = ", ".join(sorted(mine ^ u))
            return f"it differs from an earlier sum's survivors by {apart} only, and at least {c + 2} members must lie between two sums"
    if mine not in before and len(before) >= MOST_SETS:
        return f"{len(before)} different survivor sets were opened on these weights already, and a third could isolate a member"
    return ""


def choose(committed: Sequence[str], earlier: Iterable[Collection[str]], c: int, u_min: int) -> tuple[str, ...] | None:
    """The survivors among those who committed that members will sign: all of them, else an earlier set that is there whole.

    Returns:
        in the order of `committed`; None while there is no such set.
    """
    before = [frozenset(u) for u in earlier]
    candidates = [frozenset(committed), *sorted(before, key=lambda u: (-len(u), sorted(u)))]
    for u in candidates:
        if len(u) >= u_min and u <= set(committed) and not why_not(u, before, c):
            return tuple(m for m in committed if m in u)
    return None


def one_set_only(r: int, u_min: int, c: int) -> bool:
    """Whether any two different survivor sets of these r members are too alike, so that every sum on the base has the same one."""
    return 2 * (r - u_min) < c + 2
