"""Others' text where it is shown: on a terminal, in a report, in a model card."""

from __future__ import annotations

import json
import re

_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""What steers a terminal or another line's reading order, and halves of characters, which cannot be written at all."""


def plain(text: str) -> str:
    """Text of others' files, as it may be shown: what would move the cursor, forge a line or hide itself is written as JSON writes it."""
    return _UNSEEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def plain_lines(text: str) -> str:
    """The same of text that is lines of ours: their ends stay."""
    return "\n".join(map(plain, text.split("\n")))
