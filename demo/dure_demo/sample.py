"""`make sample-bundle`: a small consortium's history, model and release, for auditors to practise on.

Four members train `apps/digits` for two rounds from weights they draw together, release the model and export the bundle. Every step is
a command of the product; what is left are three things an auditor would get: a bundle, a release and the 64 digits to compare.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dure.errors import Conflict, DureError, Unavailable
from dure_demo.consortium import Consortium
from dure_demo.release import release

MEMBERS = ("bank", "clinic", "mill", "port")
RULES = 'initial = ["*.bias constant 0", "* normal 0.17"]\n'
ROUNDS = 2
LIMIT_S = 120.0


def build(out: Path, say: Callable[[str], None], play: type[Consortium] = Consortium) -> None:
    """Makes `out` with bundle/, release/ and root-sha256. Half a minute; `play` is how its commands are run.

    Raises:
        Conflict: `out` is there already.
        DureError: a step failed; its command and last words.
    """
    if out.exists():
        raise Conflict(f"{out} is there already; remove it, or name another folder")
    work = out.with_name(f".{out.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    consortium = play(work / "c", MEMBERS, say)
    try:
        consortium.found(label="sample")
        consortium.serve()
        for member in MEMBERS:
            consortium.start_node(member)
        run = _trained(consortium, work / "app", say)
        consortium.export(run, work / "model")
        release(consortium, work / "model", work / "made" / "release", say)
        bundle, hub = work / "made" / "bundle", consortium.dir_of("coordinator")
        told = json.loads(
            consortium.dure("audit", "export", "--run", run, "--level", "3", "--dir", hub, "--out", bundle, "--json", timeout_s=60)
        )
        say(f"bundle: {told['entries']} entries, {told['parts']} parts of the run")
        (work / "made" / "root-sha256").write_text(told["root_sha256"] + "\n")
        (work / "made").rename(out)
    finally:
        consortium.stop()
        shutil.rmtree(work, ignore_errors=True)


def _trained(consortium: Consortium, app: Path, say: Callable[[str], None]) -> str:
    """The id of a finished run."""
    source = Path(__file__).resolve().parents[2] / "apps" / "digits"
    shutil.copytree(source, app, ignore=shutil.ignore_patterns("__pycache__"))
    project = app / "pyproject.toml"
    project.write_text(project.read_text() + RULES)  # [tool.dure] is its last table
    run, plan = consortium.run_start(app, rounds=ROUNDS, settings={}, outer_step="average")
    for member in MEMBERS:
        consortium.allow(member, plan)
    say(f"run {run[:12]}: every operator allowed the plan")
    deadline = time.monotonic() + LIMIT_S
    while (shown := consortium.run_show(run))["state"] != "finished":
        if shown["state"] == "aborted" or time.monotonic() > deadline:
            raise Unavailable(f"the run did not finish: {shown.get('reason')}")
        time.sleep(0.2)
    return run


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("sample-bundle"), help="folder to make (default: sample-bundle)")
    out = parser.parse_args().out.resolve()
    try:
        build(out, lambda line: print(f"   {line}", flush=True))
    except DureError as failed:
        print(f"error: {failed}", file=sys.stderr)
        return failed.exit_code
    print(f"{out}: bundle, release, root-sha256; next: docs/guide-auditor.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
