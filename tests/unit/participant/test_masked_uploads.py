"""A masked upload is the same bytes whoever makes it, how often, and in what order."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest

from dure.blobs import chunk_leaf
from dure.errors import Refused, Unavailable
from dure.model.layout import Layout
from dure.secagg.encode import Weight, weight_of
from dure.secagg.kernel import UploadEncoder
from dure.secagg.masks import MaskSet, MaskStream
from dure.secagg.tag import TagKey
from dure.tlog.merkle import merkle_root
from dure_participant.bulk import BulkRefused
from dure_participant.difference import Difference
from dure_participant.exchange.actions import Upload
from dure_participant.trained import look_again
from dure_participant.uploads import MaskedUpload, Sources, open_stream

CHUNK = 1 << 18
CTX = b"\x07" * 32
COHORT = ("ara", "bora", "chan")


@dataclass(frozen=True)
class ToyUpload(Upload):
    """An upload whose masks come from fixed seeds, without the phases before."""

    def encoder(self, e_b=None) -> UploadEncoder:
        streams = [
            MaskStream.derive(bytes([i]) * 32, CTX, label, sign) for i, (label, sign) in enumerate([("mask/self", 1), ("mask/pair", -1)])
        ]
        return UploadEncoder(
            kind="ring" if self.purpose == "update" else "field",
            masks=MaskSet(streams),
            tag=TagKey(b"\x08" * 32, CTX, COHORT),
            me="ara",
            cohort_size=3,
            weight=Weight(self.weight_int),
            rounding_key=self.rounding_key,
            elements=self.elements,
            e_b=e_b,
            metrics=self.metrics if self.purpose == "update" else None,
        )


def make(tmp_path, elements: int, purpose: str = "update"):
    """(layout, base file, local file, action, e_b) of a small model."""
    rng = np.random.default_rng(3)
    layout = Layout.build([("w", "float32", (elements,))])
    base, local = tmp_path / "base.f32", tmp_path / "local.f32"
    before = rng.normal(size=layout.elements).astype("<f4")
    before.tofile(base)
    (before + rng.normal(scale=1e-3, size=layout.elements).astype("<f4")).tofile(local)
    blocks = -(-layout.elements // 4096)
    action = ToyUpload(
        id="upload/x",
        instance=b"i",
        upload=b"\x05" * 32,
        purpose=purpose,  # type: ignore[arg-type]
        exchange=1,
        cohort=COHORT,
        member="ara",
        ctx=CTX,
        elements=layout.elements,
        length=2 * layout.elements if purpose == "update" else blocks * 24 * 8,
        chunk_bytes=2 * CHUNK if purpose == "update" else 4096 * 24 * 8,
        update_root=look_again(Difference(base, local, layout)).root,
        rounding_key=b"\x06" * 32,
        weight_int=weight_of(100).w_int,
        metrics={"loss": 2.5},
        group_key=b"\x08" * 32,
        secret=None,  # type: ignore[arg-type]
    )
    return layout, base, local, action, np.full(blocks, -6, np.int8) if purpose == "update" else None


def masked(layout, base, local, action, e_b) -> MaskedUpload:
    """The upload as a process makes it that knows nothing but what was persisted."""

    def sources() -> Sources:
        update = Difference(base, local, layout)
        return Sources(action.encoder(e_b), update, look_again(update))

    return MaskedUpload(action, sources)


@pytest.mark.parametrize("purpose", ["update", "scales"])
def test_the_masked_bytes_are_the_same_for_any_number_of_threads_and_any_order(tmp_path, purpose):
    _layout, base, local, action, e_b = made = make(tmp_path, 5 * CHUNK + 999, purpose)
    one = masked(*made)
    data = b"".join(bytes(one.chunk(k)[1]) for k in range(one.chunks))
    ready = one.complete()
    assert ready.root == merkle_root(chunk_leaf(data[i : i + action.chunk_bytes]) for i in range(0, len(data), action.chunk_bytes))
    assert ready.length == action.length == len(data)
    for threads in (2, 4):
        other = masked(*made)
        with ThreadPoolExecutor(threads) as pool:
            found = dict(pool.map(lambda k, other=other: (k, bytes(other.chunk(k)[1])), reversed(range(other.chunks))))
        assert b"".join(found[k] for k in range(other.chunks)) == data and other.complete() == ready
    encoder, delta = action.encoder(e_b), np.fromfile(local, "<f4") - np.fromfile(base, "<f4")
    parts = {k: bytes(encoder.chunk(k, delta[encoder.elements_of(k)])[0]) for k in reversed(range(encoder.chunks))}
    assert (b"".join(parts[k] for k in sorted(parts)), encoder.finish()) == (data, (ready.trailer, ready.tag))


def test_chunks_asked_for_again_and_never_asked_for_lead_to_the_same_ending(tmp_path):
    """Before a restart the coordinator got chunks 0 and 1; the process after it sends the others."""
    made = make(tmp_path, 3 * CHUNK + 5)
    first, after = masked(*made), masked(*made)
    chunks = [bytes(first.chunk(k)[1]) for k in range(first.chunks)]
    assert [bytes(after.chunk(k)[1]) for k in (2, 3, 2)] == [chunks[k] for k in (2, 3, 2)]
    assert after.complete() == first.complete() == masked(*made).complete()


@pytest.mark.parametrize("changed", ["local", "base"])
def test_other_weights_than_those_promised_are_never_masked(tmp_path, changed):
    """Two plaintexts under one mask would tell their difference: before a restart, and in the middle of an upload."""
    made = layout, base, local, action, e_b = make(tmp_path, 2 * CHUNK + 1000)
    begun = masked(*made)
    begun.chunk(0)
    path = {"local": local, "base": base}[changed]
    weights = np.memmap(path, "<f4", "r+")
    weights[2 * CHUNK + 7] += 1
    weights.flush()
    begun.chunk(1)
    with pytest.raises(Refused, match="have changed since they were promised"):
        begun.chunk(2)
    with pytest.raises(Refused, match="have changed since they were promised"):
        begun.complete()

    def sources() -> Sources:
        update = Difference(base, local, layout)
        return Sources(action.encoder(e_b), update, look_again(update))

    other = MaskedUpload(action, sources)
    assert other.chunk(0) and look_again(Difference(base, local, layout)).root != action.update_root


def test_a_pipe_in_the_place_of_the_trained_weights_holds_up_nobody(tmp_path):
    """The worker's code may put one there after the file was looked at. Opened as a file it would hold one of the agent's threads, which
    all its runs share, for ever."""
    layout, base, local, _action, _e_b = make(tmp_path, 1000)
    local.unlink()
    os.mkfifo(local)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(Difference, base, local, layout)
        try:
            with pytest.raises(Refused, match="have changed since they were promised"):
                opening.result(2)
        finally:
            os.close(os.open(local, os.O_RDWR | os.O_NONBLOCK))  # lets go of a thread that waits there


def test_a_chunk_that_comes_out_otherwise_than_before_is_never_sent(tmp_path):
    layout, base, local, action, e_b = make(tmp_path, 1000)
    update = Difference(base, local, layout)
    upload = MaskedUpload(action, lambda: Sources(action.encoder(e_b), update, look_again(update)))
    upload.chunk(0)
    upload._opened = Sources(replace(action, rounding_key=b"\x09" * 32).encoder(e_b), update, look_again(update))
    with pytest.raises(Refused, match="changed"):
        upload.chunk(0)


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Sixteen chunks of 1 MiB in base and local; a few chunks' worth is held."""
    upload = masked(*make(tmp_path, 16 * CHUNK))
    tracemalloc.start()
    for k in range(upload.chunks):
        upload.chunk(k)
    upload.complete()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


