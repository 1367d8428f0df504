"""A forecast in words, for `dure run plan`, `start` and `show`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dure_coordinator.watch import human_bytes, human_time


def short_time(seconds: float) -> str:
    """As `human_time`, with tenths where they matter."""
    return f"{seconds:.1f} s" if seconds < 10 else human_time(seconds)


def plan_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Everything `run-plan` answers."""
    yield f"app {found['app']}, code digest {found['app_sha256']}"
    yield f"environment: packages by lock {found['env_sha256']}" if found["env_sha256"] else "environment: each site's own interpreter"
    n, need = len(found["members"]), found["must_finish"]
    yield f"{n} members, {need} must finish an exchange, {found['may_drop_out']} may drop out"
    yield f"{found['colluders_assumed']} members are assumed to collude; {found['share_threshold']} of {n} shares open a sum"
    yield f"awake now: {', '.join(found['connected_now']) or 'nobody'}; missing: {', '.join(found['missing_now']) or 'nobody'}"
    yield f"{found['rounds']} rounds, at most {found['exchanges_at_most']} exchanges; next base by: {found['outer_step']}"
    if found["size_unknown"]:
        yield f"the app, asked for its model: {found['size_unknown']}"
    yield from size_lines(found)
    if found["sizes"] is not None:
        yield from _time_lines(found["time"], found["rounds"])


def size_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Bytes and disk, where the model's size is known."""
    sizes = found["sizes"]
    if sizes is None:
        yield "the model's size is not known yet: bytes and disk are checked before its first exchange"
        return
    b = {name: human_bytes(value) for name, value in sizes.items()}
    yield f"model: {found['parameters']:,} parameters, {b['model_bytes']} as float32"
    first = b["member_down_first_round"]
    yield f"a member sends {b['member_up_round']} a round and receives {b['member_down_round']} ({first} in the first)"
    yield f"in the whole run a member sends {b['member_up_run']} and receives {b['member_down_run']}"
    yield f"the coordinator takes in {b['coordinator_in_round']} a round and gives out {b['coordinator_out_round']}"
    kept = "for good" if found["uploads_kept_s"] is None else f"{human_time(found['uploads_kept_s'])} (the charter's challenge window)"
    yield f"masked uploads are kept {kept}: {b['uploads_round']} a round, at most {b['uploads_peak']} at once"
    yield (
        f"disk at the coordinator: up to {b['coordinator_disk']} ({b['coordinator_kept_round']} a round stay); "
        f"{human_bytes(found['disk_free'])} are free"
    )
    yield f"disk at each node: up to {b['node_disk']}"


def _time_lines(time: Mapping[str, Any], rounds: int) -> Iterator[str]:
    hub = f", {time['hub_mbps']:g} at the coordinator" if time["hub_mbps"] else ""
    yield f"at {time['up_mbps']:g} Mbit/s up, {time['down_mbps']:g} down{hub}: {short_time(time['transfer_s_round'])} of transfer a round"
    if time["run_s"] is None:
        yield "how long training takes is not known: no earlier run of this code and these settings"
    else:
        trained = short_time(time["training_s_round"])
        yield f"with {trained} of training a round, as in an earlier run: {human_time(time['run_s'])} for {rounds} rounds"


def beside_lines(beside: Mapping[str, Any] | None) -> Iterator[str]:
    """The forecast beside what happened, for the rounds that are over."""
    if beside is None:
        return
    done, planned = beside["rounds"]["over"], beside["rounds"]["planned"]
    took = beside["round_s"]["took"]
    pace = f", {short_time(took)} each" if took is not None else ""
    yield f"forecast and what happened, after {done} of {planned} rounds{pace}:"
    pairs = (("a member's bytes up", "member_up", "most"), ("a member's bytes down", "member_down", "most"))
    pairs += (("the coordinator's disk, whole run", "coordinator_disk", "now"), ("of it masked uploads", "uploads", "now"))
    for name, key, what in pairs:
        yield f"  {name:<34} forecast {human_bytes(beside[key]['forecast']):>9}, {what} {human_bytes(beside[key][what]):>9}"
    yield f"  {'disk at each node, at most':<34} forecast {human_bytes(beside['node_disk']['forecast']):>9}"
