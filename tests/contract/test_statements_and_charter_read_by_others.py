"""securesystemslib verifies every statement and a stock TUF client follows the charter; both reject their tampered twins."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope as StockEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner
from support.signed_log import SignedLog, signed_log
from tuf.api.exceptions import DownloadHTTPError, RepositoryError
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from dure.charter import root
from dure.charter.draft import terms_from
from dure.errors import Refused
from dure.identity.keys import public_bytes
from dure.statements.dsse import IN_TOTO, Envelope, seal_payload


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> SignedLog:
    return signed_log(tmp_path_factory.mktemp("log"), plans=20)


# -- securesystemslib ----------------------------------------------------------------------------------------------------


def keys_of(log: SignedLog) -> dict[str, Any]:
    """Key id -> stock key, of the coordinator and the members."""
    publics = [log.charter.terms.coordinator.signing_key, *(m.signing_key for m in log.charter.members)]
    return {key.keyid: key for key in map(root.tuf_key, publics)}


def stock(raw: bytes) -> StockEnvelope:
    return StockEnvelope.from_dict(json.loads(raw))


def test_every_entry_is_accepted_by_securesystemslib_under_its_signers_key(log):
    keys = keys_of(log)
    for entry in log.entries:
        found = stock(entry)
        assert list(found.verify([keys[next(iter(found.signatures))]], 1))
        assert found.payload_type == IN_TOTO


def twisted(raw: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    def body() -> dict[str, Any]:
        return dict(json.loads(raw))

    original = Envelope.from_bytes(raw)
    forged = seal_payload(original.payload, Ed25519PrivateKey.generate())
    key = original.signatures[0][0]
    for at in (0, len(original.payload) // 2, -1):
        payload = bytearray(original.payload)
        payload[at] ^= 1
        yield f"payload byte {at}", body() | json.loads(Envelope(bytes(payload), original.signatures).to_bytes())
    signature = original.signatures[0][1]
    cut = Envelope(original.payload, ((key, signature[:-1] + bytes([signature[-1] ^ 1])),))
    yield "signature", json.loads(cut.to_bytes())
    yield "another type", body() | {"payloadType": "application/json"}
    yield "a stranger's signature", json.loads(forged.to_bytes())
    yield (
        "a stranger's signature under this key's name",
        json.loads(Envelope(original.payload, ((key, forged.signatures[0][1]),)).to_bytes()),
    )


def test_a_tampered_entry_is_rejected_by_securesystemslib_and_by_us(log):
    keys = keys_of(log)
    for entry in (log.entries[0], log.entries[1], log.entries[-1]):
        key = keys[Envelope.from_bytes(entry).signatures[0][0]]
        assert stock(entry).verify([key], 1)
        for what, body in twisted(entry):
            ours = Envelope(*_parts(StockEnvelope.from_dict(copy.deepcopy(body))))
            with pytest.raises(VerificationError):
                StockEnvelope.from_dict(body).verify([key], 1)
            assert not accepted(ours, bytes.fromhex(key.keyval["public"])), what


def accepted(ours: Envelope, key: bytes) -> bool:
    try:
        return bool(ours.signed_by([key])) and ours.payload_type == IN_TOTO
    except Refused:
        return False


def _parts(found: StockEnvelope) -> tuple[bytes, tuple[tuple[str, bytes], ...], str]:
    return found.payload, tuple((k, bytes.fromhex(s.signature)) for k, s in found.signatures.items()), found.payload_type


def test_an_envelope_that_securesystemslib_signed_is_accepted_here():
    key = Ed25519PrivateKey.generate()
    made = StockEnvelope(b'{"x":1}', IN_TOTO, {})
    made.sign(CryptoSigner(key, root.tuf_key(public_bytes(key))))
    ours = Envelope(*_parts(made))
    assert ours.signed_by([public_bytes(key)]) == {public_bytes(key)}


# -- a stock TUF client --------------------------------------------------------------------------------------------------


class Folder(FetcherInterface):
    """The repository's files, by name."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        if name not in self.files:
            raise DownloadHTTPError(f"{name} is not there", 404)
        yield self.files[name]


@pytest.fixture(scope="module")
def second(log) -> bytes:
    """Version 2, with another limit, signed by k members and nobody else."""
    draft = log.founded.hub.directory / "charter.toml"
    changed = terms_from(log.founded.hub, draft.read_text().replace("max_run_days = 90", "max_run_days = 30"))
    return root.propose(changed, 2, datetime.now(UTC))


def signed(log: SignedLog, raw: bytes, members: list[str]) -> bytes:
    signatures = {m: root.sign(raw, m, log.founded.members[m].governance_key) for m in members}
    return root.merge(raw, signatures, log.roots[0])


def follow(first: bytes, files: dict[str, bytes], folder: Path) -> int:
    """The version a stock client ends at. It asks for `timestamp` then, which a charter has not.

    Raises:
        RepositoryError: a version it does not accept.
    """
    client = Updater(str(folder), "https://charter.invalid/", fetcher=Folder(files), bootstrap=first)
    with pytest.raises(DownloadHTTPError, match="timestamp"):
        client.refresh()
    return int(json.loads((folder / "root.json").read_bytes())["signed"]["version"])


def test_a_stock_tuf_client_follows_the_charter_from_its_first_version(log, second, tmp_path):
    assert follow(log.roots[0], {}, tmp_path) == 1
    members = list(log.founded.members)
    raw = signed(log, second, members[: log.charter.terms.k])
    assert follow(log.roots[0], {"2.root.json": raw}, tmp_path) == 2
    assert root.walk([log.roots[0], raw], log.pin).version == 2
    assert sha256(root.parse(raw).signed_bytes).digest() == root.walk([log.roots[0], raw], log.pin).digest


@pytest.mark.parametrize("what", ["a minority signed", "terms changed after signing", "another number", "another consortium", "cut short"])
def test_a_charter_that_does_not_follow_is_rejected_by_the_stock_client_and_by_us(log, second, tmp_path, tmp_path_factory, what):
    members = list(log.founded.members)
    good = signed(log, second, members)
    raw = {
        "a minority signed": lambda: signed(log, second, members[: log.charter.terms.k - 1]),
        "terms changed after signing": lambda: good.replace(b'"max_run_days": 30', b'"max_run_days": 31'),
        "another number": lambda: signed(log, log.roots[0], members),
        "another consortium": lambda: signed_log(tmp_path_factory.mktemp("other")).roots[0].replace(b'"version": 1', b'"version": 2'),
        "cut short": lambda: good[:-20],
    }[what]()
    assert raw != good
    with pytest.raises(RepositoryError):
        follow(log.roots[0], {"2.root.json": raw}, tmp_path)
    with pytest.raises(Exception, match=r"signatures of|version 2 expected|is not TUF metadata"):
        root.walk([log.roots[0], raw], log.pin)
