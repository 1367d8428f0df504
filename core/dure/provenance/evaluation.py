"""What an opened sum says in words: the metrics that members measured together on one model. Pure; whoever has the log gets the same.

What one member measured is secret: it is summed under masks and opened only as a weighted mean (ledger.md §8). So `eval` is the
coordinator's statement over what the members accepted, and nothing in it is not in the log already. Source: docs/spec/ledger.md,
"Evaluations".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

from dure.secagg.encode import WEIGHT_BITS, Totals, decode_trailer, from_words, num_examples
from dure.statements.kinds import Eval, Measured

CATEGORY = "evaluate"
MOST_MEMBERS = 255
"""In one sum."""
MOST_DATA = 128
"""Data commitments that one statement names; of more, those with the smallest digests."""


def totals_of(trailer: Sequence[int], names: Sequence[str]) -> Totals | None:
    """What an opened trailer says; None where no members' weights come to that, or it is not as long as its names need.

    What a member puts into its trailer nobody sees but in the sum: a weight that is none must not become a number of examples that no
    statement may have, nor end whatever reads the log later. Nor must a coordinator that signs another trailer than its own instance-open
    asks for.
    """
    values = from_words(trailer)
    likely = len(values) == 3 + len(names) and 0 <= values[0] <= MOST_MEMBERS and 0 < values[1] <= MOST_MEMBERS << WEIGHT_BITS
    return decode_trailer(values, names) if likely else None


def decimal(value: float) -> str:
    """The shortest decimal that reads back as this float64, without an exponent."""
    return format(Decimal(repr(value)), "f")


def evaluation(
    *,
    run: bytes,
    exchange: int,
    weights_id: bytes,
    aggregate_sha256: bytes,
    members: Iterable[str],
    names: Sequence[str],
    trailer: Sequence[int],
    w_max: int,
    data: Iterable[bytes],
) -> Eval | None:
    """The statement that belongs to an opened sum of an evaluate exchange; None where it says nothing (`totals_of`).

    Args:
        members: whose sum it is.
        names, trailer: as its instance-open and its instance-aggregate have them.
        data: data commitments that the counted members' usage statements name: payload digests, in any order.
    """
    totals = totals_of(trailer, names)
    if totals is None:
        return None
    return Eval(
        run=run,
        exchange=exchange,
        weights_id=weights_id,
        aggregate_sha256=aggregate_sha256,
        members=tuple(sorted(members)),
        examples=num_examples(totals.sum_w_int, w_max),
        metrics=tuple(Measured(name, decimal(value)) for name, value in sorted(totals.metrics.items())),
        data=tuple(sorted(set(data)))[:MOST_DATA],
    )
