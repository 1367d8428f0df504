"""The audit's report as one HTML file: self-contained, no script, prints on A4, in Korean and English side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dure.audit.report import DECLARED, PROVED, SIGNED, UNCHECKED, Row
from dure.plain_text import plain_lines


@dataclass(frozen=True)
class Section:
    """A table below the claims: a heading in both languages, column heads, rows of plain text."""

    heading: str
    korean: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """Everything the report says; plain text, escaped here."""

    consortium: str
    level: int
    holds: bool
    facts: Sequence[tuple[str, str]]
    """Name and value: entries, root, cosigned when."""
    rows: Sequence[Row]
    sections: Sequence[Section]
    findings: Sequence[tuple[str, str]]
    """(where, why)"""
    command: str
    """What makes this very report again."""
    left: str = ""
    """What the level could not be asked of; "" where it reached everything."""


HOW = {PROVED: "증명됨", SIGNED: "서명됨", DECLARED: "자기 신고", UNCHECKED: "확인 안 됨"}
MEANING = {
    PROVED: (
        "follows from the bundle by computation; nobody has to be believed",
        "묶음 자료만으로 계산하여 확인됨. 누구의 말도 믿을 필요가 없음",
    ),
    SIGNED: ("members signed it; true unless a quorum of them lied together", "회원사들이 서명함. 정족수가 함께 거짓말하지 않는 한 참"),
    DECLARED: ("one party said it of itself, under its signature", "당사자 한 곳이 자기 서명으로 스스로 밝힌 내용"),
    UNCHECKED: ("nothing in this bundle shows it", "이 묶음 자료로는 알 수 없음"),
}
CLAIMS = {
    "the charter descends from the pinned version": "규약이 고정된 첫 판에서 정당하게 이어짐",
    "one history": "하나의 기록",
    "what signers had seen of the log is this history": "서명자들이 서명할 때 본 기록은 바로 이 기록임",
    "every entry is by a key valid at its index, no chain has a gap": "모든 항목은 그 시점에 유효한 키로 서명되었고, 빠진 항목이 없음",
    "runs opened with their members' approval": "학습은 회원사의 승인을 받아 시작됨",
    "each sum is over one survivor set that a quorum signed": "각 합계는 정족수가 서명한 하나의 참여자 집합에 대한 것임",
    "each sum in the log is the sum of the committed uploads": "기록된 합계는 확약된 업로드들의 합임",
    "the released weights follow from the sums": "공개된 가중치는 합계들로부터 나옴",
    "the first weights follow from a joint seed, or from an earlier run recomputed here": (
        "첫 가중치는 공동 시드, 또는 여기서 다시 계산한 이전 학습에서 나옴"
    ),
    "the sums follow from the uploads": "합계는 업로드들로부터 나옴",
    "tokens, steps, seconds, bytes": "토큰, 스텝, 초, 바이트",
    "metrics in words are those of the opened sums": "글로 적힌 지표는 열린 합계의 지표임",
    "how it was shared out": "어떻게 배분하였는가",
    "what environments were trained in": "어떤 환경에서 학습하였는가",
    "what data was trained on": "어떤 데이터로 학습하였는가",
    "that accelerators exist, data is lawful, training happened as said": "가속기의 실재, 데이터의 적법성, 신고한 대로의 학습",
}
"""Every claim a report can make, in Korean."""

STYLE = """
@page { size: A4; margin: 18mm 16mm }
* { box-sizing: border-box }
body { font: 10.5pt/1.45 "Noto Sans CJK KR", "Noto Sans KR", "Malgun Gothic", "Apple SD Gothic Neo", system-ui, sans-serif; color: #16181d;
  max-width: 178mm; margin: 12mm auto; padding: 0 4mm }
