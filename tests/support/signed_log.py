"""A consortium's log without any process: real charters, keys, statements, files and cosignatures, as many entries as a test wants."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from attacks.ports import Founded, found
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sim.exchange_world import make_plan

from dure.charter import root
from dure.charter.log_keys import log_key, origin_of, witness_keys, witness_name, witness_quorum
from dure.charter.model import Charter
from dure.identity.keys import load_signing_key
from dure.statements.kinds import CharterVersion
from dure.statements.statement import Chain, seal
from dure.tlog.checkpoint import Checkpoint, Head
from dure.tlog.files import LogFiles
from dure.tlog.note import Note, NoteKey, cosign, sign

AT = int(time.time())
"""Unix seconds of every cosignature: of today, as the delegations are."""


@dataclass
class SignedLog:
    """The entries, and everybody's keys."""

    founded: Founded
    entries: list[bytes] = field(default_factory=list)
    chain: Chain = field(default_factory=Chain)
    """The coordinator's."""

    @property
    def charter(self) -> Charter:
        return self.founded.hub.charter()

    @property
    def roots(self) -> list[bytes]:
        return self.founded.hub.versions()

    @property
    def pin(self) -> bytes:
        return root.digest(root.parse(self.roots[0]))

    @property
    def log(self) -> NoteKey:
        return log_key(self.charter.terms)

    @property
    def witnesses(self) -> tuple[NoteKey, ...]:
        return witness_keys(self.charter.terms)

    @property
    def quorum(self) -> int:
        return witness_quorum(self.charter.terms)

    def say(self, fact: Any) -> None:
        """One more entry of the coordinator."""
        envelope, self.chain = seal(fact, self.founded.hub.signing_key, self.chain, AT)
        self.entries.append(envelope.to_bytes())

    def new_version(self, signers: Iterable[str], **changes: Any) -> Charter:
        """One more charter version, signed by these members' governance keys, and its entry."""
        number, terms = len(self.roots) + 1, replace(self.charter.terms, **changes)
        raw = root.propose(terms, number, datetime.fromtimestamp(AT, UTC))
        keys = {name: self.founded.members[name].governance_key for name in signers}
        charter = self.founded.hub.publish(raw, {name: root.sign(raw, name, key) for name, key in keys.items()})
        self.say(CharterVersion(number, charter.digest, sha256(self.roots[-1]).digest()))
        return charter

    def plans(self, count: int) -> Iterator[Any]:
        charter, members = self.charter, tuple(self.founded.members)
        for n in range(count):
            yield make_plan(
                members,
                charter.colluders,
                "average",
                nonce=n.to_bytes(16, "big"),
                consortium=charter.terms.consortium_id,
                charter_version=charter.version,
                charter_sha256=charter.digest,
            )

    def witness(self, member: str) -> Ed25519PrivateKey:
        return load_signing_key(self.founded.members[member].directory / "witness.key")

    def note(self, checkpoint: Checkpoint, members: Iterable[str] | None = None) -> Note:
        """A head signed by the log and cosigned by these members; by default by all there are."""
        text, terms = checkpoint.text(), self.charter.terms
        names = [m.id for m in terms.members if m.id in self.founded.members] if members is None else members
        lines = [cosign(text, witness_name(self.charter.member(m).host), self.witness(m), AT) for m in names]
        return Note(text, (sign(text, origin_of(terms), self.founded.hub.log_key), *lines))

    def publish(self, folder: Path, entries: Iterable[bytes] | None = None) -> Head:
        """Writes the files of the log as a coordinator does; goes on where the folder's log ends."""
        files = LogFiles(folder, self.log)
        files.grow((self.entries if entries is None else list(entries))[files.size :])
        return files.publish(self.note(Checkpoint(self.log.name, files.size, files.root)).to_bytes())


def signed_log(folder: Path, plans: int = 0) -> SignedLog:
    """A founded consortium and its log: the charter, each node's delegation, and so many plans that nobody approved.

    Level 1 of the audit holds on it.
    """
    made = SignedLog(found(folder))
    charter = made.charter
    made.say(CharterVersion(1, charter.digest, sha256(made.roots[0]).digest()))
    made.entries += [node.delegation for node in made.founded.nodes.values()]
    for plan in made.plans(plans):
        made.say(plan)
    return made
