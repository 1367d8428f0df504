"""What an audit says to a person: one table, each line labelled by how far it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dure.audit.history import History, Run
from dure.audit.level1 import Result

PROVED, SIGNED, DECLARED, UNCHECKED = "proved", "signed", "self-declared", "not checked"


@dataclass(frozen=True)
class Row:
    """One claim."""

    claim: str
    how: str
    """proved | signed | self-declared | not checked"""
    detail: str


def rows(result: Result) -> list[Row]:
    """The table of a level-1 audit."""
    history, terms = result.history, result.charter.terms
    newest = max(result.cosigned.values(), default=0)
    when = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M UTC") if newest else "never"
    instances = [i for run in history.runs.values() for i in run.instances.values()]
    opened = [i for i in instances if i.aggregate_sha256]
    accepted = sum(len(a) for run in history.runs.values() for a in run.accepts.values())
    return [
        Row(
            "the charter descends from the pinned version",
            PROVED,
            f"{result.versions} versions; {len(terms.members)} members, {terms.k} votes",
        ),
        Row("one history", SIGNED, f"{len(result.cosigned)} of {len(terms.members)} members cosigned {result.size} entries, last {when}"),
        Row("every entry is by a key valid at its index, no chain has a gap", PROVED, f"{result.size - len(result.unknown)} entries"),
        Row("runs opened with their members' approval", PROVED, f"{len(history.runs)} runs"),
        Row("each sum is over one survivor set that a quorum signed", PROVED, f"{len(opened)} of {len(instances)} instances opened"),
        Row("each sum in the log is the sum of the committed uploads", SIGNED, f"{accepted} acceptances by members that verified its tag"),
        Row("the released weights follow from the sums", UNCHECKED, "needs the aggregates (level 2)"),
        Row("the sums follow from the uploads", UNCHECKED, "needs the kept uploads (level 3)"),
        Row("tokens, steps, seconds, bytes", DECLARED, f"{history.counts.get('usage', 0)} usage statements"),
        Row("what data was trained on", DECLARED if history.counts.get("data-commitment") else UNCHECKED, _data(history)),
        Row("that accelerators exist, data is lawful, training happened as said", UNCHECKED, "nothing here can prove it"),
    ]


def _data(history: History) -> str:
    count = history.counts.get("data-commitment", 0)
    return f"{count} data commitments" if count else "no member registered data"


def run_rows(history: History) -> list[dict[str, Any]]:
    """Per run: what the log shows of it."""
    return [_run(run_id, run) for run_id, run in history.runs.items()]


def _run(run_id: bytes, run: Run) -> dict[str, Any]:
    trained = [i for i in run.instances.values() if i.aggregate_sha256 and i.id.purpose.value != "scales"]
    counted = {m: sum(m in i.survivors for i in trained) for m in run.plan.roster}
    return {
        "run": run_id.hex(),
        "app": run.plan.app_name,
        "rounds": run.plan.rounds,
        "approved_by": sorted(run.approvals),
        "exchanges_summed": len({i.id.exchange for i in trained}),
        "counted": counted,
        "bases": "recomputable" if run.plan.outer_step.name != "none" else "signed by the coordinator, not recomputed",
    }


def as_json(result: Result) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "level": 1,
        "holds": result.holds,
        "size": result.size,
        "root": result.root.hex(),
        "cosigned": result.cosigned,
        "charter_version": result.versions,
        "table": [{"claim": r.claim, "how": r.how, "detail": r.detail} for r in rows(result)],
        "runs": run_rows(result.history),
        "entries": result.history.counts,
        "findings": [{"where": f.where, "why": f.why} for f in result.findings],
        "unknown": [{"where": f.where, "why": f.why} for f in result.unknown],
        "disputes": [index for index, _ in result.history.disputes],
    }
