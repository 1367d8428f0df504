"""Where a role keeps its copy of the log: a coordinator's own, or a node's mirror. Read only; works while the daemon runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dure.charter import root
from dure.charter.consortium import ConsortiumFile
from dure.charter.log_keys import judging, log_keys
from dure.charter.model import Charter
from dure.errors import BadInput
from dure.tlog.checkpoint import Head
from dure.tlog.files import CHECKPOINT, COSIGNED, LogFiles
from dure.tlog.tiles import TiledTree

MARKERS = ("coordinator.json", "node.json")


@dataclass(frozen=True)
class LogPlace:
    """A log on this machine, and by which charter it is read."""

    directory: Path
    charters: tuple[Charter, ...]
    roots: tuple[bytes, ...]

    @property
    def charter(self) -> Charter:
        """The newest version here."""
        return self.charters[-1]

    @property
    def pin(self) -> bytes:
        """Digest of charter version 1."""
        return root.digest(root.parse(self.roots[0]))

    @property
    def folder(self) -> Path:
        return self.directory / "log"

    @property
    def head_name(self) -> str:
        """File of the newest head here that a quorum cosigned."""
        return COSIGNED if (self.directory / "node.json").exists() else CHECKPOINT

    def head(self) -> Head:
        """The newest head here that a quorum cosigned.

        Raises:
            BadInput: there is none yet.
            NoteRefused, CheckpointRefused: it does not verify.
        """
        path = self.folder / self.head_name
        if not path.exists():
            raise BadInput("the log has no cosigned head here yet; it gets one once enough members' nodes are connected")
        raw = path.read_bytes()
        return judging(self.charters, raw).open(raw)

    def tree(self) -> TiledTree:
        """The log's files, checked against the head they were written for; of at least the size of `head`.

        Raises:
            LogDamaged: they do not give it.
        """
        newest, *former = log_keys(self.charters)
        files = LogFiles(self.folder, newest, former=former)
        return files.tree(files.published.checkpoint.size if files.published else 0)


def log_of(directory: Path) -> LogPlace:
    """The log in a role's folder.

    Raises:
        BadInput: it is no coordinator's and no node's, or no charter is published yet.
    """
    if not any((directory / marker).exists() for marker in MARKERS):
        raise BadInput(f"{directory} holds no coordinator and no node; give one's folder with --dir")
    path = directory / "consortium.json"
    if not path.exists():
        raise BadInput(f"{path} is not there: publish a charter first (`dure charter --help`)")
    file = ConsortiumFile.load(path)
    return LogPlace(directory, file.charters(None), tuple(file.roots))
