"""What a run takes: bytes on the wire, disk at the coordinator and at each node, time on given links. Pure arithmetic over the formats.

A round is a train exchange and an evaluate exchange. Figures are what a run without failures takes at most; the small change of the
protocol (keys, shares, signatures) is estimated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dure.model.layout import BLOCK_ELEMENTS
from dure.secagg.summing import shape_of
from dure.secagg.thresholds import dropouts_survived, share_threshold
from dure.statements.kinds import RunPlan

SHARE_BYTES_PER_MEMBER = 270
"""A share message is about so long, times the cohort (secure-aggregation.md §4: 2.2, 8.6, 26.8 kB at 8, 32, 100)."""
SMALL_BYTES = 4_000
"""Of one instance and member besides: commit, signatures, reveal, acceptance."""
PROTOCOL_S = 3.0
"""Of a round besides training and bulk bytes: a dozen round trips and as many syncs to disk."""
OUTER_VECTORS = {"none": 0, "average": 0, "nesterov": 1, "adam": 2}
APP_FILES = 4
"""Flat vectors in the ServerApp's folder: its base, two replies, its result."""


@dataclass(frozen=True)
class Size:
    """The bulk vectors of one model, in bytes."""

    weights: int
    update: int
    scales: int
    exponents: int

    @staticmethod
    def of(elements: int) -> Size:
        """Of a flat vector of so many elements."""
        return Size(4 * elements, shape_of("update", elements)[0], shape_of("scales", elements)[0], -(-elements // BLOCK_ELEMENTS))

    @property
    def upload(self) -> int:
        """What a member sends in a train exchange; also the two sums it gets back."""
        return self.update + self.scales


@dataclass(frozen=True)
class Forecast:
    """Bytes; per member unless it says otherwise."""

    size: Size
    members: int
    rounds: int
    up: int
    """In a round."""
    down_first: int
    """In the first round, with the model."""
    down: int
    """In a later one."""
    up_run: int
    down_run: int
    coordinator_in: int
    """In a round, from all members."""
    coordinator_out: int
    """In a later round, to all members."""
    kept: int
    """On the coordinator's disk for good, by each round."""
    uploads: int
    """On the coordinator's disk by each round, until the challenge window has closed."""
    uploads_peak: int
    """Of all rounds whose window may be open at once."""
    coordinator_disk: int
    node_disk: int


def forecast(plan: RunPlan, elements: int, challenge_window_s: float, round_s: float = 0.0, keep_bases: int = 0) -> Forecast:
    """What a run under this plan takes with a model of so many elements.

    Args:
        keep_bases: the coordinator's setting; 0: all stay.
        round_s: how long a round is expected to take at least; 0: not known, then every upload may be there at once.
    """
    size, n, named = Size.of(elements), len(plan.roster), plan.outer_step.named
    vectors = OUTER_VECTORS[plan.outer_step.name]
    share = SHARE_BYTES_PER_MEMBER * n
    # Scales, update and the evaluation's scalars: three instances a round.
    up = size.upload + 3 * (share + SMALL_BYTES)
    down = size.upload + 3 * n * (share + SMALL_BYTES // 2) + (0 if named else size.weights)
    down_first = down + (size.weights if named else 0)
    bases = size.weights * (1 + vectors) if named else 2 * size.weights
    kept = size.upload + size.exponents + 3 * n * (share + SMALL_BYTES) + (0 if keep_bases else bases)
    # Besides the last ones: the first, the current one, and one that the next sweep takes away.
    last_bases = bases * min(plan.rounds, keep_bases + 3) if keep_bases else 0
    uploads = n * size.upload
    at_once = plan.rounds if plan.keep_uploads == "all" or not round_s else min(plan.rounds, 1 + int(challenge_window_s / round_s))
    return Forecast(
        size=size,
        members=n,
        rounds=plan.rounds,
        up=up,
        down_first=down_first,
        down=down,
        up_run=up * plan.rounds,
        down_run=down_first + down * (plan.rounds - 1),
        coordinator_in=n * up,
        coordinator_out=n * down,
        kept=kept,
        uploads=uploads,
        uploads_peak=uploads * at_once,
        coordinator_disk=kept * plan.rounds + last_bases + uploads * at_once + size.weights * (1 + APP_FILES),
        node_disk=node_disk(size, vectors),
    )


def node_disk(size: Size, vectors: int) -> int:
    """Base, next base and the one before with their momenta, local weights and the ones before; uploads and sums are not kept."""
    return 3 * size.weights + 2 * vectors * size.weights + 2 * size.weights + size.exponents


def exchange_disk(plan: RunPlan, elements: int, *, train: bool, base_is_there: bool) -> int:
    """What a node must have free before it begins an exchange: the base; to train, local weights and the next base."""
    size, vectors = Size.of(elements), OUTER_VECTORS[plan.outer_step.name]
    base = 0 if base_is_there else size.weights
    return base + (size.weights * (2 + vectors) if train else 0)


def one_round_disk(plan: RunPlan, elements: int) -> int:
    """What the coordinator must have free for the next round to be begun at all."""
    found = forecast(plan, elements, 0.0, 1.0)
    return found.kept + found.uploads + found.size.weights


def transfer_s(found: Forecast, up_mbps: float, down_mbps: float, hub_mbps: float | None = None) -> float:
    """Seconds a round's bytes take: over a member's link, or over the coordinator's for all of them, whichever is slower (10^6 bits/s)."""
    member = 8e-6 * (found.up / up_mbps + found.down / down_mbps)
    hub = 8e-6 * max(found.coordinator_in, found.coordinator_out) / hub_mbps if hub_mbps else 0.0
    return max(member, hub)


def in_json(plan: RunPlan, found: Forecast | None, links: Mapping[str, float | None], train_s: float | None) -> dict[str, Any]:
    """For `dure run plan`, `start` and `show`.

    Args:
        found: None where the model's size is not known.
        links: up_mbps, down_mbps, hub_mbps (None: not a limit).
        train_s: what one round's training took in an earlier run of the app; None: not known.
    """
    thresholds = {
        "members": list(plan.roster),
        "must_finish": plan.u_min,
        "may_drop_out": dropouts_survived(len(plan.roster), plan.colluders),
        "share_threshold": share_threshold(len(plan.roster), plan.colluders),
        "colluders_assumed": plan.colluders,
        "rounds": plan.rounds,
        "exchanges_at_most": plan.max_exchanges,
        "outer_step": plan.outer_step.name,
    }
    if found is None:
        return {**thresholds, "sizes": None}
    up, down = links.get("up_mbps") or 100.0, links.get("down_mbps") or 100.0
    bulk_s = transfer_s(found, up, down, links.get("hub_mbps"))
    round_s = None if train_s is None else train_s + bulk_s + PROTOCOL_S
    sizes = {
        "model_bytes": found.size.weights,
        "member_up_round": found.up,
        "member_down_first_round": found.down_first,
        "member_down_round": found.down,
        "member_up_run": found.up_run,
        "member_down_run": found.down_run,
        "coordinator_in_round": found.coordinator_in,
        "coordinator_out_round": found.coordinator_out,
        "coordinator_disk": found.coordinator_disk,
        "coordinator_kept_round": found.kept,
        "uploads_round": found.uploads,
        "uploads_peak": found.uploads_peak,
        "node_disk": found.node_disk,
    }
    time = {
        "up_mbps": up,
        "down_mbps": down,
        "hub_mbps": links.get("hub_mbps"),
        "transfer_s_round": round(bulk_s, 2),
        "training_s_round": None if train_s is None else round(train_s, 2),
        "round_s": None if round_s is None else round(round_s, 2),
        "run_s": None if round_s is None else round(round_s * plan.rounds, 1),
    }
    return {**thresholds, "sizes": sizes, "time": time}
