"""What a run will take, said before it opens, checked against the disk, and put beside what happened."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dure.apps import ROUNDS_KEYS
from dure.blobs import BlobId
from dure.errors import BadInput
from dure.forecast import Forecast, forecast, in_json, one_round_disk
from dure.model.layout import Layout
from dure.statements.kinds import RunPlan, Usage
from dure.statements.statement import read_verified
from dure_coordinator.engine import RunEngine
from dure_coordinator.exchange.common import all_exchanges
from dure_coordinator.exchange.history import over
from dure_coordinator.storage.store import Store
from dure_coordinator.watch import human_bytes

if TYPE_CHECKING:
    from dure_coordinator.app import Coordinator
    from dure_coordinator.fleet import Fleet

LINKS = ("up_mbps", "down_mbps", "hub_mbps")


def links_of(arguments: Mapping[str, Any]) -> dict[str, float | None]:
    """The link speeds asked about.

    Raises:
        BadInput: one is not above 0.
    """
    links = {name: arguments.get(name) for name in LINKS}
    for name, value in links.items():
        if value is not None and not float(value) > 0:
            raise BadInput(f"--{name.replace('_', '-')} {value}: must be above 0 (10^6 bits per second)")
    return {name: None if value is None else float(value) for name, value in links.items()}


def key_of(plan: RunPlan) -> tuple[bytes, str]:
    """What decides an app's model and how long it trains: its code and its settings, the number of rounds aside."""
    settings = {name: value for name, value in plan.settings.items() if name not in ROUNDS_KEYS}
    return plan.app_sha256, json.dumps(settings, sort_keys=True)


async def earlier_run(fleet: Fleet, plan: RunPlan) -> RunEngine | None:
    """The newest run of the same code under the same settings that came to its first exchange."""
    for row in sorted(fleet.rows.values(), key=lambda r: -r.created):
        if row.app_digest == plan.app_sha256 and key_of(fleet.plan_of(row)) == key_of(plan):
            engine = await fleet.engine(row.run)
            if engine is not None and layout_of(engine) is not None:
                return engine
    return None


def layout_of(engine: RunEngine) -> Layout | None:
    """Of a run's model; None before its first exchange with arrays."""
    found = next((e.layout for e in all_exchanges(engine.state) if e.layout), None)
    return None if found is None else Layout.from_json(found)


async def training_s(store: Store, engine: RunEngine) -> float | None:
    """What a round's training took in a run: the slowest member's own word, averaged over its exchanges."""
    slowest: dict[int, int] = {}
    for row in await store.statements(run=engine.run, kind="usage"):
        said = read_verified(row.envelope, Usage)
        slowest[said.exchange] = max(slowest.get(said.exchange, 0), said.milliseconds)
    rounds = sum(e.category == "train" for e in over(engine.state))
    return sum(slowest.values()) / 1000 / rounds if rounds and slowest else None


async def said_of(
    coordinator: Coordinator, plan: RunPlan, layout: Layout | None, elements: int | None, links: Mapping[str, float | None]
) -> tuple[dict[str, Any], Forecast | None]:
    """(the forecast for people and scripts, the forecast): with what is known of the model's size and of earlier runs."""
    before = await earlier_run(coordinator.fleet, plan)
    train_s = None if before is None else await training_s(coordinator.store, before)
    if elements is not None:  # what the administrator says goes before what was seen
        layout = None
    elif layout is None and before is not None:
        layout = layout_of(before)
    size = layout.elements if layout is not None else elements
    window_s = coordinator.charter.terms.challenge_window_s
    found = None if size is None else forecast(plan, size, window_s, train_s or 0.0, coordinator.settings.keep_bases)
    said = in_json(plan, found, links, train_s)
    said["parameters"] = layout.parameters if layout is not None else elements
    said["uploads_kept_s"] = None if plan.keep_uploads == "all" else window_s
    said["disk_free"] = shutil.disk_usage(coordinator.folder.directory).free
    return said, found


def check_disk(coordinator: Coordinator, found: Forecast) -> None:
    """`BadInput` where the run would not fit the coordinator's disk or its quota for uploads."""
    folder, free = coordinator.folder.directory, shutil.disk_usage(coordinator.folder.directory).free
    settings = coordinator.settings
    quota = min(settings.spool_quota_bytes, settings.run_quota_bytes or settings.spool_quota_bytes)
    name = "spool_quota_bytes" if quota == settings.spool_quota_bytes else "run_quota_bytes"
    if found.uploads_peak > quota:
        raise BadInput(
            f"disk: up to {human_bytes(found.uploads_peak)} of masked uploads would be kept at once, the quota is {human_bytes(quota)}; "
            f"raise {name} in coordinator.toml, plan fewer rounds, or start it all the same with --ignore-disk"
        )
    if found.coordinator_disk > free:
        raise BadInput(
            f"disk: the run may need {human_bytes(found.coordinator_disk)} in {folder} and {human_bytes(free)} are free; "
            "make room, plan fewer rounds, or start it all the same with --ignore-disk"
        )


def no_room(directory: Any, plan: RunPlan, layout: Layout) -> str:
    """Why the first exchange is not begun: not even one round fits the disk; "" where it does."""
    needed, free = one_round_disk(plan, layout.elements), shutil.disk_usage(directory).free
    if needed <= free:
        return ""
    return f"disk: a round of this run takes {human_bytes(needed)} at the coordinator, and {human_bytes(free)} are free in {directory}"


async def beside(coordinator: Coordinator, engine: RunEngine, members: Mapping[str, Any]) -> dict[str, Any] | None:
    """The forecast beside what happened so far; None before the model's size is known.

    Args:
        members: as `run-show` has them: bytes by each member's own word.
    """
    layout = layout_of(engine)
    if layout is None:
        return None
    state = engine.state
    plan: RunPlan = state.facts.plan
    rounds = [e for e in over(state) if e.category == "train"]
    ended = over(state)
    took = ended[-1].ended - ended[0].started if ended else 0.0
    window_s, keep_bases = coordinator.charter.terms.challenge_window_s, coordinator.settings.keep_bases
    found = forecast(plan, layout.elements, window_s, took / len(rounds) if rounds else 0.0, keep_bases)
    there = {r.blob for r in await coordinator.store.blobs(engine.run) if r.purpose != "upload"}
    uploads = (await coordinator.store.kept_bytes(engine.run)).length
    blobs = await asyncio.to_thread(lambda: sum(_bytes(coordinator, blob) for blob in there))
    share = len(rounds) / plan.rounds
    return {
        "rounds": {"planned": plan.rounds, "over": len(rounds)},
        "member_up": {"forecast": round(found.up_run * share), "most": max(m["bytes_up"] for m in members.values())},
        "member_down": {"forecast": round(found.down_run * share), "most": max(m["bytes_down"] for m in members.values())},
        "coordinator_disk": {"forecast": found.coordinator_disk, "now": blobs + uploads},
        "uploads": {"forecast": found.uploads_peak, "now": uploads},
        "node_disk": {"forecast": found.node_disk},
        "round_s": {"took": round(took / len(rounds), 2) if rounds else None},
    }


def _bytes(coordinator: Coordinator, blob: str) -> int:
    parsed = BlobId.parse(blob)
    return parsed.length if coordinator.blobs.has(parsed) else 0
