"""A sum that does not hold: every node finds out by itself whose fault it is, says so signed, and takes no further part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sim.exchange_world import World, blob_id

from dure.blobs import BlobId
from dure.secagg import tlv
from dure.secagg.tag import TagKey
from dure.statements.dsse import Envelope
from dure.statements.kinds import Dispute, ExchangeAccept
from dure.statements.statement import read_verified, seal
from dure.wire.messages import Report, ReportKind
from dure_coordinator.exchange import view
from dure_coordinator.exchange.accept import aggregate_digests
from dure_coordinator.exchange.duties import Sum
from dure_coordinator.exchange.events import Reported
from dure_coordinator.exchange.state import RunPhase
from dure_participant.exchange import inputs as inp
from dure_participant.exchange.actions import Recompute
from dure_participant.exchange.rules import payload_sha256
from dure_participant.exchange.step import owed


def ready_world(world: World) -> World:
    world.start()
    world.run_until(lambda w: w.idle())
    return world


class Lying(World):
    """Its coordinator adds one to an element of the sums of one purpose."""

    lies_about = "update"

    def sum(self, duty: Sum) -> dict[str, bytes]:
        result = super().sum(duty)
        if duty.purpose != self.lies_about:
            return result
        data = bytearray(self.blobs[result["sum"].decode()])
        data[8] ^= 1
        name = self.put(bytes(data), duty.chunk_bytes)
        return {**result, "sum": name.encode(), "root": BlobId.parse(name).root}


class Spoilt(World):
    """m00 commits to noise: its upload is another one than it masked and tagged."""

    spoils = "update"

    def upload(self, member: str, action: Any) -> inp.UploadReady:
        ready = super().upload(member, action)
        key = (member, action.instance)
        if member != "m00" or action.purpose != self.spoils:
            return ready
        noise = bytes([self.spools[key][0] ^ 1]) + self.spools[key][1:]
        self.spooled = key, noise
        return replace(ready, root=blob_id(noise, action.chunk_bytes).root)

    def sum(self, duty: Sum) -> dict[str, bytes]:
        if duty.purpose == self.spoils:
            self.spools[self.spooled[0]] = self.spooled[1]
        return super().sum(duty)


def settle(world: World) -> None:
    """Whatever still waits is delivered."""
    while world.deliver():
        pass


def saw(world: World) -> list[str]:
    """Members that were shown the sum before others' disputes ended the run."""
    found = []
    for member in world.members:
        exchange = world.state_of(member).exchange
        if exchange and any(w.aggregate_envelope and not w.verified for w in exchange.instances):
            found.append(member)
    assert len(found) > len(world.members) - world.facts.u_min
    return found


def words_of(world: World, member: str) -> list[Dispute]:
    return [read_verified(d.envelope, Dispute) for d in world.state_of(member).own_disputes]


@pytest.mark.parametrize("purpose", ["scales", "update"])
def test_a_wrong_sum_of_the_coordinator_is_found_by_every_node_and_named_down_to_the_chunk(purpose: str) -> None:
    world = Lying(4)
    world.lies_about = purpose
    ready_world(world).exchange(1, "train", world.first_weights())
    settle(world)
    assert not [m for m, r in world.sent if r.kind is ReportKind.ACCEPT]
    for member in saw(world):
        state = world.state_of(member)
        assert "the coordinator's sum is wrong at chunk 0" in state.frozen, state.frozen
        (word,) = words_of(world, member)
        assert (word.finding, word.chunk) == ("sum", 0)
        assert word.leaf and word.recomputed_leaf and word.leaf != word.recomputed_leaf
    assert world.state.phase is RunPhase.ABORTED
    assert "frozen" in world.state.reason
    assert {d.member for d in world.state.disputes} == set(saw(world))
    shown = view.summary(world.state)["disputes"]
    assert {(d["purpose"], d["finding"], d["chunk"]) for d in shown} == {(purpose, "sum", 0)}
    world.check_secrets()
    world.refold()


