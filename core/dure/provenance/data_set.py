"""A data set as one digest, and single files of it opened against that digest; pure.

Leaf of a file: salt (32 bytes) ‖ size (8, big endian) ‖ SHA-256 of its content (32) ‖ path (UTF-8), hashed as RFC 6962 hashes an entry;
files in the order of their paths' bytes. Each file has a salt of its own, HMAC-SHA256 of the data set's salt, so that an opened file
helps nobody guess another one. Source: ledger.md §3; docs/spec/ledger.md, "Data commitments".
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

from dure.errors import Refused
from dure.statements import schema
from dure.statements.dsse import canonical_json, parse_canonical
from dure.statements.kinds import DataCommitment, Digest
from dure.statements.schema import Hex, Items, Pattern, Range
from dure.tlog.merkle import MAX_PROOF, Frontier, inclusion_proof, leaf_hash, verify_inclusion

SALT_BYTES = 32
MAX_OPENING_BYTES = 1 << 26
MOST_OPENED = 100_000
"""Files in one opening."""
_SALT, _DRAW = b"dure data salt 1\0", b"dure data challenge 1\0"
PATH_FORM = r"[^\x00-\x1f\ud800-\udfff]{1,4096}"
FilePath = Annotated[str, Pattern(PATH_FORM)]
"""Relative to the data set, parts divided by '/'."""


@dataclass(frozen=True)
class DataFile:
    """One file as it was when the data set was registered."""

    path: FilePath
    size: Annotated[int, Range(0, 2**63 - 1)]
    sha256: Digest


@dataclass(frozen=True)
class OpenedFile:
    """A file and what leads from it to the commitment."""

    index: Annotated[int, Range(0, 2**32 - 1)]
    file: DataFile
    salt: Digest
    proof: Annotated[tuple[Digest, ...], Items(0, MAX_PROOF)]


@dataclass(frozen=True)
class Opening:
    """What an auditor gets: files of one commitment, chosen by somebody or drawn from a head of the log."""

    v: Annotated[int, Range(1, 1)]
    commitment: Digest
    """Payload digest of the statement in the log."""
    head: Annotated[bytes, Hex(most=1 << 16)] | None
    """The signed and cosigned checkpoint that drew the files; null: somebody chose them."""
    files: Annotated[tuple[OpenedFile, ...], Items(1, MOST_OPENED)]

    def to_bytes(self) -> bytes:
        return canonical_json(schema.encode(self))

    @staticmethod
    def from_bytes(raw: bytes) -> Opening:
        """Raises Refused: out of form; names the field."""
        if len(raw) > MAX_OPENING_BYTES:
            raise Refused("opening", f"larger than {MAX_OPENING_BYTES} bytes")
        return schema.decode(Opening, parse_canonical("opening", raw), "opening")


def file_salt(salt: bytes, path: str) -> bytes:
    """One file's salt; tells nothing of the data set's, or of another file's."""
    return hmac.digest(salt, _SALT + path.encode(), "sha256")


def leaf(salt: bytes, file: DataFile) -> bytes:
    """The entry whose RFC 6962 leaf hash is in the tree; `salt` is the file's own."""
    return salt + file.size.to_bytes(8, "big") + file.sha256 + file.path.encode()


def in_order(files: Iterable[DataFile]) -> list[DataFile]:
    return sorted(files, key=lambda f: f.path.encode())


def root_of(salt: bytes, files: Iterable[DataFile]) -> bytes:
    """The commitment's root over files in order."""
    return Frontier().extend(leaf_hash(leaf(file_salt(salt, f.path), f)) for f in files).root()


def opened(salt: bytes, files: Sequence[DataFile], indices: Iterable[int]) -> tuple[OpenedFile, ...]:
    """These files of a data set, each with its salt and its path to the root.

    Args:
        files: all of them, in order.
    """
    frontier, nodes = Frontier(), {}
    for file in files:
        for level, index, node in frontier.append(leaf_hash(leaf(file_salt(salt, file.path), file))):
            nodes[level, index] = node

    def proof(index: int) -> tuple[bytes, ...]:
        return tuple(inclusion_proof(lambda level, at: nodes[level, at], index, len(files)))

    return tuple(OpenedFile(i, files[i], file_salt(salt, files[i].path), proof(i)) for i in indices)


def drawn(head_root: bytes, root: bytes, files: int, samples: int) -> tuple[int, ...]:
    """The files a head of the log asks for: nobody knows them before that head exists, everybody after.

    The i-th number is SHA-256(label ‖ head root ‖ commitment root ‖ i, 8 bytes) mod files; one that came before is left out. `samples` of
    them in the order drawn, or all files where there are no more.
    """
    found: dict[int, None] = {}
    counter = 0
    while len(found) < min(samples, files):
        digest = sha256(_DRAW + head_root + root + counter.to_bytes(8, "big")).digest()
        found[int.from_bytes(digest, "big") % files] = None
        counter += 1
    return tuple(found)


def check_opening(opening: Opening, commitment: DataCommitment, head_root: bytes | None) -> None:
    """That each opened file is in the commitment, once, and that a challenge's files are those its head draws.

    Args:
        head_root: of the head in the opening, which the caller verified; None where it has none.

    Raises:
        Refused: the first that does not hold; names the file.
    """
    indices = tuple(f.index for f in opening.files)
    for one in opening.files:
        if one.index >= commitment.files:
            raise Refused(one.file.path, f"is said to be file {one.index} of {commitment.files}")
        try:
            verify_inclusion(leaf_hash(leaf(one.salt, one.file)), one.index, commitment.files, one.proof, commitment.root)
        except Refused:
            raise Refused(
                one.file.path, f"is not file {one.index} of {commitment.member}'s {commitment.name}, as it was registered"
            ) from None
    if len(set(indices)) != len(indices):
        raise Refused("files", "one is there twice")
    if head_root is not None and indices != drawn(head_root, commitment.root, commitment.files, len(indices)):
        raise Refused("files", "are not those that the head draws, in its order")
