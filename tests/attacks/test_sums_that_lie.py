"""A coordinator that opens a sum and shows another: zero, negated, doubled, partial or tampered, each under a root it signs itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attacks.hostile import Answer, Hostile, at

from dure.blobs import BlobId, Manifest, chunk_leaf
from dure.errors import DureError, Refused
from dure.secagg import field as fp
from dure.statements.dsse import Envelope
from dure.statements.kinds import InstanceAggregate, InstanceSurvivors
from dure.statements.statement import read_verified
from dure.wire.messages import ReportKind
from dure_participant.exchange import actions as act
from dure_participant.exchange import inputs as inp

CHUNK_BYTES = {"scales": 4096 * 24 * 8, "update": 2 << 18}
TYPES = {"scales": "<u8", "update": "<u2"}


def signed(world: Hostile, said: InstanceAggregate, data: bytes, purpose: str) -> dict[str, bytes]:
    """An aggregate over this data, with the root to it, under the coordinator's real key."""
    blob = world.put(data, CHUNK_BYTES[purpose])
    return {"aggregate": world.seal(replace(said, root=BlobId.parse(blob).root)), "sum": blob.encode()}


def shown_sum(world: Hostile, member: str, change: Callable[[Any, InstanceAggregate], tuple[Any, InstanceAggregate]]) -> Answer:
    """The node's answer once it has downloaded and looked at this other sum of the exchange's last instance."""
    instance = world.now_at
    said = read_verified(instance.aggregate_envelope, InstanceAggregate)
    data, said = change(np.frombuffer(world.blobs[instance.sum], TYPES[instance.purpose]).copy(), said)
    first = world.show(member, world.directive(member, documents=signed(world, said, data.tobytes(), instance.purpose)))
    verify = next((a for a in first.actions if isinstance(a, act.Verify)), None)
    return first if verify is None else world.feed(member, looked_at(world, verify))


def looked_at(world: Hostile, verify: act.Verify) -> inp.Input:
    """What the agent says of a sum: its facts, or that nothing can follow from it."""
    try:
        return inp.Verified(verify.instance, world.verify(verify))
    except DureError as error:
        return inp.Failed(verify.id, str(error))


def zero(q: Any, said: InstanceAggregate) -> tuple[Any, InstanceAggregate]:
    return np.zeros_like(q), replace(said, trailer=(0,) * len(said.trailer), tag=0)


def negated(q: Any, said: InstanceAggregate) -> tuple[Any, InstanceAggregate]:
    return -q, replace(said, trailer=tuple(-v % 2**64 for v in said.trailer), tag=-said.tag % fp.P)


def doubled(q: Any, said: InstanceAggregate) -> tuple[Any, InstanceAggregate]:
    return q * 2, replace(said, trailer=tuple(2 * v % 2**64 for v in said.trailer), tag=2 * said.tag % fp.P)


def honest_head(change: Callable[[Any, InstanceAggregate], tuple[Any, InstanceAggregate]]) -> Callable[..., tuple[Any, InstanceAggregate]]:
    """The same, with the trailer's count and weights left as they were: only the tag can tell."""

    def changed(q: Any, said: InstanceAggregate) -> tuple[Any, InstanceAggregate]:
        data, other = change(q, said)
        return data, replace(other, trailer=said.trailer)

    return changed


def one_bit(q: Any, said: InstanceAggregate) -> tuple[Any, InstanceAggregate]:
    q[7] ^= np.uint16(1)
    return q, said


