"""Level 1: the log alone. Signatures, quorum, order, commitments, acceptances, key validity by index, each signer's chain without gaps.

As many processes as there are cores read stretches of entries and verify their signatures (`chunk`); this one judges, in the order of the
log, all that depends on order. So the report is the same on any number of cores, and memory does not grow with the log (`exchanges`).
Nothing is believed but the 32-byte pin.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256

from dure import ed25519
from dure.audit.bundle import LOG, Bundle, PartMissing
from dure.audit.chunk import TILES, Stretch, TileRead, read_stretch
from dure.audit.cores import available, in_order
from dure.audit.coverage import Coverage, cover
from dure.audit.entry import Entry
from dure.audit.heads import NamedHeads
from dure.audit.history import Expired, History
from dure.audit.keys import DAY_S, ClockBack, Keys
from dure.charter import root as charter_root
from dure.charter.log_keys import witnessing
from dure.charter.model import Charter
from dure.errors import DureError, NotAuthorised, Refused, Unavailable
from dure.provenance.attestation import stated
from dure.statements.kinds import AllocationPublished, ReleasePublished
from dure.tlog.checkpoint import Head
from dure.tlog.files import CHECKPOINT
from dure.tlog.merkle import Frontier
from dure.tlog.tiles import ENTRIES, WIDTH, HashTiles, Tile

SMALL = 8 * TILES * WIDTH
"""Entries up to which starting further processes takes longer than it saves."""
MOST_LISTED = 10_000
"""Findings kept one by one; how many there were more is counted."""
Progress = Callable[[int, int], None]
"""(entries read, entries in all)."""

HOLDS, BROKEN, INCOMPLETE, CLOCK, EXPIRED = 0, 1, 2, 7, 8
"""Exit codes of `dure audit verify` for what a result says; docs/spec/ledger.md, "Exit codes"."""


class WrongPin(NotAuthorised):
    """The bundle's first charter version is not the one that was pinned: another consortium, or a forgery."""

    exit_code = 6


class ClockOff(DureError):
    """Cosignatures from more than a day ahead of this machine: its clock is wrong, or all the witnesses' are."""

    exit_code = CLOCK


@dataclass(frozen=True)
class Finding:
    """Something that does not hold."""

    where: str
    """A file, or `entry N`."""
    why: str
    code: int = BROKEN
    """The exit code if there is nothing but such findings."""


@dataclass
class Result:
    """What level 1 found."""

    charter: Charter
    size: int
    root: bytes
    """Empty where the bundle has no checkpoint."""
    cosigned: dict[str, int]
    """Witness -> unix seconds."""
    history: History
    findings: list[Finding] = field(default_factory=list)
    unlisted: int = 0
    """Findings beyond `MOST_LISTED`."""
    unknown: list[Finding] = field(default_factory=list)
    """Entries of kinds this version does not know: by whom they are is judged, what they say is not."""
    missing: list[str] = field(default_factory=list)
    """Files that should be there, the first of them."""
    checked_to: int = 0
    """Entries before this index were judged; the next ones are missing, and what comes after refers to them."""
    rooted: bool = True
    """The head could be computed from what is there."""
    heads_named: int = 0
    """Statements that name a head of the log."""
    heads_unchecked: int = 0
    """Of them, those whose head could not be computed from what is there."""
    versions: int = 1

    @property
    def holds(self) -> bool:
        return self.exit_code == HOLDS

    @property
    def exit_code(self) -> int:
        codes = {f.code for f in [*self.findings, *self.unknown]}
        if codes:
            return codes.pop() if len(codes) == 1 else BROKEN
        return INCOMPLETE if self.missing else HOLDS

    def note(self, finding: Finding, among: list[Finding] | None = None) -> None:
        listed = self.findings if among is None else among
        if len(listed) < MOST_LISTED:
            listed.append(finding)
        else:
            self.unlisted += 1


