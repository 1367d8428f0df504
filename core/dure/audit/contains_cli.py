"""`dure log contains`: which exchanges and releases contain a member's work or a data set, each with proofs; from any copy of the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dure.audit import bundle as bundles
from dure.audit.places import log_of
from dure.audit.reading import verified
from dure.charter import root as charter_root
from dure.charter.model import Charter
from dure.console import DEFAULT_DIR, AsJson, Dir, one_line_errors, say, show_json
from dure.errors import BadInput
from dure.provenance.contains import Answer
from dure.provenance.contains import contains as find
from dure.tlog.merkle import inclusion_proof
from dure.tlog.proof import TlogProof
from dure.tlog.tiles import TiledTree


@dataclass(frozen=True)
class Source:
    """A copy of the log, whoever's."""

    tree: TiledTree
    size: int
    """Entries under the cosigned head."""
    note: bytes
    """That head, signatures and all."""
    versions: Sequence[Charter]


@one_line_errors
def contains(
    member: Annotated[str, typer.Option("--member", metavar="ID", help="Whose work.")] = "",
    data: Annotated[str, typer.Option("--data", metavar="NAME|DIGEST", help="Which data set: its commitment's name or digest.")] = "",
    folder: Annotated[Path | None, typer.Option("--bundle", help="Ask a bundle instead; it is verified first.")] = None,
    pin: Annotated[str, typer.Option("--root-sha256", help="With --bundle: 64 hex digits, charter version 1.")] = "",
    directory: Dir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Which exchanges and releases contain a member's work, or a data set, with the entries that show it.

    The coordinator, a member's node (its own mirror) and a bundle give the same answer. With --json each entry comes with its C2SP
    tlog-proof, so that the reader need not trust who answers: `dure log verify` checks them one by one.

    Example: dure log contains --member krafton --dir skt/node --json
    """
    if bool(member) == bool(data):
        raise BadInput("give --member ID or --data NAME, one of the two")
    source = of_bundle(folder, pin) if folder is not None else _here(directory)
    if member and not any(m.id == member for version in source.versions for m in version.members):
        known = sorted({m.id for version in source.versions for m in version.members})
        raise BadInput(f"--member {member}: no charter version has such a member; there are {', '.join(known)}")
    answer = find(verified(source.tree.entries(0, source.size), source.versions), member=member, data=data)
    if data and not answer.data:
        raise BadInput(f"--data {data}: no data commitment of that name or digest is among the log's {source.size} entries")
    if as_json:
        show_json(
            {"member": member or None, "data": data or None, **as_dict(answer), "size": source.size, "proofs": proofs(answer, source)}
        )
    else:
        _tell(answer, member or data)


def _here(directory: Path) -> Source:
    place = log_of(directory)
    head = place.head()
    return Source(place.tree(), head.checkpoint.size, head.note.to_bytes(), place.charters)


def of_bundle(folder: Path, pin: str) -> Source:
    """Raises what `dure audit verify` would: an answer from a bundle that does not hold is none."""
    from dure.audit.cli import pin_of
    from dure.audit.contributions_cli import must_hold
    from dure.audit.level1 import verify

    bundle, wanted = bundles.Bundle.open(folder), pin_of(pin)
    result = verify(bundle, wanted)
    must_hold(result)
    versions = charter_root.walk_all(bundle.roots(), wanted)
    tree = TiledTree(lambda path: bundle.read(f"{bundles.LOG}/{path}"), result.size)
    return Source(tree, result.size, bundle.read(f"{bundles.LOG}/checkpoint"), versions)


def as_dict(answer: Answer) -> dict[str, Any]:
    """The answer for scripts, without the proofs."""
    return {
        "exchanges": [
            {
                "run": e.run.hex(),
                "app": e.app,
                "exchange": e.exchange,
                "category": e.category,
                "members": list(e.members),
                "entries": list(e.entries),
            }
            for e in answer.exchanges
        ],
        "releases": [
            {"name": r.name, "run": r.run.hex(), "exchange": r.exchange, "through_run": r.through.hex(), "entry": r.entry}
            for r in answer.releases
        ],
        "data_commitments": list(answer.data),
    }


def proofs(answer: Answer, source: Source) -> list[dict[str, Any]]:
    """Every entry that is evidence, verbatim, and its proof under the cosigned head."""
    node = source.tree.node
    return [
        {
            "index": index,
            "entry": source.tree.entry(index).decode(),
            "tlog_proof": TlogProof(index, tuple(inclusion_proof(node, index, source.size)), source.note).to_bytes().decode(),
        }
        for index in answer.entries
    ]


def _tell(answer: Answer, asked: str) -> None:
    for e in answer.exchanges:
        who = f" (of {', '.join(e.members)})" if asked not in e.members else ""
        say(f"run {e.run.hex()[:12]} {e.app}, exchange {e.exchange} ({e.category}){who}: entries {', '.join(map(str, e.entries))}")
    for r in answer.releases:
        through = f", which began with the model of run {r.through.hex()[:12]}" if r.through != r.run else ""
        say(f"release {r.name}: run {r.run.hex()[:12]} after exchange {r.exchange}{through}: entry {r.entry}")
    say(f"{asked} is in {len(answer.exchanges)} exchanges and {len(answer.releases)} releases; --json has every entry and its proof")
