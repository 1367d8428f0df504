"""The consortium's log in a simulated world: heads cosigned by the members that are there."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.charter.log_keys import Witnessing
from dure.tlog.checkpoint import Checkpoint
from dure.tlog.merkle import Frontier, inclusion_proof, leaf_hash
from dure.tlog.note import COSIGNATURE_V1, ED25519, Note, NoteKey, cosign, sign
from dure.tlog.proof import TlogProof

ORIGIN = "dure/sim/log"


class SimLog:
    def __init__(self, members: Collection[str], quorum: int, new_key: Any) -> None:
        self._key: Ed25519PrivateKey = new_key()
        self._witnesses: dict[str, Ed25519PrivateKey] = {m: new_key() for m in members}
        self._frontier, self._nodes, self._entries = Frontier(), {}, []
        self.quorum = quorum

    @property
    def witnessing(self) -> Witnessing:
        log = NoteKey(ORIGIN, ED25519, self._key.public_key().public_bytes_raw())
        keys = tuple(NoteKey(m, COSIGNATURE_V1, k.public_key().public_bytes_raw()) for m, k in self._witnesses.items())
        return Witnessing(log, keys, self.quorum)

    def covering(self, entry: bytes, there: Collection[str], now: float) -> bytes | None:
        """A proof of this entry (appended once) under a head cosigned by those who are there; None below the quorum."""
        if entry not in self._entries:
            self._entries.append(entry)
            for level, index, value in self._frontier.append(leaf_hash(entry)):
                self._nodes[level, index] = value
        if len(there) < self.quorum:
            return None
        text = Checkpoint(ORIGIN, self._frontier.size, self._frontier.root()).text()
        lines = [sign(text, ORIGIN, self._key), *(cosign(text, m, self._witnesses[m], int(now)) for m in sorted(there))]
        index = self._entries.index(entry)
        path = inclusion_proof(lambda level, i: self._nodes[level, i], index, self._frontier.size)
        return TlogProof(index, tuple(path), Note(text, tuple(lines)).to_bytes()).to_bytes()