LIES: dict[str, Callable[[Any, InstanceAggregate], tuple[Any, InstanceAggregate]]] = {
    "zero": zero,
    "negated": negated,
    "doubled": doubled,
    "zero with the true trailer": honest_head(zero),
    "negated with the true trailer": honest_head(negated),
    "doubled with the true trailer": honest_head(doubled),
    "one bit": one_bit,
    "swapped blocks": lambda q, a: (np.concatenate((q[4096:8192], q[:4096], q[8192:])), a),
    "trailer + p": lambda q, a: (q, replace(a, trailer=(a.trailer[0], a.trailer[1] + fp.P, *a.trailer[2:]))),
    "a metric + p": lambda q, a: (q, replace(a, trailer=(*a.trailer[:-1], (a.trailer[-1] + fp.P) % 2**64))),
    "weights zero": lambda q, a: (q, replace(a, trailer=(a.trailer[0], 0, *a.trailer[2:]))),
    "one member fewer": lambda q, a: (q, replace(a, trailer=(a.trailer[0] - 1, *a.trailer[1:]))),
    "another metric": lambda q, a: (q, replace(a, trailer=(*a.trailer[:-1], a.trailer[-1] + 1))),
    "another tag": lambda q, a: (q, replace(a, tag=(a.tag + 1) % fp.P)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_sum_that_is_not_the_survivors_freezes_the_run_for_the_node_that_sees_it(lie: str) -> None:
    """Without TagKey.verify (its pads for zero, negated and doubled; check_totals for trailer + p) the next base would be made of it."""
    answer = shown_sum(at("step"), "m00", LIES[lie])
    assert "does not verify" in answer.state.frozen and answer.state.base_record == b""
    assert not answer.sent(ReportKind.ACCEPT) and any(isinstance(a, act.Recompute) for a in answer.actions)


def test_the_true_sum_is_accepted() -> None:
    assert shown_sum(at("step"), "m00", lambda q, a: (q, a)).sent(ReportKind.ACCEPT)


@pytest.mark.parametrize("lie", ["zero", "doubled", "one member fewer", "another tag"])
def test_scales_that_were_tampered_with_lead_to_no_update(lie: str) -> None:
    """Dealing in the update says that the scales' tag was good: without the check one member's update could be clipped at will."""
    world = at("share", "update")
    world.bag = [b for b in world.bag if b[1] != "m00"]
    scales = world.state.exchange.scales  # type: ignore[union-attr]
    said = read_verified(scales.aggregate_envelope, InstanceAggregate)
    data, said = LIES[lie](np.frombuffer(world.blobs[scales.sum], "<u8").copy() % fp.P, said)
    data = data % fp.P if lie == "doubled" else data
    documents = {f"scales_{name}": value for name, value in signed(world, said, data.tobytes(), "scales").items()}
    shown = world.show("m00", world.directive("m00", documents=documents))
    verify = next(a for a in shown.actions if isinstance(a, act.Verify))
    answer = world.feed("m00", looked_at(world, verify))
    assert "does not verify" in answer.state.frozen and not answer.sent(ReportKind.SHARE)


def test_scales_that_carry_a_word_which_is_no_element_are_a_lie_too() -> None:
    """p itself reads as zero: the agent refuses a chunk that holds it, so that two bit patterns never mean one sum."""
    from dure_participant.verify import Tagged

    world = at("share", "update")
    scales = world.state.exchange.scales  # type: ignore[union-attr]
    data = np.frombuffer(world.blobs[scales.sum], "<u8").copy()
    data[0] = fp.P
    shown = world.show("m00", world.directive("m00"))
    verify = next(a for a in shown.actions if isinstance(a, act.Verify))

    data = data.tobytes()
    manifest = Manifest((chunk_leaf(data),), len(data), verify.chunk_bytes)
    with pytest.raises(Refused, match="no element"):
        list(Tagged(verify).field([(manifest, 0, memoryview(data))]))


AGGREGATES: dict[str, dict[str, Any]] = {
    "ctx": {"ctx": b"x" * 32},
    "survivors_sha256": {"survivors_sha256": b"x" * 32},
    "length": {"length": 2},
    "instance": {"instance": b"\x00"},
}


@pytest.mark.parametrize("field", AGGREGATES)
def test_an_aggregate_that_is_not_of_this_instance_is_refused(field: str) -> None:
    """Without the comparisons in take_aggregate the sum of one instance could be shown as another's."""
    world = at("step")
    evil = replace(read_verified(world.now_at.aggregate_envelope, InstanceAggregate), **AGGREGATES[field])
    assert world.show("m00", world.directive("m00", documents={"aggregate": world.seal(evil)})).refused(
        "instance" if field == "instance" else field
    )
    assert world.show("m00", world.directive("m00", documents={"aggregate": world.signed_by("m01", evil)})).refused("signatures")


def test_a_trailer_with_more_or_fewer_entries_is_refused() -> None:
    """Entries of zero change no tag: without the length check metrics could be dropped or slipped in unseen."""
    world = at("step")
    said = read_verified(world.now_at.aggregate_envelope, InstanceAggregate)
    for trailer in ((*said.trailer, 0), said.trailer[:-1]):
        documents = {"aggregate": world.seal(replace(said, trailer=trailer))}
        assert world.show("m00", world.directive("m00", documents=documents)).refused("aggregate.trailer")


def test_a_survivor_set_in_the_result_without_its_quorum_is_refused() -> None:
    """Without judge_survivors the pads of other members than those in the sum would be taken for the tag."""
    world = at("step")
    said = read_verified(world.now_at.survivors_envelope, InstanceSurvivors)
    for evil in (
        replace(said, survivors=said.survivors[:4]),
        replace(said, certificate=said.certificate[:3]),
        replace(said, survivors=said.survivors[:2] + said.survivors[1:]),
        replace(said, ctx=b"x" * 32),
    ):
        envelope = world.seal(evil)
        digest = Envelope.from_bytes(envelope).payload_sha256
        aggregate = replace(read_verified(world.now_at.aggregate_envelope, InstanceAggregate), survivors_sha256=digest)
        documents = {"survivors": envelope, "aggregate": world.seal(aggregate)}
        assert world.show("m00", world.directive("m00", documents=documents)).refused("")


def test_another_sum_after_the_first_one_was_shown_is_refused() -> None:
    """Without the comparison in take_aggregate a node could be made to verify one sum and step with another."""
    world = at("step")
    world.show("m00", world.directive("m00"))
    said = read_verified(world.now_at.aggregate_envelope, InstanceAggregate)
    assert world.show("m00", world.directive("m00", documents={"aggregate": world.seal(said)})).refused("another one")


def test_a_blob_other_than_the_signed_root_is_refused_before_it_is_fetched() -> None:
    """Without the comparison of root and blob id the node would fetch, and tag, what nobody signed."""
    world = at("step")
    other = world.put(b"\x01\x00" * (world.now_at.open_statement.elements), CHUNK_BYTES["update"]).encode()
    assert world.show("m00", world.directive("m00", documents={"sum": other})).refused("sum")


def test_a_blob_named_where_there_is_no_vector_is_refused() -> None:
    """Without this line text of any size went into the node's state, which then could not be read at the next start."""
    world = at()
    world.reach("step", message="evaluate")
    assert world.show("m00", world.directive("m00", documents={"sum": b"x" * 100_000})).refused("sum")
    assert world.show("m00", world.directive("m00")).actions
