"""Statements are judged field by field, and no byte of an envelope can change unseen."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from dure.audit.entry import read_entry
from dure.errors import Refused
from dure.provenance.documents.words import when
from dure.statements.dsse import Envelope, canonical_json, pae, seal_payload
from dure.statements.kinds import (
    KINDS,
    Accelerators,
    AllocationPublished,
    CharterVersion,
    CohortMember,
    DataCommitment,
    Deadlines,
    Dispute,
    Energy,
    EnvCommitment,
    Eval,
    ExchangeAccept,
    InstanceAggregate,
    InstanceCommit,
    InstanceDropout,
    InstanceOpen,
    InstanceSurvivors,
    InstanceVoid,
    Measured,
    MemberSignature,
    NodeDelegation,
    NodeRevocation,
    OuterStep,
    ReleasePublished,
    RunApproval,
    RunPlan,
    ScalesReference,
    Survivor,
    SurvivorSignature,
    Usage,
)
from dure.statements.statement import Chain, SeenHead, open_statement, seal
from dure.times import LATEST_S
from dure.tlog.note import COSIGNATURE_V1, NoteKey, NoteRefused, cosign

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
D = bytes(range(32))
PLAN = RunPlan(
    nonce=bytes(16),
    consortium=bytes(16),
    charter_version=1,
    charter_sha256=D,
    name="first-light",
    app_sha256=D,
    app_blob="0" * 64 + ":12",
    app_name="pretrain",
    app_version="1.0",
    env_sha256=D,
    roster=("a", "b", "c"),
    rounds=4,
    max_exchanges=24,
    outer_step=OuterStep("nesterov", {"lr": "0.8", "momentum": "5e-1"}, ("*.running_var",)),
    encoding="ring16",
    stream="aes-256-ctr",
    recheck="off",
    keep_uploads="none",
    base=None,
    w_max=65_536,
    e_cap=6,
    colluders=1,
    u_min=3,
    metrics={"train": ("loss",)},
    per_node_config={"shard": ("0", "1")},
    scalars_max=4,
    allow_unrecomputed_bases=False,
    settings={"lr": "0.1", "steps": 3, "fast": True},
    deadlines=Deadlines(),
)
OPEN = InstanceOpen(
    b"tlv", 1, D, D, "train", "train", D, D, D, D, 10, "ring16",
    (CohortMember("a", D, 1), CohortMember("b", D, 1), CohortMember("c", D, 2, {"config": {"shard": "1"}})),
    ("loss",), D, ScalesReference(b"tlv", D, D, D), 3, 3, 99,
)  # fmt: skip
FACTS: list[Any] = [
    PLAN,
    RunApproval(D, "a", "node1"),
    OPEN,
    InstanceCommit(b"tlv", D, "a", D, 512, (1, 2**64 - 1), 2**61 - 2, None),
    InstanceSurvivors(
        b"tlv", D, tuple(Survivor(m, D) for m in "abc"), (SurvivorSignature("a", bytes(64)), SurvivorSignature("b", bytes(64)))
    ),
    InstanceAggregate(b"tlv", D, D, D, 512, (3,), 7, D),
    InstanceDropout(b"tlv", "c", "upload", "silent past the deadline", True),
    ExchangeAccept(D, 3, "a", (D,), (), None),
    Dispute(D, 2, "asan", b"tlv", D, "sum", 7, D, D, None, "the coordinator's sum is wrong at chunk 7"),
    InstanceVoid(b"tlv", "a", "too few uploads"),
    NodeRevocation("a", "n1", 2, 1_800_000_000, "stolen"),
    CharterVersion(2, D, D),
    Usage(D, 3, "a", 1, 2, 3, 4, 5, "cpu", (D,)),
    Usage(D, 3, "a", 1, 2, 3, 4, 5, "cpu", (), D, "6", "7" * 30, None, Energy(1, "nvml")),
    EnvCommitment("a", "0.1.0", "ab" * 20, D, None, "cpython-311 linux-x86_64", (Accelerators("npu", "ATOM", 8, 64, None),)),
    DataCommitment("a", "news-2026", D, 3, 4096, 12, None, "CC-BY-4.0", "2024-01-01", "2026-03-31"),
    NodeDelegation("a", "node1", D, 1, 0, 99),
    NodeRevocation("a", "node1", 1, 99, "stolen"),
    ReleasePublished("{}", (MemberSignature("a", bytes(64)), MemberSignature("b", bytes(64)))),
    Eval(D, 4, D, D, ("a", "b"), 1_000, (Measured("loss", "0.25"), Measured("손실", "-3")), (D,)),
    AllocationPublished('{"purpose":"배분"}', (MemberSignature("a", bytes(64)), MemberSignature("b", bytes(64)))),
]


def test_every_kind_has_an_example_here():
    assert {type(f) for f in FACTS} == set(KINDS.values())


@pytest.mark.parametrize("fact", FACTS, ids=lambda f: f.kind)
def test_a_statement_reads_back_as_it_was_sealed(fact):
    envelope, chain = seal(fact, KEY, Chain(5, D), 1234.9)
    read = open_statement(envelope.to_bytes(), type(fact), [PUBLIC])
    assert (read.fact, read.seq, read.prev, read.time, read.key) == (fact, 5, D, 1234, PUBLIC)
    assert chain == Chain(6, envelope.sha256)


@pytest.mark.parametrize("fact", FACTS, ids=lambda f: f.kind)
def test_a_statement_is_refused_as_any_other_kind(fact):
    envelope, _ = seal(fact, KEY, Chain(), 0)
    for kind in KINDS.values():
        if kind is not type(fact):
            with pytest.raises(Refused) as refused:
                open_statement(envelope, kind, [PUBLIC])
            assert refused.value.field == "predicateType"


def test_a_strangers_signature_is_not_enough():
    envelope, _ = seal(PLAN, Ed25519PrivateKey.generate(), Chain(), 0)
    with pytest.raises(Refused, match="not signed by a key that may sign this"):
        open_statement(envelope, RunPlan, [PUBLIC])


@given(st.data())
def test_no_byte_of_an_envelope_can_change_unseen(data):
    envelope, _ = seal(RunApproval(D, "a", "node1"), KEY, Chain(), 0)
    raw = bytearray(envelope.to_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Refused):
        open_statement(bytes(raw), RunApproval, [PUBLIC])


@given(st.data())
def test_every_field_absent_or_unknown_is_refused_by_name(data):
    fact = data.draw(st.sampled_from(FACTS))
    envelope, _ = seal(fact, KEY, Chain(), 0)
    body = json.loads(envelope.payload)
    name = data.draw(st.sampled_from(sorted(body["predicate"])))
    del body["predicate"][name]
    with pytest.raises(Refused) as refused:
        open_statement(seal_payload(canonical_json(body), KEY), type(fact), [PUBLIC])
    assert refused.value.field == name
    body = json.loads(envelope.payload)
    body["predicate"]["surplus"] = 1
    with pytest.raises(Refused) as refused:
        open_statement(seal_payload(canonical_json(body), KEY), type(fact), [PUBLIC])
    assert refused.value.field == "surplus"


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("nonce", "00", "nonce"),
        ("nonce", "ZZ" * 16, "nonce"),
        ("roster", ["a", "b"], "roster"),
        ("roster", ["a", "b", "../x"], "roster[2]"),
        ("rounds", 0, "rounds"),
        ("rounds", True, "rounds"),
        ("rounds", "4", "rounds"),
        ("colluders", 0, "colluders"),
        ("encoding", "plain", "encoding"),
        ("recheck", "full", "recheck"),
        ("e_cap", 7, "e_cap"),
        ("settings", {"lr": ["0.1"]}, "settings.lr"),
        ("outer_step", {"name": "magic", "settings": {}, "averaged": []}, "outer_step.name"),
        ("deadlines", {}, "deadlines.approve"),
        ("charter_sha256", None, "charter_sha256"),
    ],
)
def test_a_plan_out_of_form_is_refused_by_field(field, value, named):
    refuses(PLAN, field, value, named)


def refuses(fact, field, value, named):
    """A statement of this fact, but for one field, is refused and the field named."""
    envelope, _ = seal(fact, KEY, Chain(), 0)
    body = json.loads(envelope.payload)
    body["predicate"][field] = value
    with pytest.raises(Refused) as refused:
        open_statement(seal_payload(canonical_json(body), KEY), type(fact), [PUBLIC])
    assert refused.value.field == named


DEVICE = {"kind": "npu", "name": "ATOM", "count": 8, "memory_gib": 64, "driver": None}


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("accelerators", [], "accelerators"),
        ("accelerators", [DEVICE] * 17, "accelerators"),
        ("accelerators", [{**DEVICE, "kind": "tpu"}], "accelerators[0].kind"),
        ("accelerators", [{**DEVICE, "name": "/dev/atom0"}], "accelerators[0].name"),
        ("accelerators", [{**DEVICE, "name": "10.0.0.7:22"}], "accelerators[0].name"),
        ("accelerators", [{**DEVICE, "name": "A" * 65}], "accelerators[0].name"),
        ("accelerators", [{**DEVICE, "count": 0}], "accelerators[0].count"),
        ("accelerators", [{**DEVICE, "count": 65_537}], "accelerators[0].count"),
        ("accelerators", [{**DEVICE, "memory_gib": 0}], "accelerators[0].memory_gib"),
        ("accelerators", [{**DEVICE, "driver": "GPU-0a1b/../x"}], "accelerators[0].driver"),
        ("accelerators", [{**DEVICE, "serial": "1"}], "accelerators[0].serial"),
        ("dure_commit", "HEAD", "dure_commit"),
        ("dure_version", "/srv/dure", "dure_version"),
        ("lock_sha256", "00", "lock_sha256"),
        ("python", "/usr/bin/python3", "python"),
    ],
)
def test_an_environment_with_a_path_an_address_or_a_number_out_of_range_is_refused_by_field(field, value, named):
    refuses(next(f for f in FACTS if isinstance(f, EnvCommitment)), field, value, named)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("formula_flop", "0", "formula_flop"),
        ("measured_flop", "1" * 31, "measured_flop"),
        ("hardware_flop", 6, "hardware_flop"),
        ("hardware_flop", "1e18", "hardware_flop"),
        ("energy", {"millijoules": 0, "source": "declared"}, "energy.millijoules"),
        ("energy", {"millijoules": 5}, "energy.source"),
        ("energy", {"millijoules": 5, "source": "estimated"}, "energy.source"),
        ("environment_sha256", "", "environment_sha256"),
    ],
)
def test_compute_that_nobody_knows_is_null_and_never_zero(field, value, named):
    refuses(next(f for f in FACTS if isinstance(f, Usage)), field, value, named)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"reason":"why"', b'"reason":"\\ud800"'),
        (b'"member":"a"', b'"member":"z","member":"a"'),
        (b'"seq":0', b'"seq":0 '),
        (b'"seq":0', b'"seq":0.0'),
        (b'"seq":0', b'"seq":NaN'),
        (b'"member":"a"', b'"member":"\\u0061"'),
    ],
    ids=["lone surrogate", "key given twice", "space", "float", "NaN", "escaped letter"],
)
def test_a_payload_that_another_parser_could_read_otherwise_is_refused(old, new):
    """A lone surrogate used to leave the parser as UnicodeEncodeError, and the later of two equal keys won."""
    envelope, _ = seal(InstanceVoid(b"tlv", "a", "why"), KEY, Chain(), 0)
    assert envelope.payload.count(old) == 1
    with pytest.raises(Refused) as refused:
        open_statement(seal_payload(envelope.payload.replace(old, new), KEY), InstanceVoid, [PUBLIC])
    assert refused.value.field == "payload"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_payload_in_another_encoding_is_refused(encoding):
    envelope, _ = seal(InstanceVoid(b"tlv", "a", "why"), KEY, Chain(), 0)
    with pytest.raises(Refused) as refused:
        open_statement(seal_payload(envelope.payload.decode().encode(encoding), KEY), InstanceVoid, [PUBLIC])
    assert refused.value.field == "payload"


def test_an_envelope_with_text_that_is_not_unicode_is_refused():
    envelope, _ = seal(InstanceVoid(b"tlv", "a", "why"), KEY, Chain(), 0)
    body = {**json.loads(envelope.to_bytes()), "payloadType": "\ud800"}
    with pytest.raises(Refused, match="canonical"):
        Envelope.from_bytes(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()), lambda inner: st.lists(inner)))
def test_whatever_json_is_signed_the_answer_is_a_refusal(value):
    """Only `Refused` may leave the parser: the coordinator and the nodes answer it, anything else ends a call."""
    for payload in (json.dumps(value).encode(), json.dumps({"_type": value, "subject": value, "predicateType": value, "predicate": value})):
        raw = payload if isinstance(payload, bytes) else payload.encode()
        with pytest.raises(Refused):
            open_statement(seal_payload(raw, KEY), InstanceVoid, [PUBLIC])


def test_a_bad_signature_under_a_known_key_is_refused_beside_a_good_one():
    envelope, _ = seal(RunApproval(D, "a", "node1"), KEY, Chain(), 0)
    twice = Envelope(envelope.payload, (*envelope.signatures, (envelope.signatures[0][0], bytes(64))))
    with pytest.raises(Refused, match="does not verify"):
        open_statement(twice, RunApproval, [PUBLIC])


def test_a_statement_names_the_newest_head_its_signer_has_seen_and_never_an_older_one():
    chain = Chain().having_seen(None)
    first, chain = seal(RunApproval(D, "a", "node1"), KEY, chain, 10)
    second, chain = seal(RunApproval(D, "a", "node1"), KEY, chain.having_seen(SeenHead(7, D)), 11)
    third, chain = seal(RunApproval(D, "a", "node1"), KEY, chain.having_seen(SeenHead(5, D)).having_seen(None), 12)
    assert [open_statement(e, RunApproval, [PUBLIC]).seen for e in (first, second, third)] == [None, SeenHead(7, D), SeenHead(7, D)]
    assert Chain.after(third.to_bytes()) == chain


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ({"root": "00" * 32, "size": 0}, "checkpoint.size"),
        ({"root": "00" * 32, "size": True}, "checkpoint.size"),
        ({"root": "00" * 32, "size": 2**48}, "checkpoint.size"),
        ({"root": "00" * 31, "size": 1}, "checkpoint.root"),
        ({"root": "AB" * 32, "size": 1}, "checkpoint.root"),
        ({"root": None, "size": 1}, "checkpoint.root"),
        ({"root": "00" * 32, "size": 1, "origin": ""}, "checkpoint"),
        ({"size": 1}, "checkpoint"),
        (7, "checkpoint"),
    ],
)
def test_a_head_out_of_form_is_refused_by_field(head, named):
    body = json.loads(seal(RunApproval(D, "a", "node1"), KEY, Chain(), 0)[0].payload)
    body["predicate"]["checkpoint"] = head
    with pytest.raises(Refused) as refused:
        open_statement(seal_payload(canonical_json(body), KEY), RunApproval, [PUBLIC])
    assert refused.value.field == named


@pytest.mark.parametrize("time", [LATEST_S, 99_999_999_999, 0])
def test_a_time_that_a_calendar_has_is_taken_and_can_be_shown(time):
    envelope = seal(RunApproval(D, "a", "node1"), KEY, Chain(), time)[0]
    assert open_statement(envelope, RunApproval, [PUBLIC]).time == read_entry(envelope.to_bytes()).time == time
    assert len(when(time)) == len("2026-11-25T00:00:00Z")


@pytest.mark.parametrize("time", [LATEST_S + 1, 2**47, 2**63, -1, True, "1", None])
def test_a_time_that_no_calendar_has_is_refused(time):
    """One node's statement of the year 4,000,000 in the log ended `dure release create`, which dates a release, for good."""
    body = json.loads(seal(RunApproval(D, "a", "node1"), KEY, Chain(), 0)[0].payload)
    body["predicate"]["time"] = time
    envelope = seal_payload(canonical_json(body), KEY)
    for read in (lambda: open_statement(envelope, RunApproval, [PUBLIC]), lambda: read_entry(envelope.to_bytes())):
        with pytest.raises(Refused) as refused:
            read()
        assert refused.value.field == "time"


