"""A masked upload is the same bytes whoever makes it, how often, and in what order."""

from __future__ import annotations

import asyncio
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest

from dure.blobs import DiskFull, chunk_leaf
from dure.errors import Refused
from dure.model.layout import Layout
from dure.secagg.encode import Weight, weight_of
from dure.secagg.kernel import UploadEncoder
from dure.secagg.masks import MaskSet, MaskStream
from dure.secagg.tag import TagKey
from dure.tlog.merkle import merkle_root
from dure_participant.exchange.actions import Upload
from dure_participant.uploads import MaskedFile, file_sha256, masked_chunks

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
        update_sha256=file_sha256(local),
        rounding_key=b"\x06" * 32,
        weight_int=weight_of(100).w_int,
        metrics={"loss": 2.5},
        group_key=b"\x08" * 32,
        secret=None,  # type: ignore[arg-type]
    )
    return layout, base, local, action, np.full(blocks, -6, np.int8) if purpose == "update" else None


@pytest.mark.parametrize("purpose", ["update", "scales"])
def test_the_masked_bytes_are_the_same_for_any_number_of_threads_and_any_order(tmp_path, purpose):
    layout, base, local, action, e_b = make(tmp_path, 5 * CHUNK + 999, purpose)
    weight = Weight(action.weight_int)
    made = {}
    for threads in (1, 2, 4):
        encoder = action.encoder(e_b)
        data = b"".join(bytes(masked) for masked, _ in masked_chunks(encoder, weight, base, local, layout, threads=threads))
        made[threads] = (data, encoder.finish())
    assert made[1] == made[2] == made[4]
    if purpose == "update":
        encoder, delta = action.encoder(e_b), np.fromfile(local, "<f4") - np.fromfile(base, "<f4")
        parts = {k: bytes(encoder.chunk(k, delta[encoder.elements_of(k)])[0]) for k in reversed(range(encoder.chunks))}
        assert (b"".join(parts[k] for k in sorted(parts)), encoder.finish()) == made[1]


def test_writing_again_after_a_crash_gives_the_same_file_and_the_same_ending(tmp_path):
    layout, base, local, action, e_b = make(tmp_path, 3 * CHUNK + 5)
    first = MaskedFile(tmp_path / "m", action.length, action.chunk_bytes)
    ready = first.write(action, base=base, local=local, layout=layout, e_b=e_b)
    data = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(data[: len(data) // 2])
    again = MaskedFile(tmp_path / "m", action.length, action.chunk_bytes)
    assert again.write(action, base=base, local=local, layout=layout, e_b=e_b) == ready
    assert (tmp_path / "m").read_bytes() == data
    assert ready.root == merkle_root(chunk_leaf(data[i : i + 2 * CHUNK]) for i in range(0, len(data), 2 * CHUNK))
    assert MaskedFile.load(tmp_path / "m", action.length, action.chunk_bytes).leaves == again.leaves


def test_other_weights_than_those_promised_are_never_sent(tmp_path):
    layout, base, local, action, e_b = make(tmp_path, 1000)
    changed = np.fromfile(local, "<f4")
    changed[0] += 1
    changed.tofile(local)
    file = MaskedFile(tmp_path / "m", action.length, action.chunk_bytes)
    with pytest.raises(Refused, match="have changed since they were promised"):
        file.write(action, base=base, local=local, layout=layout, e_b=e_b)
    assert not (tmp_path / "m").exists()


def test_a_short_masked_file_is_not_taken_for_the_whole(tmp_path):
    (tmp_path / "m").write_bytes(b"1234")
    with pytest.raises(Refused, match="gone or short"):
        MaskedFile.load(tmp_path / "m", 5, 4)


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Sixteen chunks of 1 MiB in base and local; a few chunks' worth is held."""
    layout, base, local, action, e_b = make(tmp_path, 16 * CHUNK)
    file = MaskedFile(tmp_path / "m", action.length, action.chunk_bytes)
    tracemalloc.start()
    file.write(action, base=base, local=local, layout=layout, e_b=e_b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 18 << 20


async def test_a_chunk_is_sent_as_soon_as_it_is_made_and_a_failure_reaches_the_sender(tmp_path):
    layout, base, local, action, e_b = make(tmp_path, 2 * CHUNK)
    file = MaskedFile(tmp_path / "m", action.length, action.chunk_bytes)
    file.follow(asyncio.get_running_loop())
    waiting = [asyncio.create_task(file.chunk(k)) for k in (1, 0)]
    await asyncio.sleep(0.05)
    assert not any(t.done() for t in waiting)
    await asyncio.to_thread(file.write, action, base=base, local=local, layout=layout, e_b=e_b)
    for leaf, data in await asyncio.gather(*waiting):
        assert chunk_leaf(data) == leaf
    broken = MaskedFile(tmp_path / "n", action.length, action.chunk_bytes)
    broken.follow(asyncio.get_running_loop())
    waiter = asyncio.create_task(broken.chunk(0))
    local.write_bytes(b"")
    with pytest.raises(Refused):
        await asyncio.to_thread(broken.write, action, base=base, local=local, layout=layout, e_b=e_b)
    with pytest.raises(Refused, match="changed"):
        await waiter


def test_a_full_disk_is_said_in_one_line_and_can_be_tried_again(tmp_path, monkeypatch):
    layout, base, local, action, e_b = make(tmp_path, 2 * CHUNK)

    def full(_fd):
        raise OSError(28, "No space left on device")

    file = MaskedFile(tmp_path / "m", action.length, action.chunk_bytes)
    with monkeypatch.context() as patch, pytest.raises(DiskFull, match="no space left"):
        patch.setattr("dure_participant.uploads.os.fsync", full)
        file.write(action, base=base, local=local, layout=layout, e_b=e_b)
