"""The coordinator's own folder: its keys, its certificates, and the charter as it is drawn up and published.

<dir>/coordinator.json  signing.key log.key ca.key tls.key release-ca.key (0600)  ca.pem tls.pem release-root.pem
      charter.toml  N.root.json  consortium.json  joins/
      keys-N/  keys that were made to replace some of these with charter version N; of what lies here, a version names what is in force
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.charter import root
from dure.charter.consortium import ConsortiumFile
from dure.charter.model import Charter, CharterCoordinator
from dure.errors import BadInput, Conflict, NotAuthorised
from dure.identity import keys, tls
from dure.identity.files import read, read_json, whole_or_nothing, write_atomic, write_json

REPLACEABLE = ("signing", "log", "ca")
"""Keys of the coordinator that a charter version can replace: of statements, of heads, and the CA of its server certificate."""
BY_OLD = "ca-by-old.pem"
"""In keys-N, the new CA certified by the one it replaces."""
WHAT = "a coordinator's folder, made with `dure coordinator init`"


@dataclass(frozen=True)
class CoordinatorFolder:
    """Where a coordinator keeps what is its own."""

    directory: Path
    name: str
    advertise: str
    """host:port under which members reach it."""
    consortium_id: bytes

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """That of the newest published version; before any, the first."""
        named = self._named()
        return keys.load_signing_key(self.directory / "signing.key") if named is None else self.signing_key_of(named)

    @property
    def log_key(self) -> Ed25519PrivateKey:
        """As `signing_key`."""
        named = self._named()
        return keys.load_signing_key(self.directory / "log.key") if named is None else self.log_key_of(named.log_key)

    def _named(self) -> CharterCoordinator | None:
        file = self.published()
        return None if file is None else root.terms_of(root.parse(file.roots[-1])).coordinator

    def signing_key_of(self, named: CharterCoordinator) -> Ed25519PrivateKey:
        """The private half of the signing key that a charter version names.

        Raises:
            NotAuthorised: it is not here.
        """
        return self._private("signing.key", named.signing_key)

    def log_key_of(self, public: bytes) -> Ed25519PrivateKey:
        """As `signing_key_of`, of a log key."""
        return self._private("log.key", public)

    def _private(self, name: str, public: bytes) -> Ed25519PrivateKey:
        for path in (place / name for place in self._places()):
            if path.exists() and keys.public_bytes(found := keys.load_signing_key(path)) == public:
                return found
        raise NotAuthorised(
            f"{self.published_path()} names another coordinator's key than any {name} in {self.directory}; put back this consortium's "
            "file, or the keys it names"
        )

    def _places(self) -> tuple[Path, ...]:
        """Where keys lie: the first ones, then those that replaced some, in order."""
        return (self.directory, *(self.proposed_keys(n) for n in range(2, len(self.versions()) + 2)))

    def proposed_keys(self, version: int) -> Path:
        """Folder of the keys that were made for this charter version; not there where none were."""
        return self.directory / f"keys-{version}"

    def _newest(self, name: str) -> Path:
        """The newest file of that name: what the next version names."""
        return next(path for place in reversed(self._places()) if (path := place / name).exists() or place == self.directory)

    def next_coordinator(self, member: str | None) -> CharterCoordinator:
        """What the next version says of the coordinator: the newest keys there are here."""
        signing, log = (keys.public_bytes(keys.load_signing_key(self._newest(f"{purpose}.key"))) for purpose in ("signing", "log"))
        ca = read(self._newest("ca.pem"), WHAT)
        return CharterCoordinator(signing, log, ca.decode(), self.release_root_pem.decode(), member)

    def make_keys(self, purposes: Collection[str], now: float) -> Path:
        """New keys for the next version, of `REPLACEABLE`; those made before for the same version, where there are.

        Raises:
            Conflict: others were made for that version and are not yet in force.
        """
        place = self.proposed_keys(len(self.versions()) + 1)
        if place.exists():
            made = {purpose for purpose in REPLACEABLE if (place / f"{purpose}.key").exists()}
            if made != set(purposes):
                raise Conflict(f"{place}: keys were made for this version already ({', '.join(sorted(made))}); remove it to make others")
            return place
        with whole_or_nothing(place):
            for purpose in purposes:
                if purpose == "ca":
                    self._make_ca(place, datetime.fromtimestamp(now, UTC))
                else:
                    keys.new_signing_key(place / f"{purpose}.key")
        return place

    def _make_ca(self, place: Path, at: datetime) -> None:
        """A CA and server certificate in `place`; and the CA certified by the one in force, where that one's key is here."""
        before = self._ca_place(self.charter().terms.coordinator)
        ca = _new_ca(place, self.name, self.advertise, at)
        if (before / "ca.key").exists():
            old = tls.load_certificate(read(before / "ca.pem", WHAT), "ca.pem")
            write_atomic(place / BY_OLD, tls.pem(tls.issue_new_with_old(ca, old, keys.load_tls_key(before / "ca.key"), at)))

    def served_under(self, named: CharterCoordinator) -> tuple[bytes, bytes]:
        """Server key and certificate chain, PEM, under the CA that a charter version names.

        Nodes that were away know an earlier one: the chain goes back over all that were replaced, as far as each certified the next.

        Raises:
            NotAuthorised: that CA is none of those here.
        """
        place = self._ca_place(named)
        chain = [read(place / "tls.pem", WHAT)]
        places = self._places()
        replaced = [p for p in reversed(places[: places.index(place) + 1]) if (p / "ca.pem").exists()]
        for earlier in replaced:
            if not (earlier / BY_OLD).exists():
                break
            chain.append(read(earlier / BY_OLD, WHAT))
        return keys.read_private(place / "tls.key"), b"".join(chain)

    def _ca_place(self, named: CharterCoordinator) -> Path:
        """Where the CA lies that a charter version names; raises as `served_under`."""
        for place in self._places():
            if (place / "ca.pem").exists() and read(place / "ca.pem", WHAT) == named.ca_pem.encode():
                return place
        raise NotAuthorised(
            f"{self.published_path()} names another coordinator's CA than any ca.pem in {self.directory}; put back its files"
        )

    @property
    def ca_pem(self) -> bytes:
        """The first CA's certificate."""
        return read(self.directory / "ca.pem", WHAT)

    @property
    def release_root_pem(self) -> bytes:
        """The release CA's certificate."""
        return read(self.directory / "release-root.pem", WHAT)

    @property
    def release_ca_key(self) -> EllipticCurvePrivateKey:
        return keys.load_tls_key(self.directory / "release-ca.key")

    def root_path(self, version: int) -> Path:
        return self.directory / f"{version}.root.json"

    def published_path(self) -> Path:
        return self.directory / "consortium.json"

    def published(self) -> ConsortiumFile | None:
        """The consortium file; None before the first `dure charter publish`."""
        return ConsortiumFile.load(self.published_path()) if self.published_path().exists() else None

    def charter(self) -> Charter:
        """The charter in force, verified from version 1.

        Raises:
            BadInput: none is published yet.
            NotAuthorised: what is published does not verify, or names other keys than this coordinator's.
        """
        file = self.published()
        if file is None:
            raise BadInput(f"{self.published_path()} is not there: publish a charter first (`dure charter --help`)")
        charter = self.charters()[-1]
        self.signing_key_of(charter.terms.coordinator)
        self.log_key_of(charter.terms.coordinator.log_key)
        return charter

    def charters(self) -> tuple[Charter, ...]:
        """Every published version, verified from the first, which this coordinator made itself."""
        return root.walk_all(self.versions(), None)

    @staticmethod
    def create(directory: Path, name: str, advertise: str, now: float) -> CoordinatorFolder:
        """Make a coordinator's keys, its CA and server certificate, and the release CA.

        Raises:
            BadInput: a name or address is out of form.
            Conflict: keys are there already.
        """
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
            raise BadInput(f"--name {name!r}: use 1 to 64 of letters, digits, '.', '_' and '-'")
        host, colon, port = advertise.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 65_536:
            raise BadInput(f"--advertise {advertise!r}: must be host:port, such as hub.example:7443")
        at = datetime.fromtimestamp(now, UTC)
        with whole_or_nothing(directory):
            for purpose in ("signing", "log"):
                keys.new_signing_key(directory / f"{purpose}.key")
            _new_ca(directory, name, advertise, at)
            release_ca = tls.issue_release_ca(keys.new_tls_key(directory / "release-ca.key"), name, at)
            write_atomic(directory / "release-root.pem", tls.pem(release_ca))
            folder = CoordinatorFolder(directory, name, advertise, secrets.token_bytes(16))
            write_json(directory / "coordinator.json", {"name": name, "advertise": advertise, "consortium_id": folder.consortium_id.hex()})
        return folder

    @staticmethod
    def load(directory: Path) -> CoordinatorFolder:
        """Open a coordinator's folder.

        Raises:
            BadInput: it is none.
        """
        body = read_json(directory / "coordinator.json", WHAT, "name", "advertise", "consortium_id")
        return CoordinatorFolder(directory, str(body["name"]), str(body["advertise"]), bytes.fromhex(body["consortium_id"]))

    def versions(self) -> list[bytes]:
        """Every published version's file, 1 first; empty before the first."""
        file = self.published()
        return list(file.roots) if file else []

    def publish(self, raw: bytes, signatures: dict[str, bytes]) -> Charter:
        """Put the members' signatures into a proposed version and make it the charter in force.

        Raises:
            NotAuthorised: a stranger's signature, or too few; names who is missing. Nothing is changed then.
        """
        before = self.versions()
        merged = root.merge(raw, signatures, before[-1] if before else None)
        try:
            charter = root.walk([*before, merged], root.digest(root.parse(before[0])) if before else None)
        except NotAuthorised as error:
            raise NotAuthorised(f"{error}; not yet signed by {', '.join(root.missing_signers(merged))}") from None
        write_atomic(self.root_path(charter.version), merged)
        ConsortiumFile(self.name, self.advertise, (*before, merged)).write(self.published_path())
        return charter


def _new_ca(place: Path, name: str, advertise: str, at: datetime) -> x509.Certificate:
    """A coordinator's CA and a server certificate under it, written with their keys."""
    ca_key = keys.new_tls_key(place / "ca.key")
    ca = tls.issue_coordinator_ca(ca_key, name, at)
    hosts = list(dict.fromkeys([advertise.rpartition(":")[0].strip("[]"), "localhost", "127.0.0.1"]))
    server = tls.issue_coordinator_certificate(ca, ca_key, keys.new_tls_key(place / "tls.key").public_key(), hosts, at)
    write_atomic(place / "ca.pem", tls.pem(ca))
    write_atomic(place / "tls.pem", tls.pem(server))
    return ca
