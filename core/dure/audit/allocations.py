"""Allocations against a log: the table they cite made again at the head they name, and the entry that publishes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dure.audit.reading import verified
from dure.charter.model import Charter
from dure.errors import BadInput, Refused, Unavailable
from dure.identity.files import read
from dure.provenance.allocation import check_members, check_portions, differs
from dure.provenance.attestation import check_published, read_statement
from dure.provenance.contributions import Row, contributions
from dure.statements.kinds import Allocation, AllocationPublished, CharterVersion
from dure.tlog.merkle import root_at
from dure.tlog.tiles import TiledTree

WHAT = "an allocation, made with `dure allocation draft`"


@dataclass(frozen=True)
class Found:
    """An allocation, and where a log has it."""

    said: Allocation
    statement: bytes
    entry: int | None = None
    """Index of the entry that publishes it; None: no entry does."""
    signers: tuple[str, ...] = ()


def load(path: Path) -> Found:
    """The allocation in a file.

    Raises:
        BadInput: there is no such file.
        Refused: it holds no allocation; names the field.
    """
    raw = read(path, WHAT)
    said = read_statement(raw, Allocation)
    check_portions(said)
    return Found(said, raw)


def find(asked: str, tree: TiledTree, versions: Sequence[Charter]) -> Found:
    """An allocation by its file, or by the name under which this log publishes it, and the entry in either case.

    Raises:
        BadInput: no such file, and no allocation of that name in the log, or several.
        Refused: names the first entry that does not hold.
    """
    path = Path(asked)
    mine = load(path) if path.is_file() else None
    entered, found = 0, list[Found]()
    for index, signed in enumerate(verified(tree.entries(), versions)):
        entered += isinstance(signed.fact, CharterVersion)
        if isinstance(signed.fact, AllocationPublished):
            statement = signed.fact.statement.encode()
            said = read_statement(statement, Allocation)
            if (statement == mine.statement) if mine else (said.name == asked):
                check_portions(said)
                check_published(signed.fact, versions[:entered])
                found.append(Found(said, statement, index, tuple(s.member for s in signed.fact.signatures)))
    if mine is not None:
        return found[0] if found else mine
    if not found:
        raise BadInput(f"{asked}: is no file, and no allocation of that name is in the log")
    if len(found) > 1:  # what is said of one would be taken for a word on the other
        entries = ", ".join(str(one.entry) for one in found)
        raise BadInput(f"{asked}: is the name of several allocations, entries {entries}; give the file of the one that is meant")
    return found[0]


def table_at(tree: TiledTree, versions: Sequence[Charter], said: Allocation) -> tuple[Row, ...]:
    """The contributions that an allocation cites, made again from this log.

    Raises:
        Unavailable: the log here has not so many entries yet.
        Refused: it cites a head that this log never had, or a run that had no plan then; or names the first entry that does not hold.
    """
    if said.log_size > tree.size:
        raise Unavailable(f"the log here has {tree.size} entries, the allocation cites {said.log_size}; let the node catch up")
    if not said.log_size or root_at(tree.node, said.log_size) != said.log_root:
        raise Refused("log_root", "is of another history than the log here")
    wanted, span = frozenset(said.runs), (said.begun_from, said.begun_before)
    rows = contributions(verified(tree.entries(0, said.log_size), versions), runs=lambda run, _plan: run in wanted, span=span)
    if missing := wanted - {row.run for row in rows}:
        raise Refused("runs", f"{min(missing).hex()[:12]} has no plan in the log at the head that is cited")
    return rows


def must_match(tree: TiledTree, versions: Sequence[Charter], said: Allocation) -> tuple[Row, ...]:
    """As `table_at`; Refused, too, where the allocation does not follow from the table, or names somebody who never was a member."""
    check_members(said, versions)
    rows = table_at(tree, versions, said)
    if wrong := differs(said, rows):
        raise Refused(f"allocation {said.name}", wrong)
    return rows