async def test_the_commit_is_asked_for_once_every_chunk_was_made_and_ends_the_stream(tmp_path):
    upload = masked(*make(tmp_path, 2 * CHUNK))
    told: list[bytes] = []

    async def send(upload, commit_of):
        await asyncio.to_thread(upload.chunk, 1)  # the coordinator has chunk 0
        told.append(await commit_of())
        return b"kept"

    stream = open_stream(upload, send)
    ready = await stream.made()
    assert ready == upload.complete() and not told
    stream.envelope.set_result(b"signed")
    assert await stream.sending == b"kept" and told == [b"signed"]


async def test_a_stream_that_breaks_is_said_and_one_that_is_refused_still_ends_in_a_commit(tmp_path):
    made = make(tmp_path, 2 * CHUNK)

    async def fail(error):
        raise error

    with pytest.raises(Unavailable, match="gone"):
        await open_stream(masked(*made), lambda _u, _c: fail(Unavailable("gone"))).made()
    refused = await open_stream(masked(*made), lambda _u, _c: fail(BulkRefused("upload", "too late"))).made()
    assert refused == masked(*made).complete()
    made[2].write_bytes(b"")
    with pytest.raises(Refused, match="changed"):
        await open_stream(masked(*made), lambda _u, _c: fail(BulkRefused("upload", "too late"))).made()


async def test_a_commit_that_is_durable_already_needs_nothing_of_the_update(tmp_path):
    upload = MaskedUpload(make(tmp_path, 1000)[3], lambda: pytest.fail("the update was opened"))

    async def send(_upload, commit_of):
        return b"kept " + await commit_of()

    assert await open_stream(upload, send, b"signed").sending == b"kept signed"