@pytest.mark.parametrize("purpose", ["scales", "update"])
def test_a_members_garbage_is_told_from_a_lie_of_the_coordinator_and_nobody_is_accused(purpose: str) -> None:
    world = Spoilt(4)
    world.spoils = purpose
    ready_world(world).exchange(1, "train", world.first_weights())
    settle(world)
    for member in saw(world):
        assert "some member's upload was garbage, who sent it cannot be known" in world.state_of(member).frozen
        (word,) = words_of(world, member)
        assert (word.finding, word.chunk, word.upload_of) == ("garbage", None, None)
    assert world.state.phase is RunPhase.ABORTED


@pytest.mark.parametrize("seed", range(3))
def test_a_doubt_survives_restarts_of_every_node_and_of_the_coordinator(seed: int) -> None:
    world = Lying(4, seed=seed)
    ready_world(world).exchange(1, "train", world.first_weights(), crash=0.03)
    for _ in range(5):
        settle(world)
        for member in world.members:
            if not world.nodes[member].connected:
                world.connect(member)
    world.refold()
    assert all("wrong at chunk 0" in world.state_of(m).frozen for m in saw(world))
    assert all(len(words_of(world, m)) == 1 for m in saw(world))


def test_no_second_statement_is_signed_about_one_sum() -> None:
    world = Lying(4, duplicate=0.3)
    ready_world(world).exchange(1, "train", world.first_weights())
    settle(world)
    disputes = {(m, r.body) for m, r in world.sent if r.kind is ReportKind.DISPUTE}
    assert len(disputes) == len(world.state.disputes) == len(saw(world))


def test_a_frozen_node_sits_out_of_what_comes_next_with_its_reason() -> None:
    world = World(4)
    weights = ready_world(world).exchange(1, "train", world.first_weights()).blob
    node = world.nodes["m02"]
    node.state = replace(world.state_of("m02"), frozen="a sum does not hold").to_bytes()
    reply = world.exchange(2, "train", weights)
    assert reply.status == "ok" and "m02" not in reply.survivors
    assert "frozen here: a sum does not hold" in reply.errors["m02"]


def accepted(world: World, member: str, exchange: int) -> tuple[bytes, bytes]:
    """(instance, aggregate digest) of the update this member accepted."""
    instance = next(e for e in (*world.state.closed, world.state.exchange) if e and e.number == exchange).instances[-1]
    assert instance.purpose == "update"
    return instance.instance, payload_sha256(instance.aggregate_envelope)


def recompute(world: World, member: str, exchange: int) -> None:
    """What `dure node recompute` has the agent do."""
    instance, digest = accepted(world, member, exchange)
    finding = world.recompute(member, Recompute("x", exchange, instance, digest))
    world.give(member, inp.Recomputed(instance, digest, finding))


def test_recomputation_on_demand_of_an_honest_run_changes_nothing_but_the_notes() -> None:
    world = World(4)
    ready_world(world).exchange(1, "train", world.first_weights())
    recompute(world, "m02", 1)
    state = world.state_of("m02")
    assert not state.frozen and not state.own_disputes
    assert "recomputed: agrees" in world.nodes["m02"].notes[-1]
    assert world.exchange(2, "train", world.answers[1].blob).status == "ok"


