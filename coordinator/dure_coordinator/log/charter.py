"""The charter as this coordinator obeys it: each version from the index of its entry on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.charter import root
from dure.charter.coordinator import CoordinatorFolder
from dure.charter.log_keys import in_force
from dure.charter.model import Charter
from dure.charter.succession import signing_keys
from dure.errors import BadInput, NotAuthorised, Unavailable
from dure.identity.keys import public_bytes
from dure.statements.dsse import key_id
from dure.statements.kinds import CharterVersion
from dure.statements.statement import SeenHead, read_verified, seal
from dure.tlog.note import NoteKey
from dure_coordinator.storage.store import StatementRow, Store, With


class Charters:
    """Every version obeyed so far: those that are entries. Made by `open`; `newer`, `take` and `enter` bring those published since."""

    def __init__(self, store: Store, folder: CoordinatorFolder, roots: tuple[bytes, ...]) -> None:
        self._store, self._folder, self.roots = store, folder, roots
        self.all = root.walk_all(self.roots, None)
        self._held: dict[bytes, Ed25519PrivateKey] = {}
        self.positions: list[int] = []
        """Index of each version's entry, 1 first, as far as they are entries."""
        self._entering = False
        """A version may be an entry that `positions` does not have yet: under the keys before it nothing may be signed."""

    @staticmethod
    async def open(store: Store, folder: CoordinatorFolder) -> Charters:
        """As the log has them; the first version where it has none yet.

        Raises:
            NotAuthorised: the published file lacks a version that is an entry, or has another one; and as `CoordinatorFolder.charter`.
        """
        folder.charter()  # its keys are this coordinator's
        roots, entered = folder.versions(), await _entered(store)
        for version, row in entered.items():
            said = read_verified(row.envelope, CharterVersion)
            if version > len(roots) or root.digest(root.parse(roots[version - 1])) != said.charter_sha256:
                raise NotAuthorised(f"{folder.published_path()}: is older than the log, which has version {version} of it; restore it")
        made = Charters(store, folder, tuple(roots[: max(len(entered), 1)]))
        await made._find(entered)
        return made

    @property
    def newest(self) -> Charter:
        return self.all[-1]

    @property
    def former(self) -> frozenset[str]:
        """Members of earlier versions that are none now."""
        return frozenset(m.id for charter in self.all for m in charter.members) - {m.id for m in self.newest.members}

    def at(self, size: int) -> Charter:
        """The version by which a head of so many entries is judged. Raises Unavailable while another is becoming an entry."""
        self._check_settled()
        return in_force(self.all, self.positions, size)

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """Of the newest version that is an entry: under it this coordinator signs. Read under the chain's lock.

        Raises:
            Unavailable: whether another became an entry is not known, since the database broke off; it is tried again within seconds.
        """
        self._check_settled()
        named = self.all[max(len(self.positions), 1) - 1].terms.coordinator
        if named.signing_key not in self._held:
            self._held[named.signing_key] = self._folder.signing_key_of(named)
        return self._held[named.signing_key]

    def _check_settled(self) -> None:
        if self._entering:
            raise Unavailable("a charter version is becoming an entry; nothing is signed until it is one")

    def log_key(self, named: NoteKey) -> Ed25519PrivateKey:
        """The private half of the log key of a version."""
        if named.public not in self._held:
            self._held[named.public] = self._folder.log_key_of(named.public)
        return self._held[named.public]

    def signing_keys(self, since: int) -> Mapping[str, tuple[bytes, ...]]:
        return signing_keys(self.all, since)

    def newer(self) -> tuple[bytes, ...]:
        """Files of versions published since, verified.

        Raises:
            NotAuthorised, Refused, BadInput: what is published does not follow from what is obeyed, names keys of the coordinator that are
                not here, or another release CA.
        """
        found = root.follow(self.roots, self._folder.versions(), self.all[0].digest)
        for charter in root.walk_all((*self.roots, *found), None)[len(self.roots) :]:
            new, now = charter.terms.coordinator, self.newest.terms.coordinator
            self._folder.signing_key_of(new)
            self._folder.log_key_of(new.log_key)
            self._folder.served_under(new)
            if new.release_ca_pem != now.release_ca_pem:
                raise BadInput(f"charter version {charter.version} names another release CA, which cannot be replaced yet")
        return found

    def take(self, files: tuple[bytes, ...]) -> None:
        """From here on these count; their entries are the next thing signed."""
        self.back_to((*self.roots, *files))

    def back_to(self, roots: tuple[bytes, ...]) -> None:
        """These count, and no others: what `take` added could not be made entries."""
        self.roots, self.all = roots, root.walk_all(roots, None)

    async def enter_first(self) -> None:
        """Makes version 1 an entry, where it is none yet: the coordinator's first statement, of the time the version was proposed at.

        So one that was set back to before its first head signs the same bytes again, and no second history with them.
        """
        if not self.positions:
            await self._seal(1, None, self.all[0].expires - root.LIFE.total_seconds())
            await self._find(await _entered(self._store))

    async def enter(self, seen: SeenHead | None) -> None:
        """Makes every version that is no entry yet one, in order, each under the coordinator's key that it names itself: so a replaced key
        need not be there any more, and the new one is shown to be. Nothing else may be signed by this coordinator meanwhile.

        The versions' own signatures, by k members, are in their files; the entry binds each file byte for byte.

        Args:
            seen: the newest head there is here.
        """
        entered = await _entered(self._store)
        for version in range(1, len(self.roots) + 1):
            if version not in entered:
                self._entering = True  # a head over it, or a statement after it, is signed under its keys
                await self._seal(version, seen, time.time())
        await self._find(await _entered(self._store))
        self._entering = False

    async def _seal(self, version: int, seen: SeenHead | None, now: float) -> None:
        raw, key = self.roots[version - 1], self._folder.signing_key_of(self.all[version - 1].terms.coordinator)
        party = key_id(public_bytes(key))
        fact = CharterVersion(version, root.digest(root.parse(raw)), sha256(raw).digest())
        envelope, after = seal(fact, key, (await self._store.chain_of(party)).having_seen(seen), now)
        await self._store.write(b"", With(statements=(StatementRow.of(envelope.to_bytes()),), chain=(party, after)))

    async def _find(self, entered: Mapping[int, StatementRow]) -> None:
        found = [await self._store.log_index(entered[version].digest) for version in sorted(entered)]
        self.positions = [index for index in found if index is not None]


async def _entered(store: Store) -> dict[int, StatementRow]:
    """Versions that are entries, 1 first."""
    rows = {read_verified(row.envelope, CharterVersion).version: row for row in await store.statements(kind=CharterVersion.kind)}
    return dict(sorted(rows.items()))
