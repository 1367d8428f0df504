"""The heavy work of an exchange, outside the event loop and outside user code: check, subtract, encode, mask, verify.

Everything goes chunk by chunk; the model is mapped, never loaded. Nothing here decides: what it finds is judged by `exchange/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dure.blobs import BlobId, BlobStore, chunk_leaf, merkle_root
from dure.errors import DureError, Refused
from dure.model.advance import exponents, next_base, opened_exponents
from dure.model.base import BaseRecord
from dure.model.layout import CHUNK_ELEMENTS, Layout
from dure.model.weights import open_flat
from dure.secagg import field as fp
from dure.secagg.encode import Weight, from_words, to_words
from dure.secagg.ids import InstanceId
from dure.secagg.kernel import UploadEncoder
from dure.secagg.masks import FIELD_CHUNK, MaskSet, MaskStream, pair_sign
from dure.secagg.scales import CHUNK_BLOCKS, block_maxima
from dure.secagg.tag import TagKey
from dure_participant.exchange.actions import Upload, Verify
from dure_participant.exchange.inputs import UploadReady, VerifyFacts

F32 = NDArray[np.float32]
THREADS = 2
READ_BYTES = 1 << 22
LARGEST = np.float32(2.0**6)
"""|x·ŵ| a member may bring (secure-aggregation.md §6); with ŵ ≤ 1 the unweighted update is checked."""


def file_sha256(path: Path) -> bytes:
    """SHA-256 of a file, streamed."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
    return digest.digest()


def check_update(base: Path, local: Path, layout: Layout) -> str:
    """Why this update cannot be sent, naming tensor and value; "" where it can."""
    before, after = open_flat(base, layout), open_flat(local, layout)
    for first in range(0, layout.elements, CHUNK_ELEMENTS):
        with np.errstate(all="ignore"):
            delta = after[first : first + CHUNK_ELEMENTS] - before[first : first + CHUNK_ELEMENTS]
            bad = np.flatnonzero(~(np.abs(delta) < LARGEST))
        if bad.size:
            entry = layout.entry_at(first + int(bad[0]))
            value = float(after[first + int(bad[0])])
            name = entry.name if entry is not None else "padding"
            what = "is not finite" if not np.isfinite(value) else f"moved by {float(delta[int(bad[0])]):.3g}, 64 or more"
            return f"tensor {name}: an element {what}"
    return ""


@dataclass(frozen=True)
class Encoded:
    """A masked upload on disk: what leaves, kept until the exchange is closed so that resuming sends the same bytes."""

    path: Path
    length: int
    chunk_bytes: int
    leaves: tuple[bytes, ...]

    def chunk(self, k: int) -> tuple[bytes, bytes]:
        """(leaf, bytes) of chunk k."""
        with self.path.open("rb") as file:
            file.seek(k * self.chunk_bytes)
            return self.leaves[k], file.read(self.chunk_bytes)

    @staticmethod
    def of(path: Path, length: int, chunk_bytes: int) -> Encoded:
        """An upload encoded before a restart.

        Raises:
            Refused: the file is not there whole.
        """
        if not path.exists() or path.stat().st_size != length:
            raise Refused("upload", "the masked file is gone or short; this node sits the rest of the exchange out")
        leaves = []
        with path.open("rb") as file:
            while part := file.read(chunk_bytes):
                leaves.append(chunk_leaf(part))
        return Encoded(path, length, chunk_bytes, tuple(leaves))


def encode(action: Upload, *, out: Path, base: Path | None, local: Path | None, layout: Layout | None, store: BlobStore) -> UploadReady:
    """Write the masked upload to `out` and return what ends its stream.

    Raises:
        DureError: the local weights are not those the masks were promised to (rule 1), or a value cannot be encoded.
    """
    if local is not None and file_sha256(local) != action.update_sha256:
        raise Refused("update", "the trained weights on disk have changed since they were promised; nothing is sent")
    ctx, weight = action.ctx, Weight(action.weight_int)
    streams = [MaskStream.derive(action.self_seed, ctx, "mask/self", 1)]
    streams += [MaskStream.derive(r, ctx, "mask/pair", pair_sign(action.member, j)) for j, r in sorted(action.pair_secrets.items())]
    masks, tag = MaskSet(streams), TagKey(action.group_key, ctx, action.cohort)
    ring = action.purpose == "update"
    e_b = exponents(store, BlobId.parse(action.e_b), action.e_bump) if ring else None
    encoder = UploadEncoder(
        kind="ring" if ring else "field" if action.purpose == "scales" else "none",
        masks=masks,
        tag=tag,
        me=action.member,
        cohort_size=len(action.cohort),
        weight=weight,
        rounding_key=action.rounding_key,
        elements=action.elements,
        e_b=e_b,
    )
    chunk_of = _chunk_maker(encoder, base, local, layout, weight)
    leaves, parts, clipped, written = [], 0, 0, 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file, ThreadPoolExecutor(THREADS) as pool:
        # A window of two chunks: memory stays O(chunk) and the order on disk is that of the vector.
        waiting = [pool.submit(chunk_of, k) for k in range(min(THREADS, encoder.chunks))]
        for k in range(encoder.chunks):
            masked, leaf, part, clips = waiting.pop(0).result()
            if k + THREADS < encoder.chunks:
                waiting.append(pool.submit(chunk_of, k + THREADS))
            file.write(masked)
            leaves.append(leaf)
            parts, clipped, written = parts + part, clipped + clips, written + len(masked)
    if written != action.length:
        raise Refused("upload", f"encoded {written} bytes, {action.length} were promised")
    values = list(from_words(np.array(action.trailer, np.uint64)))
    if ring:
        values[2] = clipped
    total = (parts + tag.trailer(values) + tag.pad(action.member)) % fp.P
    trailer = tuple(int(v) for v in masks.trailer(to_words(values)))
    return UploadReady(action.instance, merkle_root(leaves), written, trailer, masks.tag(total))


