"""An entry's base64 has one text: any other that decoders somewhere take for the same bytes is refused."""

from __future__ import annotations

import base64
import binascii

import pytest
from support.synthetic_log import SyntheticLog

from dure.audit.entry import _decoded, read_entry
from dure.errors import Refused

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_\n \0"


def canonical(text: bytes) -> bytes:
    """What the text says, if it is what an encoder writes."""
    try:
        said = base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
    return said if base64.b64encode(said) == text else b""


@pytest.mark.parametrize("length", range(1, 10))
def test_every_text_that_differs_in_one_place_or_length_is_read_as_the_encoder_would_write_it(length):
    text = base64.b64encode(bytes(range(200, 200 + length)))
    assert _decoded(text) == bytes(range(200, 200 + length))
    twins = {text[:at] + bytes([letter]) + text[at + 1 :] for at in range(len(text)) for letter in ALPHABET}
    twins |= {text[:at] + bytes([letter]) + text[at:] for at in range(len(text) + 1) for letter in ALPHABET}
    twins |= {text + b"=" * more for more in range(1, 5)} | {text + b"\n", text.rstrip(b"="), text[:-1], text[1:]}
    assert {twin: _decoded(twin) for twin in twins} == {twin: canonical(twin) for twin in twins}


def test_an_entry_whose_payload_is_written_in_another_base64_is_refused():
    log = SyntheticLog(members=4, exchanges_per_run=2, seed=3)
    entries = [entry for entry in log.entries(40) if b'="' in entry[:-110]]
    raw = next(entry for entry in entries if read_entry(entry))
    at = raw.index(b'="') - (raw[raw.index(b'="') - 1 :][:1] == b"=")
    last = raw[at - 1 : at]
    alphabet = ALPHABET[:64]
    other = alphabet[alphabet.index(last) ^ 1 : (alphabet.index(last) ^ 1) + 1]  # the same bytes to a decoder that ignores loose bits
    with pytest.raises(Refused, match="base64"):
        read_entry(raw[: at - 1] + other + raw[at:])