h1 { font-size: 18pt; margin: 0 0 2mm } h2 { font-size: 12.5pt; margin: 8mm 0 2mm; break-after: avoid }
.ko { color: #4a5160 }
.verdict { border: 1.5pt solid; border-radius: 2mm; padding: 3mm 4mm; margin: 5mm 0; font-size: 12pt; font-weight: 600 }
.good { color: #0b5d2a; background: #eef8f1 } .bad { color: #8f1414; background: #fdf0f0 }
table { width: 100%; border-collapse: collapse; margin: 1mm 0 } th, td { text-align: left; vertical-align: top; padding: 1.4mm 2mm;
  border-bottom: .4pt solid #c9ced8; overflow-wrap: anywhere } th { font-weight: 600; border-bottom: 1pt solid #16181d }
tr { break-inside: avoid } code { font: 9pt ui-monospace, monospace; overflow-wrap: anywhere }
.how { white-space: nowrap; font-weight: 600 } .proved { color: #0b5d2a } .signed { color: #1c4b8f } .self-declared { color: #7a5200 }
.not-checked { color: #6b6f78 } footer { margin-top: 8mm; font-size: 9pt; color: #4a5160 }
@media print { body { margin: 0; padding: 0; max-width: none } .verdict { -webkit-print-color-adjust: exact; print-color-adjust: exact } }
"""


def page(found: Page) -> str:
    """The whole document; the same findings give the same bytes."""
    passed = f"what is here holds; not shown to level {found.level}: {found.left}" if found.left else "all checks hold"
    good = passed if found.holds else f"{len(found.findings)} things do not hold"
    korean = (
        ("가능한 검사를 통과함" if found.left else "모든 검사를 통과함") if found.holds else f"{len(found.findings)}가지가 성립하지 않음"
    )
    facts = "".join(f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>" for name, value in found.facts)
    return document(
        f"{found.consortium}: audit report · 감사 보고서",
        f'<h1>{escape(found.consortium)}<br><span class="ko">감사 보고서</span> · Audit report, level {found.level}</h1>'
        f'<p class="verdict {"good" if found.holds else "bad"}">{escape(korean)} · {escape(good)}</p>'
        f"<table>{facts}</table>"
        f"{_findings(found)}<h2>무엇이 어디까지 확인되었는가 · What is shown, and how far</h2>{_claims(found.rows)}"
        f"{''.join(_section(section) for section in found.sections)}<h2>표시의 뜻 · What the labels mean</h2>{_labels()}"
        "<footer>이 보고서는 인터넷 연결 없이, 조정자를 믿지 않고 만들어졌습니다. 다시 만들기: · "
        f"Made offline, trusting nobody. To make it again:<br><code>{escape(found.command)}</code></footer>",
    )


def document(title: str, body: str) -> str:
    """A page that takes nothing from outside: the title, which is escaped here, and what stands in it; others' text in both is plain."""
    return plain_lines(
        '<!doctype html>\n<html lang="ko"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def _findings(found: Page) -> str:
    if not found.findings:
        return ""
    lines = "".join(f"<tr><td><code>{escape(where)}</code></td><td>{escape(why)}</td></tr>" for where, why in found.findings)
    return f"<h2>성립하지 않는 것 · What does not hold</h2><table><tr><th>where</th><th>why</th></tr>{lines}</table>"


def _claims(rows: Sequence[Row]) -> str:
    lines = "".join(
        f'<tr><td>{escape(CLAIMS.get(row.claim, row.claim))}<br><span class="ko">{escape(row.claim)}</span></td>'
        f'<td class="how {row.how.replace(" ", "-")}">{escape(HOW.get(row.how, row.how))}<br>{escape(row.how)}</td>'
        f"<td>{escape(row.detail)}</td></tr>"
        for row in rows
    )
    return f"<table><tr><th>주장 · claim</th><th>근거 · shown by</th><th>내용 · detail</th></tr>{lines}</table>"


def _section(section: Section) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in section.columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in section.rows)
    return f"<h2>{escape(section.korean)} · {escape(section.heading)}</h2><table><tr>{head}</tr>{body}</table>"


def _labels() -> str:
    lines = "".join(
        f'<tr><td class="how {how.replace(" ", "-")}">{HOW[how]} · {how}</td><td>{korean}<br><span class="ko">{english}</span></td></tr>'
        for how, (english, korean) in MEANING.items()
    )
    return f"<table>{lines}</table>"
