"""The report as a page: both languages, nothing from outside, nothing that runs, and one set of findings is one set of bytes."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from dure.audit import html, report
from dure.audit.html import CLAIMS, HOW, Page, Section, page
from dure.audit.report import PROVED, UNCHECKED, Row


def made(**changes: object) -> Page:
    plain = {
        "consortium": "titan (00ff)",
        "level": 2,
        "holds": True,
        "facts": [("entries", "12")],
        "rows": [Row("one history", PROVED, "3 of 3"), Row("a new claim", UNCHECKED, "x < y & z")],
        "sections": [Section("Runs", "학습", ("run", "app"), [("<script>alert(1)</script>", "digits")])],
        "findings": [],
        "command": "dure audit verify BUNDLE",
    }
    return Page(**{**plain, **changes})  # type: ignore[arg-type]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_is_whole_and_takes_nothing_from_outside():
    text = page(made())
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags.seen}
    assert not any(name.startswith("on") or name in ("src", "href") for _, attributes in tags.seen for name in attributes)
    assert "url(" not in text and "@import" not in text and "@page { size: A4" in text
    assert text == page(made())


def test_what_a_bundle_says_is_text_and_never_markup():
    text = page(made(findings=[("entry 3", '"><img src=x>')], holds=False))
    assert "<script>" not in text and "<img" not in text
    assert "&lt;script&gt;" in text and "x &lt; y &amp; z" in text
    assert "1가지가 성립하지 않음" in text and "1 things do not hold" in text


def test_every_claim_and_label_has_its_korean():
    source = Path(report.__file__).read_text() + Path(html.__file__).with_name("level2.py").read_text()
    wanted = set(re.findall(r'(?:Row|_whole)\(\s*(?:result,\s*)?"([^"]+)"', source)) | set(re.findall(r'claim = "([^"]+)"', source))
    assert len(wanted) >= 11
    assert wanted | {report.FIRST} <= set(CLAIMS)
    assert set(HOW) == {report.PROVED, report.SIGNED, report.DECLARED, report.UNCHECKED}


def test_a_verdict_never_covers_what_the_bundle_has_no_parts_for():
    assert "모든 검사를 통과함 · all checks hold<" in page(made())
    text = page(made(left="1 of 2 exchanges"))
    assert "what is here holds; not shown to level 2: 1 of 2 exchanges" in text and "all checks hold" not in text
