"""A bundle's parts of a run, each in turn changed as somebody would who hides something: what an audit at level 3 finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dure.audit import level2
from dure.audit.bundle import Bundle
from dure.audit.level1 import Result, verify
from dure.audit.level3 import add_up

Change = Callable[[bytes], bytes]
CHANGES: dict[str, Change] = {
    "first bit": lambda raw: bytes([raw[0] ^ 1]) + raw[1:],
    "bit in the middle": lambda raw: raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 8]) + raw[len(raw) // 2 + 1 :],
    "last bit": lambda raw: raw[:-1] + bytes([raw[-1] ^ 128]),
    "shortened": lambda raw: raw[:-1],
    "halved": lambda raw: raw[: len(raw) // 2],
    "emptied": lambda _raw: b"",
    "lengthened": lambda raw: raw + b"\0",
    "zeroed": lambda raw: bytes(len(raw)),
    "doubled": lambda raw: raw + raw,
    "turned round": lambda raw: raw[::-1],
}


@dataclass
class Rounds:
    """A good bundle and what level 1 said of it; the log is never changed here, so that is said once."""

    bundle: Bundle
    result: Result

    @classmethod
    def of(cls, folder: Path, pin: bytes) -> Rounds:
        bundle = Bundle.open(folder)
        return cls(bundle, verify(bundle, pin, cores=1))

    @property
    def parts(self) -> list[str]:
        """Paths below the bundle's folder."""
        return sorted(p.relative_to(self.bundle.folder).as_posix() for p in self.bundle.folder.glob("rounds/*/*"))

    def findings(self) -> list[str]:
        """What levels 2 and 3 say is wrong or missing now."""
        traced = level2.trace(self.bundle, self.result)
        summed = add_up(self.bundle, traced, threads=1)
        lower = [f"exchange {number}: level {level}" for (_, number), level in summed.levels.items() if level < 3]
        return [f"{f.where}: {f.why}" for f in (*traced.findings, *summed.findings)] + traced.missing + summed.missing + lower

    @contextmanager
    def written(self, changed: dict[str, bytes | None]) -> Iterator[None]:
        """For a while these parts hold something else, or are not there."""
        before = {part: self.path(part).read_bytes() for part in changed}
        try:
            for part, raw in changed.items():
                self.path(part).unlink() if raw is None else self.path(part).write_bytes(raw)
            yield
        finally:
            for part, raw in before.items():
                self.path(part).write_bytes(raw)

    def path(self, part: str) -> Path:
        return self.bundle.folder / part


def masked_anew(uploads: list[bytes]) -> list[bytes]:
    """Two uploads of one sum under another mask, added to the one and taken from the other: their sum stays what it was."""
    noise = np.random.default_rng(7).integers(0, 1 << 16, len(uploads[0]) // 2, np.uint16)
    first, second = (np.frombuffer(raw, "<u2") for raw in uploads)
    return [(first + noise).tobytes(), (second - noise).tobytes()]