def test_a_forged_tag_is_found_on_demand_and_every_member_rechecks_the_chunk_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a colluding member the coordinator can forge the tag: here it is not looked at. One member recomputes; all freeze."""
    world = Lying(4)
    monkeypatch.setattr(TagKey, "verify", lambda *_, **__: None)
    assert ready_world(world).exchange(1, "train", world.first_weights()).status == "ok"
    assert not any(world.state_of(m).frozen for m in world.members)
    recompute(world, "m02", 1)
    settle(world)
    assert "the coordinator's sum is wrong at chunk 0" in world.state_of("m02").frozen
    for member in world.members:
        state = world.state_of(member)
        assert "wrong at chunk 0" in state.frozen, member
        if member != "m02":
            assert any(d.member == "m02" and "wrong at chunk 0" in d.result for d in state.disputes)


def lie(world: World, liar: str, exchange: int, **changes: Any) -> Any:
    """A member signs that a sum is wrong which is not."""
    instance, digest = accepted(world, liar, exchange)
    fields: dict[str, Any] = dict(
        run=world.run,
        exchange=exchange,
        member=liar,
        instance=instance,
        aggregate_sha256=digest,
        finding="sum",
        chunk=0,
        leaf=b"l" * 32,
        recomputed_leaf=b"r" * 32,
        upload_of=None,
        reason="it is wrong, believe me",
    )
    node = world.nodes[liar]
    envelope, node.chain = seal(Dispute(**{**fields, **changes}), node.site.node_key, node.chain, world.now)
    return world.apply(Reported(liar, Report(world.run, ReportKind.DISPUTE, exchange, instance, 0, envelope.to_bytes())))


def test_a_dispute_that_is_not_true_stops_nobody_else() -> None:
    world = World(4)
    weights = ready_world(world).exchange(1, "train", world.first_weights()).blob
    assert lie(world, "m03", 1).accepted
    settle(world)
    for member in world.members[:3]:
        state = world.state_of(member)
        assert not state.frozen
        assert [(d.member, d.result) for d in state.disputes] == [("m03", "recomputed: agrees")]
    assert world.exchange(2, "train", weights).status == "ok"
    assert view.summary(world.state)["disputes"][0]["member"] == "m03"


def test_a_chunk_that_does_not_exist_is_no_reason_to_freeze() -> None:
    world = World(4)
    ready_world(world).exchange(1, "train", world.first_weights())
    assert lie(world, "m03", 1, chunk=77).accepted
    settle(world)
    assert not any(world.state_of(m).frozen for m in world.members[:3])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"member": "m01"}, "dispute"),
        ({"run": b"x" * 32}, "dispute"),
        ({"aggregate_sha256": b"x" * 32}, "dispute.aggregate_sha256"),
        ({"instance": b"x"}, "dispute.aggregate_sha256"),
    ],
)
def test_the_coordinator_keeps_no_dispute_of_another_name_run_or_sum(changes: dict[str, Any], field: str) -> None:
    world = World(4)
    ready_world(world).exchange(1, "train", world.first_weights())
    reply = lie(world, "m03", 1, **changes)
    assert (reply.accepted, reply.field) == (False, field)
    assert world.state.disputes == ()


def test_one_dispute_per_member_and_sum_is_kept_and_it_is_taken_when_the_run_is_over() -> None:
    world = World(4)
    ready_world(world).exchange(1, "train", world.first_weights())
    world.stop()
    world.run_until(lambda w: w.state.phase is RunPhase.FINISHED)
    assert lie(world, "m03", 1).accepted
    assert not lie(world, "m03", 1, reason="and again").accepted
    assert len(world.state.disputes) == 1
    settle(world)
    assert [d.result for d in world.state_of("m00").disputes] == ["recomputed: agrees"]
    world.refold()


def test_a_dispute_in_a_members_name_that_it_did_not_sign_is_refused_by_the_nodes() -> None:
    """Its author's signature is checked under the charter's key, not the coordinator's word."""
    world = World(4)
    ready_world(world).exchange(1, "train", world.first_weights())
    lie(world, "m03", 1)
    settle(world)
    forged = world.state.disputes[0]
    stranger = world.nodes["m02"].site
    other = world.state.exchange.instances[-1].aggregate_envelope  # type: ignore[union-attr]
    for pair in ((forged.envelope, stranger.delegation), (other, forged.delegation)):
        shown = replace(world.shown["m00"], documents={"disputes": tlv.encode(pair)})
        before = world.state_of("m00")
        node = world.nodes["m00"]
        node.state = replace(before, disputes=()).to_bytes()
        world.give("m00", inp.Directed(shown))
        assert world.state_of("m00").disputes == ()
        assert "refused" in node.notes[-1]


