"""Every subset that can drop at upload, survivors and reveal, exhaustively for four members; and what subsets of uploads show."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from dure.secagg.errors import BelowThreshold, Refused
from dure.secagg.ids import Purpose
from dure.secagg.masks import RING_CHUNK, MaskSet, MaskStream, pair_sign


def subsets(names):
    return [c for k in range(len(names) + 1) for c in combinations(names, k)]


@pytest.mark.deep
@pytest.mark.parametrize("purpose", [Purpose.SCALES, Purpose.UPDATE])
def test_every_subset_at_every_phase_gives_the_right_sum_or_nothing(sim, purpose):
    opened = 0
    start = sim(4, 1, purpose=purpose)
    for commits in subsets(start.members):
        base = sim(4, 1, purpose=purpose).ready()
        base.upload(commits)
        base.upload([m for m in base.members if m not in commits], commit=False)
        if len(commits) < base.u_min:
            for m in base.members:
                with pytest.raises(Refused):
                    base.sign([m])
            continue
        for signers in subsets(base.members):
            base_state = dict(base.state)
            signatures = base.sign(signers)
            for revealers in subsets(base.members):
                after = dict(base.state)
                try:
                    total, trailer, tag = base.open(base.recover(base.reveal(revealers, signatures)))
                    base.verify(total, trailer, tag, commits)
                    assert len(signers) >= 3 and len(revealers) >= 2
                    opened += 1
                except BelowThreshold:
                    assert len(signers) < 3 or len(revealers) < 4
                base.state = after
            base.state = base_state
    assert opened > 20


def test_every_strict_subset_sum_of_uploads_is_uniform():
    """Three constant uploads: the top bytes of each strict subset's sum fill 256 bins evenly; all three cancel but for b."""
    names, ctx = ("a", "b", "c"), bytes(32)
    secret = {frozenset(p): bytes([i]) * 32 for i, p in enumerate(combinations(names, 2))}
    uploads = {}
    for m in names:
        streams = [MaskStream.derive(secret[frozenset((m, o))], ctx, "mask/pair", pair_sign(m, o)) for o in names if o != m]
        q = np.full(RING_CHUNK, 5, np.uint16)
        MaskSet(streams).ring_chunk(0, q)  # without b, so that the full sum shows the cancelling
        uploads[m] = q
    for chosen in subsets(names)[1:-1]:
        total = sum((uploads[m] for m in chosen), np.zeros(RING_CHUNK, np.uint16))
        counts = np.bincount(total >> np.uint16(8), minlength=256)
        chi2 = float(((counts - RING_CHUNK / 256) ** 2 / (RING_CHUNK / 256)).sum())
        assert abs(chi2 - 255) < 5 * np.sqrt(2 * 255)
    assert (uploads["a"] + uploads["b"] + uploads["c"] == 15).all()
