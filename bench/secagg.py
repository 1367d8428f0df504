"""`python bench/secagg.py`: what a member does to its update before it leaves, against Flower SecAgg+'s own client function.

One float32 vector, a full graph of n members: encode, tag, mask and hash here (`UploadEncoder`, `chunk_leaf`); quantize, mask and serialize
there (`_collect_masked_vectors` of flwr's secaggplus_mod, called as its mod calls it, with its workflow's default ranges). In the same run:
the AES key stream alone over the bytes the masks need, and what this machine's memory gives for one pass over input and output.
Repetitions of all of them take turns; medians are reported, and the spread.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import os
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dure.blobs import chunk_leaf
from dure.secagg.encode import BLOCK, Weight, weight_of
from dure.secagg.kernel import UploadEncoder
from dure.secagg.masks import RING_CHUNK, MaskSet, MaskStream, pair_sign
from dure.secagg.scales import block_maxima
from dure.secagg.streams import ChunkStream
from dure.secagg.tag import TagKey
from measure import Progress, spread, write

F32 = NDArray[np.float32]
TARGETS = {1: 12.0, 2: 20.0}
"""Times faster than Flower's, by threads (issue 4)."""
CTX = bytes(32)


def main() -> None:
    asked = _arguments()
    progress = Progress("secagg")
    results = []
    for n in (int(n) for n in asked.members.split(",")):
        progress(f"{asked.elements:,} elements, n = {n}, {asked.repeats} repetitions")
        results.append(measure(asked.elements, n, asked.repeats))
    write(asked.json, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: python bench/secagg.py --members 8 --repeats 3")
    parser.add_argument("--elements", type=int, default=10_000_000, help="float32 elements (default: 10 million)")
    parser.add_argument("--members", default="8,32", help="cohort sizes, with commas between them (default: 8,32)")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of each, taking turns (default: 5)")
    parser.add_argument("--json", type=Path, help="write the results here instead of standard output")
    return parser.parse_args()


def measure(elements: int, n: int, repeats: int) -> dict[str, Any]:
    """One cohort size, everything in turn; the first turn warms up and is not counted."""
    delta = 1e-3 * np.random.default_rng(7).standard_normal(elements, dtype=np.float32)
    work: Mapping[str, Callable[[], object]] = {
        "ours_1": lambda: protect(delta, n, threads=1),
        "ours_2": lambda: protect(delta, n, threads=2),
        "flower": flower(delta, n),
        "keystream_1": lambda: keystream(elements, n, threads=1),
        "keystream_2": lambda: keystream(elements, n, threads=2),
        "memory_1": memory_pass(delta),
    }
    taken: dict[str, list[float]] = {name: [] for name in work}
    cpu: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, do in work.items():
            began, used = time.perf_counter(), time.process_time()
            do()
            if turn:
                taken[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - used)
    return _result(elements, n, taken, cpu, parts(delta, n))


def _result(
    elements: int, n: int, taken: Mapping[str, list[float]], cpu: Mapping[str, list[float]], of_which: Mapping[str, float]
) -> dict[str, Any]:
    times = {name: spread(seconds) for name, seconds in taken.items()}
    middle = {name: found["median"] for name, found in times.items()}
    return {
        "elements": elements,
        "n": n,
        "seconds": times,
        "cpu_s": {name: spread(seconds) for name, seconds in cpu.items()},
        "times_flower_1": round(middle["flower"] / middle["ours_1"], 2),
        "times_flower_2": round(middle["flower"] / middle["ours_2"], 2),
        "target_1": TARGETS[1],
        "target_2": TARGETS[2],
        "keystream_share_1": round(middle["keystream_1"] / middle["ours_1"], 3),
        "keystream_gb_per_s": round(keystream_bytes(elements, n) / middle["keystream_1"] / 1e9, 2),
        "memory_share_1": round(middle["memory_1"] / middle["ours_1"], 3),
        "parts_s": {name: round(seconds, 4) for name, seconds in of_which.items()},
    }


# -- ours ----------------------------------------------------------------------------------------------------------------


def encoder_of(elements: int, n: int, e_b: NDArray[np.int8]) -> UploadEncoder:
    """The encoder of one member in a cohort of n; its secrets are numbers from a seed."""
    secret, names = random.Random(n).randbytes, tuple(f"m{i:03d}" for i in range(n))
    me = names[n // 2]
    pairs = (MaskStream.derive(secret(32), CTX, "mask/pair", pair_sign(me, peer)) for peer in names if peer != me)
    return UploadEncoder(
        kind="ring",
        masks=MaskSet([MaskStream.derive(secret(32), CTX, "mask/self", 1), *pairs]),
        tag=TagKey(secret(32), CTX, names),
        me=me,
        cohort_size=n,
        weight=weight(),
        rounding_key=secret(32),
        elements=elements,
        e_b=e_b,
    )


def weight() -> Weight:
    return weight_of(32_768)


def scales_of(elements: int) -> NDArray[np.int8]:
    """e_b of the bench's vector: what a `scales` instance would have decided, not timed here."""
    return np.full(-(-elements // BLOCK), -8, np.int8)


def protect(delta: F32, n: int, *, threads: int) -> bytes:
    """Every chunk encoded, tagged, masked and hashed by `threads` threads; returns the last leaf."""
    encoder = encoder_of(delta.size, n, scales_of(delta.size))

    def one(k: int) -> bytes:
        return chunk_leaf(encoder.chunk(k, delta[encoder.elements_of(k)])[0])

    if threads == 1:
        leaves = [one(k) for k in range(encoder.chunks)]
    else:
        with ThreadPoolExecutor(threads) as pool:
            leaves = list(pool.map(one, range(encoder.chunks)))
    encoder.finish()
    return leaves[-1]


def parts(delta: F32, n: int) -> dict[str, float]:
    """Seconds of one thread in each part, alone, one after the other."""
    from dure.secagg.encode import encode_update_chunk, rounding_streams

    encoder, e_b = encoder_of(delta.size, n, scales_of(delta.size)), scales_of(delta.size)
    secret = random.Random(1).randbytes
    tag, noise = TagKey(secret(32), CTX, ("a", "b", "c")), rounding_streams(secret(32))
    masks = MaskSet(MaskStream(1 if i % 2 else -1, secret(32), secret(32), secret(32)) for i in range(n))
    found = dict.fromkeys(("maxima", "encode", "tag", "mask", "hash"), 0.0)
    for k in range(encoder.chunks):
        where = encoder.elements_of(k)
        part, scales = delta[where], e_b[where.start // BLOCK : -(-where.stop // BLOCK)]
        clock = [time.perf_counter()]
        block_maxima(part, weight().w_hat, where.start)
        clock.append(time.perf_counter())
        q, _ = encode_update_chunk(part, weight().w_hat, scales, n, noise, k)
        clock.append(time.perf_counter())
        tag.ring_chunk(k, q)
        clock.append(time.perf_counter())
        masks.ring_chunk(k, q)
        clock.append(time.perf_counter())
        chunk_leaf(q.data.cast("B"))
        clock.append(time.perf_counter())
        for name, before, after in zip(found, clock[:-1], clock[1:], strict=True):
            found[name] += after - before
    return found


# -- limits --------------------------------------------------------------------------------------------------------------


def keystream_bytes(elements: int, n: int) -> int:
    """Key stream an upload needs: n masks and the rounding, two bytes an element each."""
    return 2 * elements * (n + 1)


def keystream(elements: int, n: int, *, threads: int) -> None:
    """AES-256-CTR over those bytes into a buffer that stays in the cache, and nothing else."""

    def some(share: int) -> None:
        stream, buffer = ChunkStream(bytes(32), share), np.empty(2 * RING_CHUNK, np.uint8)
        for _ in range(share, keystream_bytes(elements, n) // buffer.size, threads):
            stream.fill(buffer)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, range(threads)))


def memory_pass(delta: F32) -> Callable[[], object]:
    """One copy that moves as many bytes through memory as reading the vector and writing the upload (4 + 2 bytes an element)."""
    source = delta[: 3 * delta.size // 4]
    out = np.empty_like(source)
    return lambda: np.copyto(out, source)


# -- Flower --------------------------------------------------------------------------------------------------------------


def flower(delta: F32, n: int) -> Callable[[], object]:
    """Stage 2 of Flower's SecAgg+ client among n − 1 neighbours, from its own state and messages."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from flwr.app import ConfigRecord
    from flwr.common import ndarrays_to_parameters
    from flwr.common.secure_aggregation.crypto import symmetric_encryption as crypto
    from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes, public_key_to_bytes

    plus = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")  # the package gives its function of the same name
    pairs = {node: generate_key_pairs() for node in range(1, n + 1)}
    me, others = n // 2, [node for node in pairs if node != n // 2]
    key = os.urandom(32)
    state = plus.SecAggPlusState()
    state.nid, state.sample_num, state.share_num, state.threshold = me, n, n, n // 2 + 1
    state.clipping_range, state.target_range, state.mod_range, state.max_weight = 8.0, 1 << 22, 1 << 32, 1000.0
    state.rd_seed, state.sk1 = os.urandom(32), private_key_to_bytes(pairs[me][0])
    state.rd_seed_share_dict, state.sk1_share_dict = {}, {}
    state.public_keys_dict = {node: (public_key_to_bytes(public), b"") for node, (_, public) in pairs.items()}
    fernet = base64.urlsafe_b64encode(key)
    state.ss2_dict = dict.fromkeys(others, fernet)
    sealed = [crypto.encrypt(fernet, share_keys_plaintext_concat(node, me, bytes(32), bytes(32))) for node in others]
    configs = ConfigRecord({plus.Key.CIPHERTEXT_LIST: sealed, plus.Key.SOURCE_LIST: others})
    parameters = ndarrays_to_parameters([delta])
    return lambda: plus._collect_masked_vectors(state, configs, 500, parameters)


if __name__ == "__main__":
    main()