def verify(
    bundle: Bundle, pin: bytes, *, now: float | None = None, cores: int | None = None, progress: Progress = lambda _done, _all: None
) -> Result:
    """Everything level 1 can show.

    Args:
        pin: SHA-256 of the signed bytes of charter version 1.
        now: unix seconds, for a clock that is off by a day; None takes this machine's.
        cores: processes that read and verify; None: as many as this one may use.

    Raises:
        WrongPin, ClockOff, PartMissing, NotAuthorised, Refused: nothing can be said; what can be said with faults is in `Result.findings`.
    """
    versions, roots = _charter(bundle, pin)
    head = _head(bundle, versions[-1], time.time() if now is None else now)
    covered = cover(bundle, len(versions), head.checkpoint.size if head else None)
    size, root = covered.size, head.checkpoint.root if head else b""
    result = Result(versions[-1], size, root, head.cosigned if head else {}, History(Keys(versions)), versions=len(versions))
    result.missing = list(covered.missing)
    for name in covered.unexpected:
        result.note(Finding(name, "is no part of this bundle: nothing covers it"))
    heads = NamedHeads(lambda path: bundle.read(f"{LOG}/{path}"), size)
    judging = _Judging(result, bundle, [sha256(raw).digest() for raw in roots], heads)
    judging.latest = max(result.cosigned.values(), default=math.inf)
    workers = (available() if cores is None else cores) if size > SMALL else 1
    for reads in in_order(read_stretch, judging.stretches(covered), workers):
        for read in reads:
            judging.tile(read)
        progress(min(size, reads[-1].first + WIDTH), size)
    judging.end()
    return result


def _charter(bundle: Bundle, pin: bytes) -> tuple[list[Charter], list[bytes]]:
    roots = bundle.roots()
    found = charter_root.digest(charter_root.parse(roots[0]))
    if found != pin:
        raise WrongPin(f"trust/1.root.json has digest {found.hex()}, pinned is {pin.hex()}: another consortium, or a forgery")
    return list(charter_root.walk_all(roots, pin)), roots


def _head(bundle: Bundle, charter: Charter, now: float) -> Head | None:
    """The checkpoint, cosigned by the quorum; in a bundle every line is of a key the charter names, so that none can change unseen.

    The bundle's last version is the one in force at the head's last entry: `_Judging.end` finds one that is in no entry.
    None where there is no checkpoint: the entries can be judged all the same, and that witnesses saw them cannot.
    """
    try:
        raw = bundle.read(f"{LOG}/{CHECKPOINT}")
    except PartMissing:
        return None
    head = witnessing(charter.terms).open(raw)
    if head.note.to_bytes() != raw or len(head.note.signatures) != 1 + len(head.cosigned):
        raise Refused(f"{LOG}/{CHECKPOINT}", "has a line that is of no key in the charter, or one twice")
    ahead = max(head.cosigned.values(), default=0) - now
    if ahead > DAY_S:
        raise ClockOff(
            f"{LOG}/{CHECKPOINT}: cosigned {ahead / DAY_S:.1f} days from now; set this machine's clock, or ask the witnesses about theirs"
        )
    return head


