"""Encoding: unbiased, never wrapping, exact in weights; any order and threading gives identical bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dure.secagg import scales as sc
from dure.secagg.encode import (
    bound,
    decode_mean_chunk,
    encode_update_chunk,
    from_words,
    num_examples,
    rounding_streams,
    scale_exponents,
    to_words,
    trailer_values,
    weight_of,
)
from dure.secagg.errors import NonFiniteUpdate, OutOfRange
from dure.secagg.kernel import UploadEncoder
from dure.secagg.masks import RING_CHUNK, MaskSet, MaskStream
from dure.secagg.tag import TagKey

ONE = np.float32(1)
KEY = bytes(range(32))


def test_rounding_is_unbiased():
    """z < 5 over 4 M values at awkward fractions."""
    total, count = 0.0, 0
    for k in range(16):
        x = np.full(RING_CHUNK, np.float32(0.37 * 2.0**-11))
        q, _ = encode_update_chunk(x, ONE, np.zeros(64, np.int8), 8, rounding_streams(KEY), k)
        total += float(q.view(np.int16).astype(np.float64).sum())
        count += x.size
    p = round(0.37 * 65536) / 65536
    assert abs(total - p * count) / np.sqrt(count * p * (1 - p)) < 5


@pytest.mark.parametrize("n", range(2, 101))
def test_no_sum_of_honest_members_wraps(n):
    limit = bound(n)
    x = np.array([np.inf, 1, 1000, 3e38, -3e38, -1000, -1, 0.0, -0.0, 1e-45, -1e-45], np.float32)
    x[0] = 63.9
    for e in (-40, -8, 0, 6):
        q, _ = encode_update_chunk(np.tile(x, 30), ONE, np.array([e], np.int8), n, rounding_streams(KEY), 0)
        assert np.abs(q.view(np.int16).astype(int)).max() == limit and limit * n < 1 << 15


def test_errors_stay_below_one_scale_and_nothing_inside_the_level_is_clipped():
    rng = np.random.default_rng(2)
    for n in (2, 3, 8, 100):
        for e in (-40, -12, 6):
            x = (rng.uniform(-1, 1, 4096) * 2.0**e).astype(np.float32)
            q, clipped = encode_update_chunk(x, ONE, np.array([e], np.int8), n, rounding_streams(KEY), 0)
            back = q.view(np.int16).astype(np.float64) * 2.0 ** int(scale_exponents(np.array([e], np.int8), n)[0])
            assert clipped == 0 and np.abs(back - x).max() < 2.0 ** int(scale_exponents(np.array([e], np.int8), n)[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_elements_are_named(bad):
    x = np.zeros(70_000, np.float32)
    x[66_000] = bad
    with pytest.raises(NonFiniteUpdate) as e:
        encode_update_chunk(x, ONE, np.zeros(18, np.int8), 8, rounding_streams(KEY), 2)
    assert e.value.element == 2 * RING_CHUNK + 66_000
    with pytest.raises(NonFiniteUpdate) as e:
        sc.block_maxima(x, np.float32(0.5), 4096)
    assert e.value.element == 66_000 + 4096


def test_weights_are_exact_and_name_w_max():
    assert weight_of(65_536).w_int == 1 << 40 and weight_of(65_536).w_hat == 1 and weight_of(0).w_int == 0
    assert weight_of(1, 3).w_int == 366503875925 and weight_of(1, 1 << 24).w_int == 1 << 16
    for w, w_max in ((65_537, 65_536), (1, 1 << 25), (-1, 10), (float("nan"), 10)):
        with pytest.raises(OutOfRange) as e:
            weight_of(w, w_max)
        assert w < 0 or w != w or "w_max" in str(e.value)
    assert num_examples(weight_of(100).w_int + weight_of(23).w_int) == 123


def test_metrics_out_of_range_are_named_before_the_first_byte():
    for value in (float("inf"), float("nan"), 1e10):
        with pytest.raises(OutOfRange, match="loss"):
            trailer_values(weight_of(65_536), 0, {"a": 1.0, "loss": value}, 100)
    values = trailer_values(weight_of(65_536), 3, {"b": -2.5, "a": 5e6}, 100)
    assert values == (1, 1 << 40, 3, round(5e6 * 2**30), -round(2.5 * 2**30)) and from_words(to_words(values)) == values


def test_decoding_rounds_each_operation_to_float32_in_order():
    q = np.arange(-300, 300, dtype=np.int16)
    e, w = np.array([-7], np.int8), 3 * weight_of(1000).w_int
    want = (q.astype(np.float32) * np.float32(2.0**-18)) / np.float32(w * 2.0**-40)
    assert np.array_equal(decode_mean_chunk(q.view(np.uint16), e, 8, w), want.astype(np.float32))


def test_levels_sum_to_the_cohorts_largest_magnitude():
    blocks = [(0.0, -40), (2.0**-41, -40), (2.0**-40, -38), (0.9, 0), (1.0, 2), (63.9, 6)]
    a = np.zeros(4096 * len(blocks), np.float32)
    for b, (value, _) in enumerate(blocks):
        a[4096 * b + 17] = -value
    total = sc.encode_scales_chunk(a, ONE, sc.level_streams(KEY), 0)
    assert sc.summed_exponents(total).tolist() == [e for _, e in blocks]
    with pytest.raises(OutOfRange) as e:
        sc.encode_scales_chunk(np.full(5000, 64, np.float32), ONE, sc.level_streams(KEY), 0)
    assert e.value.element == 0
    top = total.copy()
    top[23] = 5
    assert sc.summed_exponents(top)[0] == 8


def test_caps_hold_one_member_back_and_are_counted():
    base = np.array([-20, -20, -18, -30], np.int8)
    assert sc.caps(base, 4).tolist() == [-12, -12, -10, -12]
    found = sc.combine(np.array([8, -12, -20, 6], np.int8), base)
    assert found.e_b.tolist() == [-12, -12, -20, -12] and found.capped == 2
    assert sc.combine(np.array([8, 6], np.int8), None).e_b.tolist() == [6, 6]
    assert sc.combine(np.array([8, -4], np.int8), None, e_cap=0).e_b.tolist() == [0, -4]
    assert sc.raised(np.array([-40, 5, 6], np.int8)).tolist() == [-38, 6, 6]


def encoder(kind, elements, **more):
    ctx = bytes(32)
    masks = MaskSet([MaskStream.derive(bytes([i]) * 32, ctx, "mask/pair", 1 if i % 2 else -1) for i in range(1, 8)])
    tag = TagKey(KEY, ctx, ("a", "b", "c"))
    return UploadEncoder(
        kind=kind, masks=masks, tag=tag, me="b", cohort_size=8, weight=weight_of(9), rounding_key=KEY, elements=elements, **more
    )


@pytest.mark.parametrize("kind", ["ring", "field"])
def test_any_order_and_threading_gives_identical_bytes(kind):
    size = 2 * RING_CHUNK + 5000 if kind == "ring" else 4096 * 4100 + 3
    delta = np.random.default_rng(3).normal(0, 1e-2, size).astype(np.float32)
    more = {"e_b": np.full(-(-size // 4096), -4, np.int8)} if kind == "ring" else {}
    one, two = encoder(kind, size, **more), encoder(kind, size, **more)
    forward = [bytes(one.chunk(k, delta[one.elements_of(k)])[0]) for k in range(one.chunks)]
    with ThreadPoolExecutor(2) as pool:
        backward = list(pool.map(lambda k: bytes(two.chunk(k, delta[two.elements_of(k)])[0]), reversed(range(two.chunks))))
    assert forward == backward[::-1] and one.finish() == two.finish()


def test_a_masked_constant_is_uniform():
    """χ² over 65,536 bins, 4 M values; mean 65,535, standard deviation 362."""
    counts = np.zeros(65_536, np.int64)
    masks = MaskSet([MaskStream.derive(bytes([i]) * 32, bytes(32), "mask/pair", 1 if i % 2 else -1) for i in range(3)])
    for k in range(16):
        q = np.full(RING_CHUNK, 77, np.uint16)
        masks.ring_chunk(k, q)
        counts += np.bincount(q, minlength=65_536)
    expected = counts.sum() / 65_536
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi2 - 65_535) < 5 * np.sqrt(2 * 65_535)


def test_one_factor_per_block_gives_the_bits_of_weight_first_and_scale_then():
    """Also where the weighted value alone is subnormal, and with scales that differ from block to block."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal(6 * 4096) * 10.0 ** rng.integers(-45, 2, 6 * 4096)).astype(np.float32)
    e_b = np.array([-40, -40, -8, 6, 0, -22], np.int8)
    for w_hat in (np.float32(2.0**-24), np.float32(0.3), ONE):
        q, _ = encode_update_chunk(x, w_hat, e_b, 3, rounding_streams(KEY), 1)
        limit = np.float32(bound(3) << 16)
        with np.errstate(under="ignore"):
            t = (x * w_hat).reshape(6, 4096) * np.ldexp(np.float32(1), 16 - scale_exponents(e_b, 3)).astype(np.float32)[:, None]
        noise = rounding_streams(KEY).at(1)[0].words(6 * 1024).view(np.uint16)
        expected = (np.rint(np.clip(t, -limit, limit)).astype(np.int32).reshape(-1) + noise) >> 16
        assert (q.view(np.int16) == expected).all()