def _chunk_maker(
    encoder: UploadEncoder, base: Path | None, local: Path | None, layout: Layout | None, weight: Weight
) -> Callable[[int], tuple[memoryview, bytes, int, int]]:
    if encoder.kind == "none":
        return lambda k: (memoryview(b""), b"", 0, 0)
    assert base is not None and local is not None and layout is not None
    before, after = open_flat(base, layout), open_flat(local, layout)

    def ring(k: int) -> tuple[memoryview, bytes, int, int]:
        where = encoder.elements_of(k)
        masked, part, clipped = encoder.chunk(k, after[where] - before[where])
        return masked, chunk_leaf(masked), part, clipped

    def field(k: int) -> tuple[memoryview, bytes, int, int]:
        where = encoder.elements_of(k)
        maxima = []
        for first in range(where.start, where.stop, CHUNK_ELEMENTS):
            part = slice(first, min(first + CHUNK_ELEMENTS, where.stop))
            maxima.append(block_maxima(after[part] - before[part], weight.w_hat, first))
        masked, tagged, _ = encoder.chunk_from_maxima(k, np.concatenate(maxima))
        return masked, chunk_leaf(masked), tagged, 0

    assert CHUNK_BLOCKS * 4096 % CHUNK_ELEMENTS == 0
    return ring if encoder.kind == "ring" else field


def verify(action: Verify, store: BlobStore) -> VerifyFacts:
    """What a downloaded sum is: its root, the data part of its tag, and what follows from it."""
    if action.purpose == "scalars":
        return VerifyFacts(root=merkle_root([]), length=0, tag=0)
    opened = BlobId.parse(action.sum)
    key = TagKey(action.group_key, action.ctx, ())  # the pads, which need the cohort, are added by `step`
    ring = action.purpose == "update"
    total = 0
    with store.open(opened) as reader:
        for k in range(reader.manifest.chunks):
            raw = reader.read_chunk(k)
            if ring:
                total += key.ring_chunk(k, np.frombuffer(raw, np.uint16))
            else:
                words = np.frombuffer(raw, np.uint64)
                if words.size > FIELD_CHUNK or (words >= np.uint64(fp.P)).any():
                    raise Refused("sum", f"chunk {k} holds what is no element of the field")
                total += key.field_chunk(k, words)
    base = BaseRecord.from_json(action.base_record)
    facts = {"root": opened.root, "length": opened.length, "tag": total % fp.P}
    if not ring:
        blob, raw_e_b, _capped = opened_exponents(store, opened, base.e_b, action.e_cap)
        return VerifyFacts(**facts, e_b=str(blob), e_b_sha256=hashlib.sha256(raw_e_b).digest())
    if not action.outer_step:
        return VerifyFacts(**facts)
    try:
        after = next_base(
            store,
            base=base,
            layout=Layout.from_json(action.layout),
            opened=opened,
            e_b=BlobId.parse(action.e_b),
            bump=action.e_bump,
            cohort_size=action.cohort_size,
            weight_sum=action.weight_sum,
            outer_step=action.outer_step,
            exchange=action.exchange,
        )
    except DureError as error:
        raise Refused("sum", f"no next base follows from it: {error}") from error
    return VerifyFacts(**facts, next_base=after.record.to_json(), next_weights_id=after.weights_id)


def instance_name(instance: bytes) -> str:
    """A plain file name for an instance."""
    decoded = InstanceId.decode(instance)
    return f"{decoded.exchange:06d}-{decoded.purpose.value}-{decoded.attempt}-{decoded.epoch}"
