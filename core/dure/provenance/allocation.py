"""Allocations: how something is shared out among members by the contributions they cite. Whole numbers only: nobody rounds otherwise.

A table of contributions is a pure function of the first `log_size` entries of the log: whoever has them makes it again, and the portions
too, where a column of it is their basis. What members agreed on instead is theirs to say: signed, and nothing can prove it. No I/O.
Source: docs/spec/ledger.md, "Allocations".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

from dure.charter.model import Charter
from dure.errors import BadInput, Refused
from dure.provenance.contributions import SELF_DECLARED, Row
from dure.statements import schema
from dure.statements.dsse import canonical_json
from dure.statements.kinds import Allocation, Portion

AGREED = "agreed"
BASES = ("counted", "accepted", "tokens", "steps", "milliseconds", "bytes_up")
"""Columns of the table that can be the basis: whole numbers, one per member and run."""
TABLE_VERSION = 2
"""Of the table's form; one more for every change of what a row has."""


def table_sha256(rows: Sequence[Row]) -> bytes:
    """The digest that an allocation cites: of the table's canonical JSON, every row with all its fields."""
    return sha256(canonical_json({"v": TABLE_VERSION, "rows": [schema.encode(row) for row in rows]})).digest()


def sums(rows: Sequence[Row], basis: str) -> dict[str, int]:
    """That column added up over the runs, by member in bytewise order; every member that is in the table."""
    found = dict.fromkeys(sorted({row.member for row in rows}), 0)
    for row in rows:
        found[row.member] += int(getattr(row, basis))
    return found


def shared_out(whole: int, among: Mapping[str, int]) -> tuple[Portion, ...]:
    """The whole in proportion, in whole parts that add up to it (largest remainder; of two equal ones the first member's).

    Raises:
        BadInput: there is nothing to go by.
    """
    total = sum(among.values())
    if total <= 0:
        raise BadInput("the table has nothing in this column to share out by; choose another --by, or give --portion")
    parts = {member: whole * value // total for member, value in among.items()}
    left = whole - sum(parts.values())
    for member in sorted(among, key=lambda m: (-(whole * among[m] % total), m))[:left]:
        parts[member] += 1
    return tuple(Portion(member, parts[member]) for member in sorted(parts))


def check_portions(said: Allocation) -> None:
    """That members and runs stand once and in order, and that the parts are the whole.

    Raises:
        Refused: names the field.
    """
    names = [portion.member for portion in said.portions]
    if names != sorted(set(names)):
        raise Refused("portions", "must name each member once, in bytewise order")
    if list(said.runs) != sorted(set(said.runs)):
        raise Refused("runs", "must name each run once, ascending")
    parts = sum(portion.parts for portion in said.portions)
    if parts != said.whole:
        raise Refused("portions", f"add up to {parts}, not to the whole of {said.whole}")
    if said.begun_from >= said.begun_before:
        raise Refused("begun_before", "must be after begun_from")


def check_members(said: Allocation, versions: Sequence[Charter]) -> None:
    """That all who get a part were members under one of these versions.

    Raises:
        Refused: names the first who was not.
    """
    strangers = {portion.member for portion in said.portions} - {m.id for version in versions for m in version.members}
    if strangers:
        raise Refused("portions", f"name somebody who never was a member: {min(strangers)}")


def differs(said: Allocation, rows: Sequence[Row]) -> str:
    """What of an allocation does not follow from the table at its head; "" where all of it does that can.

    Args:
        rows: made again from the log, of the runs and the time that it names.
    """
    if table_sha256(rows) != said.table_sha256:
        return "the table of contributions at its head is another one than it cites"
    if said.basis == AGREED:
        return ""
    among = sums(rows, said.basis)
    if not any(among.values()):
        return f"its portions follow from nothing: nobody in the table has any {said.basis}"
    if shared_out(said.whole, among) != said.portions:
        return f"its portions are not the whole in proportion to {said.basis}"
    return ""


def shown_by(said: Allocation) -> str:
    """How far a table that agrees shows the portions, in words."""
    if said.basis == AGREED:
        return "the table is proved; the portions are what members agreed on, signed"
    own_word = f"; {said.basis} is each member's own word" if said.basis in SELF_DECLARED or said.basis == "milliseconds" else ""
    return f"table and portions are proved{own_word}"
