"""Witnesses outside the members' port, over real HTTP: a real coordinator's log, three members' witnesses, one of which lies."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import pytest
from attacks.ports import Founded, found
from support.http_witness import HttpWitnessServer

from dure.charter.log_keys import log_key, witness_keys, witness_name, witness_quorum
from dure.errors import BadInput
from dure.identity.keys import load_signing_key
from dure.tlog.checkpoint import open_checkpoint
from dure.tlog.files import CHECKPOINT
from dure.tlog.witness import Seen
from dure_coordinator.app import Coordinator, outside_witnesses
from dure_coordinator.log import publisher as publishing
from dure_coordinator.log.witnesses import HttpWitness
from dure_coordinator.rpc.admin import Admin
from dure_coordinator.settings import CoordinatorSettings


@dataclass
class Outside:
    """A coordinator and its members' witnesses. Three members, one colluder: all three are needed for a head."""

    founded: Founded
    coordinator: Coordinator
    servers: dict[str, HttpWitnessServer]

    async def named(self) -> dict[str, str]:
        """What `dure coordinator status` says of witnesses, by member."""
        status = await Admin(self.coordinator)._status({}, b"")
        return {name.partition(".")[0]: why for name, why in status["log"]["witnesses"].items()}

    @property
    def cosigned(self) -> set[str]:
        terms = self.coordinator.charter.terms
        raw = (self.founded.hub.directory / "log" / CHECKPOINT).read_bytes()
        head = open_checkpoint(raw, log_key(terms), witness_keys(terms), quorum=witness_quorum(terms))
        return {name.partition(".")[0] for name in head.cosigned}


@pytest.fixture
async def outside(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "ASK_S", 0.5)
    founded, servers = found(tmp_path), {}
    charter = founded.hub.charter()
    for name, member in founded.members.items():
        key = load_signing_key(member.directory / "witness.key")
        host = witness_name(charter.member(name).host)
        servers[name] = HttpWitnessServer(tmp_path / f"{name}.seen", log_key(charter.terms), host, key).start()
    urls = {name: server.url for name, server in servers.items()}
    coordinator = await Coordinator.open(founded.hub, CoordinatorSettings(http_witnesses=urls))
    await coordinator.enter_charter()
    yield Outside(founded, coordinator, servers)
    for server in servers.values():
        server.released.set()
        server.stop()
    await coordinator.close()


async def test_a_head_gets_its_quorum_from_outside_witnesses(outside):
    assert await outside.coordinator.publisher.publish()
    assert (outside.cosigned, await outside.named()) == ({"ara", "bora", "chan"}, {})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong signature", "signature: of ara.titan/witness does not verify"),
        ("other key", "answered without its own cosignature"),
        ("garbage", "signature: is not a signature line"),
        ("403", "checkpoint: because"),
        ("404", "checkpoint: because"),
        ("422", "checkpoint: because"),
        ("500", "checkpoint: because"),
        ("redirect", "checkpoint: refused with status 307"),
        ("says it has more", "has seen 999999999 entries, this log has 1: it was rolled back"),
        ("silent", "no answer in 0.5 s"),
        ("drip", "no answer in 0.5 s"),
    ],
)
async def test_a_witness_that_misbehaves_is_named_by_status_and_the_head_waits_for_it(outside, fault, words):
    outside.servers["ara"].fault = fault
    assert not await outside.coordinator.publisher.publish()
    assert outside.coordinator.publisher.size == 0
    named = await outside.named()
    assert list(named) == ["ara"] and words in named["ara"]
    outside.servers["ara"].fault = ""
    outside.servers["ara"].released.set()
    async with asyncio.timeout(20):
        while not await outside.coordinator.publisher.publish():  # noqa: ASYNC110  # until the cut connection has ended
            await asyncio.sleep(0.05)
    assert await outside.named() == {}


async def test_a_witness_that_drips_for_ever_holds_one_thread_and_no_connection(outside):
    """The pool of threads that writes the log's files was shared with witnesses: a few retries would have stopped the coordinator."""
    outside.servers["ara"].fault = "drip"
    for _ in range(4):
        assert not await outside.coordinator.publisher.publish()
    witness = outside.coordinator.witnesses.fixed["ara.titan/witness"]
    async with asyncio.timeout(5):
        await asyncio.to_thread(witness._asked.exception)  # its connection is cut, so it ends
    assert len(witness._thread._threads) == 1


async def test_a_stale_size_is_corrected_by_409_in_the_same_try(outside):
    """The coordinator knows nothing of where a witness stands after a restart; tlog-witness's 409 tells it."""
    assert await outside.coordinator.publisher.publish()
    size = outside.coordinator.publisher.size
    outside.coordinator.publisher._sizes.clear()
    await _one_more(outside)
    assert await outside.coordinator.publisher.publish()
    assert outside.servers["ara"].asked == [200, 409, 200]
    assert outside.servers["ara"].seen.size == size + 1


async def _one_more(outside: Outside) -> None:
    from dure_coordinator.storage.store import StatementRow, With

    node = next(iter(outside.founded.nodes.values()))
    await outside.coordinator.store.write(b"", With(statements=(StatementRow.of(node.delegation),)))


async def test_a_witness_that_restarts_goes_on_from_its_record_and_is_named_while_it_is_away(outside):
    assert await outside.coordinator.publisher.publish()
    ara = outside.servers["ara"]
    port, kept = ara.stop(), ara.seen
    await _one_more(outside)
    assert not await outside.coordinator.publisher.publish()
    assert "refused" in (await outside.named())["ara"]
    ara.start(port)
    assert await outside.coordinator.publisher.publish()
    assert (kept.size, ara.seen.size, await outside.named()) == (1, 2, {})


async def test_an_outside_witness_refuses_another_history(outside):
    """It saw another first entry: the log is told 409 with that size, and 422 once it pretends to continue it."""
    ara = outside.servers["ara"]
    ara.record.write_text(f"1 {bytes(32).hex()}")
    await _one_more(outside)
    assert not await outside.coordinator.publisher.publish()
    assert ara.asked == [409, 422]
    assert "not shown to continue the head of size 1" in (await outside.named())["ara"]
    assert ara.seen == Seen(1, bytes(32))


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://w.example", "w.example", "http://", "http://w:port/x", "http://u:p@w/x", "http://w/?q"]
)
def test_a_setting_that_is_no_url_is_refused_by_name(tmp_path, url):
    charter = found(tmp_path).hub.charter()
    with pytest.raises(BadInput, match=r"coordinator.toml: http_witnesses.ara: .* is no URL of a witness"):
        outside_witnesses(charter, CoordinatorSettings(http_witnesses={"ara": url}))
    with contextlib.suppress(AttributeError):
        assert HttpWitness("https://w.example/prefix/")._path == "/prefix/add-checkpoint"
