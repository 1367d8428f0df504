"""`python bench/report.py`: the tables of docs/performance.md and its picture, made anew from bench/results/*.json.

Text between `<!-- NAME -->` and `<!-- end -->` in the document is a table of this script; everything else is people's.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
DOCUMENT = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "images" / "performance.svg"
Result = dict[str, Any]
Rows = Sequence[Sequence[str]]

WHOLE = {"flower": 1 / 3, "flare": 2 / 3}
EXCHANGE = {"flower": 1 / 6}
"""At 100 M parameters (issue 4); ours / the peer's."""
LARGE = 100_000_000
SMALL, SMALL_ROUND_S = 2_500_000, 0.5
RSS_MB, BYTES = 512, 2.1
LEVEL1_CORE_S = 120
"""For 10^6 entries (issue 5)."""
NAMES = {"flower": "Flower", "flare": "FLARE", "none": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: python bench/report.py --check")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the document is not what the results give")
    asked = parser.parse_args()
    results, text = load(RESULTS), DOCUMENT.read_text()
    made = filled(text, results)
    if asked.check:
        sys.exit(0 if made == text else "error: docs/performance.md is not what bench/results gives; run `python bench/report.py`")
    DOCUMENT.write_text(made)
    draw(results, PICTURE)


def load(folder: Path) -> dict[str, list[Result]]:
    """Results by the benchmark's name; `round_exchange` from all its files, small models first."""
    found: dict[str, list[Result]] = {}
    for path in sorted(folder.glob("*.json")):
        found.setdefault(path.stem.partition("-")[0], []).extend(json.loads(path.read_text()))
    found.get("round_exchange", []).sort(key=lambda r: (r["params"], r["nodes"], r["next_base"], r["peer"]))
    return found


