"""What an audit found, whole: as JSON and as a page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dure.audit import report
from dure.audit.html import Page, Section, page
from dure.audit.level1 import Finding, Result
from dure.audit.level2 import Traced, first_row, in_json, row
from dure.audit.level3 import Summed
from dure.audit.level3 import row as sums_row


@dataclass(frozen=True)
class Found:
    """All levels that were asked for."""

    result: Result
    level: int
    traced: Traced | None = None
    summed: Summed | None = None
    matched: dict[str, Any] | None = None
    """The model that was looked for (level2.match)."""

    @property
    def findings(self) -> list[Finding]:
        more = [*(self.traced.findings if self.traced else []), *(self.summed.findings if self.summed else [])]
        return [*self.result.findings, *self.result.unknown, *more]

    @property
    def missing(self) -> list[str]:
        return [*self.result.missing, *(self.traced.missing if self.traced else []), *(self.summed.missing if self.summed else [])]

    @property
    def left(self) -> str:
        """In words: what this level could not be asked of, for lack of its parts in the bundle; "" where it reached everything."""
        runs = len(self.traced.untouched) if self.traced else 0
        lower = sum(level < 3 for level in self.summed.levels.values()) if self.summed else 0
        words = [f"{runs} runs without parts here"] if runs else []
        words += [f"{lower} of {len(self.summed.levels)} exchanges"] if self.summed and lower else []
        return ", ".join(words)

    @property
    def exit_code(self) -> int:
        parts = (self.result, self.traced, self.summed)
        return next((part.exit_code for part in parts if part is not None and part.exit_code), 0)

    @property
    def rows(self) -> list[report.Row]:
        weights = None if self.traced is None else row(self.traced)
        first = None if self.traced is None else first_row(self.traced)
        return report.rows(self.result, weights, None if self.summed is None else sums_row(self.summed), first)


def found_in_json(found: Found) -> dict[str, Any]:
    """Level 1's, and what further levels add, under one verdict."""
    said = report.as_json(found.result) | {"level": found.level}
    said["table"] = [{"claim": r.claim, "how": r.how, "detail": r.detail} for r in found.rows]
    if found.level == 1:
        return said
    said |= {"holds": found.exit_code == 0, "exit_code": found.exit_code, "model": found.matched, "lineage": [], "missing": found.missing}
    said["findings"] = [{"where": f.where, "why": f.why} for f in found.findings]
    said["not_shown"] = found.left
    if found.traced is not None:
        said["lineage"] = [in_json(one, found.traced) for one in found.traced.lineages]
    if found.summed is not None:
        levels = sorted(found.summed.levels.items())
        said["exchanges"] = [{"run": run.hex(), "exchange": number, "level": level} for (run, number), level in levels]
    return said


def page_of(found: Found, pin: str) -> str:
    """The report as HTML."""
    result = found.result
    newest = max(result.cosigned.values(), default=0)
    when = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M UTC") if newest else "-"
    facts = [
        ("charter version 1 (pinned)", pin),
        ("entries", str(result.size)),
        ("root", result.root.hex()),
        ("cosigned by", f"{', '.join(sorted(result.cosigned))}; last {when}"),
    ]
    if found.matched is not None:
        facts.append(("model", f"{found.matched['file']}: run {found.matched['run']}, after exchange {found.matched['exchange']}"))
    return page(
        Page(
            consortium=f"{result.charter.terms.name} ({result.charter.terms.consortium_id.hex()})",
            level=found.level,
            holds=found.exit_code == 0,
            left=found.left,
            facts=facts,
            rows=found.rows,
            sections=[*_runs(result), *_environments(result), *(_lineages(found.traced) if found.traced is not None else [])],
            findings=[*((f.where, f.why) for f in found.findings), *((name, "is missing") for name in found.missing)],
            command=f"dure audit verify BUNDLE --root-sha256 {pin} --level {found.level} --html report.html",
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


def _environments(result: Result) -> list[Section]:
    rows = report.environment_rows(result.history)
    lines = [(r["member"], r["words"], str(r["usage_statements"]), str(r["entry"])) for r in rows]
    heads = ("member", "says that it trains in", "usage statements that name it", "entry")
    title = "Environments (self-declared)"
    return [Section(title, "회원사별 학습 환경 (자기 신고)", heads, lines)] if lines else []


def _lineages(traced: Traced) -> list[Section]:
    lines = []
    for one in traced.lineages:
        said = in_json(one, traced)
        start = f"{one.begins}: {one.origin}" + (f"; seed {one.seed.hex()}" if one.seed else "")
        start += f"; {traced.descents[one.run].words()}" if one.run in traced.descents else ""
        lines.append(
            (said["run"][:16], start, str(len(one.exchanges)), one.weights_id.hex() if one.recomputable else "signed, not recomputed")
        )
    heads = ("run", "first weights", "exchanges recomputed", "newest weights")
    return [Section("Where the weights come from", "가중치의 유래", heads, lines)] if lines else []
