"""A log that shows two histories: whoever was shown the other one says so in every statement it signs, and an audit of the log finds it."""

from __future__ import annotations

import time
from dataclasses import replace

import grpc
import pytest
from attacks.ports import hands, serving
from support.synthetic_log import SyntheticLog

from dure.audit import chunk, heads, report
from dure.audit.bundle import Bundle
from dure.audit.level1 import verify
from dure.statements.kinds import RunApproval
from dure.statements.statement import Chain, SeenHead, seal
from dure.tlog.checkpoint import Checkpoint
from dure.tlog.merkle import Frontier
from dure.tlog.note import Note, sign
from dure.wire.messages import Report, ReportKind
from dure_pb.v1 import log_pb2 as pb
from dure_pb.v1.log_pb2_grpc import LogServiceStub

ENTRIES = 1_500
TURN = 20
"""Heads that are published before somebody names another one."""


class Told(SyntheticLog):
    """A log in which `tell` changes, once, the head that ara's node names."""

    def __init__(self, tell) -> None:
        super().__init__(exchanges_per_run=10, seed=5)
        self.tell, self.heads = tell, 0

    def _published(self) -> None:
        super()._published()
        self.heads += 1
        if self.heads == TURN:
            node = self.members[0].node
            node.chain = replace(node.chain, seen=self.tell(node.chain.seen))


def audited(log, folder, **how):
    bundle = log.write(folder, log.entries(ENTRIES))
    return verify(Bundle.open(bundle), log.pin, now=log.now, cores=1, **how)


def test_every_head_that_is_named_is_of_this_history(tmp_path, monkeypatch):
    """Near ones by what the reading processes give, far ones from the tiles of hashes: the same."""
    result = audited(SyntheticLog(exchanges_per_run=10, seed=5), tmp_path / "near")
    assert (result.holds, result.heads_unchecked) == (True, 0)
    assert result.heads_named > ENTRIES * 0.9
    monkeypatch.setattr(chunk, "prefixes", lambda first, leaves, _sizes: (Frontier().extend(leaves), {}))
    monkeypatch.setattr(heads, "REMEMBERED", 1)
    far = audited(SyntheticLog(exchanges_per_run=10, seed=5), tmp_path / "far")
    assert (far.holds, far.heads_named, far.heads_unchecked) == (True, result.heads_named, 0)


@pytest.mark.parametrize(
    ("tell", "why"),
    [
        (lambda seen: SeenHead(seen.size, bytes(32)), "that this log never had"),
        (lambda seen: SeenHead(seen.size - 1, seen.root), "that this log never had"),
        (lambda seen: SeenHead(100, bytes(32)), "had seen"),
        (lambda seen: SeenHead(1, bytes(32)), "had seen"),
        (lambda seen: None, "is null, and this signer had seen"),
        (lambda seen: SeenHead(seen.size + 500, seen.root), "younger than this statement"),
    ],
    ids=["fork", "fork by one", "back", "back to one", "null", "younger"],
)
def test_a_node_that_names_another_head_is_found(tmp_path, tell, why):
    result = audited(Told(tell), tmp_path / "bundle")
    assert not result.holds
    told = [f.why for f in result.findings]
    assert all(f.startswith("checkpoint: ") for f in told)
    assert why in told[0]
    assert 1 <= len(told) <= 5  # and not every statement of it after


def test_where_hashes_are_missing_the_audit_says_what_it_could_not_check(tmp_path, monkeypatch):
    log = SyntheticLog(exchanges_per_run=10, seed=5)
    bundle = log.write(tmp_path / "bundle", log.entries(ENTRIES))
    (bundle / "log" / "tile" / "0" / "000").unlink()
    monkeypatch.setattr(chunk, "prefixes", lambda first, leaves, _sizes: (Frontier().extend(leaves), {}))
    result = verify(Bundle.open(bundle), log.pin, now=log.now, cores=1)
    assert (result.findings, result.missing) == ([], ["log/tile/0/000"])
    (row,) = [r for r in report.rows(result) if "signers had seen" in r.claim]
    assert result.heads_unchecked > 0
    assert row.how == report.UNCHECKED


async def test_a_statement_that_names_a_head_this_log_never_had_becomes_no_entry(tmp_path):
    """Where it is a lie, one member could make every audit of the consortium fail; where it is true, the node stops and says so."""
    async with serving(tmp_path) as port, hands(port, "ara") as (hand,):
        engine = await port.start_run()
        await port.coordinator.enter_charter()
        own = await published(port.coordinator)
        log, word = LogServiceStub(hand.channel), RunApproval(engine.run, "ara", "n1")
        for head, code, why in (
            (SeenHead(own.size, bytes(32)), "INVALID_ARGUMENT", "checkpoint: names a head of 1 entries that this log never had"),
            (SeenHead(2, own.root), "UNAVAILABLE", ""),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await log.Append(pb.AppendRequest(envelopes=[said(word, hand, head)]))
            assert (error.value.code().name, error.value.details().startswith(why)) == (code, True)
        told = Report(engine.run, ReportKind.APPROVAL, body=said(word, hand, SeenHead(1, bytes(32))))
        assert (await port.coordinator.fleet.report(port.coordinator.fleet.sessions["ara"].caller, told)).field == "checkpoint"
        assert await port.coordinator.store.statements(kind=RunApproval.kind) == []
        assert (await log.Append(pb.AppendRequest(envelopes=[said(word, hand, own)]))).accepted == 1


def said(word, hand, head) -> bytes:
    return seal(word, hand.identity.key, Chain().having_seen(head), time.time())[0].to_bytes()


async def published(coordinator) -> SeenHead:
    """The log's head so far, as if its witnesses had cosigned it."""
    publisher = coordinator.publisher
    await publisher._write()
    text = Checkpoint(publisher.origin, publisher.files.size, publisher.files.root).text()
    publisher.files.publish(Note(text, (sign(text, publisher.origin, publisher.key(publisher.files.keys[0])),)).to_bytes())
    return publisher.seen
