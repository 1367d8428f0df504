"""Whatever bytes a peer sends, our decoders answer with a refusal: no other error leaves, and no state is made unreadable.

Valid messages are damaged (cut, flipped, swapped, one JSON value replaced), which reaches further than noise. `make test-deep` runs more.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
from attacks.hostile import Hostile, at
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dure.charter import root
from dure.errors import DureError, Refused
from dure.secagg import epoch as keys
from dure.secagg import instance as sums
from dure.secagg import recover, shares, tlv
from dure.secagg.ids import InstanceId
from dure.statements.kinds import KINDS
from dure.statements.statement import open_statement, read_verified
from dure.wire.control import WireRefused, decode_directive, decode_hello, decode_hello_reply, decode_report
from dure.wire.messages import Directive, DirectiveKind, Report, ReportKind
from dure_coordinator.exchange import decide, view
from dure_coordinator.exchange.events import Reported, Uploaded, decode_event
from dure_participant.exchange import inputs as inp
from dure_participant.exchange.state import NodeRunState
from dure_participant.exchange.step import owed, step
from dure_pb.v1 import members_pb2 as pb

FEW, MANY = 60, 3000
SEEDS = st.integers(0, 2**32)
STRANGE: list[Any] = [None, -1, 0, 2**63, 2**200, "", "x" * 20_000, "\x00", "\ud800", [], [[]], {}, {"a": 1}, True, 1.5, "ff" * 40, "0:0"]


def quick(test: Callable[..., None]) -> Callable[..., None]:
    return settings(max_examples=FEW, deadline=None, suppress_health_check=list(HealthCheck))(given(SEEDS)(test))


def long(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.deep(
        pytest.mark.timeout(900)(settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck))(given(SEEDS)(test)))
    )


# -- damage ------------------------------------------------------------------------------------------------------------


def damaged(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """These bytes with one thing wrong."""
    how = rng.randrange(6)
    if how == 0 and others:
        return rng.choice(others)
    if how == 1:
        return data[: rng.randrange(len(data) + 1)]
    if how == 2:
        at_ = rng.randrange(len(data) + 1)
        return data[:at_] + rng.randbytes(rng.randint(1, 40)) + data[at_:]
    if how in (3, 4) and data:
        if (made := damaged_json(rng, data)) is not None:
            return made
        spoilt = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            spoilt[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(spoilt)
    return rng.choice([b"", b"\x00", b"{}", b"[" * 5000, b"null", rng.randbytes(64), data * 2])


def damaged_json(rng: random.Random, data: bytes) -> bytes | None:
    """One value anywhere in it replaced, in a DSSE payload too; None where it is not JSON."""
    try:
        body = json.loads(data)
    except ValueError:
        return None
    sealed = isinstance(body, dict) and set(body) == {"payload", "payloadType", "signatures"}
    if sealed and isinstance(body["payload"], str) and rng.random() < 0.7:
        try:
            inner = damaged_json(rng, base64.b64decode(body["payload"]))
        except ValueError:  # damaged once before
            inner = None
        body["payload"] = base64.b64encode(inner or b"").decode()
    else:
        body = _replaced(rng, body)
    try:
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=rng.random() < 0.5).encode()
    except UnicodeEncodeError:
        return json.dumps(body).encode()


def _replaced(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _replaced(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        i = rng.randrange(len(value))
        return [*value[:i], _replaced(rng, value[i]), *value[i + 1 :]]
    return rng.choice(STRANGE)


# -- what there is to damage -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def scenes() -> tuple[Hostile, ...]:
    """Worlds in every phase; nobody in them has heard of it yet."""
    purposes = [("open", "scales"), ("upload", "scales"), ("survivors", "scales"), ("share", "update"), ("upload", "update")]
    found = [at("execute"), *(at(*p) for p in purposes), at("survivors", "update"), at("reveal", "update"), at("step")]
    for phase in ("advert", "kem", "group", "join"):
        world = Hostile(up=False)
        world.start()
        world.run_until(lambda w, phase=phase: w.state.epoch is not None and w.state.epoch.phase.value == phase)
        found.append(world)
    return tuple(found)


@lru_cache(maxsize=1)
def messages() -> dict[str, list[bytes]]:
    """Real messages by kind."""
    world = at("step")
    epoch, exchange = world.state.epoch, world.state.exchange
    assert epoch is not None and exchange is not None
    found = {"advert": list(epoch.adverts.values()), "kem": list(epoch.kems.values()), "group": list(epoch.groups.values())}
    found["share"] = [s for i in exchange.instances for s in i.shares.values()]
    found["reveal"] = [r for i in exchange.instances for r in i.reveals.values()]
    found["seeds"] = [i.recovered.to_bytes() for i in exchange.instances if i.recovered is not None]
    found["statement"] = [world.facts.plan_envelope, *world.state.approvals.values()]
    for i in exchange.instances:
        found["statement"] += [i.open_envelope, i.survivors_envelope, i.aggregate_envelope, *i.commits.values()]
    found["event"] = [data for _, data in world.log]
    found["state"] = [world.nodes[m].state for m in world.members]
    return found


def only_refuses(call: Callable[[], Any]) -> None:
    try:
        call()
    except DureError as error:
        assert str(error) and "\n" not in str(error)[:200]


# -- decoders ------------------------------------------------------------------------------------------------------------


def _tlv(seed: int) -> None:
    rng = random.Random(seed)
    data = damaged(rng, rng.choice(messages()["share"] + messages()["kem"]), messages()["group"])
    try:
        value = tlv.decode(data)
    except Refused:
        return
    assert tlv.encode(*value) == data, "one value has one encoding"


test_any_bytes_are_one_tlv_or_refused = quick(_tlv)
test_any_bytes_are_one_tlv_or_refused_many_times = long(_tlv)


def _protocol(seed: int) -> None:
    rng, known = random.Random(seed), messages()
    world = at("step")
    members = world.members
    node_keys = world.state.epoch.node_keys  # type: ignore[union-attr]
    now = world.now_at
    where = InstanceId.decode(now.instance)
    kind = rng.choice(["advert", "kem", "group", "share", "reveal", "seeds", "evidence", "instance"])
    data = damaged(
        rng, rng.choice(known.get(kind, known["share"])), [m for k in ("advert", "kem", "group", "share", "reveal") for m in known[k]]
    )
    member = rng.choice(members)
    common: dict[str, Any] = {"member": member, "node_keys": rng.choice([node_keys, dict.fromkeys(members, bytes(32))])}
    reveal = dict(instance=where, ctx=now.ctx, cohort=now.cohort, survivors=now.survivors, member=member, node_keys=None)
    calls: dict[str, Callable[[], Any]] = {
        "advert": lambda: keys.verify_advert(data, **common),
        "kem": lambda: keys.verify_kem(data, members=members, **common),
        "group": lambda: keys.verify_group(data, members=members, **common),
        "share": lambda: shares.read_share(data, member=member, node_keys=None),
        "reveal": lambda: recover.check_reveal(data, **reveal),
        "seeds": lambda: recover.Recovered.from_bytes(data),
        "evidence": lambda: sums.judge_share(data, share=now.shares[member], node_keys=node_keys),
        "instance": lambda: InstanceId.decode(data),
    }
    only_refuses(calls[kind])


test_protocol_messages_that_are_damaged_are_refused = quick(_protocol)
test_protocol_messages_that_are_damaged_are_refused_many_times = long(_protocol)


def _statement(seed: int) -> None:
    rng = random.Random(seed)
    data = damaged(rng, rng.choice(messages()["statement"]), messages()["statement"])
    kind = rng.choice(list(KINDS.values()))
    only_refuses(lambda: read_verified(data, kind))
    only_refuses(lambda: open_statement(data, kind, [rng.randbytes(32), bytes(32)]))


test_statements_that_are_damaged_are_refused = quick(_statement)
test_statements_that_are_damaged_are_refused_many_times = long(_statement)


def _event(seed: int) -> None:
    rng = random.Random(seed)
    data = damaged(rng, rng.choice(messages()["event"]), messages()["event"])
    only_refuses(lambda: decode_event(data))


test_events_that_are_damaged_are_refused = quick(_event)
test_events_that_are_damaged_are_refused_many_times = long(_event)


def _state(seed: int) -> None:
    rng = random.Random(seed)
    only_refuses(lambda: NodeRunState.from_bytes(damaged(rng, rng.choice(messages()["state"]), messages()["state"])))


test_states_that_are_damaged_are_refused = quick(_state)
test_states_that_are_damaged_are_refused_many_times = long(_state)


def _charter(seed: int) -> None:
    from datetime import UTC, datetime

    rng = random.Random(seed)
    raw = damaged(rng, _root(datetime(2026, 1, 1, tzinfo=UTC)), [])
    only_refuses(lambda: root.walk([raw], None))


@lru_cache(maxsize=1)
def _root(now: Any) -> bytes:
    import tempfile
    from pathlib import Path

    from attacks.ports import found

    with tempfile.TemporaryDirectory() as folder:
        return found(Path(folder)).hub.versions()[0]


test_charters_that_are_damaged_are_refused = quick(_charter)
test_charters_that_are_damaged_are_refused_many_times = long(_charter)

TEXT = st.text(max_size=40)
NUMBER = st.integers(0, 2**64 - 1)
BODY = st.binary(max_size=600)
PARTS = st.lists(st.builds(pb.MemberBytes, member=TEXT, value=BODY), max_size=4)
DIRECTIVES = st.builds(
    pb.FollowResponse,
    run=BODY,
    kind=st.sampled_from([*DirectiveKind, "", "x"]),
    exchange=NUMBER,
    instance=BODY,
    epoch=NUMBER,
    members=st.lists(TEXT, max_size=4),
    parts=PARTS,
    documents=st.lists(st.builds(pb.NamedBytes, name=TEXT, value=BODY), max_size=4),
    reason=TEXT,
)
REPORTS = st.builds(
    pb.ReportRequest, run=BODY, kind=st.sampled_from([*ReportKind, "", "x"]), exchange=NUMBER, instance=BODY, epoch=NUMBER, body=BODY
)
HELLOS = st.builds(pb.HelloRequest, protocol_version=st.integers(0, 2**32 - 1), charter_digest=BODY, delegation=BODY, software=TEXT)


@settings(max_examples=FEW, deadline=None)
@given(DIRECTIVES, REPORTS, HELLOS)
def test_control_messages_are_decoded_or_refused_by_field(directive: Any, report: Any, hello: Any) -> None:
    replies: list[tuple[Callable[[Any], Any], Any]] = [(decode_directive, directive), (decode_report, report), (decode_hello, hello)]
    for decode, message in [*replies, (decode_hello_reply, pb.HelloResponse(charter_digest=hello.charter_digest))]:
        try:
            decode(message)
        except WireRefused as refusal:
            assert refusal.field and refusal.why


# -- the exchange logic of both sides ------------------------------------------------------------------------------------------


def _directive(seed: int) -> None:
    rng = random.Random(seed)
    world = rng.choice(scenes())
    member = rng.choice(world.members)
    node, shown = world.nodes[member], spoilt(rng, view.directive(world.state, member), world)
    state = NodeRunState.from_bytes(node.state)
    done = step(node.site, node.history, node.chain, state, inp.Directed(shown), world.now, random.Random(seed).randbytes)
    assert NodeRunState.from_bytes(done.state.to_bytes()) == done.state
    owed(node.site, done.state)
    if done.note.startswith("refused"):
        assert done.state == state and done.chain == node.chain and not done.records


def spoilt(rng: random.Random, directive: Directive, world: Hostile) -> Directive:
    """A directive with one or two things wrong, as it could come through the wire's own checks."""
    for _ in range(rng.randint(1, 2)):
        table = rng.choice(["documents", "parts"])
        entries = dict(getattr(directive, table))
        what = rng.randrange(5)
        if what < 2 and entries:
            name = rng.choice(sorted(entries))
            entries[name] = damaged(rng, entries[name], list(entries.values()))
            directive = replace(directive, **{table: entries})
        elif what == 2 and entries:
            entries.pop(rng.choice(sorted(entries)))
            directive = replace(directive, **{table: entries})
        elif what == 3:
            directive = replace(directive, kind=rng.choice(list(DirectiveKind)))
        else:
            members = tuple(sorted(rng.sample([*world.members, "stranger"], rng.randint(0, 5))))
            instance = damaged(rng, directive.instance, [])[:512]
            strange = {
                "members": members,
                "instance": instance,
                "exchange": rng.choice([0, 1, 2, 17, 2**48]),
                "epoch": rng.choice([0, 1, 2, 2**48]),
            }
            name = rng.choice(sorted(strange))
            directive = replace(directive, **{name: strange[name]})
    return directive