@dataclass
class _Judging:
    """The one reader that sees everything, in order."""

    result: Result
    bundle: Bundle
    roots_sha256: list[bytes]
    heads: NamedHeads
    above: HashTiles = field(default_factory=partial(HashTiles, 1))
    """Tiles of hashes over the full leaf tiles."""
    latest: float = math.inf
    """When the head was cosigned last, in unix seconds."""
    leaves: tuple[bytes, ...] = ()
    """Of the last leaf tile, where it is not full."""
    gap: bool = False
    """An entry bundle is missing: what comes after cannot be judged."""

    def stretches(self, covered: Coverage) -> Iterator[Stretch]:
        """The work, made piece by piece, so that later pieces name keys that earlier ones brought."""
        charter_keys = {m.signing_key for v in self.result.history.keys.versions for m in v.members}
        charter_keys |= {v.terms.coordinator.signing_key for v in self.result.history.keys.versions}
        tiles = [Tile(ENTRIES, n, min(WIDTH, covered.size - n * WIDTH)) for n in range(-(-covered.size // WIDTH))]
        for first in range(0, len(tiles), TILES):
            nodes = tuple(self.result.history.keys.node_keys().items())
            yield Stretch(self.bundle.folder, tuple(tiles[first : first + TILES]), tuple(charter_keys), nodes)

    def tile(self, read: TileRead) -> None:
        """Takes in the next entry bundle."""
        if read.missing and not self.gap:
            self.gap, self.result.checked_to = True, read.first
        self.heads.begin_tile(read.first, self.above.frontier.peaks, read.heads)
        for index, entry in enumerate(read.entries if not self.gap else (), read.first):
            if isinstance(entry, str):
                self.result.note(Finding(f"entry {index}", entry))
            else:
                self._entry(index, Entry(*entry))  # type: ignore[arg-type]  # as Entry.packed gave them
        for name, why in read.findings:
            self.result.note(Finding(name, why))
        self.result.rooted = self.result.rooted and bool(read.root or read.leaves)
        self.leaves = read.leaves
        if read.root and self.result.rooted:
            self._same_files(self.above.append(read.root))

    def end(self) -> None:
        """What can be said only of the whole."""
        result, keys = self.result, self.result.history.keys
        result.heads_named, result.heads_unchecked = self.heads.named, self.heads.unchecked
        if not self.gap:
            result.checked_to = result.size
        if result.rooted:
            self._same_files(self.above.partial())
            peaks = [*self.above.frontier.peaks, *Frontier().extend(self.leaves).peaks]
            if result.root and Frontier(result.size, peaks).root() != result.root:
                result.note(Finding(f"{LOG}/{CHECKPOINT}", "the entries do not give the head that the witnesses cosigned"))
        if keys.in_force < result.versions and not self.gap:
            there = f"version {result.versions} is in the bundle and not in the log ({keys.in_force} are)"
            result.note(Finding("trust", there))

    def _same_files(self, tiles: Iterator[tuple[Tile, bytes]]) -> None:
        for tile, data in tiles:
            name = f"{LOG}/{tile.path}"
            try:
                if self.bundle.read(name) != data:
                    self.result.note(Finding(name, "does not follow from the entries"))
            except PartMissing:
                continue  # named already

    def _entry(self, index: int, entry: Entry) -> None:
        where = f"entry {index}"
        try:
            self._judge(index, entry)
        except ClockBack as error:
            self.result.note(Finding(where, str(error), CLOCK))
        except Expired as error:
            self.result.note(Finding(where, str(error), EXPIRED))
        except Unavailable:
            raise  # a full disk says nothing about the entry
        except DureError as error:
            self.result.note(Finding(where, str(error)))

    def _judge(self, index: int, entry: Entry) -> None:
        keys = self.result.history.keys
        key, party = keys.signer(entry.key_id, entry.kind)
        if entry.verified_by != key and not ed25519.verifies(key, entry.signature, entry.message):
            raise Refused("signatures", f"the signature of key {entry.key_id[:16]} does not verify")
        if entry.unknown:
            why = f"{entry.unknown}; it is signed by {party}, what it says was not judged"
            self.result.note(Finding(f"entry {index}", why), self.result.unknown)
        if entry.kind == "charter":
            self._charter_file(entry)
        trouble: ClockBack | None = None
        try:
            keys.follow(entry, party)
        except ClockBack as error:
            trouble = error  # what it says is judged all the same
        if wrong := self.heads.judge(index, entry):
            self.result.note(Finding(f"entry {index}", wrong))  # and what it says is judged all the same
        if not entry.unknown:
            self.result.history.take(index, entry, party)
            if entry.kind in (ReleasePublished.kind, AllocationPublished.kind):
                said = stated(entry.fact)
                self.heads.check_cited(index, said.log_size, said.log_root)
        if entry.time >= self.latest + DAY_S:
            days = (entry.time - self.latest) / DAY_S
            self.result.note(Finding(f"entry {index}", f"time: is {days:.1f} days after the head that covers it: a clock was off", CLOCK))
        if trouble is not None:
            raise trouble

    def _charter_file(self, entry: Entry) -> None:
        """The log binds the charter's file byte for byte, signatures and all."""
        version, wanted = entry.fact.version, entry.fact.file_sha256
        if 1 <= version <= len(self.roots_sha256) and self.roots_sha256[version - 1] != wanted:
            raise Refused("file_sha256", f"is not of trust/{version}.root.json as the bundle has it")
