"""What a sum is, found out chunk by chunk as it arrives: its tag, and the next base that follows from it.

Nothing here decides; `exchange.verify` judges the facts. The next base is computed with the plan's outer step into the blob store, so that
the next exchange's weights are known here already and only ids travel. Nothing of the sum itself is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256

import numpy as np

from dure.blobs import BlobId, BlobStore, Manifest
from dure.errors import Refused
from dure.model.advance import decided_exponents, next_base
from dure.model.base import BaseRecord
from dure.model.layout import Layout
from dure.model.outer import StepRefused
from dure.secagg import field as fp
from dure.secagg.scales import summed_exponents
from dure.secagg.tag import TagKey
from dure_participant.exchange.actions import Verify
from dure_participant.exchange.inputs import VerifyFacts

Arriving = Iterable[tuple[Manifest, int, memoryview]]
"""(manifest, k, chunk k) in order; not checked yet."""


def opened_sum(action: Verify) -> BlobId:
    """The blob to fetch. `Refused`: it cannot be this instance's sum."""
    opened = BlobId.parse(action.sum)
    if opened.length != action.length:
        raise Refused("sum", f"has {opened.length} bytes, this instance's has {action.length}")
    return opened


class Tagged:
    """Chunks of a sum as they pass: each is checked against its leaf, and its part of the tag is added up in `tag`."""

    def __init__(self, action: Verify) -> None:
        self._key: TagKey = action.tag_key()
        self._action = action
        self._total = 0

    @property
    def tag(self) -> int:
        return self._total % fp.P

    def ring(self, arriving: Arriving) -> Iterator[np.ndarray[tuple[int], np.dtype[np.uint16]]]:
        """Of `update`."""
        for k, raw in self._checked(arriving):
            q = np.frombuffer(raw, np.uint16)
            self._total += self._key.ring_chunk(k, q)
            yield q

    def field(self, arriving: Arriving) -> Iterator[np.ndarray[tuple[int], np.dtype[np.uint64]]]:
        """Of `scales`. Raises `Refused` where a chunk holds what is no element of F_p."""
        for k, raw in self._checked(arriving):
            words = np.frombuffer(raw, np.uint64)
            if (words >= np.uint64(fp.P)).any():
                raise Refused("sum", f"chunk {k} holds what is no element of the field")
            self._total += self._key.field_chunk(k, words)
            yield words

    def _checked(self, arriving: Arriving) -> Iterator[tuple[int, memoryview]]:
        for manifest, k, raw in arriving:
            if manifest.chunk_bytes != self._action.chunk_bytes and self._action.length > min(
                manifest.chunk_bytes, self._action.chunk_bytes
            ):
                raise Refused("sum", f"is cut into {manifest.chunk_bytes} bytes, must be {self._action.chunk_bytes}")
            manifest.check(k, raw)
            yield k, raw


def verify(action: Verify, store: BlobStore, arriving: Arriving) -> VerifyFacts:
    """Facts about the sum that arrives, once all of it did; memory O(chunk). Runs in a thread.

    Raises:
        Refused: it is no sum of this form, or no next base follows from it.
    """
    opened, tagged = opened_sum(action), Tagged(action)
    if action.purpose == "scales":
        summed = [summed_exponents(words) for words in tagged.field(arriving)]
        blob, raw, _capped = decided_exponents(store, summed, BaseRecord.from_json(action.base_record).e_b, action.e_cap)
        return VerifyFacts(root=opened.root, length=opened.length, tag=tagged.tag, e_b=str(blob), e_b_sha256=sha256(raw).digest())
    if not action.outer_step:
        for _q in tagged.ring(arriving):
            pass
        return VerifyFacts(root=opened.root, length=opened.length, tag=tagged.tag)
    return _advanced(action, opened, tagged, store, arriving)


def _advanced(action: Verify, opened: BlobId, tagged: Tagged, store: BlobStore, arriving: Arriving) -> VerifyFacts:
    try:
        after = next_base(
            store,
            base=BaseRecord.from_json(action.base_record),
            layout=Layout.from_json(action.layout),
            opened=tagged.ring(arriving),
            e_b=BlobId.parse(action.e_b),
            bump=action.e_bump,
            cohort_size=len(action.cohort),
            weight_sum=action.weight_sum,
            outer_step=action.outer_step,
            averaged=action.averaged,
            exchange=action.exchange,
        )
    except StepRefused as error:
        raise Refused("sum", f"no next base follows from it: {error}") from error
    return VerifyFacts(
        root=opened.root,
        length=opened.length,
        tag=tagged.tag,
        next_base=after.record.to_json(),
        next_weights_id=after.weights_id,
    )
