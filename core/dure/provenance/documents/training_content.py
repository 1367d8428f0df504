"""A draft of the public summary of training content that Article 53(1)(d) of Regulation (EU) 2024/1689 asks of providers.

Headings follow the Commission's template of 24 July 2025. What the log cannot know is asked of whoever makes the release, by the keys in
`QUESTIONS`, in `[training_content]` of about.toml; what stays open reads "not declared". A draft: somebody must read it.
"""

from __future__ import annotations

from dure.provenance.documents.words import NOT_DECLARED, cell, said, start, table, title, when
from dure.provenance.facts import Facts

SUMMARY = "training-content-summary.md"
BILLION = 10**9

QUESTIONS: dict[str, tuple[str, str]] = {
    "provider": ("1.1", "Provider: name and contact details"),
    "representative": ("1.1", "Authorised representative in the Union"),
    "market_date": ("1.2", "Date of placement on the Union market"),
    "modalities": ("1.3", "Modalities present in the training data"),
    "content_types": ("1.3", "Types of content"),
    "latest_collection": ("1.3", "Latest date of data acquisition"),
    "languages": ("1.3", "Linguistic characteristics"),
    "public_datasets": ("2.1", "Large publicly available datasets"),
    "licensed": ("2.2.1", "Datasets licensed from rightsholders or their representatives"),
    "third_party": ("2.2.2", "Private datasets obtained from other third parties"),
    "crawled": ("2.3", "Data crawled and scraped, by whom, when, and the most relevant domains"),
    "user_data": ("2.4", "Data of users of the provider's services or models"),
    "synthetic": ("2.5", "Synthetic data, and the models that made it"),
    "other": ("2.6", "Other sources"),
    "opt_outs": ("3.1", "Measures to respect reservations of rights (text and data mining)"),
    "illegal_content": ("3.2", "Measures to avoid or remove illegal content"),
    "further": ("3.3", "Other information"),
}
"""Key in about.toml -> (section, question)."""

_SECTIONS = (
    ("1. General information", ("1.1", "1.2", "1.3")),
    ("2. List of data sources", ("2.1", "2.2.1", "2.2.2", "2.3", "2.4", "2.5", "2.6")),
    ("3. Data processing", ("3.1", "3.2", "3.3")),
)


def training_summary(facts: Facts) -> bytes:
    """The draft's bytes; the same facts give the same."""
    lines = [
        f"# Public summary of training content: {title(facts)}",
        "",
        "**Draft**, made from the consortium's signed log and the words of whoever made the release. Not reviewed by a lawyer.",
        "",
    ]
    for heading, sections in _SECTIONS:
        lines += [f"## {heading}", ""]
        for section in sections:
            lines += _known(facts).get(section, [])
            lines += [f"- {section} {question}: {_answer(facts, key)}" for key, (at, question) in QUESTIONS.items() if at == section]
        lines.append("")
    lines += ["## Data by member, as declared", "", _members(facts)]
    return "\n".join(lines).encode()


def _answer(facts: Facts, key: str) -> str:
    return cell(said(facts.about.training_content.get(key)))


def _known(facts: Facts) -> dict[str, list[str]]:
    """What the facts answer by themselves."""
    tokens = facts.compute.tokens
    return {
        "1.2": [
            f"- 1.2 Model: {cell(facts.name)}, weights id {facts.tensors.weights_id.hex()}, {facts.tensors.parameters:,} parameters",
            f"- 1.2 What it was made from: {cell(start(facts.run))}",
        ],
        "1.3": [f"- 1.3 Size: {_size(tokens)}", f"- 1.3 Log of the training as of: {when(facts.log.time)}"],
    }


def _size(tokens: int) -> str:
    """The template's ranges are of the data; what is known is how many tokens were processed, repeats and all."""
    if not tokens:
        return NOT_DECLARED
    band = (
        "less than 1 billion" if tokens < BILLION else "1 billion to 10 trillion" if tokens <= 10_000 * BILLION else "more than 10 trillion"
    )
    return f"{band} tokens processed ({tokens:,}, repeats included, the members' own word)"


def _members(facts: Facts) -> str:
    return table(("Member", "Declared"), ((f"{m.display_name} ({m.member})", said(m.data)) for m in facts.members))
