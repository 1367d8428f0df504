"""The charter's versions as entries of the log: from each one's index on its keys count."""

from __future__ import annotations

import time
from hashlib import sha256

from dure.charter import root
from dure.charter.coordinator import CoordinatorFolder
from dure.identity.keys import public_bytes
from dure.statements.dsse import key_id
from dure.statements.kinds import CharterVersion
from dure.statements.statement import read_verified, seal
from dure_coordinator.storage.store import StatementRow, Store, With


async def enter_charter(store: Store, folder: CoordinatorFolder) -> None:
    """Makes every published version that is no entry yet one, in order. To be called before anything else is signed.

    The versions' own signatures, by k members, are in their files; the entry binds each file byte for byte.
    """
    key = folder.signing_key
    party = key_id(public_bytes(key))
    entered = {read_verified(row.envelope, CharterVersion).version for row in await store.statements(kind=CharterVersion.kind)}
    for version, raw in enumerate(folder.versions(), 1):
        if version in entered:
            continue
        fact = CharterVersion(version, root.digest(root.parse(raw)), sha256(raw).digest())
        envelope, after = seal(fact, key, await store.chain_of(party), time.time())
        await store.write(b"", With(statements=(StatementRow.of(envelope.to_bytes()),), chain=(party, after)))
