"""How many must be there: survivors, shares, voids, votes.

r = members in the run's roster, m = members in an instance's cohort, c = colluders assumed. Source: secure-aggregation.md §1 and §5 rule 2.
"""

from __future__ import annotations

from collections.abc import Collection

from dure.secagg.errors import BelowThreshold, OutOfRange

MAX_COHORT = 100
"""Shamir would carry 255; the ring keeps its precision to here."""


def default_colluders(members: int) -> int:
    """c where the charter does not say: a third of the members, at least one."""
    return max(1, (members - 1) // 3)


def u_min(r: int, c: int) -> int:
    """Fewest survivors of a sum. 2·u_min > r + c: two sums on one base share an honest member, who contributes once."""
    return max((r + c) // 2 + 1, c + 2, 3)


def share_threshold(m: int, c: int) -> int:
    """t: shares that open a secret, and signatures of a certificate. 2t > m + c: two certificates share an honest member."""
    return max((m + c) // 2 + 1, c + 1)


def voids_needed(m: int, c: int) -> int:
    """V: voids after which, even if c of them lie, fewer than t shares remain."""
    return m + c - share_threshold(m, c) + 1


def dropouts_survived(r: int, c: int) -> int:
    """How many of r members may be silent without an exchange failing."""
    return r - u_min(r, c)


def votes_allowed(k: int, members: int, c: int) -> bool:
    """Whether k votes can neither be reached by colluders alone nor be blocked by them."""
    return c + 1 <= k <= members - c


def difference_allowed(one: Collection[str], other: Collection[str], c: int) -> bool:
    """Whether two survivor sets on one base may both be opened: equal, or at least c + 2 apart (so no honest member stands alone)."""
    apart = len(set(one) ^ set(other))
    return apart == 0 or apart >= c + 2


def check_votes(k: int, members: int, c: int) -> None:
    """`OutOfRange` unless colluders alone can neither decide nor block."""
    if not votes_allowed(k, members, c):
        raise OutOfRange("votes", f"must lie in {c + 1}…{members - c} ({members} members, {c} colluders), is {k}")


def check_cohort(m: int, r: int, c: int) -> None:
    """`BelowThreshold` for a cohort from which no sum may be opened; `OutOfRange` for an impossible one."""
    if c < 1:
        raise OutOfRange("colluders", f"at least 1, is {c}")
    if not m <= r <= MAX_COHORT:
        raise OutOfRange("cohort", f"at most {min(r, MAX_COHORT)} members, has {m}")
    if m < u_min(r, c):
        raise BelowThreshold(m, u_min(r, c), "members in the cohort")
