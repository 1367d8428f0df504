"""The short way to read a statement gives what the long way gives, or leaves it to the long way."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synthetic_log import SyntheticLog

from dure.errors import Refused
from dure.statements.dsse import Envelope
from dure.statements.flat import _reader, fact_of, read_flat
from dure.statements.kinds import KINDS, Dispute, InstanceVoid, Usage
from dure.statements.statement import Chain, read_payload, seal

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
LOG = list(SyntheticLog(exchanges_per_run=8, versions_at=(200,), seed=3, evaluations=True).entries(500))
BY_KIND = {}
for entry in LOG:
    payload = Envelope.from_bytes(entry).payload
    BY_KIND.setdefault(payload.rpartition(b'"name":"')[2][:-4].decode(), payload)


def long_way(payload: bytes):
    kind = payload.rpartition(b'"name":"')[2].partition(b'"')[0].decode(errors="replace")
    return read_payload(payload, KINDS[kind]) if kind in KINDS else None


def both_agree(payload: bytes) -> bool:
    """Whether the short way took it; if so, the long way reads the same."""
    heard = read_flat(payload)
    if heard is None:
        return False
    assert long_way(payload) == (fact_of(heard.kind, heard.values), (heard.seq, heard.prev, heard.time, heard.seen))
    return True


def test_every_kind_of_a_real_log_but_the_plan_is_read_the_short_way():
    """Its settings are a mapping; one plan in a thousand entries can take the long way."""
    taken = {kind: both_agree(payload) for kind, payload in BY_KIND.items()}
    assert len(taken) >= 9
    assert [kind for kind, short in taken.items() if not short] == ["run-plan"]


def test_every_entry_of_a_log_is_read_alike():
    assert sum(both_agree(Envelope.from_bytes(entry).payload) for entry in LOG) > len(LOG) - 5


BYTES = (b"0", b"f", b'"', b"\\", b",", b" ", b"}", b"-", b"\xc3", b"", b"9" * 20)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(BY_KIND)), st.integers(0), st.sampled_from(BYTES))
def test_a_changed_statement_is_read_alike_or_left_to_the_long_way(kind, at, put):
    """Whatever one byte becomes: never taken here and refused there."""
    payload = BY_KIND[kind]
    at %= len(payload)
    changed = payload[:at] + put + payload[at + 1 :]
    try:
        both_agree(changed)
    except Refused as error:
        pytest.fail(f"the short way took what the long way refuses: {error}")


@pytest.mark.parametrize("reason", ["plain", 'a "quote"', "back\\slash", "two\nlines is refused", "두레", "x" * 501])
def test_text_with_escapes_takes_the_long_way(reason):
    fact = InstanceVoid(b"i" * 8, "ara", reason)
    payload = seal(fact, KEY, Chain(), 7)[0].payload
    short = both_agree_or_refused(payload)
    assert short == (reason in ("plain", "두레"))


def both_agree_or_refused(payload: bytes) -> bool:
    try:
        return both_agree(payload)
    except Refused:
        return False


def test_null_and_empty_lists_are_read_as_such():
    dispute = Dispute(b"r" * 32, 3, "ara", b"i" * 8, b"a" * 32, "sum", None, None, b"q" * 32, None, "")
    payload = seal(dispute, KEY, Chain(5, b"p" * 32), 7)[0].payload
    assert both_agree(payload)


@pytest.mark.parametrize("change", [{"tokens": 2**48 + 1}, {"member": "Ara"}, {"device": "x" * 65}])
def test_values_out_of_range_are_left_to_the_long_way(change):
    fact = replace(Usage(b"r" * 32, 1, "ara", 1, 2, 3, 4, 5, "cpu"), **change)
    assert read_flat(seal(fact, KEY, Chain(), 7)[0].payload) is None


def test_a_subject_that_names_something_else_is_left_to_the_long_way():
    payload = BY_KIND["usage"]
    digest = payload.rpartition(b'"sha256":"')[2][:64]
    assert read_flat(payload.replace(digest, b"0" * 64)) is None


def test_each_kinds_expression_has_all_its_fields():
    for kind, form in KINDS.items():
        reader = _reader(kind)
        assert reader is not None
        assert [g for g in reader.groups if g.startswith("f_")] == [f"f_{f.name}" for f in fields(form)]