def filled(text: str, results: dict[str, list[Result]]) -> str:
    """The document with every table made anew."""

    def table_of(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{TABLES[found[1]](results)}\n<!-- end -->"

    return re.sub(rf"<!-- ({'|'.join(TABLES)}) -->\n.*?<!-- end -->", table_of, text, flags=re.DOTALL)


def table(head: Sequence[str], rows: Rows) -> str:
    """Markdown; numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(value: float, target: float, *, most: bool = True) -> str:
    """Whether a target is met; if not, by how much it is missed."""
    met = value <= target if most else value >= target
    sign, off = ("≤" if most else "≥"), (value / target if most else target / value)
    return f"{sign} {target:.3g}: " + ("met" if met else f"**missed, {off:.2f}×**")


def millions(params: int) -> str:
    return f"{params / 1e6:g} M"


# -- the tables ----------------------------------------------------------------------------------------------------------


def where(results: dict[str, list[Result]]) -> str:
    """Machine, commit and day of every file."""
    seen = dict.fromkeys(
        (name, r["machine"]["cpu"], r["machine"]["cores"], r["machine"]["memory_gb"], r["commit"], r["date"][:10], r["load_at_start"])
        for name, found in results.items()
        for r in found
    )
    rows = [(name, f"{cpu}, {cores} cores, {gb} GB", commit, day, str(load)) for name, cpu, cores, gb, commit, day, load in seen]
    return table(("benchmark", "machine", "commit", "day", "load at start"), rows)


def rounds(results: dict[str, list[Result]]) -> str:
    """Seconds, and ours / the peer's."""
    rows = []
    for r in results.get("round_exchange", []):
        if r["peer"] == "none":
            continue
        label = f"{millions(r['params'])} × {r['nodes']}, {r['next_base']}"
        if r["peer_whole_round_s"] is None:
            rows.append((label, f"{r['whole_round_s']:.2f}", NAMES[r["peer"]], "–", "–", f"{r['exchange_s']:.2f}", "–", "–"))
            continue
        whole, exchange = (_ratio(r, kind, targets) for kind, targets in (("whole", WHOLE), ("exchange", EXCHANGE)))
        theirs = (f"{r['peer_whole_round_s']:.2f}", f"{r['peer_exchange_s']:.2f}")
        rows.append((label, f"{r['whole_round_s']:.2f}", NAMES[r["peer"]], theirs[0], whole, f"{r['exchange_s']:.2f}", theirs[1], exchange))
    return table(("model × nodes, next base", "whole s", "peer", "its whole s", "ratio", "exchange s", "its exchange s", "ratio"), rows)


def _ratio(r: Result, kind: str, targets: dict[str, float]) -> str:
    value = r[f"{kind}_ratio"]
    target = targets.get(r["peer"]) if r["params"] == LARGE else None
    return f"{value:.3f}" + (f" ({verdict(value, target)})" if target else "")


def _ours_once(results: dict[str, list[Result]]) -> Iterable[Result]:
    """One object per run of ours: it is repeated for every peer."""
    return {(r["params"], r["nodes"], r["next_base"], r["whole_round_s"]): r for r in results.get("round_exchange", [])}.values()


def small(results: dict[str, list[Result]]) -> str:
    rows = [
        (
            f"{millions(r['params'])} × {r['nodes']}, {r['next_base']}",
            f"{r['whole_round_s']:.2f}",
            verdict(r["whole_round_s"], SMALL_ROUND_S),
        )
        for r in _ours_once(results)
        if r["params"] == SMALL
    ]
    return table(("small model", "whole round s", "target"), rows)


def memory(results: dict[str, list[Result]]) -> str:
    rows = []
    for r in _ours_once(results):
        hub, agent = r["coordinator_peak_rss_mb"], r["node_peak_rss_mb"]
        cells = (f"{hub} ({verdict(hub, RSS_MB)})", f"{agent} ({verdict(agent, RSS_MB)})", str(r["serverapp_peak_rss_mb"]))
        rows.append(
            (
                f"{millions(r['params'])} × {r['nodes']}, {r['next_base']}",
                *cells,
                str(r["worker_peak_rss_mb"]),
                str(r["summed_peak_rss_mb"]),
            )
        )
    for r in results.get("round_exchange", []):
        if r["next_base"] == "stock FedAvg" and r.get("peer_summed_peak_rss_mb"):
            roles = [str(r[f"peer_{role}_peak_rss_mb"]) for role in ("coordinator", "node", "serverapp", "worker")]
            rows.append((f"{millions(r['params'])} × {r['nodes']}, {NAMES[r['peer']]}", *roles, str(r["peer_summed_peak_rss_mb"])))
    return table(("peak RSS, MB", "coordinator", "agent", "ServerApp", "worker", "all, summed"), rows)


def flat(results: dict[str, list[Result]]) -> str:
    """The coordinator's peak against size and nodes, plan-named step."""
    peaks = {(r["params"], r["nodes"]): r["coordinator_peak_rss_mb"] for r in _ours_once(results) if r["next_base"].startswith("plan")}
    rows = []
    for title, few, many in (
        ("25 M → 100 M parameters, 4 nodes", (25_000_000, 4), (LARGE, 4)),
        ("3 → 8 nodes, 25 M", (25_000_000, 3), (25_000_000, 8)),
    ):
        if few in peaks and many in peaks:
            rows.append((title, f"{peaks[few]} → {peaks[many]}"))
    return table(("the coordinator's peak RSS, MB", "from → to"), rows)


def wire(results: dict[str, list[Result]]) -> str:
    rows = []
    for r in _ours_once(results):
        up, down = r["bytes_up_per_param"], r["bytes_down_per_param"]
        down_cell = f"{down:.2f}" + (f" ({verdict(down, BYTES)})" if r["next_base"].startswith("plan") else "")
        rows.append((f"{millions(r['params'])} × {r['nodes']}, {r['next_base']}", f"{up:.2f} ({verdict(up, BYTES)})", down_cell))
    return table(("bytes a parameter and node, after the first exchange", "up", "down"), rows)


def processor(results: dict[str, list[Result]]) -> str:
    """Where the time goes: CPU seconds of all processes of a role, in one round."""
    roles = ("coordinator", "serverapp", "agent", "worker")
    rows = []
    for r in _ours_once(results):
        spent = r["cpu_s_per_round"]
        apps = r["app_cpu_s"]["clients"] + r["app_cpu_s"]["server"]
        label = f"{millions(r['params'])} × {r['nodes']}, {r['next_base']}"
        rows.append((label, *(f"{spent.get(role, 0):.2f}" for role in roles), f"{apps:.2f}", f"{r['whole_round_s']:.2f}"))
    return table(("CPU seconds in a round", "coordinator", "ServerApp", "agents", "workers", "of these, the app", "wall s"), rows)


def secagg(results: dict[str, list[Result]]) -> str:
    rows = []
    for r in results.get("secagg", []):
        s = {name: found["median"] for name, found in r["seconds"].items()}
        for threads in (1, 2):
            times = r[f"times_flower_{threads}"]
            found = (
                f"{s[f'ours_{threads}']:.3f}",
                f"{s['flower']:.2f}",
                f"{times:.1f}× ({verdict(times, r[f'target_{threads}'], most=False)})",
            )
            rows.append(
                (f"n = {r['n']}, {threads} thread{'s' * (threads > 1)}", *found, f"{s[f'keystream_{threads}']:.3f}", f"{s['memory_1']:.4f}")
            )
    return table((f"{_elements(results)} elements", "ours s", "Flower s", "times", "AES stream alone s", "memory alone s"), rows)


def _elements(results: dict[str, list[Result]]) -> str:
    return " / ".join(dict.fromkeys(millions(r["elements"]) for r in results.get("secagg", [])))


def secagg_parts(results: dict[str, list[Result]]) -> str:
    found = results.get("secagg", [])
    names = list(found[0]["parts_s"]) if found else []
    rows = [(f"n = {r['n']}", *(f"{r['parts_s'][name]:.3f}" for name in names)) for r in found]
    return table(("seconds of one thread", *names), rows)


def transport(results: dict[str, list[Result]]) -> str:
    rows = []
    for r in results.get("transport", []):
        rates = (f"{r['ours_gb_per_s']['median']:.2f}", f"{r['raw_gb_per_s']['median']:.2f}")
        share = f"{100 * r['share_of_raw']:.0f} % ({verdict(100 * r['share_of_raw'], 100 * r['target'], most=False)})"
        spent = [f"{r[side]['server_cpu_s']:.2f} + {r[side]['client_cpu_s']:.2f}" for side in ("ours", "raw")]
        rows.append((f"{r['clients']} clients, {r['moved_mb']} MB, files on {r['place']}", *rates, share, *spent))
    return table(("pull + push", "ours GB/s", "raw TLS GB/s", "share", "CPU s server + clients", "raw"), rows)


def idle(results: dict[str, list[Result]]) -> str:
    rows = []
    for r in results.get("idle", []):
        event = f"{r['event_ms']['median']:g} / {r['event_ms']['p99']:g}"
        offer = f"{r['offer_ms']['median']:g} / {r['offer_ms']['p99']:g}"
        load = (f"{r['idle_cpu_percent']:g}", str(r["idle_rss_mb"]), str(r["idle_bytes_per_node_s"]))
        rows.append((str(r["nodes"]), *load, event, offer))
    head = ("nodes", "CPU % of a core", "RSS MB", "bytes a node and second", "event to all, ms, median / p99", "plan offered to all, ms")
    return table(head, rows)


def log(results: dict[str, list[Result]]) -> str:
    rows = []
    for r in results.get("log", []):
        if r["what"] == "appends":
            rows += [(f"{batch} to a transaction: durable entries a second", f"{rate:,}") for batch, rate in r["appends_per_s"].items()]
            rows.append(("files of the log written from them, entries a second", f"{r['files_entries_per_s']:,}"))
            rows.append(("one more entry, its files, a signed head, all synced: ms", f"{1000 * r['head_s']:.0f}"))
        else:
            waits, share = r["cosigning_s"]["median"], r["share"]
            rows.append((f"cosigning in an exchange, {r['run']}: seconds", f"{waits:.3f} ({verdict(waits, r['target_s'])})"))
            target = f" ({verdict(100 * share, 100 * r['target_share'])})" if r["run"] == "demo" else ""
            rows.append((f"of the exchange's {r['exchange_s']['median']:.1f} s: %", f"{100 * share:.1f}{target}"))
    return table(("the log", "measured"), rows)


def audit_log(results: dict[str, list[Result]]) -> str:
    rows = []
    for r in results.get("audit_log", []):
        parts, cost = r["limits_core_s_per_million"], r["core_s_per_million"]
        rows.append(
            (
                f"{r['entries']:,}",
                f"{cost:.0f} ({verdict(cost, LEVEL1_CORE_S)})",
                f"{parts['ed25519']:.0f} + {parts['sha256']:.0f} + {parts['json']:.0f}",
                f"{r['wall_s']:.0f}",
                f"{r['peak_rss_mb']} ({r['summed_peak_rss_mb']} together)",
            )
        )
    head = ("entries", "core-seconds for 10^6", "signatures + hashes + JSON alone", "seconds", "largest process, MB")
    return table(head, rows)


def audit_sums(results: dict[str, list[Result]]) -> str:
    rows = []
    for r in sorted(results.get("audit_sums", []), key=lambda r: int(r["level"])):
        times, peak = f"{r['ratio']:.2f} ({verdict(r['ratio'], r['target_ratio'])})", verdict(r["peak_rss_mb"], r["target_rss_mb"])
        row = (f"level {r['level']}, n = {r['members']}", f"{r['s_per_1e8']:.2f}", f"{r['limit_s_per_1e8']:.2f}", times)
        rows.append((*row, f"{r['peak_rss_mb']} ({peak})"))
    return table(("one exchange, 10⁸ parameters", "seconds", "the bytes alone, s", "times", "peak RSS, MB"), rows)


TABLES: dict[str, Callable[[dict[str, list[Result]]], str]] = {
    "where": where,
    "rounds": rounds,
    "small": small,
    "memory": memory,
    "flat": flat,
    "wire": wire,
    "processor": processor,
    "secagg": secagg,
    "secagg_parts": secagg_parts,
    "transport": transport,
    "idle": idle,
    "log": log,
    "audit_log": audit_log,
    "audit_sums": audit_sums,
}


# -- the picture ---------------------------------------------------------------------------------------------------------


def draw(results: dict[str, list[Result]], path: Path) -> None:
    """Whole rounds by model size, and summed memory at the largest, as bars; nothing is drawn without results."""
    found = [r for r in results.get("round_exchange", []) if r["peer"] != "none" and r["peer_whole_round_s"] is not None]
    if not found:
        return
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dure", "font.size": 9})
    from matplotlib import pyplot

    sizes = sorted({r["params"] for r in found})
    bars: dict[str, dict[int, tuple[float, float]]] = {}
    for r in found:
        bars.setdefault(f"Dure, {r['next_base']}", {})[r["params"]] = (r["whole_round_s"], r["summed_peak_rss_mb"] / 1000)
        bars.setdefault(f"{NAMES[r['peer']]}, as it ships", {})[r["params"]] = (
            r["peer_whole_round_s"],
            r["peer_summed_peak_rss_mb"] / 1000,
        )
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    titles = ("whole round, seconds (logarithmic)", "peak memory of all processes, GB")
    for axis, place, title in zip(axes, (0, 1), titles, strict=True):
        _bars(axis, sizes, {name: {size: pair[place] for size, pair in each.items()} for name, each in sorted(bars.items())})
        axis.set_title(title)
    axes[0].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


COLOURS = ("#1b7837", "#7fbf7b", "#999999", "#555555")
"""Ours green, the peers grey; told apart without colour by lightness."""


def _bars(axis: Any, sizes: list[int], series: dict[str, dict[int, float]]) -> None:
    width = 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        places = [sizes.index(size) + (i - (len(series) - 1) / 2) * width for size in values]
        drawn = axis.bar(places, list(values.values()), width, label=name, color=COLOURS[i % len(COLOURS)])
        axis.bar_label(drawn, fmt="%.3g", fontsize=7)
    axis.set_xticks(range(len(sizes)), [f"{millions(size)} parameters" for size in sizes])
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
