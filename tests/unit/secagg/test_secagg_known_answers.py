"""Answers that came from somewhere else, and our own vectors that fix TLV, labels and streams for ever.

tests/vectors/secagg/vectors.json is written by `python tests/unit/secagg/test_secagg_known_answers.py` (values computed by
this code once, 2026-11-24; a change to any of them is a change of the protocol).
"""

from __future__ import annotations

import contextlib
import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from dure.errors import Refused
from dure.secagg import field as fp
from dure.secagg import shamir, tlv
from dure.secagg.certificate import context, survivors_message
from dure.secagg.encode import encode_update_chunk, rounding_streams, weight_of
from dure.secagg.ids import InstanceId, Purpose
from dure.secagg.kdf import digest, hkdf
from dure.secagg.masks import FIELD_CHUNK, MaskSet, MaskStream
from dure.secagg.scales import encode_scales_chunk, level_streams
from dure.secagg.streams import ChunkStream, elements
from dure.secagg.tag import TagKey

VECTORS = Path(__file__).parents[2] / "vectors" / "secagg" / "vectors.json"


def vectors() -> dict[str, str]:
    key, ctx = bytes(range(32)), sha256(b"ctx").digest()
    instance = InstanceId(bytes(16), bytes(range(32)), 7, Purpose.UPDATE, 0, 2, 1)
    delta = np.sin(np.arange(5000, dtype=np.float32)).astype(np.float32) * np.float32(0.01)
    delta = np.round(delta * 4096) / np.float32(4096)  # exact whatever libm does
    q, clipped = encode_update_chunk(delta, weight_of(30_000).w_hat, np.array([-8, -6], np.int8), 8, rounding_streams(key), 3)
    masks = MaskSet([MaskStream.derive(key, ctx, "mask/self", 1), MaskStream.derive(ctx, ctx, "mask/pair", -1)])
    tag = TagKey(key, ctx, ("a", "b", "c"))
    masked, levels = q.copy(), encode_scales_chunk(delta, np.float32(1), level_streams(key), 0)
    masks.ring_chunk(3, masked)
    field_masked = levels.copy()
    masks.field_chunk(0, field_masked)
    return {
        "tlv": tlv.encode(b"\x00\xff", "두레", 0, 1, 256, 2**61, ("a", (b"", ()))).hex(),
        "instance": instance.tlv().hex(),
        "hkdf": hkdf(key, "inst/mask", instance.parts(), salt=ctx).hex(),
        "digest": digest("commit/self", instance.parts(), "a", key).hex(),
        "ctx": context(instance, ctx).hex(),
        "survivors": sha256(survivors_message(instance, ctx, {"a": key, "b": ctx})).hexdigest(),
        "stream_chunk_5": ChunkStream(key, 5).words(4).tobytes().hex(),
        "elements_chunk_5": ",".join(str(e) for e in elements(key, 5, 4)),
        "weight_30000": str(weight_of(30_000).w_int),
        "encoded": sha256(q.tobytes()).hexdigest() + f":{clipped}",
        "masked": sha256(masked.tobytes()).hexdigest(),
        "levels": sha256(levels.tobytes()).hexdigest(),
        "levels_masked": sha256(field_masked.tobytes()).hexdigest(),
        "trailer_masked": masks.trailer(np.array([1, 2, 3], np.uint64)).tobytes().hex(),
        "tag_masked": str(masks.tag(12345)),
        "tag_ring": str(tag.ring_chunk(3, q)),
        "tag_field": str(tag.field_chunk(0, levels)),
        "tag_trailer": str(tag.trailer((3, -5))),
        "pad_b": str(tag.pad("b")),
        "shamir_3_of_5": " ".join(
            s.hex() for s in shamir.split(key, threshold=3, holders=5, rng=lambda n: bytes(i * 7 % 256 for i in range(n)))
        ),
    }


def test_our_vectors_hold():
    assert vectors() == json.loads(VECTORS.read_text())


def test_hkdf_is_that_of_rfc_5869():
    """RFC 5869, A.1, through the same library; ours adds only the info."""
    ikm, salt, info = b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA))
    want = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert HKDF(hashes.SHA256(), 42, salt, info).derive(ikm).hex() == want
    ours = HKDF(hashes.SHA256(), 32, salt, tlv.encode("SA1", "x", 1)).derive(ikm)
    assert hkdf(ikm, "x", 1, salt=salt) == ours


