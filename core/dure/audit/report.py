"""What an audit says to a person: one table, each line labelled by how far it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dure.audit.history import History, Run
from dure.audit.level1 import Result
from dure.provenance.environments import in_words
from dure.statements import schema

PROVED, SIGNED, DECLARED, UNCHECKED = "proved", "signed", "self-declared", "not checked"
FIRST = "the first weights follow from a joint seed, or from an earlier run recomputed here"


@dataclass(frozen=True)
class Row:
    """One claim."""

    claim: str
    how: str
    """proved | signed | self-declared | not checked"""
    detail: str


def rows(result: Result, weights: Row | None = None, sums: Row | None = None, first: Row | None = None) -> list[Row]:
    """The table of an audit. What a missing part would have shown is *not checked*, and says which part.

    Args:
        weights, sums: what level 2 says of the released weights (level2.row), and level 3 of the sums (level3.row); None: not asked.
        first: what level 2 says of where weights begin (descent.row).
    """
    history = result.history
    totals = [sum(numbers) for numbers in zip(*((r.opened, r.aggregates, r.accepted) for r in history.runs.values()), strict=True)]
    opened, summed, accepted = totals or (0, 0, 0)
    judged = result.checked_to - len(result.unknown)
    return [
        Row("the charter descends from the pinned version", PROVED, _charter(result)),
        _one_history(result),
        _heads(result),
        _whole(result, "every entry is by a key valid at its index, no chain has a gap", PROVED, f"{judged} entries"),
        _whole(result, "runs opened with their members' approval", PROVED, f"{len(history.runs)} runs"),
        _whole(result, "each sum is over one survivor set that a quorum signed", PROVED, f"{summed} of {opened} instances opened"),
        _whole(
            result,
            "each sum in the log is the sum of the committed uploads",
            SIGNED,
            f"{accepted} acceptances by members that verified its tag",
        ),
        weights
        or Row("the released weights follow from the sums", UNCHECKED, "needs the sums (--level 2, and a bundle exported with --run)"),
        first or Row(FIRST, UNCHECKED, "needs the sums (--level 2, and a bundle exported with --run)"),
        sums or Row("the sums follow from the uploads", UNCHECKED, "needs the kept uploads (--level 3, and a bundle exported with it)"),
        Row("tokens, steps, seconds, bytes", DECLARED, f"{history.counts.get('usage', 0)} usage statements"),
        *_evaluations(result),
        *_allocations(history),
        Row("what environments were trained in", DECLARED if history.environments else UNCHECKED, _environments(history)),
        Row("what data was trained on", DECLARED if history.counts.get("data-commitment") else UNCHECKED, _data(history)),
        Row("that accelerators exist, data is lawful, training happened as said", UNCHECKED, "nothing here can prove it"),
    ]


def _charter(result: Result) -> str:
    terms = result.charter.terms
    return f"{result.versions} versions; {len(terms.members)} members, {terms.k} votes; in force until {_day(result.charter.expires)}"


def _day(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d")


def _one_history(result: Result) -> Row:
    if not result.root:
        return Row("one history", UNCHECKED, "log/checkpoint is missing: nothing shows that witnesses saw these entries")
    when = datetime.fromtimestamp(max(result.cosigned.values(), default=0), UTC).strftime("%Y-%m-%d %H:%M UTC")
    who = f"{len(result.cosigned)} of {len(result.charter.terms.members)} members cosigned {result.size} entries, last {when}"
    if not result.rooted:
        return Row("one history", UNCHECKED, f"{who}; that these entries are those: entries and hashes of them are missing")
    return Row("one history", SIGNED, who)


def _heads(result: Result) -> Row:
    claim, named = "what signers had seen of the log is this history", f"{result.heads_named} statements name a head of it"
    if result.heads_unchecked:
        return Row(claim, UNCHECKED, f"{named}; {result.heads_unchecked} of these heads cannot be computed: hashes are missing")
    return _whole(result, claim, SIGNED, named)


def _whole(result: Result, claim: str, how: str, detail: str) -> Row:
    """A claim about all entries; where some are missing, it is one about those before the gap."""
    if result.checked_to == result.size:
        return Row(claim, how, detail)
    return Row(
        claim, UNCHECKED, f"holds for entries before {result.checked_to}, {detail}; the next ones are missing, later ones refer to them"
    )


def _evaluations(result: Result) -> list[Row]:
    count = result.history.counts.get("eval", 0)
    detail = f"{count} evaluations, means over members; what each measured is secret, on what data its own word"
    return [_whole(result, "metrics in words are those of the opened sums", PROVED, detail)] if count else []


def _allocations(history: History) -> list[Row]:
    count = history.counts.get("allocation-published", 0)
    detail = f"{count} allocations by k members each; `dure audit contributions --check NAME` makes the table that one cites again"
    return [Row("how it was shared out", SIGNED, detail)] if count else []


def _data(history: History) -> str:
    count = history.counts.get("data-commitment", 0)
    if not count:
        return "no member registered data"
    return f"{count} data commitments; {history.names_data} of {history.counts.get('usage', 0)} usage statements name one"


def _environments(history: History) -> str:
    named = sum(e.named for e in history.environments.values())
    if not history.environments:
        return "no member named one"
    used = history.counts.get("usage", 0)
    return f"{len(history.environments)} env-commitments; {named} of {used} usage statements name one, their own and before them"


def environment_rows(history: History) -> list[dict[str, Any]]:
    """Every environment that was named, by member and in the order of the log; self-declared."""
    named = sorted(history.environments.values(), key=lambda e: (e.fact.member, e.index))
    return [
        {
            "member": e.fact.member,
            "entry": e.index,
            "how": DECLARED,
            "usage_statements": e.named,
            **{k: v for k, v in schema.encode(e.fact).items() if k != "member"},
            "words": in_words(e.fact),
        }
        for e in named
    ]


def run_rows(history: History) -> list[dict[str, Any]]:
    """Per run: what the log shows of it."""
    return [_run(run_id, run) for run_id, run in history.runs.items()]


def _run(run_id: bytes, run: Run) -> dict[str, Any]:
    return {
        "run": run_id.hex(),
        "app": run.app,
        "rounds": run.rounds,
        "approved_by": sorted(run.approvals),
        "exchanges_summed": run.summed,
        "counted": {m: run.counted[m] for m in run.roster},
        "bases": "recomputable" if run.outer_step != "none" else "signed by the coordinator, not recomputed",
    }


def as_json(result: Result) -> dict[str, Any]:
    """What level 1 found, for scripts; all but the table, which is of every level that was asked for."""
    return {
        "level": 1,
        "holds": result.holds,
        "exit_code": result.exit_code,
        "size": result.size,
        "root": result.root.hex(),
        "cosigned": result.cosigned,
        "charter_version": result.versions,
        "runs": run_rows(result.history),
        "entries": result.history.counts,
        "heads_named": result.heads_named,
        "findings": [{"where": f.where, "why": f.why} for f in result.findings],
        "unlisted_findings": result.unlisted,
        "missing": result.missing,
        "entries_judged": result.checked_to,
        "unknown": [{"where": f.where, "why": f.why} for f in result.unknown],
        "disputes": result.history.disputes,
        "environments": environment_rows(result.history),
    }
