"""From an opened sum to the next base: the one computation coordinator, members and auditors share, bit for bit.

Everything is chunk by chunk, memory O(chunk). Source: architecture.md "Formats", "Outer steps"; secure-aggregation.md §6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dure.blobs import BlobId, BlobStore
from dure.model.base import BaseRecord
from dure.model.layout import BLOCK_ELEMENTS, CHUNK_ELEMENTS, Layout
from dure.model.outer import parse_step, step_model, steps_taken
from dure.model.weights import WeightsHasher
from dure.secagg.encode import decode_mean_chunk
from dure.secagg.scales import combine, raised, summed_exponents

I8 = NDArray[np.int8]
U16 = NDArray[np.uint16]


def exponents(store: BlobStore, e_b: BlobId, bump: int) -> I8:
    """Block exponents from their blob, two higher where scales opened earlier are used again (rule 2)."""
    found = np.frombuffer(store.read_bytes(e_b, limit=1 << 28), np.int8)
    return raised(found) if bump else found


def opened_exponents(store: BlobStore, opened: BlobId, base_e_b: BlobId | None, e_cap: int) -> tuple[BlobId, bytes, int]:
    """The exponents an opened `scales` sum decides: (their blob, their bytes, how many blocks were capped)."""
    with store.open(opened) as reader:
        parts = [summed_exponents(np.frombuffer(reader.read_chunk(k), np.uint64)) for k in range(reader.manifest.chunks)]
    return decided_exponents(store, parts, base_e_b, e_cap)


def decided_exponents(store: BlobStore, summed: Sequence[I8], base_e_b: BlobId | None, e_cap: int) -> tuple[BlobId, bytes, int]:
    """The same from `summed_exponents` of every chunk, in order."""
    before = None if base_e_b is None else np.frombuffer(store.read_bytes(base_e_b, limit=1 << 28), np.int8)
    decided = combine(np.concatenate(summed), before, e_cap)
    raw = decided.e_b.tobytes()
    return store.put_bytes(raw), raw, decided.capped


def opened_chunks(store: BlobStore, opened: BlobId) -> Iterator[U16]:
    """The sum that is a blob here, chunk by chunk, hashes checked; each good until the next."""
    with store.open(opened) as reader:
        buffer = memoryview(bytearray(reader.manifest.chunk_bytes))
        for k in range(reader.manifest.chunks):
            yield np.frombuffer(buffer[: reader.read_chunk_into(k, buffer)], np.uint16)


def mean_chunks(sums: Iterable[U16], e_b: I8, cohort_size: int, weight_sum: int) -> Iterator[NDArray[np.float32]]:
    """The decoded mean update, float32, chunk by chunk; each good until the next. `sums`: chunks of 2^18 elements."""
    blocks, buffer = CHUNK_ELEMENTS // BLOCK_ELEMENTS, np.empty(CHUNK_ELEMENTS, np.float32)
    for k, q in enumerate(sums):
        yield decode_mean_chunk(q, e_b[k * blocks : (k + 1) * blocks], cohort_size, weight_sum, buffer)


@dataclass(frozen=True)
class NextBase:
    """What an update made of a base."""

    record: BaseRecord
    weights_id: bytes


def next_base(
    store: BlobStore,
    *,
    base: BaseRecord,
    layout: Layout,
    opened: BlobId | Iterable[U16],
    e_b: BlobId,
    bump: int,
    cohort_size: int,
    weight_sum: int,
    outer_step: Mapping[str, str],
    exchange: int,
    averaged: Sequence[str] = (),
) -> NextBase:
    """Apply the plan-named outer step; weights and outer state go into the store, hashed as they are written.

    Args:
        opened: the sum, a blob here or its chunks as they come; what raises in there ends this, and nothing is stored.
        averaged: the plan's patterns of tensors that the step does not touch.

    Raises:
        StepRefused: the result is not finite; nothing is stored.
    """
    step, hasher = parse_step(outer_step), WeightsHasher(layout)
    taken = steps_taken(base.step)
    sums = opened_chunks(store, opened) if isinstance(opened, BlobId) else opened
    means = mean_chunks(sums, exponents(store, e_b, bump), cohort_size, weight_sum)
    before = np.frombuffer(store.map(base.weights), np.float32)
    state = np.frombuffer(store.map(base.outer_state), np.float32) if base.outer_state is not None else None
    move = partial(step_model, step, taken=taken, base_D=before, state=state, mean_chunks=means, averaged=layout.averaged(averaged))
    with store.writer(expect=layout.flat_bytes) as weights:

        def weights_out(part: memoryview) -> None:
            weights.append(part)
            hasher.update(np.frombuffer(part, np.float32))

        if step.vectors:
            with store.writer() as vectors:
                move(weights_out=weights_out, state_out=vectors.append)
                outer_state = vectors.commit().id
        else:
            move(weights_out=weights_out, state_out=None)
            outer_state = None
        weights_blob = weights.commit().id
    record = BaseRecord(weights_blob, outer_state, {**outer_step, "t": str(taken + 1)}, e_b, exchange)
    return NextBase(record, hasher.digest())


def mean_update(store: BlobStore, *, opened: BlobId, e_b: BlobId, bump: int, cohort_size: int, weight_sum: int) -> BlobId:
    """The decoded mean update as a blob, for a ServerApp that makes its own base."""
    with store.writer() as out:
        for part in mean_chunks(opened_chunks(store, opened), exponents(store, e_b, bump), cohort_size, weight_sum):
            out.append(np.ascontiguousarray(part).data.cast("B"))
        return out.commit().id
