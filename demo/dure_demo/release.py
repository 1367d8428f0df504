"""The model becomes a release: drawn up by the administrator, signed by enough members, entered into the log, and checked by a stranger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dure_demo.audit import wait_for_mirror
from dure_demo.bare import Bare
from dure_demo.consortium import Consortium, StepFailed

NAME = "titan-demo"
ABOUT = """\
title = "Titan demo"
summary = "The model of `dure demo`: trained in minutes on one machine, to show how it is done."
intended_use = "None but to look at."
limitations = "It has seen very little data."
"""


def release(consortium: Consortium, model: Path, target: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Makes, signs and publishes a release of an exported model; every process still runs. Adds `release`.

    Raises:
        StepFailed: a step ended with an error, or one signature too few was enough.
    """
    shutil.rmtree(target, ignore_errors=True)
    hub, about = consortium.dir_of("coordinator"), consortium.root / "about.toml"
    about.write_text(ABOUT)
    made = json.loads(
        consortium.dure("release", "create", model, "--name", NAME, "--out", target, "--about", about, "--json", "--dir", hub)
    )
    signatures = [_signed(consortium, member, target) for member in consortium.members[: made["needed"]]]
    say(f"candidate {target}: every fact in it compared by {len(signatures)} members with their own mirror of the log, and signed")
    say(f"one signature too few: {_refused(consortium, target, signatures[:-1])}")
    told = json.loads(consortium.dure("release", "publish", target, *signatures, "--json", "--dir", hub, timeout_s=120))
    say(f"published: entry {told['index']} of the log, signed by {', '.join(told['signed_by'])}")
    return {"release": str(target)}


def _signed(consortium: Consortium, member: str, target: Path) -> Path:
    wait_for_mirror(consortium, member)
    keys = consortium.dir_of(f"{member}/member")
    told = consortium.dure(
        "release", "sign", target, "--node", consortium.dir_of(f"{member}/node"), "--yes", "--json", "--dir", keys, timeout_s=120
    )
    return Path(json.loads(told)["signature"])


def _refused(consortium: Consortium, target: Path, signatures: list[Path]) -> str:
    try:
        consortium.dure("release", "publish", target, *signatures, "--dir", consortium.dir_of("coordinator"))
    except StepFailed as failed:
        return str(failed).splitlines()[-1].removeprefix("error: ")
    raise StepFailed("a release that too few members signed was published")


def check_release(auditor: Bare, target: Path, pin: str, say: Callable[[str], None]) -> None:
    """A stranger with the pin and the folder: it holds, and with one flipped bit of a weight it does not.

    Raises:
        StepFailed: it does not hold, or the flipped one does.
    """
    told = json.loads(auditor.dure("release", "verify", target, "--root-sha256", pin, "--json"))
    for row in told["table"]:
        say(f"{row['how']:<14} {row['claim']}: {row['detail']}")
    weights = target / "model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        auditor.dure("release", "verify", target, "--root-sha256", pin)
    except StepFailed as failed:
        say(f"one flipped bit: {str(failed).splitlines()[-1].removeprefix('error: ')}")
    else:
        raise StepFailed("a release with one flipped bit verified")
    finally:
        weights.write_bytes(whole)
