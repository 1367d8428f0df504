"""Level 1: the log alone. Signatures, quorum, order, commitments, acceptances, key validity by index, each signer's chain without gaps.

Streams the log's entries once, one bundle of 256 in memory; what it remembers grows with the number of instances and acceptances, not with
bytes. Nothing is believed but the 32-byte pin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dure.audit.bundle import LOG, Bundle, PartMissing, root_names
from dure.audit.history import History
from dure.audit.keys import Keys
from dure.audit.parts import PART
from dure.charter import root as charter_root
from dure.charter.log_keys import log_key, witness_keys, witness_quorum
from dure.charter.model import Charter
from dure.errors import DureError, NotAuthorised, Refused
from dure.statements.anykind import UnknownKind, kind_of, open_any
from dure.statements.dsse import Envelope
from dure.tlog.checkpoint import Head, open_checkpoint
from dure.tlog.files import CHECKPOINT
from dure.tlog.tiles import WIDTH, TileBuilder, TiledTree, tiles_between

DAY_S = 86_400.0
Progress = Callable[[int, int], None]
"""(entries read, entries in all)."""


class WrongPin(NotAuthorised):
    """The bundle's first charter version is not the one that was pinned: another consortium, or a forgery."""

    exit_code = 6


class ClockOff(DureError):
    """Cosignatures from more than a day ahead of this machine: its clock is wrong, or all the witnesses' are."""

    exit_code = 7


@dataclass(frozen=True)
class Finding:
    """Something that does not hold."""

    where: str
    """A file, or `entry N`."""
    why: str


@dataclass
class Result:
    """What level 1 found."""

    charter: Charter
    size: int
    root: bytes
    cosigned: dict[str, int]
    """Witness -> unix seconds."""
    history: History
    findings: list[Finding] = field(default_factory=list)
    unknown: list[Finding] = field(default_factory=list)
    """Entries of kinds this version does not know: signature and chain are not judged either."""
    versions: int = 1

    @property
    def holds(self) -> bool:
        return not self.findings and not self.unknown


def verify(bundle: Bundle, pin: bytes, *, now: float | None = None, progress: Progress = lambda _done, _all: None) -> Result:
    """Everything level 1 can show.

    Args:
        pin: SHA-256 of the signed bytes of charter version 1.
        now: unix seconds, for a clock that is off by a day; None takes this machine's.

    Raises:
        WrongPin, ClockOff, PartMissing, NotAuthorised, Refused: nothing can be said; what can be said with faults is in `Result.findings`.
    """
    versions, roots = _charter(bundle, pin)
    head = _head(bundle, versions[-1], time.time() if now is None else now)
    size = head.checkpoint.size
    keys = Keys(versions)
    result = Result(versions[-1], size, head.checkpoint.root, head.cosigned, History(keys), versions=len(versions))
    _unexpected(bundle, len(versions), size, result)
    builder = TileBuilder()
    for index, entry in enumerate(_entries(bundle, size)):
        _same_files(bundle, builder.append(entry), result)
        _entry(result, keys, index, entry, roots)
        if index % 256 == 0:
            progress(index, size)
    _same_files(bundle, builder.partial(), result)
    if builder.frontier.root() != head.checkpoint.root:
        result.findings.append(Finding(f"{LOG}/{CHECKPOINT}", "the entries do not give the head that the witnesses cosigned"))
    if keys.in_force != len(versions):
        result.findings.append(Finding("trust", f"version {len(versions)} is in the bundle and not in the log ({keys.in_force} are)"))
    progress(size, size)
    return result


def _charter(bundle: Bundle, pin: bytes) -> tuple[list[Charter], list[bytes]]:
    roots = bundle.roots()
    found = charter_root.digest(charter_root.parse(roots[0]))
    if found != pin:
        raise WrongPin(f"trust/1.root.json has digest {found.hex()}, pinned is {pin.hex()}: another consortium, or a forgery")
    return [charter_root.walk(roots[:n], pin) for n in range(1, len(roots) + 1)], roots


def _head(bundle: Bundle, charter: Charter, now: float) -> Head:
    """The checkpoint, cosigned by the quorum; in a bundle every line is of a key the charter names, so that none can change unseen."""
    raw = bundle.read(f"{LOG}/{CHECKPOINT}")
    head = open_checkpoint(raw, log_key(charter.terms), witness_keys(charter.terms), quorum=witness_quorum(charter.terms))
    if head.note.to_bytes() != raw or len(head.note.signatures) != 1 + len(head.cosigned):
        raise Refused(f"{LOG}/{CHECKPOINT}", "has a line that is of no key in the charter, or one twice")
    ahead = max(head.cosigned.values(), default=0) - now
    if ahead > DAY_S:
        raise ClockOff(
            f"{LOG}/{CHECKPOINT}: cosigned {ahead / DAY_S:.1f} days from now; set this machine's clock, or ask the witnesses about theirs"
        )
    return head


def _unexpected(bundle: Bundle, versions: int, size: int, result: Result) -> None:
    if size > WIDTH * len(bundle.names()):  # before anything is listed or looped over by a size that a head names
        raise PartMissing(f"the head is of {size} entries, the bundle holds at most {WIDTH * len(bundle.names())}; export anew")
    expected = root_names(versions) | {f"{LOG}/{CHECKPOINT}"} | {f"{LOG}/{tile.path}" for tile in tiles_between(0, size)}
    there = {name for name in bundle.names() if not PART.fullmatch(name)}  # parts of runs are the lineage's affair
    result.findings += [Finding(name, "is no part of this bundle: nothing covers it") for name in sorted(there - expected)]
    result.findings += [Finding(name, "is missing") for name in sorted(expected - there)]


def _entries(bundle: Bundle, size: int) -> Iterator[bytes]:
    yield from TiledTree(lambda path: bundle.read(f"{LOG}/{path}"), size).entries()


def _same_files(bundle: Bundle, tiles: Iterator[tuple[object, bytes]], result: Result) -> None:
    for tile, data in tiles:
        name = f"{LOG}/{tile.path}"  # type: ignore[attr-defined]  # a Tile
        try:
            if bundle.read(name) != data:
                result.findings.append(Finding(name, "does not follow from the entries"))
        except PartMissing:
            continue  # named already


def _entry(result: Result, keys: Keys, index: int, entry: bytes, roots: list[bytes]) -> None:
    where = f"entry {index}"
    try:
        envelope = Envelope.from_bytes(entry)
        kind = kind_of(envelope)
        key, party = keys.signer(envelope.signatures[0][0])
        if len(envelope.signatures) != 1:
            raise Refused("signatures", "an entry has exactly one")
        signed = open_any(envelope, [key])
        if kind == "charter":
            _charter_file(signed.fact, roots)
        keys.follow(signed, party)
        result.history.take(index, kind, signed, party)
    except UnknownKind as unknown:
        result.unknown.append(Finding(where, str(unknown)))
    except DureError as error:
        result.findings.append(Finding(where, str(error)))


def _charter_file(fact: object, roots: list[bytes]) -> None:
    """The log binds the charter's file byte for byte, signatures and all."""
    from hashlib import sha256

    version, wanted = fact.version, fact.file_sha256  # type: ignore[attr-defined]  # a CharterVersion
    if not 1 <= version <= len(roots) or sha256(roots[version - 1]).digest() != wanted:
        raise Refused("file_sha256", f"is not of trust/{version}.root.json as the bundle has it")