def test_a_site_that_asks_for_it_recomputes_before_it_accepts_and_its_acceptance_says_so() -> None:
    world = World(4)
    node = world.nodes["m01"]
    node.site = replace(node.site, recompute_first=True)
    reply = ready_world(world).exchange(1, "train", world.first_weights())
    assert reply.status == "ok"
    settle(world)
    said = {m: read_verified(tlv.decode(r.body)[0], ExchangeAccept) for m, r in world.sent if r.kind is ReportKind.ACCEPT}
    assert len(said["m01"].recomputed) == 2 and said["m01"].recomputed == said["m01"].aggregates
    assert said["m00"].recomputed == ()


def test_a_site_that_recomputes_first_never_accepts_a_sum_with_a_forged_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Lying(4)
    monkeypatch.setattr(TagKey, "verify", lambda *_, **__: None)
    node = world.nodes["m01"]
    node.site = replace(node.site, recompute_first=True)
    ready_world(world).exchange(1, "train", world.first_weights())
    settle(world)
    assert "wrong at chunk 0" in world.state_of("m01").frozen
    assert not any(m == "m01" for m, r in world.sent if r.kind is ReportKind.ACCEPT)


def test_an_acceptance_that_says_it_recomputed_something_else_is_refused() -> None:
    world, said = World(4), []

    def accept(w: World) -> None:
        exchange, node = w.state.exchange, w.nodes["m03"]
        if exchange and exchange.phase == "step" and not said:
            digests = aggregate_digests(exchange)
            word = ExchangeAccept(w.run, exchange.number, "m03", digests, (b"x" * 32,), b"b" * 32)
            envelope, _ = seal(word, node.site.node_key, node.chain, w.now)
            body = tlv.encode(envelope.to_bytes(), b"")
            said.append(
                w.apply(Reported("m03", Report(w.run, ReportKind.ACCEPT, exchange.number, exchange.instances[-1].instance, 0, body)))
            )

    ready_world(world).exchange(1, "train", world.first_weights(), hook=accept)
    assert (said[0].accepted, said[0].field) == (False, "accept.recomputed")


def test_only_members_of_an_exchange_are_shown_what_its_sums_were_opened_from() -> None:
    world = World(5)
    world.start()
    world.run_until(lambda w: w.idle())
    world.kill("m04")
    weights = world.exchange(1, "train", world.first_weights()).blob
    world.connect("m04")
    world.exchange(2, "train", weights)
    exchange = world.state.closed[0]
    inside = next(m for m in exchange.members if m != "m04")
    assert len(view.opened_sums(world.state, inside, 1)) == 2
    upload = next(iter(exchange.instances[-1].uploads.values()))
    assert view.readable_upload(world.state, inside, upload) is not None
    assert view.readable_upload(world.state, inside, str(blob_id(b"another"))) is None
    if "m04" not in exchange.members:
        assert view.opened_sums(world.state, "m04", 1) == ()
        assert view.readable_upload(world.state, "m04", upload) is None


def test_uploads_outside_the_survivor_set_are_never_readable() -> None:
    world = World(5)
    ready_world(world)

    def lose(w: World) -> None:
        instance = w.state.exchange.instance if w.state.exchange else None
        if instance and instance.purpose == "update" and instance.phase == "upload" and w.nodes["m04"].alive:
            w.kill("m04")

    reply = world.exchange(1, "train", world.first_weights(), hook=lose)
    assert reply.status == "ok" and "m04" not in reply.survivors
    update = world.state.exchange.instances[-1]  # type: ignore[union-attr]
    assert "m04" in update.cohort and set(update.uploads) == set(reply.survivors)


def test_the_actions_of_a_doubt_are_owed_when_the_run_is_over() -> None:
    world = Lying(4)
    ready_world(world).exchange(1, "train", world.first_weights())
    settle(world)
    node = world.nodes["m00"]
    state = replace(world.state_of("m00"), finished=True)
    assert [a.report.kind for a in owed(node.site, state)] == [ReportKind.DISPUTE]
    assert Envelope.from_bytes(owed(node.site, state)[0].report.body).payload
