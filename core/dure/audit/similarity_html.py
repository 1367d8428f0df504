"""The foreign-weights report as one HTML file, of the kind of `dure.audit.html`: every number is drawn beside what chance gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dure.audit.html import document
from dure.audit.similarity import CKA_FOUND, COSINE_FOUND, PERMUTATIONS, PROFILE_FOUND, Z_FOUND, Compared, Measure, Pair

MEANS = {
    "copied": ("the same, or the same times a factor", "같은 값, 또는 같은 값에 배수를 곱한 것"),
    "derived": ("a mixture with it, or trained on from it", "섞어 만들었거나, 그것에서 이어 학습한 것"),
    "permuted": ("the same with its neurons in another order", "뉴런의 순서만 바꾼 것"),
}
BINS = 80
TOP = 2.0
"""Where the axis of profiles ends: twice the nearest of independent matrices."""
INK, GREY, RED, BLUE = "#16181d", "#b9c0cc", "#b3261e", "#1c4b8f"


@dataclass(frozen=True)
class SimilarityPage:
    """Everything the report says; plain text, escaped here."""

    model: str
    files: Sequence[tuple[str, str]]
    """Every file that was compared, the model's and the references', and its SHA-256 in hex."""
    compared: Sequence[Compared]
    command: str
    """What makes this very report again."""


def similarity_page(found: SimilarityPage) -> str:
    """The whole document; the same findings give the same bytes."""
    beyond = sum(len(c.found) for c in found.compared)
    korean = f"텐서 {beyond}쌍이 우연의 범위를 벗어남" if beyond else "우연의 범위를 벗어난 것이 없음"
    english = f"{beyond} pairs of tensors are beyond chance" if beyond else "nothing is beyond chance"
    files = "".join(f"<tr><th>{escape(name)}</th><td><code>sha256 {escape(digest)}</code></td></tr>" for name, digest in found.files)
    return document(
        f"{found.model}: foreign weights · 외부 가중치 비교",
        f'<h1>{escape(found.model)}<br><span class="ko">외부 가중치 비교 보고서</span> · Foreign-weights report</h1>'
        f'<p class="verdict {"bad" if beyond else "good"}">{korean} · {english}</p><table>{files}</table>'
        f"{''.join(_reference(c) for c in found.compared)}{_words()}"
        f"<footer>다시 만들기: · To make it again:<br><code>{escape(found.command)}</code></footer>",
    )


def _reference(compared: Compared) -> str:
    count = f"{compared.tensors} / {compared.matrices}"
    return (
        f"<h2>비교 대상 · Reference: {escape(compared.reference)}</h2>"
        f"<p>비교한 행렬 · matrices compared: {count}; 우연을 벗어남 · beyond chance: {len(compared.found)}</p>"
        f"{_pictures(compared.pairs)}{_table(compared.pairs)}"
    )


# -- pictures ------------------------------------------------------------------------------------------------------------


def _pictures(pairs: Sequence[Pair]) -> str:
    """A histogram of chance for each measure, and over it a mark for each pair."""
    if not pairs:
        return ""
    profiles = [(p, p.profile) for p in pairs if p.profile is not None]
    red = [bool(p.verdict) for p in pairs]
    near = [_ratios(m) for _, m in profiles]
    return (
        _picture("코사인 · cosine", [n for p in pairs for n in p.cosine.null], [abs(p.cosine.value) for p in pairs], red, COSINE_FOUND, 1.0)
        + _picture("CKA", [n for p in pairs for n in p.cka.null], [p.cka.value for p in pairs], red, CKA_FOUND, 1.0)
        + (
            _picture(
                "특이값 거리 (무작위 최소 = 1) · distance of singular values (nearest of independent matrices = 1)",
                [n for _, null in near for n in null],
                [value for value, _ in near],
                [bool(p.verdict) for p, _ in profiles],
                PROFILE_FOUND,
                TOP,
            )
            if profiles
            else ""
        )
    )


def _ratios(profile: Measure) -> tuple[float, list[float]]:
    """(value, null), both over the nearest of independent matrices."""
    return profile.value / profile.chance, [n / profile.chance for n in profile.null]


def _picture(title: str, null: Sequence[float], values: Sequence[float], red: Sequence[bool], line: float, top: float) -> str:
    """One axis from 0 to `top`: grey bars are chance, marks above them the pairs, the dashed line what a finding needs at least."""
    bins = [0] * BINS
    for value in null:
        bins[min(BINS - 1, int(_place(value, top) * BINS))] += 1
    most = max(bins) or 1
    wide = 600 / BINS
    bars = "".join(
        f'<rect x="{20 + i * wide:.1f}" y="{80 - 40 * n / most:.1f}" width="{wide:.1f}" height="{40 * n / most:.1f}" fill="{GREY}"/>'
        for i, n in enumerate(bins)
        if n
    )
    marks = "".join(_mark(20 + 600 * _place(v, top), hot) for v, hot in sorted(zip(values, red, strict=True)))
    at = 20 + 600 * _place(line, top)
    axis = "".join(f'<text x="{20 + 150 * i}" y="94" font-size="10" text-anchor="middle">{top * i / 4:g}</text>' for i in range(5))
    head = f'<text x="20" y="11" font-size="11">{escape(title)}</text>'
    lines = f'<path d="M20 80H620" stroke="{INK}"/><path d="M{at:.1f} 16V80" stroke="{INK}" stroke-dasharray="3 3"/>'
    return f'<svg viewBox="0 0 640 100" width="100%" role="img" aria-label="{escape(title)}">{head}{bars}{lines}{marks}{axis}</svg>'


def _place(value: float, top: float) -> float:
    """Where on the axis, 0 to 1; what lies beyond stands at the end."""
    return min(max(value / top, 0.0), 1.0)


def _mark(x: float, hot: bool) -> str:
    return f'<path d="M{x:.1f} 18V36" stroke="{RED if hot else BLUE}" stroke-width="{2.2 if hot else 1.2}"/>'


def _strip(value: float, low: float, high: float, hot: bool, top: float = 1.0) -> str:
    """The same in a table's cell: what chance gives, from its least to its most, and the mark."""
    left, right, at = (100 * _place(v, top) for v in (low, high, value))
    return (
        '<svg viewBox="0 0 100 8" width="100%" role="presentation"><path d="M0 7H100" stroke="#c9ced8"/>'
        f'<rect x="{left:.1f}" y="3" width="{max(right - left, 0.5):.1f}" height="4" fill="{GREY}"/>'
        f'<path d="M{at:.1f} 0V8" stroke="{RED if hot else BLUE}" stroke-width="1.5"/></svg>'
    )


