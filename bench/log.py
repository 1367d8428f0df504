"""`python bench/log.py`: how many statements a second become entries of the log durably, and what log and cosigning add to an exchange.

Appends go through the coordinator's own store: statement, entry and tree head in one transaction, on the disk before it returns; alone,
and many to a transaction, as when they come while the disk is busy. Then the files of the log are written and synced, and a head signed.

The share of an exchange is read off the events of real runs: from the moment the survivors' entry is durable to the moment its cosigned
proof is, in every instance of every exchange. One run is played here (the noise app, five nodes, each its own process). The demo's is
read, too, where `make demo` has left it in .demo/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dure.statements.dsse import seal_payload
from dure.tlog.checkpoint import Checkpoint
from dure.tlog.files import LogFiles
from dure.tlog.note import ED25519, Note, NoteKey, sign
from dure_coordinator.storage.store import RunRow, StatementRow, Store, With
from measure import ROOT, Progress, spread, write
from rounds import dure

TARGET_S, TARGET_SHARE = 0.2, 0.05
ORIGIN = "bench.dure/log"
RUN = bytes(32)
DEMO = ROOT / ".demo" / "consortium" / "coordinator" / "coordinator.sqlite"


def main() -> None:
    asked = _arguments()
    progress = Progress("log")
    with tempfile.TemporaryDirectory(prefix="dure-bench-", dir=asked.work) as work:
        progress(f"{asked.appends} appends, {', '.join(map(str, asked.batches))} to a transaction")
        results: list[dict[str, Any]] = [asyncio.run(appends(Path(work), asked.appends, asked.batches))]
        progress(f"a run of {asked.rounds} rounds, {asked.nodes} nodes")
        dure.play(asked.params, asked.nodes, asked.rounds, Path(work) / "run", outer_step="average")
        played = Path(work) / "run" / "consortium" / "coordinator" / "coordinator.sqlite"
        results.append(
            {"what": "share of an exchange", "run": f"noise, {asked.nodes} nodes, {asked.params:,} parameters", **share_of(played)}
        )
        if DEMO.exists():
            results.append({"what": "share of an exchange", "run": "demo", **share_of(DEMO)})
    write(asked.json, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: python bench/log.py --appends 500 --rounds 3")
    parser.add_argument("--appends", type=int, default=2048, help="statements appended for each number to a transaction (default: 2048)")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16, 64], help="default: 1,16,64")
    parser.add_argument("--nodes", type=int, default=5, help="nodes of the run, as in the demo (default: 5)")
    parser.add_argument("--params", type=int, default=250_000, help="parameters of the run's model (default: 250,000)")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of the run; the first is not counted (default: 6)")
    parser.add_argument("--json", type=Path, help="write the results here instead of standard output")
    parser.add_argument("--work", type=Path, help="folder for databases and logs (default: the system's for temporary files)")
    return parser.parse_args()


# -- appends -------------------------------------------------------------------------------------------------------------


def statements(count: int) -> list[StatementRow]:
    """Sealed statements of one signer, numbered from 0, as large as an acceptance."""
    key = Ed25519PrivateKey.generate()

    def one(seq: int) -> StatementRow:
        facts = {"seq": seq, "prev": "00" * 32, "exchange": seq, "member": "member-1", "roots": ["11" * 32] * 8}
        body = {"_type": "https://in-toto.io/Statement/v1", "predicate": facts, "predicateType": "urn:dure:bench:v1", "subject": []}
        return StatementRow.of(seal_payload(json.dumps(body, sort_keys=True, separators=(",", ":")).encode(), key).to_bytes(), RUN)

    return [one(seq) for seq in range(count)]


async def appends(work: Path, count: int, batches: Iterable[int]) -> dict[str, Any]:
    """Entries a second, by how many share a transaction; and the files of all of them."""
    rows, rates = statements(count), {}
    for batch in batches:
        store = await Store.open(f"sqlite:///{work / f'{batch}.sqlite'}")
        await store.add_run(RunRow(RUN, "bench", b"plan", bytes(32)))
        few = rows if batch > 1 else rows[: count // 4]
        began = time.perf_counter()
        for at in range(0, len(few), batch):
            await store.write(RUN, With(statements=tuple(few[at : at + batch])))
        rates[str(batch)] = round(len(few) / (time.perf_counter() - began))
        assert (await store.log_head()).size == len(few)
        await store.close()
    files_s, head_s = _files(work / "log", [row.envelope for row in rows])
    return {
        "what": "appends",
        "appends_per_s": rates,
        "entry_bytes": len(rows[0].envelope),
        "files_entries_per_s": round(count / files_s),
        "head_s": round(head_s, 4),
    }


def _files(folder: Path, entries: list[bytes]) -> tuple[float, float]:
    """(seconds for the files of these entries, seconds for one more entry and its published head), everything synced."""
    key = Ed25519PrivateKey.generate()
    files = LogFiles(folder, NoteKey(ORIGIN, ED25519, key.public_key().public_bytes_raw()))
    began = time.perf_counter()
    files.grow(entries[:-1])
    grown = time.perf_counter() - began
    began = time.perf_counter()
    files.grow(entries[-1:])
    text = Checkpoint(ORIGIN, files.size, files.root).text()
    files.publish(Note(text, (sign(text, ORIGIN, key),)).to_bytes())
    return grown, time.perf_counter() - began


# -- an exchange ---------------------------------------------------------------------------------------------------------


def share_of(database: Path) -> dict[str, Any]:
    """What waiting for cosigned heads took of every exchange but the first, from a coordinator's events."""
    exchanges = [times for events in _runs(database) for times in _exchanges(events)[1:]]
    waits, wholes = [wait for wait, _ in exchanges], [whole for _, whole in exchanges]
    return {
        "exchanges": len(exchanges),
        "cosigning_s": spread(waits),
        "exchange_s": spread(wholes),
        "share": round(median(wait / whole for wait, whole in exchanges), 4),
        "target_s": TARGET_S,
        "target_share": TARGET_SHARE,
    }


def _runs(database: Path) -> list[list[tuple[float, dict[str, Any]]]]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
        rows = db.execute("SELECT run, time, body FROM events ORDER BY run, position").fetchall()
    runs: dict[bytes, list[tuple[float, dict[str, Any]]]] = {}
    for run, at, body in rows:
        runs.setdefault(bytes(run), []).append((at, json.loads(body)))
    return list(runs.values())


def _exchanges(events: list[tuple[float, dict[str, Any]]]) -> list[tuple[float, float]]:
    """(seconds waited for cosigned heads, seconds in all) of every exchange, from being asked for to being answered."""
    found, asked, waited, survivors = [], 0.0, 0.0, {}
    for at, event in events:
        duty = event.get("duty", "")
        kind, _, key = duty.partition("/")
        if event["event"] == "asked":
            asked, waited = at, 0.0
        elif kind == "survivors":
            survivors[key] = at
        elif kind == "cosign":
            waited += at - survivors.pop(key)
        elif kind == "answer" and asked:
            found.append((waited, at - asked))
    return found


if __name__ == "__main__":
    main()
