"""Where a member keeps what its data commitments hide: <member>/data/NAME.json, with the salt, 0600."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dure.errors import BadInput, Conflict, Refused
from dure.identity.files import read
from dure.identity.member import MemberFolder
from dure.provenance.data_set import SALT_BYTES, DataFile, root_of
from dure.statements import schema
from dure.statements.anykind import kind_of
from dure.statements.dsse import Envelope, canonical_json, parse_canonical
from dure.statements.kinds import DataCommitment, Digest, Name
from dure.statements.schema import Items
from dure.statements.statement import Chain, read_payload, seal

WHAT = "a data set registered with `dure data register`"


@dataclass(frozen=True)
class Manifest:
    """All that is needed to open any file of a data set, but the files themselves."""

    name: Name
    salt: Digest
    files: Annotated[tuple[DataFile, ...], Items(1, 2**32)]
    """In the order of the tree."""

    @property
    def root(self) -> bytes:
        return root_of(self.salt, self.files)


def manifest_path(folder: MemberFolder, name: str) -> Path:
    return folder.directory / "data" / f"{name}.json"


def load(folder: MemberFolder, name: str) -> Manifest:
    """Raises BadInput: no data set of that name is registered here, or its file is damaged."""
    path = manifest_path(folder, name)
    try:
        return schema.decode(Manifest, parse_canonical("manifest", read(path, WHAT, sys.maxsize)), "manifest")
    except Refused as error:
        raise BadInput(f"{path} is damaged ({error}); expected {WHAT}") from None


def manifest_of(folder: MemberFolder, name: str, files: tuple[DataFile, ...]) -> Manifest:
    """Under the salt that this name has here already, or a new one: who comes back after a crash gets the same root."""
    known = manifest_path(folder, name).exists()
    return Manifest(name, load(folder, name).salt if known else secrets.token_bytes(SALT_BYTES), files)


def registered(folder: MemberFolder) -> dict[str, tuple[DataCommitment, Envelope, int]]:
    """What this member signed about its data: by name, with the number in its key's chain."""
    found = {}
    for envelope in map(Envelope.from_bytes, folder.statements()):
        if kind_of(envelope.payload) == DataCommitment.kind:
            fact, place = read_payload(envelope.payload, DataCommitment)
            found[fact.name] = fact, envelope, place.seq
    return found


def sign(folder: MemberFolder, manifest: Manifest, fact: DataCommitment, now: float) -> Envelope:
    """The member's word for this data set; the same again gives the same statement. Manifest and word are durable when this returns.

    Raises:
        Conflict: another data set, or another declaration, was registered under this name: what is signed stays.
    """
    following, chain = folder.next_delegation()
    before = registered(folder).get(fact.name)
    if before is not None and before[0] != fact:
        differs = [name for name, value in schema.encode(fact).items() if schema.encode(before[0])[name] != value]
        raise Conflict(f"{fact.name} is registered already with other {', '.join(differs)}; what is signed stays: choose another --name")
    write_manifest(folder, manifest)
    if before is not None:
        _, envelope, seq = before
        if seq == chain.seq:  # a crash came between the statement and the chain
            folder.record_delegation(following - 1, Chain(seq + 1, envelope.sha256), envelope.to_bytes())
        return envelope
    envelope, chain = seal(fact, folder.signing_key, chain, now)
    folder.record_delegation(following - 1, chain, envelope.to_bytes())
    return envelope


def write_manifest(folder: MemberFolder, manifest: Manifest) -> None:
    """Whole or not at all, and for its owner only: salts let others test guesses of the files' content."""
    path = manifest_path(folder, manifest.name)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(canonical_json(schema.encode(manifest)))
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
