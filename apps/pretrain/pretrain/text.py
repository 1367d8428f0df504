"""Text to tokens: the shipped tokenizer, and a member's own file, encoded once and kept in its scratch folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the server only passes a tokenizer on: it needs no `tokenizers`
    from tokenizers import Tokenizer

MAX_PACKED_BYTES = 64 * 1024
"""Flower never splits a config value, and Dure carries at most this much in one; 2,048 tokens take about 20 KiB."""
MAX_JSON_BYTES = 1 << 20
"""A tokenizer.json that unpacks to more is refused: the node does not trust who packed it."""
MAX_TEXT_BYTES = 1 << 30


def pack_tokenizer(path: Path) -> bytes:
    """A tokenizer.json as one config value.

    Raises:
        ValueError: no such file, or too large.
    """
    if not path.is_file():
        raise ValueError(f"no tokenizer at {path}; train one and name it with --set tokenizer=…/tokenizer.json")
    packed = zlib.compress(path.read_bytes(), 9)
    if len(packed) > MAX_PACKED_BYTES:
        raise ValueError(f"{path} takes {len(packed)} bytes compressed; at most {MAX_PACKED_BYTES} are carried: use a smaller vocabulary")
    return packed


def unpack_tokenizer(packed: bytes, vocabulary: int) -> Tokenizer:
    """The tokenizer in a config value.

    Raises:
        ValueError: damaged, too large, or of another vocabulary than the run's.
    """
    from tokenizers import Tokenizer

    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(packed, MAX_JSON_BYTES)
    except zlib.error as error:
        raise ValueError(f"the tokenizer that was sent is damaged: {error}") from None
    if inflate.unconsumed_tail or not inflate.eof:
        raise ValueError(f"the tokenizer that was sent is cut off or larger than {MAX_JSON_BYTES} bytes")
    try:
        tokenizer = Tokenizer.from_str(raw.decode())
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"the tokenizer that was sent cannot be read: {error}") from None
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(f"the tokenizer that was sent has {tokenizer.get_vocab_size()} tokens, the run's model {vocabulary}")
    return tokenizer


def text_key(text: bytes) -> int:
    """A number that stands for a text: members with different texts draw different sequences from one seed."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def read_text(folder: Path, name: str = "train.txt") -> bytes:
    """A member's text.

    Raises:
        ValueError: not there, or not a plain file of sensible size.
    """
    path = folder / name
    if not path.is_file():
        raise ValueError(f"no text at {path}; set this node's data folder: dure node config set data=FOLDER (with {name} in it)")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; this app reads at most {MAX_TEXT_BYTES}")
    return path.read_bytes()


def own_tokens(folder: Path, packed: bytes, vocabulary: int) -> tuple[np.ndarray, int]:
    """(tokens of the member's train.txt as uint16, its text key).

    Kept in the temporary folder, which a Dure worker has for itself, under the digest of text and tokenizer.
    """
    text = read_text(folder)
    digest = hashlib.sha256(hashlib.sha256(text).digest() + hashlib.sha256(packed).digest()).hexdigest()
    return _encoded(text, packed, vocabulary, Path(tempfile.gettempdir()) / f"tokens-{digest[:32]}.npy"), text_key(text)


@lru_cache(maxsize=2)
def _encoded(text: bytes, packed: bytes, vocabulary: int, kept: Path) -> np.ndarray:
    try:
        return np.load(kept)
    except (OSError, ValueError, EOFError):  # not there yet, or cut off by a crash: encode it again
        tokens = encode(unpack_tokenizer(packed, vocabulary), text)
    with tempfile.NamedTemporaryFile(dir=kept.parent, suffix=".npy", delete=False) as fresh:
        np.save(fresh, tokens)
    os.replace(fresh.name, kept)
    return tokens


def encode(tokenizer: Tokenizer, text: bytes) -> np.ndarray:
    """Tokens as uint16."""
    return np.array(tokenizer.encode(text.decode("utf-8", "replace")).ids, np.uint16)
