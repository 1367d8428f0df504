"""What a downloaded sum is, found out chunk by chunk: its root, its tag, and the next base that follows from it.

Nothing here decides; `exchange.verify` judges the facts. The next base is computed with the plan's outer step into the blob store, so that
the next exchange's weights are known here already and only ids travel.
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from dure.blobs import BlobId, BlobReader, BlobStore
from dure.errors import Refused
from dure.model.advance import next_base, opened_exponents
from dure.model.base import BaseRecord
from dure.model.layout import Layout
from dure.secagg import field as fp
from dure.tlog.merkle import merkle_root
from dure_participant.exchange.actions import Verify
from dure_participant.exchange.inputs import VerifyFacts


def verify(action: Verify, store: BlobStore) -> VerifyFacts:
    """Facts about the sum in `store`; memory O(chunk). Runs in a thread.

    Raises:
        Refused: the blob is no sum of this form, or no next base follows from it.
    """
    if action.purpose == "scalars":
        return VerifyFacts(root=merkle_root([]), length=0, tag=0)
    opened = BlobId.parse(action.sum)
    if opened.length != action.length:
        raise Refused("sum", f"has {opened.length} bytes, this instance's has {action.length}")
    with store.open(opened) as reader:
        if reader.manifest.chunk_bytes != action.chunk_bytes and opened.length > min(reader.manifest.chunk_bytes, action.chunk_bytes):
            raise Refused("sum", f"is cut into {reader.manifest.chunk_bytes} bytes, must be {action.chunk_bytes}")
        tag = bulk_tag(action, reader)
    if action.purpose == "scales":
        base = BaseRecord.from_json(action.base_record)
        blob, raw, _capped = opened_exponents(store, opened, base.e_b, action.e_cap)
        return VerifyFacts(root=opened.root, length=opened.length, tag=tag, e_b=str(blob), e_b_sha256=sha256(raw).digest())
    if not action.outer_step:
        return VerifyFacts(root=opened.root, length=opened.length, tag=tag)
    return _advanced(action, opened, tag, store)


def bulk_tag(action: Verify, reader: BlobReader) -> int:
    """Sum of the tag's parts over all chunks; chunks are hashed against their leaves as they are read.

    Raises:
        Refused: a scales chunk holds what is no element of F_p.
    """
    key, total = action.tag_key(), 0
    for k in range(reader.manifest.chunks):
        raw = reader.read_chunk(k)
        if action.purpose == "update":
            total += key.ring_chunk(k, np.frombuffer(raw, np.uint16))
            continue
        words = np.frombuffer(raw, np.uint64)
        if (words >= np.uint64(fp.P)).any():
            raise Refused("sum", f"chunk {k} holds what is no element of the field")
        total += key.field_chunk(k, words)
    return total % fp.P


def _advanced(action: Verify, opened: BlobId, tag: int, store: BlobStore) -> VerifyFacts:
    try:
        after = next_base(
            store,
            base=BaseRecord.from_json(action.base_record),
            layout=Layout.from_json(action.layout),
            opened=opened,
            e_b=BlobId.parse(action.e_b),
            bump=action.e_bump,
            cohort_size=len(action.cohort),
            weight_sum=action.weight_sum,
            outer_step=action.outer_step,
            averaged=action.averaged,
            exchange=action.exchange,
        )
    except Refused as error:
        raise Refused("sum", f"no next base follows from it: {error}") from error
    return VerifyFacts(
        root=opened.root,
        length=opened.length,
        tag=tag,
        next_base=after.record.to_json(),
        next_weights_id=after.weights_id,
    )