test_a_node_shown_damaged_directives_neither_breaks_nor_becomes_unreadable = quick(_directive)
test_a_node_shown_damaged_directives_neither_breaks_nor_becomes_unreadable_many_times = long(_directive)


def _report(seed: int) -> None:
    rng = random.Random(seed)
    world = rng.choice(scenes())
    member = rng.choice([*world.members, "stranger"])
    bodies = [m for k, found in messages().items() if k not in ("event", "state") for m in found]
    said = json.dumps({"reason": "x", "convicts": "m01", "evidence": "00"}).encode()
    exchange = world.state.exchange
    instance = exchange.instance.instance if exchange and exchange.instance else b""
    body = damaged(rng, rng.choice([*bodies, said, tlv.encode(rng.choice(bodies), rng.choice(bodies))]), bodies)
    where = (rng.choice([0, 1, 2]), rng.choice([instance, instance, damaged(rng, instance, [])[:512]]), rng.choice([0, 1, 2]))
    event: Any = Reported(member, Report(world.run, rng.choice(list(ReportKind)), *where, body))
    if rng.random() < 0.2:
        event = Uploaded(member, where[1], body)
    decision = decide.apply(world.state, event, world.now)
    for m in world.members:
        view.directive(decision.state, m)


test_a_coordinator_told_damaged_reports_never_breaks = quick(_report)
test_a_coordinator_told_damaged_reports_never_breaks_many_times = long(_report)
