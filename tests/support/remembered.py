"""Signatures that were verified once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dure import ed25519


@contextmanager
def remembered_signatures() -> Iterator[None]:
    """A verification is a pure function: what a good log and all its twins share is verified once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ed25519, "verifies", functools.lru_cache(maxsize=1 << 16)(ed25519.verifies))
        yield