# -- table ---------------------------------------------------------------------------------------------------------------


def _table(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return "<p>같은 이름의 행렬이 없고, 우연을 벗어난 쌍도 없음 · no two of one name, and none beyond chance</p>"
    head = "텐서 · tensor|비교 대상에서 · in the reference|코사인 · cosine|CKA|특이값 · profile|판정 · verdict"
    columns = "".join(f"<th>{name}</th>" for name in head.split("|"))
    return f"<table><tr>{columns}</tr>{''.join(map(_row, pairs))}</table>"


def _row(pair: Pair) -> str:
    hot = bool(pair.verdict)
    other = "같은 이름 · same name" if pair.other == pair.name else escape(pair.other)
    verdict = f'<td class="how">{escape(pair.verdict)}</td>' if hot else "<td>–</td>"
    cells = _alike(pair.cosine, hot) + _alike(pair.cka, hot) + _profile(pair.profile, hot)
    return f"<tr><td><code>{escape(pair.name)}</code></td><td><code>{other}</code></td>{cells}{verdict}</tr>"


def _alike(measure: Measure, hot: bool) -> str:
    words = f"{measure.value:.3g} <span class='ko'>(≤ {measure.chance:.3g}; {measure.z:+.0f}σ)</span>"
    return f"<td>{words}{_strip(abs(measure.value), min(measure.null), measure.chance, hot)}</td>"


def _profile(measure: Measure | None, hot: bool) -> str:
    if measure is None:
        return "<td>–</td>"
    value, null = _ratios(measure)
    words = f"{measure.value:.3g} <span class='ko'>(≥ {measure.chance:.3g})</span>"
    return f"<td>{words}{_strip(value, 1.0, max(null), hot, TOP)}</td>"


READING = (
    (
        f"회색은 우연이 주는 값: 행을 {PERMUTATIONS}번 뒤섞은 것과 서로 무관하게 뽑은 행렬. 표시는 비교한 쌍이며, 붉은 것은 우연을 벗어남. "
        f"점선은 판정에 필요한 최솟값(특이값 거리는 최댓값)이며, 코사인은 뒤섞은 것에서 {Z_FOUND:.0f}σ 이상 벗어나야 함.",
        f"Grey is what chance gives: rows permuted {PERMUTATIONS} times, and matrices drawn independently. Marks are the pairs compared, "
        "red those beyond chance. The dashed line is the least a finding needs (of distances: the most); a cosine must also be "
        f"{Z_FOUND:.0f}σ away from the permutations.",
    ),
    (
        "다른 모델의 출력으로 학습한 것(증류)은 알 수 없음. 벡터와 정수는 비교하지 않음. 여기 없는 모델에 대해서는 알 수 없음.",
        "Training on another model's outputs (distillation) cannot be seen. Vectors and integers are not compared. Of models that are not "
        "named here nothing is said.",
    ),
)


def _words() -> str:
    rows = "".join(f"<tr><td class='how'>{name}</td><td>{ko}<br><span class='ko'>{en}</span></td></tr>" for name, (en, ko) in MEANS.items())
    said = "".join(f'<p>{ko}<br><span class="ko">{en}</span></p>' for ko, en in READING)
    return f"<h2>읽는 법 · How to read this</h2>{said}<table>{rows}</table>"