def test_a_stream_is_sp_800_38a_ctr_with_the_chunk_in_the_counters_first_half():
    """SP 800-38A, F.5.5 (CTR-AES256): encrypting its first counter block is its first block of key stream."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain, cipher = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a"), bytes.fromhex("601ec313775789a5b7a7f504bbf3d228")
    stream = bytes(a ^ b for a, b in zip(plain, cipher, strict=True))
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    assert ecb.update(counter) == stream
    got = ChunkStream(key, 0x0807060504030201).words(6).tobytes()
    blocks = [bytes(range(1, 9)) + i.to_bytes(8, "big") for i in range(3)]
    assert got == b"".join(ecb.update(b) for b in blocks)


def test_a_stream_read_in_pieces_or_across_tiles_is_the_same():
    whole = ChunkStream(bytes(32), 3).words(100_000)
    pieces = ChunkStream(bytes(32), 3)
    assert np.array_equal(whole, np.concatenate([pieces.words(n) for n in (2, 70_000, 29_998)]))


values = st.recursive(
    st.binary(max_size=8) | st.text(max_size=4) | st.integers(0, 2**70), lambda v: st.lists(v, max_size=3).map(tuple), max_leaves=8
)


@settings(max_examples=100, deadline=None)
@given(st.lists(values, max_size=4).map(tuple), st.binary(max_size=40))
def test_tlv_is_injective_and_strict(parts, noise):
    data = tlv.encode(*parts)
    assert tlv.decode(data) == parts
    for other in (noise, data + noise, data[:-1]):
        with contextlib.suppress(Refused):
            assert tlv.encode(*tlv.decode(other)) == other


@pytest.mark.parametrize(
    "bad", ["6902000000", "690100000000", "73010000 00ff".replace(" ", "")[:-2] + "ff", "7a00000000", "62050000 00aa".replace(" ", "")]
)
def test_tlv_refuses_what_encode_never_writes(bad):
    with pytest.raises(Refused):
        tlv.decode(bytes.fromhex(bad))


def test_tlv_has_limits():
    deep: tuple = ()
    for _ in range(12):
        deep = (deep,)
    with pytest.raises(Refused):
        tlv.decode(tlv.encode(deep))
    with pytest.raises(Refused):
        tlv.decode(bytes(100), max_bytes=99)


@given(st.lists(st.tuples(st.integers(0, fp.P - 1), st.integers(0, fp.P - 1)), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_field_arithmetic_is_that_of_integers(pairs):
    pairs += [(fp.P - 1, fp.P - 1), (0, 0), (0, fp.P - 1), (1 << 60, (1 << 32) - 1), (fp.P - 1, 1)]
    a, b = (np.array(x, np.uint64) for x in zip(*pairs, strict=True))
    assert [int(z) for z in fp.multiply(a, b)] == [x * y % fp.P for x, y in pairs]
    assert [int(z) for z in fp.add(a, b)] == [(x + y) % fp.P for x, y in pairs]
    assert [int(z) for z in fp.negate(a)] == [-x % fp.P for x, _ in pairs]
    c = a.copy()
    fp.subtract_into(c, b)
    assert [int(z) for z in c] == [(x - y) % fp.P for x, y in pairs]
    assert fp.total(a) == sum(x for x, _ in pairs) % fp.P
    words = np.array([fp.P, 2**64 - 1, fp.P - 1, 2**61], np.uint64)
    assert [int(z) for z in fp.from_stream(words)] == [0, 0, fp.P - 1, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 255), st.data())
def test_any_threshold_of_shares_gives_the_secret(n, data):
    t = data.draw(st.integers(1, n))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    secret = rng.bytes(32)
    dealt = shamir.split(secret, threshold=t, holders=n, rng=rng.bytes)
    chosen = rng.permutation(n)[:t]
    assert shamir.combine({int(i) + 1: dealt[i] for i in chosen}) == secret
    if t > 1:
        assert shamir.combine({int(i) + 1: dealt[i] for i in chosen[1:]}) != secret


def test_t_minus_1_shares_are_uniform():
    """Exhaustive in one byte: for every secret, over all coefficients, a share of 2-of-n takes each value once."""
    for secret in (0, 1, 171, 255):
        seen = {x: set() for x in (1, 2, 3)}
        for c in range(256):
            for x, share in enumerate(shamir.split(bytes([secret]), threshold=2, holders=3, rng=lambda n, c=c: bytes([c])), 1):
                seen[x].add(share)
        assert all(len(s) == 256 for s in seen.values())


def test_a_full_field_chunk_fits_its_size():
    assert FIELD_CHUNK * 8 == 768 * 1024


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
