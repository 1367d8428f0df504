"""The upload of one instance, chunk by chunk: encode, tag, mask. Chunks in any order and from any thread give the same bytes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dure.secagg import field as fp
from dure.secagg.encode import BLOCK, F32, Weight, check_metrics, encode_update_chunk, rounding_streams, to_words, trailer_values
from dure.secagg.errors import Malformed
from dure.secagg.ids import Purpose
from dure.secagg.masks import RING_CHUNK, MaskSet
from dure.secagg.scales import CHUNK_BLOCKS, block_maxima, encode_levels, level_streams
from dure.secagg.tag import TagKey

Kind = Literal["ring", "field", "none"]
KIND_OF: Mapping[Purpose, Kind] = {Purpose.UPDATE: "ring", Purpose.SCALES: "field", Purpose.SCALARS: "none"}


class UploadEncoder:
    """Everything a member sends in bulk in one instance, and the masked trailer and tag that close it.

    Args:
        kind: ring (`update`), field (`scales`) or none (`scalars`).
        elements: length of the flat model (of this fragment); 0 for none.
        rounding_key: 32 random bytes, persisted before the first chunk: the bytes depend on nothing else that is random.
        e_b: ring only, int8 per block.
        metrics: ring and none: by name; checked here, before the first byte.
    """

    def __init__(
        self,
        *,
        kind: Kind,
        masks: MaskSet,
        tag: TagKey,
        me: str,
        cohort_size: int,
        weight: Weight,
        rounding_key: bytes,
        elements: int = 0,
        e_b: NDArray[np.int8] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        blocks = -(-elements // BLOCK)
        if (kind == "ring") != (e_b is not None) or (e_b is not None and e_b.size != blocks):
            raise Malformed("e_b", "one per block, for an update only")
        self.kind, self.elements = kind, elements
        self.chunks = {"ring": -(-elements // RING_CHUNK), "field": -(-blocks // CHUNK_BLOCKS), "none": 0}[kind]
        self._masks, self._tag, self._me, self._n = masks, tag, me, cohort_size
        self._weight, self._e_b, self._metrics = weight, e_b, dict(metrics or {})
        self._random = level_streams(rounding_key) if kind == "field" else rounding_streams(rounding_key)
        if kind != "field":
            check_metrics(weight, self._metrics, cohort_size)
        self._parts: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def elements_of(self, k: int) -> slice:
        """The elements of the flat model that chunk k covers."""
        size = RING_CHUNK if self.kind == "ring" else CHUNK_BLOCKS * BLOCK
        if not 0 <= k < self.chunks:
            raise Malformed("chunk", f"{k} of {self.chunks}")
        return slice(k * size, min(self.elements, (k + 1) * size))

    def chunk(self, k: int, delta: F32, out: NDArray[np.uint16] | None = None) -> tuple[memoryview, int, int]:
        """(masked bytes, tag part, clipped) of chunk k, from its elements.

        `out`: for ring, RING_CHUNK uint16 to write into; the bytes live there until the caller reuses it.
        """
        covers = self.elements_of(k)
        if delta.size != covers.stop - covers.start:
            raise Malformed("delta", f"chunk {k} has {covers.stop - covers.start} elements, {delta.size} came")
        if self.kind == "field":
            return self.chunk_from_maxima(k, block_maxima(delta, self._weight.w_hat, covers.start))
        assert self._e_b is not None
        e_b = self._e_b[covers.start // BLOCK : -(-covers.stop // BLOCK)]
        q, clipped = encode_update_chunk(delta, self._weight.w_hat, e_b, self._n, self._random, k, out)
        part = self._tag.ring_chunk(k, q)
        self._masks.ring_chunk(k, q)
        self.restore(k, part, clipped)
        return q.data.cast("B"), part, clipped

    def chunk_from_maxima(self, k: int, maxima: F32) -> tuple[memoryview, int, int]:
        """The same for `scales`, from `scales.block_maxima` of its blocks, so that 2^24 elements need not be in memory."""
        covers = self.elements_of(k)
        if self.kind != "field" or maxima.size != -(-covers.stop // BLOCK) - covers.start // BLOCK:
            raise Malformed("maxima", "one per block of a chunk of scales")
        x = encode_levels(maxima, self._random, k)
        part = self._tag.field_chunk(k, x)
        self._masks.field_chunk(k, x)
        self.restore(k, part, 0)
        return x.data.cast("B"), part, 0

    def restore(self, k: int, part: int, clipped: int) -> None:
        """Takes the results of a chunk that was uploaded before a restart."""
        with self._lock:
            if self._parts.setdefault(k, (part, clipped)) != (part, clipped):
                raise Malformed("chunk", f"{k} was encoded before with another result; the update has changed")

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(k for k in range(self.chunks) if k not in self._parts)

    def finish(self) -> tuple[tuple[int, ...], int]:
        """(masked trailer as u64, masked tag), once every chunk is encoded or restored."""
        if self.missing:
            raise Malformed("chunk", f"{self.missing[0]} is not encoded yet")
        clipped = sum(c for _, c in self._parts.values())
        values = (1,) if self.kind == "field" else trailer_values(self._weight, clipped, self._metrics, self._n)
        tag = sum(part for part, _ in self._parts.values()) + self._tag.trailer(values) + self._tag.pad(self._me)
        masked = self._masks.trailer(to_words(values))
        return tuple(int(v) for v in masked), self._masks.tag(tag % fp.P)
