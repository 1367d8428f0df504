"""The foreign-weights report as a page: numbers drawn beside chance, nothing from outside, and one set of findings is one set of bytes."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.commands import dure
from unit.audit.test_html_report import Tags

RNG = np.random.default_rng(5)
OWN, THEIRS = (RNG.standard_normal((64, 48)).astype("<f4") for _ in range(2))
HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the page of a model with one planted layer, the reference's file)."""
    folder = tmp_path_factory.mktemp("similarity")
    mixed = (0.5 * THEIRS + 0.5 * OWN).astype("<f4")
    save_file({"first": OWN, "second": THEIRS[RNG.permutation(64)].copy(), HOSTILE: mixed}, folder / "mine.safetensors")
    save_file({"first": THEIRS}, folder / "theirs.safetensors")
    asked = ("audit", "similarity", folder / "mine.safetensors", folder / "theirs.safetensors", "--html", folder / "page.html")
    assert dure(*asked).code == 1
    text = (folder / "page.html").read_text()
    assert dure(*asked).code == 1 and (folder / "page.html").read_text() == text
    return text, folder / "theirs.safetensors"


def test_the_page_is_whole_and_what_files_say_is_text(made):
    text, theirs = made
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & {tag for tag, _ in tags.seen}
    assert not any(name.startswith("on") or "href" in name or name == "src" for _, found in tags.seen for name in found)
    assert "url(" not in text and "@page { size: A4" in text and "&lt;img src=x" in text
    assert hashlib.sha256(theirs.read_bytes()).hexdigest() in text, "which file was compared"
    assert f"<code>dure audit similarity {theirs.with_name('mine.safetensors')} {theirs} --html FILE</code>" in text


def test_each_pair_is_drawn_beside_what_chance_gives(made):
    """Three axes, a red mark for each planted pair and a blue one for the pair of one name; the grey of cosine ends before the red."""
    pictures = re.findall(r'<svg viewBox="0 0 640 100".*?</svg>', made[0])
    assert len(pictures) == 3
    assert all((p.count("#b3261e"), p.count("#1c4b8f")) == (2, 1) for p in pictures)
    grey = max(float(x) for x in re.findall(r'<rect x="([0-9.]+)"', pictures[0]))
    half = next(float(x) for x in re.findall(r'<path d="M([0-9.]+) 18V36" stroke="#b3261e"', pictures[0]) if float(x) > 300)
    assert 20 < grey < 150 < half < 620
    assert made[0].count('<svg viewBox="0 0 100 8"') == 3 * 3


def test_the_verdict_stands_in_both_languages(made, tmp_path):
    assert "텐서 2쌍이 우연의 범위를 벗어남 · 2 pairs of tensors are beyond chance" in made[0]
    assert "뉴런의 순서만 바꾼 것" in made[0] and "a mixture with it" in made[0]
    save_file({"first": OWN}, tmp_path / "own.safetensors")
    assert dure("audit", "similarity", tmp_path, made[1], "--html", tmp_path / "page.html").code == 0
    text = (tmp_path / "page.html").read_text()
    assert "우연의 범위를 벗어난 것이 없음 · nothing is beyond chance" in text and 'class="verdict good"' in text
