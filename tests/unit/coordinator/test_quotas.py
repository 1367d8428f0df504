"""Room for masked uploads: a run has what the others leave, and none leaves a small one nothing."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dure_coordinator.duties_done import Duties
from dure_coordinator.quotas import Quotas, room_of
from dure_coordinator.spool import Spools, SpoolsFull

BIG, SMALL, OVER = b"big", b"small", b"over"


def test_a_run_alone_has_everything():
    assert room_of(BIG, Quotas(1000, 0, 100), {}, [BIG])[0] == 1000
    assert room_of(BIG, Quotas(1000, 0, 100), {BIG: 900, OVER: 60}, [BIG])[0] == 40


def test_a_large_run_leaves_a_small_one_its_reserve():
    quotas = Quotas(1000, 0, 100)
    free, why = room_of(BIG, quotas, {BIG: 800, SMALL: 30}, [BIG, SMALL])
    assert free == 1000 - 830 - 70 and "70 bytes of which are kept for other open runs" in why
    assert room_of(SMALL, quotas, {BIG: 900, SMALL: 30}, [BIG, SMALL])[0] == 70
    assert room_of(BIG, quotas, {BIG: 800, SMALL: 130}, [BIG, SMALL])[0] == 70, "who has used its reserve has no more of it"


def test_a_run_that_is_over_has_no_reserve_but_keeps_its_uploads():
    assert room_of(BIG, Quotas(1000, 0, 100), {OVER: 300}, [BIG])[0] == 700


def test_reserves_together_never_exceed_the_quota():
    runs = [bytes([k]) for k in range(30)]
    assert room_of(runs[0], Quotas(1000, 0, 100), {}, runs)[0] == 1000 - 29 * 33


def test_one_runs_own_bound_is_named():
    free, why = room_of(BIG, Quotas(1000, 500, 0), {BIG: 450}, [BIG])
    assert (free, why) == (50, "of what one run may keep (run_quota_bytes)")
    assert room_of(BIG, Quotas(1000, 500, 0), {BIG: 600}, [BIG])[0] == 0


def test_uploads_count_for_their_run_across_a_restart_and_what_is_there_is_never_refused(tmp_path):
    """A quota that was lowered kept a complete upload from being added up."""
    spools = Spools(tmp_path, quotas=Quotas(1000, 400))
    spools.open(b"1" * 32, length=350, chunk_bytes=64, run=BIG)
    spools.close()
    again = Spools(tmp_path, quotas=Quotas(300, 200))
    again.belong({b"1" * 32: BIG, b"2" * 32: SMALL})
    assert again.open(b"1" * 32, length=350, chunk_bytes=64, run=BIG).length == 350
    with pytest.raises(SpoolsFull, match="of the quota"):
        again.open(b"3" * 32, length=100, chunk_bytes=64, run=SMALL)
    again.quotas = Quotas(1000, 400)
    with pytest.raises(SpoolsFull, match=r"exceeds the 50 left of what one run may keep \(run_quota_bytes\)"):
        again.open(b"3" * 32, length=100, chunk_bytes=64, run=BIG)
    again.open(b"3" * 32, length=100, chunk_bytes=64, run=SMALL)
    again.close()


async def test_sums_of_many_large_runs_hold_no_thread_that_others_need():
    """On two cores the loop has six threads; six large sums left bulk streams and every other run's phases without one."""
    gate, began = threading.Event(), threading.Semaphore(0)
    duties = Duties(None, None, None, None, None, None)

    def large(_duty):
        began.release()
        gate.wait(20)
        return {}

    sums = [asyncio.create_task(duties._apart(large, None)) for _ in range(40)]
    for _ in sums:
        await asyncio.to_thread(began.acquire)  # all of them are at work, none waits for another
    gate.set()
    await asyncio.gather(*sums)
