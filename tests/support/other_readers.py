"""Readers of our log that we did not write, Go's x/mod/sumdb and tlog-scales: given a place and public keys, each says yes or no."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlog_scales import tiles
from tlog_scales.backend import HttpBackend, LocalBackend
from tlog_scales.reader import TilesReader
from tlog_scales.signing import Vkey, VkeySet
from tlog_scales.tlog import ConsistencyProof, InclusionProof

SOURCE = Path(__file__).resolve().parents[1] / "contract" / "sumdb"
GOPATH = Path("/usr/share/gocode")
"""Where Debian's golang-golang-x-mod-dev puts its sources."""


class Rejected(Exception):
    """The reader does not accept the log; its own words."""


@dataclass(frozen=True)
class Checks:
    """What a reader is told beforehand, and the proofs of ours it must accept."""

    log: str
    """vkey"""
    witnesses: tuple[str, ...]
    """vkeys"""
    quorum: int
    records: tuple[tuple[int, Sequence[bytes]], ...] = ()
    """(index, inclusion proof in the newest tree)."""
    trees: tuple[tuple[int, bytes, Sequence[bytes]], ...] = ()
    """(older size, its root, consistency proof to the newest tree)."""
    step: int = 1
    """tlog-scales proves every so many-th entry; Go hashes all."""


def go_missing() -> str:
    """Why Go cannot read anything here; "" if it can. Nothing is installed by asking."""
    if shutil.which("go") is None:
        return "Go is not installed (Debian: golang-go)"
    if not (GOPATH / "src/golang.org/x/mod/sumdb/tlog").is_dir():
        return "Go's x/mod is not installed (Debian: golang-golang-x-mod-dev)"
    return ""


@dataclass(frozen=True)
class GoSumdb:
    """The program in tests/contract/sumdb, built."""

    program: Path

    @staticmethod
    def build(folder: Path) -> GoSumdb:
        made = folder / "sumdb"
        environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(GOPATH), "GOCACHE": str(folder / "cache"), "GOFLAGS": ""}
        subprocess.run(["go", "build", "-o", made, "."], cwd=SOURCE, env=environment, check=True, timeout=110)
        return GoSumdb(made)

    def read(self, location: str, checks: Checks) -> dict[str, Any]:
        told = {
            "Log": checks.log,
            "Witnesses": checks.witnesses,
            "Quorum": checks.quorum,
            "Records": [{"Index": index, "Path": _texts(path)} for index, path in checks.records],
            "Trees": [{"Old": old, "Root": _texts([root])[0], "Path": _texts(path)} for old, root, path in checks.trees],
        }
        done = subprocess.run([self.program, location], input=json.dumps(told), capture_output=True, text=True, timeout=60)
        if done.returncode:
            assert done.returncode == 1, f"the program broke: {done.stderr}"
            raise Rejected(done.stderr)
        return dict(json.loads(done.stdout))


def _texts(hashes: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(h).decode() for h in hashes]


class TlogScales:
    """The package tlog-scales: its checkpoint, signatures, tiles and proofs; it makes a proof of each entry and checks it."""

    def read(self, location: str, checks: Checks) -> dict[str, Any]:
        try:
            return self._read(location, checks)
        except AssertionError:
            raise
        except Exception as error:  # the package has no tree of errors; whatever ends its reading is its no
            raise Rejected(f"{type(error).__name__}: {error}") from error

    def _read(self, location: str, checks: Checks) -> dict[str, Any]:
        reader = TilesReader(HttpBackend(location) if location.startswith("http") else LocalBackend(Path(location)))
        head = reader.get_checkpoint()
        log = Vkey.from_string(checks.log)
        head.verify(log)
        found = VkeySet(*map(Vkey.from_string, checks.witnesses)).verify(head.signatures, head)
        if head.origin != log.name or len(found) < checks.quorum or reader.calculate_root_hash() != head.root_hash:
            raise Rejected(f"origin {head.origin}, {len(found)} cosignatures, root {reader.calculate_root_hash().hex()}")
        for index, path in checks.records:
            InclusionProof(index, head.size, list(path)).check(tiles.leaf_hash(reader.get_entry(index)), head.root_hash)
            if reader.get_inclusion_proof(index, head.size).node_hashes != list(path):
                raise Rejected(f"inclusion of {index}: its own proof differs")
        for old, root, path in checks.trees:
            ConsistencyProof(old, head.size, list(path)).check(root, head.root_hash)
            if reader.get_consistency_proof(old, head.size).node_hashes != list(path):
                raise Rejected(f"consistency from {old}: its own proof differs")
        for index in range(0, head.size, checks.step):
            leaf = tiles.leaf_hash(reader.get_entry(index))
            reader.get_inclusion_proof(index, head.size).check(leaf, head.root_hash)
        return {"size": head.size, "cosigned": len(found)}
