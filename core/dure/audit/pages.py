"""What an audit found, whole: as JSON and as a page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from dure.audit import report
from dure.audit.html import Page, Section, page
from dure.audit.level1 import Result
from dure.audit.level2 import Traced, in_json, row


def found_in_json(result: Result, traced: Traced | None, matched: dict[str, Any] | None, level: int) -> dict[str, Any]:
    """Level 1's, and at level 2 the runs recomputed, the model found, and one verdict over both."""
    found = report.as_json(result, None if traced is None else row(traced))
    if level == 1:
        return found
    code = result.exit_code or (traced.exit_code if traced is not None else 0)
    lineages = [in_json(one, traced.records[one.run]) for one in traced.lineages] if traced is not None else []
    found |= {"level": level, "holds": code == 0, "exit_code": code, "lineage": lineages, "model": matched}
    if traced is not None:
        found["findings"] += [{"where": f.where, "why": f.why} for f in traced.findings]
        found["missing"] = [*found["missing"], *traced.missing]
    return found


def page_of(result: Result, traced: Traced | None, matched: dict[str, Any] | None, pin: str, level: int) -> str:
    """The report as HTML."""
    findings = [*result.findings, *result.unknown, *(traced.findings if traced is not None else [])]
    missing = [*result.missing, *(traced.missing if traced is not None else [])]
    newest = max(result.cosigned.values(), default=0)
    when = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M UTC") if newest else "-"
    facts = [
        ("charter version 1 (pinned)", pin),
        ("entries", str(result.size)),
        ("root", result.root.hex()),
        ("cosigned by", f"{', '.join(sorted(result.cosigned))}; last {when}"),
    ]
    if matched is not None:
        facts.append(("model", f"{matched['file']}: run {matched['run']}, after exchange {matched['exchange']}"))
    return page(
        Page(
            consortium=f"{result.charter.terms.name} ({result.charter.terms.consortium_id.hex()})",
            pin=pin,
            level=level,
            holds=not findings and not missing,
            facts=facts,
            rows=report.rows(result, None if traced is None else row(traced)),
            sections=[*_runs(result), *(_lineages(traced) if traced is not None else [])],
            findings=[*((f.where, f.why) for f in findings), *((name, "is missing") for name in missing)],
            command=f"dure audit verify BUNDLE --root-sha256 {pin} --level {level} --html report.html",
        )
    )


def _runs(result: Result) -> list[Section]:
    runs = report.run_rows(result.history)
    lines = [
        (r["run"][:16], r["app"], str(r["exchanges_summed"]), ", ".join(f"{m} {n}" for m, n in r["counted"].items()), r["bases"])
        for r in runs
    ]
    heads = ("run", "app", "exchanges", "in the sum of", "bases")
    return [Section("Runs, and how many sums each member is in", "학습과 회원사별 참여 횟수", heads, lines)] if lines else []


def _lineages(traced: Traced) -> list[Section]:
    lines = []
    for one in traced.lineages:
        said = in_json(one, traced.records[one.run])
        start = f"{one.begins}: {one.origin}" + (f"; seed {one.seed.hex()}" if one.seed else "")
        lines.append(
            (said["run"][:16], start, str(len(one.exchanges)), one.weights_id.hex() if one.recomputable else "signed, not recomputed")
        )
    heads = ("run", "first weights", "exchanges recomputed", "newest weights")
    return [Section("Where the weights come from", "가중치의 유래", heads, lines)] if lines else []