def test_a_cosignature_of_a_time_that_no_calendar_has_does_not_verify():
    key, text = NoteKey("ara.titan/witness", COSIGNATURE_V1, PUBLIC), b"titan\n1\nAAAA\n"
    assert key.verify(text, cosign(text, key.name, KEY, LATEST_S).signature) == LATEST_S
    with pytest.raises(NoteRefused, match="does not verify"):
        key.verify(text, cosign(text, key.name, KEY, LATEST_S + 1).signature)


def test_a_chain_links_each_envelope_to_the_one_before():
    first, chain = seal(RunApproval(D, "a", "node1"), KEY, Chain(), 10)
    second, chain = seal(RunApproval(D, "a", "node1"), KEY, chain, 11)
    read = open_statement(second, RunApproval, [PUBLIC])
    assert (read.seq, read.prev, chain.seq) == (1, first.sha256, 2)
    assert open_statement(first, RunApproval, [PUBLIC]).prev is None


def test_floats_are_never_signed():
    with pytest.raises(Refused, match="decimals as strings"):
        canonical_json({"lr": 0.1})


def test_an_oversized_envelope_is_refused_before_it_is_parsed():
    with pytest.raises(Refused, match="larger than"):
        Envelope.from_bytes(b" " * 32_769)


def test_the_signed_bytes_are_those_of_the_dsse_specification():
    # Source: DSSE protocol.md, "Test Vectors": PAE("http://example.com/HelloWorld", "hello world").
    assert pae("http://example.com/HelloWorld", b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
