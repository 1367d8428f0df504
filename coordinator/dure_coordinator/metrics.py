"""What `dure coordinator serve --metrics PORT` shows: read from the runs' states, which are immutable, so any thread may look."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure.scrape import Sample
from dure_coordinator.exchange import view
from dure_coordinator.exchange.state import ExchangePhase

if TYPE_CHECKING:
    from dure_coordinator.app import Coordinator
    from dure_coordinator.engine import RunEngine

STATES = ("running", "finished", "aborted")


def samples(coordinator: Coordinator) -> Iterator[Sample]:
    """Every number of one scrape."""
    fleet = coordinator.fleet
    here = list(fleet.here)
    for member in coordinator.charter.members:
        connected = float(member.id in here)
        yield Sample("dure_member_connected", "1 while a node of this member follows.", connected, {"member": member.id})
    labels = [row.label for row in list(fleet.rows.values())]
    for state in STATES:
        count = sum(label == ("open" if state == "running" else state) for label in labels)
        yield Sample("dure_runs", "Runs by state.", count, {"state": state})
    for engine in list(fleet.runs.values()):
        if not engine.ended:
            yield from _of_run(engine)
    yield Sample("dure_charter_expires_timestamp_seconds", "Unix time after which no new run begins.", coordinator.charter.expires)
    yield Sample("dure_start_time_seconds", "Unix time this coordinator was started.", coordinator.started)
    yield from _of_disk(coordinator.folder.directory)
    yield Sample("dure_spool_quota_bytes", "Most that masked uploads may take on disk.", coordinator.settings.spool_quota_bytes)


def _of_run(engine: RunEngine) -> Iterator[Sample]:
    state: Any = engine.state
    run = {"run": engine.run.hex()[:12]}
    exchange = state.exchange
    ended = [e for e in (*state.closed, *((exchange,) if exchange else ())) if e.phase in (ExchangePhase.CLOSED, ExchangePhase.FAILED)]
    failed = sum(e.phase is ExchangePhase.FAILED for e in ended)
    yield Sample("dure_run_exchanges_closed_total", "Exchanges that ended in an aggregate.", len(ended) - failed, run)
    yield Sample("dure_run_exchanges_failed_total", "Exchanges that ended without one.", failed, run)
    yield Sample("dure_run_exchange", "Number of the exchange under way or last.", state.exchanges, run)
    yield Sample("dure_run_waiting_for_members", "Members the current phase waits for.", len(view.waiting_for(state)), run)
    yield Sample("dure_run_quorum_members", "Members that must finish an exchange.", state.facts.u_min, run)
    began = exchange.began if exchange is not None else state.began
    yield Sample("dure_run_phase_began_timestamp_seconds", "Unix time the current phase of the exchange began.", began, run)
    yield Sample("dure_run_events_total", "Events in the run's log.", engine.position, run)
    for member in state.facts.roster:
        left_out = sum(member not in e.reply.survivors for e in ended if e.reply is not None)
        yield Sample("dure_run_member_dropouts_total", "Exchanges this member is not in the sum of.", left_out, {**run, "member": member})


def _of_disk(directory: Path) -> Iterator[Sample]:
    yield Sample("dure_disk_free_bytes", "Free space where the coordinator keeps its state.", shutil.disk_usage(directory).free)
    for name in ("spools", "blobs"):
        yield Sample("dure_stored_bytes", "Bytes on disk, by kind.", _bytes_below(directory / name), {"kind": name})


def _bytes_below(folder: Path) -> int:
    """Allocated bytes of the files below; what vanishes meanwhile is not counted."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
